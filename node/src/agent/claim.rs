//! The loop's side of an attach: what a new member gets, and when it is ready.

use std::time::Duration;

use gossip::id::MemberId;
use gossip::record::{MEMBERS_MAX, MemberState, PublicKey};
use netplumb::kernel::{Container, Kernel};
use tokio::time::Instant;

use super::Agent;
use crate::attach::{Call, Claimed, Refusal, RefusalKind, interface, overlap};
use crate::claims::desk::{Refused, Wanted};
use crate::claims::{DEFAULT_SUBNET, Need, Next, Told};
use crate::project;
use crate::store::{Entry, Store};

/// How soon a claim that cannot be made yet is tried again.
const AGAIN: Duration = Duration::from_millis(20);

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Claims what a new member needs, or says whom to ask for it.
    pub(super) fn claim(
        &mut self,
        call: Call,
        container: Container,
        mut told: Box<Told>,
    ) -> Result<Claimed, Refusal> {
        let Call { network, container: id, request } = call;
        let same = |e: &&Entry| e.netns.cookie == container.netns.cookie && e.boot == self.boot;
        let existing = self.journal.live().filter(|e| e.network == network).find(same).cloned();
        if let Some(entry) = existing {
            return Ok(match entry.state {
                MemberState::Ready => {
                    let claim = self.say_forwarding(network, entry.claim.clone(), request.forward);
                    Claimed::Existing(Box::new(Entry { claim, ..entry }))
                }
                _ => Claimed::Later(told, again(), "another call is attaching this container".into()),
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
        if self.gossip.is_none() {
            let why = self.unjoined.as_deref().unwrap_or("it is joining");
            return Ok(Claimed::Later(told, again(), format!("this host has not joined the region: {why}")));
        }
        if self.journal.all().count() >= MEMBERS_MAX {
            let live = self.journal.live().count();
            let detail = format!(
                "this host has {live} members and {} that rest after a detach, together the {MEMBERS_MAX} one \
                 host may publish",
                MEMBERS_MAX - live
            );
            return Err(Refusal::new(RefusalKind::Conflict, detail)
                .hint("attach again when those that rest are free, or use another host"));
        }
        if container.leftovers && !self.journal.live().any(|e| same(&e)) {
            // What a journal entry names is on its way out already.
            let leaving = self.journal.all().any(|e| same(&e));
            return Ok(if leaving { Claimed::Leaving(told, again()) } else { Claimed::Leftovers });
        }
        let subnet = self.ledger.networks.get(network).map_or(DEFAULT_SUBNET, |claim| claim.subnet);
        overlap(&container, network, subnet)?;
        let promised = |name: &str| self.journal.live().filter(same).any(|e| e.ifname == name);
        let ifname = interface(request.ifname.as_deref(), &container, promised)?;
        let need = Need {
            network,
            subnet,
            app: request.app,
            process: request.process.clone(),
            address: request.address.map_or(Wanted::Any, Wanted::Chosen),
            ordinal: request.ordinal.map_or(Wanted::Any, Wanted::Chosen),
        };
        let things = match self.next(&need, &mut told) {
            Next::Have(things) => things,
            Next::Ask(questions) => return Ok(Claimed::Ask(told, questions)),
            Next::Wait(then, why) => return Ok(Claimed::Later(told, then, why)),
            Next::Refused(refused) => return Err(refused.into()),
        };
        let address =
            things.address.ok_or_else(|| Refusal::new(RefusalKind::Failed, "no address was given"))?;
        overlap(&container, network, things.claim.subnet)?;
        let mtu = netplumb::state::wg_mtu(self.mtu);
        let private_key = netplumb::state::PrivateKey::generate();
        let entry = Entry {
            member: MemberId::random(),
            container: id,
            network,
            claim: self.say_forwarding(network, things.claim, request.forward),
            app: request.app,
            process: request.process,
            ordinal: things.ordinal,
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
            ports: request.ports,
            state: MemberState::Joining,
            counter: self.ledger.next_counter(),
        };
        self.journal().insert(entry.clone());
        Ok(Claimed::New(Box::new(entry), self.hosts_of(network)))
    }

    /// A built member becomes ready: it is listened for, and its record names only what is programmed.
    pub(super) fn ready(&mut self, member: &MemberId) -> Result<Entry, Refusal> {
        let gone = || Refusal::new(RefusalKind::Conflict, "the member was detached while it was attached");
        let refused = self.context.built.borrow().without_ipv6.contains(member);
        let entry = self.journal().change(member, |e| {
            e.state = MemberState::Ready;
            e.address6 = e.address6.filter(|_| !refused);
        });
        let entry = entry.cloned().ok_or_else(gone)?;
        // Not before it is built: a socket bound while lo is down answers from another address.
        self.names.listen(&entry)?;
        Ok(entry)
    }
}

fn again() -> Instant {
    Instant::now() + AGAIN
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        let (kind, hint) = match &refused {
            Refused::Outside(..) => (RefusalKind::Conflict, "choose one inside, or leave --address out"),
            Refused::AddressHeld { .. } => (RefusalKind::Conflict, "leave --address out for a free one"),
            Refused::OrdinalHeld { .. } => {
                (RefusalKind::Conflict, "leave --ordinal out for the next free one")
            }
            Refused::Full { .. } => (
                RefusalKind::Conflict,
                "detach members, or attach again when those that rest are free; `warren status` counts them",
            ),
            Refused::Unreachable { .. } | Refused::Unfit { .. } => {
                (RefusalKind::Unready, "attach again; `warren hosts` shows who answers")
            }
        };
        Refusal::new(kind, refused.to_string()).hint(hint)
    }
}
