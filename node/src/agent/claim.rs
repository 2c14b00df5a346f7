//! The loop's side of an attach: what a new member gets, and when it is ready.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use gossip::id::{MemberId, NetworkId};
use gossip::record::{MEMBERS_MAX, MemberState, PublicKey};
use ipnet::Ipv4Net;
use netplumb::kernel::{Container, Kernel};
use tokio::time::Instant;

use super::Agent;
use crate::attach::{Call, Claimed, Halt, Refusal, RefusalKind, Room, Round, interface};
use crate::claims::desk::{Number, Refused, Wanted};
use crate::claims::{DEFAULT_SUBNET, Need, Told};
use crate::project;
use crate::store::{Entry, Store};

/// How soon a claim that cannot be made yet is tried again.
const AGAIN: Duration = Duration::from_millis(20);

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Claims what a new member needs, or says whom to ask for it.
    pub(super) fn claim(&mut self, call: Call, container: Container, told: Box<Told>) -> Round<Claimed> {
        let Call { network, container: id, request } = call;
        let existing = self.beside(&container).find(|e| e.network == network).cloned();
        if let Some(entry) = existing {
            if entry.state != MemberState::Ready {
                let why = "another call is attaching this container".to_owned();
                return Err(Halt::Later(told, again(), why));
            }
            let claim = self.say_forwarding(network, entry.claim.clone(), request.forward);
            return Ok(Claimed::Existing(Box::new(Entry { claim, ..entry })));
        }
        if let Some(entry) = self.journal.find(network, &id) {
            let detail =
                format!("container {id} is member {} of {network} with another namespace", entry.member);
            let refusal = Refusal::new(RefusalKind::Conflict, detail);
            return Err(refusal.hint("detach it first, or give another --id").into());
        }
        if let Some(why) = self.barred()? {
            return Err(Halt::Later(told, again(), why));
        }
        let subnet = self.ledger.networks.get(network).map_or(DEFAULT_SUBNET, |claim| claim.subnet);
        if self.leaves(&container, subnet) {
            return Ok(Claimed::Leaving(again()));
        }
        if container.leftovers && self.beside(&container).next().is_none() {
            return Ok(Claimed::Leftovers);
        }
        self.room(&container).check(network, subnet)?;
        let promised = |name: &str| self.beside(&container).any(|e| e.ifname == name);
        let ifname = interface(request.ifname.as_deref(), &container, promised)?;
        let need = Need {
            network,
            subnet,
            address: request.address.map_or(Wanted::Any, Wanted::Chosen),
            number: Some(Number {
                app: request.app,
                process: request.process.clone(),
                chosen: request.ordinal,
            }),
        };
        let things = self.find(&need, told)?;
        let address =
            things.address.ok_or_else(|| Refusal::new(RefusalKind::Failed, "no address was given"))?;
        self.room(&container).check(network, things.claim.subnet)?;
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
            address6: self.address6(network, address, container.ipv6),
            ipv6: container.ipv6,
            public_key: PublicKey(private_key.public().0),
            private_key,
            ports: request.ports,
            state: MemberState::Joining,
            counter: self.ledger.next_counter(),
            endpoint: None,
        };
        self.journal().insert(entry.clone());
        Ok(Claimed::New(Box::new(entry), self.hosts_of(network)))
    }

    /// Why this host can claim nothing yet, in words.
    ///
    /// # Errors
    /// It cannot at all.
    pub(super) fn barred(&self) -> Result<Option<String>, Refusal> {
        self.not_fenced()?;
        self.not_draining()?;
        let outside = self.outside();
        if outside.is_none() {
            self.not_full()?;
        }
        Ok(outside)
    }

    /// A member's address in the ULA, if its container and the region's MTU have room for one.
    pub(super) fn address6(&self, network: NetworkId, address: Ipv4Addr, ipv6: bool) -> Option<Ipv6Addr> {
        (ipv6 && self.mtu_takes_ipv6()).then(|| project::address6(network, address))
    }

    /// Own members in a container.
    fn beside(&self, container: &Container) -> impl Iterator<Item = &Entry> {
        let cookie = container.netns.cookie;
        self.journal.live().filter(move |e| e.netns.cookie == cookie && e.boot == self.boot)
    }

    /// Whether an earlier member is on its way out of the container, whose addresses are wanted now.
    fn leaves(&self, container: &Container, subnet: Ipv4Net) -> bool {
        let meets = |e: &Entry| e.claim.subnet.contains(&subnet) || subnet.contains(&e.claim.subnet);
        self.journal.in_kernel().any(|e| {
            e.state == MemberState::Released
                && (e.netns.cookie, &e.boot) == (container.netns.cookie, &self.boot)
                && meets(e)
        })
    }

    fn room<'a>(&'a self, container: &'a Container) -> Room<'a> {
        let beside = self.beside(container).map(|e| (e.network, e.claim.subnet)).collect();
        Room { container, beside, networks: &self.ledger.networks }
    }

    /// Refuses what another machine of this host's name may be doing.
    pub(super) fn not_fenced(&self) -> Result<(), Refusal> {
        let Some(twin) = self.view.twin else { return Ok(()) };
        let detail = format!("another machine at {twin} runs as host {}: this one is fenced", self.here.host);
        Err(Refusal::new(RefusalKind::Conflict, detail).hint("give one of the two its own certificate"))
    }

    /// Why nothing can be claimed yet, in words.
    pub(super) fn outside(&self) -> Option<String> {
        let why = self.unjoined.as_deref().unwrap_or("it is joining");
        self.gossip.is_none().then(|| format!("this host has not joined the region: {why}"))
    }

    fn not_full(&self) -> Result<(), Refusal> {
        if self.journal.all().count() < MEMBERS_MAX {
            return Ok(());
        }
        let live = self.journal.live().count();
        let detail = format!(
            "this host has {live} members and {} that rest after a detach, together the {MEMBERS_MAX} one \
             host may publish",
            MEMBERS_MAX - live
        );
        Err(Refusal::new(RefusalKind::Conflict, detail)
            .hint("attach again when those that rest are free, or use another host"))
    }

    /// A built member becomes ready: it is listened for, and its record names only what is programmed.
    pub(super) fn ready(&mut self, member: &MemberId) -> Result<Entry, Refusal> {
        let gone = || Refusal::new(RefusalKind::Conflict, "the member was detached while it was attached");
        let refused = self.context.built.borrow().without_ipv6.contains(member);
        let entry = self.journal().change(member, |e| {
            if e.is_named() {
                e.state = MemberState::Ready;
            }
            e.ipv6 &= !refused;
            e.address6 = e.address6.filter(|_| !refused);
        });
        let entry = entry.cloned().ok_or_else(gone)?;
        // Not before it is built: a socket bound while lo is down answers from another address.
        self.names.listen(&entry)?;
        Ok(entry)
    }
}

pub(super) fn again() -> Instant {
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
