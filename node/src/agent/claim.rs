//! The loop's side of claims: what a new member gets, and what a contested one gets instead.

use std::time::Duration;

use gossip::id::{HostId, MemberId, NetworkId};
use gossip::record::{MemberState, PublicKey};
use netplumb::kernel::{Container, Kernel};
use tokio::time::Instant;

use super::Agent;
use crate::attach::{Call, Claimed, Refusal, RefusalKind, interface, overlap};
use crate::claims::{DEFAULT_SUBNET, Ledger};
use crate::project;
use crate::store::{Entry, Store};

/// How soon a claim that cannot be made yet is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Most own members re-addressed in one second.
pub(super) const READDRESS_PER_TICK: usize = 10;

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// From when on this host may judge who gets a thing; or why it may not.
    pub(super) fn judging_from(&self) -> Result<Instant, String> {
        let unjoined = || {
            let why = self.unjoined.as_deref().unwrap_or("it is joining");
            format!("this host has not joined the region: {why}")
        };
        let joined = self.joined_at.ok_or_else(unjoined)?;
        // Where nobody answers, nobody can make the view whole: waiting would refuse attaches until
        // the others are gone.
        let others = self.view.answering().any(|(host, _)| *host != self.here.host);
        if !self.view.whole && others {
            return Err("the region's records are not known whole yet; are the seeds reachable?".into());
        }
        Ok(joined + self.timings.hold)
    }

    pub(super) fn claim(&mut self, call: Call, container: Container) -> Result<Claimed, Refusal> {
        let Call { network, container: id, request } = call;
        let same = |e: &&Entry| e.netns.cookie == container.netns.cookie && e.boot == self.boot;
        if let Some(entry) = self.journal.live().filter(|e| e.network == network).find(same) {
            return Ok(match entry.state {
                MemberState::Ready => Claimed::Existing(Box::new(entry.clone())),
                _ => {
                    Claimed::Later(Instant::now() + AGAIN, "another call is attaching this container".into())
                }
            });
        }
        if let Some(entry) = self.journal.find(network, &id) {
            let detail =
                format!("container {id} is member {} of {network} with another namespace", entry.member);
            return Err(
                Refusal::new(RefusalKind::Conflict, detail).hint("detach it first, or give another --id")
            );
        }
        if let Some(twin) = self.view.twin {
            let detail =
                format!("another machine at {twin} runs as host {}: this one is fenced", self.here.host);
            return Err(
                Refusal::new(RefusalKind::Conflict, detail).hint("give one of the two its own certificate")
            );
        }
        match self.judging_from() {
            Ok(from) if from <= Instant::now() => {}
            Ok(from) => return Ok(Claimed::Later(from, "this host has only just joined the region".into())),
            Err(why) => return Ok(Claimed::Later(Instant::now() + AGAIN, why)),
        }
        if self.journal.live().count() >= gossip::record::MEMBERS_MAX {
            let detail =
                format!("this host has {} members, the most one host may have", gossip::record::MEMBERS_MAX);
            return Err(Refusal::new(RefusalKind::Conflict, detail));
        }
        if container.leftovers && !self.journal.all().any(|e| same(&e)) {
            return Ok(Claimed::Leftovers);
        }
        let claim = self.ledger.network(network, DEFAULT_SUBNET);
        overlap(&container, network, claim.subnet)?;
        let promised = |name: &str| self.journal.live().filter(same).any(|e| e.ifname == name);
        let ifname = interface(request.ifname.as_deref(), &container, promised)?;
        let ordinal = self.ordinal(network, &request)?;
        let hosts: Vec<HostId> = self.view.hosts.keys().cloned().collect();
        let address = match request.address {
            Some(asked) => self.ledger.chosen_address(network, claim.subnet, asked).map_err(conflict)?,
            None => self
                .ledger
                .address(network, claim.subnet, &self.here.host, &hosts, &mut rand::rng())
                .map_err(conflict)?,
        };
        let mtu = project::wireguard_mtu(&self.view, &self.here);
        let private_key = netplumb::state::PrivateKey::generate();
        let entry = Entry {
            member: MemberId::random(),
            container: id,
            network,
            claim,
            app: request.app,
            process: request.process,
            ordinal: Some(ordinal),
            ordinal_chosen: request.ordinal.is_some(),
            netns: container.netns,
            inode: container.inode,
            boot: self.boot.clone(),
            ifname,
            address,
            address6: (container.ipv6 && mtu >= project::IPV6_MTU_MIN)
                .then(|| project::address6(network, address)),
            public_key: PublicKey(private_key.public().0),
            private_key,
            state: MemberState::Joining,
            counter: self.ledger.next_counter(),
        };
        self.journal.insert(entry.clone());
        Ok(Claimed::New(Box::new(entry), self.hosts_of(network)))
    }

    pub(super) fn ordinal(
        &self,
        network: NetworkId,
        request: &crate::attach::Request,
    ) -> Result<u32, Refusal> {
        let Some(asked) = request.ordinal else {
            return Ok(self.ledger.ordinal(network, request.app, &request.process));
        };
        match self.ledger.ordinals.get(&(network, request.app, request.process.clone(), asked)) {
            None => Ok(asked),
            Some((host, _, member)) => Err(Refusal::new(
                RefusalKind::Conflict,
                format!("{asked}.{} is held by member {member} on host {host}", request.process),
            )
            .hint("leave --ordinal out for the next free one")),
        }
    }

    /// A built member becomes ready: it is listened for, and its record names only what is programmed.
    pub(super) fn ready(&mut self, member: &MemberId) -> Result<Entry, Refusal> {
        let gone = || Refusal::new(RefusalKind::Conflict, "the member was detached while it was attached");
        let refused = self.context.built.borrow().without_ipv6.contains(member);
        let entry = self.journal.change(member, |e| {
            e.state = MemberState::Ready;
            e.address6 = e.address6.filter(|_| !refused);
        });
        let entry = entry.cloned().ok_or_else(gone)?;
        // Not before it is built: a socket bound while lo is down answers from another address.
        self.names.listen(&entry)?;
        Ok(entry)
    }

    /// Own members follow their network's claim, and take new things for contested ones. Whether
    /// anything changed.
    pub(super) fn yield_contested(&mut self, ledger: &mut Ledger) -> bool {
        if self.gossip.is_none() {
            return false;
        }
        let mut changed = Vec::new();
        let hosts: Vec<HostId> = self.view.hosts.keys().cloned().collect();
        let live: Vec<Entry> = self.journal.live().cloned().collect();
        for mut entry in live {
            let before = entry.clone();
            if let Some(claim) = ledger.networks.get(&entry.network) {
                entry.claim = claim.clone();
            }
            let key = (self.here.host.clone(), entry.network, entry.member.clone());
            let outside = !entry.claim.subnet.contains(&entry.address);
            let lost = ledger.contested_addresses.contains(&key) || outside;
            if lost && self.readdresses_left > 0 {
                let subnet = entry.claim.subnet;
                match ledger.address(entry.network, subnet, &self.here.host, &hosts, &mut rand::rng()) {
                    Ok(address) => {
                        self.readdresses_left -= 1;
                        ledger.addresses.insert((entry.network, address), key.clone());
                        tracing::warn!(member = %entry.member, old = %entry.address, new = %address, "address was contested: re-addressed");
                        entry.address = address;
                        entry.address6 = entry.address6.map(|_| project::address6(entry.network, address));
                        entry.counter = ledger.next_counter();
                        self.metrics.conflict("address");
                    }
                    Err(full) => tracing::error!(member = %entry.member, "contested, and {full}"),
                }
            }
            if ledger.contested_ordinals.contains(&key) {
                // A chosen number is never changed behind its caller's back: the member goes
                // without a numbered name until it is free.
                if !entry.ordinal_chosen {
                    let free = ledger.ordinal(entry.network, entry.app, &entry.process);
                    ledger.ordinals.insert((entry.network, entry.app, entry.process.clone(), free), key);
                    entry.ordinal = Some(free);
                    self.metrics.conflict("ordinal");
                }
            }
            if entry != before {
                changed.push(entry);
            }
        }
        for entry in &changed {
            self.journal.change(&entry.member, |e| *e = entry.clone());
            self.write(entry.clone());
        }
        !changed.is_empty()
    }

    /// Writes a changed entry of a member that is promised already; a failure is retried by the
    /// next change and loses no more than the change.
    pub(super) fn write(&mut self, entry: Entry) {
        let store = self.store.clone();
        self.tasks.spawn(async move {
            if let Err(error) = store.put(&entry).await {
                tracing::error!(member = %entry.member, "journal: {error}");
            }
        });
    }
}

fn conflict(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalKind::Conflict, error.to_string())
}
