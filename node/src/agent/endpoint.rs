//! The loop's side of a member whose runtime has no namespace for it yet (libnetwork): its address is
//! claimed first, it is bound to a container then, and taken into it last.

use std::collections::BTreeSet;
use std::time::Duration;

use gossip::id::{HostId, MemberId};
use gossip::record::{MemberState, PublicKey};
use netplumb::kernel::Kernel;
use tokio::time::Instant;

use super::Agent;
use super::claim::again;
use crate::attach::{Binding, Halt, Naming, Refusal, RefusalKind, Reservation, Round};
use crate::claims::desk::{Number, Wanted};
use crate::claims::{DEFAULT_SUBNET, Need, Told};
use crate::store::{Endpoint, Entry, Store};

/// How long an address stays claimed, or an interface made, without a container.
const UNUSED: Duration = Duration::from_secs(60);

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Claims an address for a member that will be named later.
    pub(super) fn reserve(&mut self, asked: Reservation, told: Box<Told>) -> Round<Entry> {
        if let Some(why) = self.barred()? {
            return Err(Halt::Later(told, again(), why));
        }
        let network = asked.network;
        let known = self.ledger.networks.get(network).map(|claim| claim.subnet);
        let need = Need {
            network,
            subnet: known.or(asked.subnet).unwrap_or(DEFAULT_SUBNET),
            address: asked.address.map_or(Wanted::Any, Wanted::Chosen),
            number: None,
        };
        let things = self.find(&need, told)?;
        let address =
            things.address.ok_or_else(|| Refusal::new(RefusalKind::Failed, "no address was given"))?;
        let private_key = netplumb::state::PrivateKey::generate();
        let member = MemberId::random();
        let entry = Entry {
            container: format!("reserved-{address}"),
            network,
            claim: things.claim,
            app: Entry::nobody(),
            process: crate::attach::web(),
            ordinal: None,
            ordinal_chosen: false,
            netns: asked.host.netns,
            inode: asked.host.inode,
            boot: self.boot.clone(),
            ifname: format!("wh{}", &member.as_str()[..12]),
            member,
            address,
            address6: None,
            ipv6: false,
            public_key: PublicKey(private_key.public().0),
            private_key,
            ports: Vec::new(),
            state: MemberState::Joining,
            counter: self.ledger.next_counter(),
            endpoint: Some(Endpoint::Reserved),
        };
        self.journal().insert(entry.clone());
        Ok(entry)
    }

    /// Says whose a reserved address is, and gives that member its number. Done a second time it changes nothing.
    pub(super) fn bind(&mut self, binding: Binding, told: Box<Told>) -> Round<(Entry, Vec<HostId>)> {
        let (network, address) = (binding.network, binding.address);
        let at_address = |e: &&Entry| e.network == network && e.address == address;
        let entry = self.journal.live().find(at_address).cloned();
        let entry = match entry {
            Some(entry) if entry.endpoint == Some(Endpoint::Reserved) => entry,
            Some(entry) if entry.endpoint_id() == Some(&binding.endpoint) => {
                let hosts = self.hosts_of(network);
                return Ok((entry, hosts));
            }
            Some(entry) => {
                let detail = format!("{address} is held by container {}", entry.container);
                return Err(Refusal::new(RefusalKind::Conflict, detail).into());
            }
            None => {
                let detail = format!("{address} was not asked for within the last {} s", UNUSED.as_secs());
                let refusal = Refusal::new(RefusalKind::NotFound, detail);
                return Err(refusal.hint("start the container again").into());
            }
        };
        let entry = match binding.naming {
            Some(naming) => self.named(&entry, naming, told)?,
            None => Entry { container: format!("endpoint-{:.12}", binding.endpoint), ..entry },
        };
        let endpoint = Some(Endpoint::Held { id: binding.endpoint, sandbox: binding.sandbox });
        let entry = Entry { endpoint, ..entry };
        self.journal().change(&entry.member, |e| *e = entry.clone());
        Ok((entry, self.hosts_of(network)))
    }

    /// Says who a bound member is, unless that was said before.
    pub(super) fn name(&mut self, member: &MemberId, naming: Naming, told: Box<Told>) -> Round<Entry> {
        let entry = self.journal.live().find(|e| e.member == *member).cloned();
        let entry = entry.ok_or_else(|| Refusal::new(RefusalKind::NotFound, "the member ended meanwhile"))?;
        if entry.is_named() {
            return Ok(entry);
        }
        let named = self.named(&entry, naming, told)?;
        self.journal().change(member, |e| *e = named.clone());
        Ok(named)
    }

    /// An entry under a name, with a number that nobody else has.
    fn named(&mut self, entry: &Entry, naming: Naming, told: Box<Told>) -> Round<Entry> {
        let number = Number { app: naming.app, process: naming.process.clone(), chosen: naming.ordinal };
        let need = Need {
            network: entry.network,
            subnet: entry.claim.subnet,
            address: Wanted::Nothing,
            number: Some(number),
        };
        let things = self.find(&need, told)?;
        Ok(Entry {
            container: naming.container,
            app: naming.app,
            process: naming.process,
            ordinal: things.ordinal,
            ordinal_chosen: naming.insists && naming.ordinal.is_some(),
            ports: naming.ports,
            ..entry.clone()
        })
    }

    /// A runtime has taken a held member into its container, as `entry` says.
    pub(super) fn take(&mut self, entry: Entry) {
        let Entry { netns, inode, ifname, endpoint, address6, ipv6, .. } = entry;
        self.journal().change(&entry.member, |e| {
            if e.is_held() {
                (e.netns, e.inode, e.ifname) = (netns, inode, ifname);
                (e.endpoint, e.address6, e.ipv6) = (endpoint, address6, ipv6);
            }
        });
    }

    /// Ends what a runtime asked for and never used.
    pub(super) fn drop_unused(&mut self) {
        let unused = |e: &&Entry| e.is_held() || e.endpoint == Some(Endpoint::Reserved);
        let waiting: BTreeSet<MemberId> =
            self.journal.live().filter(unused).map(|e| e.member.clone()).collect();
        let now = Instant::now();
        self.unused.retain(|member, _| waiting.contains(member));
        for member in waiting {
            self.unused.entry(member).or_insert(now);
        }
        let over: Vec<MemberId> =
            self.unused.iter().filter(|(_, since)| now - **since >= UNUSED).map(|(m, _)| m.clone()).collect();
        for entry in over.iter().filter_map(|member| self.journal.get(member)).cloned() {
            tracing::warn!(member = %entry.member, address = %entry.address, "no runtime took it: released");
            self.unused.remove(&entry.member);
            let context = self.context.clone();
            self.tasks.spawn(async move {
                if let Err(error) = context.detach(entry).await {
                    tracing::warn!("release of what no runtime took: {error}");
                }
            });
        }
    }
}
