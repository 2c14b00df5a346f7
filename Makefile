# What people and CI run. `make help` lists it.
SHELL := /bin/bash
CARGO ?= cargo
ROOT  := $(if $(filter 0,$(shell id -u)),,sudo -E)
ONLY  ?= attach
BUILD ?= $(CARGO) build --workspace --bins
PREFIX ?= /usr/local
MUSL  := $(shell uname -m)-unknown-linux-musl

.PHONY: help demo test check fmt unit e2e e2e-kernel chaos clients bench sim fuzz install uninstall deb deb-check static clean deps

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: ## three hosts on this machine, proved line by line (under a minute after the build)
	@.ci/deps demo
	$(CARGO) build --release -p node -p tests --bin warren --bin warren-demo
	target/release/warren-demo

# Every step builds the whole workspace with the same features, the tests' own ones too, so that nothing is built twice.
test: export BUILD = $(CARGO) build --workspace --bins --tests
test: ## everything: lints, unit tables, simulation, contract suites and end-to-end on real namespaces
	@.ci/deps test
	@rm -f target/left-out
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory sim HOSTS=8 SEEDS=1..200
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory e2e-kernel
	@.ci/left-out

check: ## formatting, lints, house rules, licences
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --offline check licenses bans sources; \
	 else mkdir -p target; echo "cargo-deny is not installed (cargo install cargo-deny): licences were not checked" \
	  | tee -a target/left-out; fi

unit: ## tables and properties of every crate
	$(CARGO) test --workspace --lib --bins

e2e: ## contract suites, and hosts of namespaces with real agents and real packets
	$(BUILD)
	CARGO="$(CARGO)" .ci/e2e

e2e-kernel: ## the same stories on the kernel's WireGuard: here, or emulated [KERNEL=linux-image-6.12-cloud-amd64 ONLY=namespaces]
	@tests/kernel/run

chaos: ## agents, engines and paths that come and go under 20 connections: make chaos MINUTES=10 [SEED=7]
	$(BUILD)
	WARREN_CHAOS_MINUTES=$(or $(MINUTES),10) WARREN_CHAOS_SEED=$(SEED) $(CARGO) test --workspace --test chaos -- --nocapture

# Half a gigabyte of compilers and checkers, which `make test` does without: it asks by glibc, musl and dig.
clients: ## names, asked by Go, Node and Java, and by the zone checkers zonemaster and dnsviz
	@.ci/deps clients
	$(CARGO) test -p tests --test clients -- --include-ignored

sim: ## the same node on a simulated region: make sim SEEDS=1..200
	$(BUILD)
	target/debug/simulation $(if $(HOSTS),--hosts $(HOSTS)) --seeds $(or $(SEEDS),1..200)

bench: ## measure against the targets: make bench ONLY=agent,attach,convergence,datapath,dns,runtimes,simulation [HOSTS=1000] [ROUNDS=5]
	@.ci/deps bench
	$(CARGO) build --release -p node -p tests -p simulation --bin warren --bin warren-bench --bin simulation
	target/release/warren-bench $(ONLY)

fuzz: ## fuzz the resolver: make fuzz SECONDS=3600 (needs a nightly compiler and cargo-fuzz)
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	@mkdir -p resolver/fuzz/corpus/answer
	WARREN_CORPUS=$(CURDIR)/resolver/fuzz/corpus/answer $(CARGO) test -p resolver --test corpus
	cd resolver && cargo +nightly fuzz run answer -- -max_total_time=$(or $(SECONDS),60) -max_len=4300

fmt: ## format
	$(CARGO) fmt --all

install: ## the command, its units, manual pages and completions: make install [PREFIX=/usr/local] [DESTDIR=]
	$(CARGO) build --release -p node --bin warren
	$(ROOT) env DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) node/dist/install

uninstall: ## remove what install has installed; certificates, configuration and state stay
	$(ROOT) env DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) node/dist/install --remove

deb: ## a Debian package: target/debian/warren_*.deb (needs cargo-deb)
	@cargo deb --version >/dev/null 2>&1 || { echo "cargo-deb is missing: cargo install cargo-deb" >&2; exit 1; }
	$(CARGO) build --release -p node --bin warren
	node/dist/pages target/release/warren target/dist
	@rm -rf target/debian
	cargo deb -p node --no-build --strip

deb-check: deb ## that package, installed, upgraded and purged on a machine that systemd boots
	@.ci/deps test
	$(BUILD)
	$(CARGO) test --workspace --test package -- --include-ignored

static: ## a binary that needs no libraries: target/*-musl/release/warren (needs rustup and musl-tools)
	@command -v musl-gcc >/dev/null || { echo "musl-gcc is missing: apt-get install musl-tools" >&2; exit 1; }
	@[ -d "$$(rustc --print sysroot)/lib/rustlib/$(MUSL)" ] || rustup target add $(MUSL) \
	 || { echo "Rust has no standard library for $(MUSL) here: rustup target add $(MUSL)" >&2; exit 1; }
	$(CARGO) build --release --target $(MUSL) -p node --bin warren

clean: ## remove what was built
	$(CARGO) clean
