//! Any bytes, to any scope.

#![no_main]

#[path = "../../tests/checked/mod.rs"]
mod checked;

use std::sync::LazyLock;

static SCOPES: LazyLock<checked::Scopes> = LazyLock::new(checked::Scopes::new);

libfuzzer_sys::fuzz_target!(|input: &[u8]| SCOPES.check(input));
