//! Names served here: a zone for each network with members on this host, a listener for each
//! container, and what each container may see.

mod kept;
mod roll;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use gossip::View;
use gossip::id::NetworkId;
use gossip::record::MemberState;
use netplumb::state::NetnsRef;
use resolver::{Answers, Counters, Forwarder, Limits, Listener, Scope, Service, Sockets, Zone};
use tokio::sync::watch;
use tokio::time::Instant;

pub use self::kept::Kept;
use crate::attach::{Refusal, RefusalKind};
use crate::claims::{Extent, Ledger, Touched};
use crate::config::Dns;
use crate::journal::Journal;
use crate::store::Entry;
use roll::Roll;

/// How long after a change more of them are expected: a redeploy takes its time.
const CHANGING: Duration = Duration::from_secs(60);
/// The TTL meanwhile, in seconds.
const CHANGING_TTL_S: u32 = 5;
/// How long queries wait after a start for the region's word. What was known last may lack who came since; a client
/// that waits gets the right answer, and one that is told there is no such name does not ask again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where containers' queries arrive.
pub trait Listen: Send + Sync + 'static {
    /// The sockets in a container's namespace, new ones or those of an earlier agent; none where names are not
    /// served.
    ///
    /// # Errors
    /// As [`Sockets::open`].
    fn open(&self, netns: &NetnsRef, listener: SocketAddrV4) -> io::Result<Option<Sockets>>;

    /// Lets go of the sockets of all containers but these, named by the cookies of their namespaces: a socket pins
    /// a namespace.
    fn retain(&self, cookies: &BTreeSet<u64>);
}

/// Names are not served.
pub struct NotListening;

impl Listen for NotListening {
    fn open(&self, _netns: &NetnsRef, _listener: SocketAddrV4) -> io::Result<Option<Sockets>> {
        Ok(None)
    }

    fn retain(&self, _cookies: &BTreeSet<u64>) {}
}

/// The zones and listeners of one agent.
pub struct Names {
    dns: Dns,
    sockets: Arc<dyn Listen>,
    service: Service,
    zones: Arc<BTreeMap<NetworkId, Arc<Zone>>>,
    /// Who is in each zone.
    rolls: BTreeMap<NetworkId, Roll>,
    /// Until when each network that changed lately is answered with a lower TTL.
    changing: BTreeMap<NetworkId, Instant>,
    /// By the cookie of the container's namespace.
    containers: BTreeMap<u64, Container>,
    synced: bool,
    /// Until when queries wait, as long as they do.
    waiting: Option<Instant>,
}

struct Container {
    /// Its networks, and whether each of them lets other names be passed on.
    sees: (BTreeSet<NetworkId>, bool),
    scope: watch::Sender<Arc<Scope>>,
    // A socket pins the container's namespace: dropped with the last membership.
    _listener: Option<Listener>,
}

impl Names {
    /// Names as configured; upstreams are followed from now on. Needs a tokio runtime.
    pub fn new(dns: &Dns, sockets: Arc<dyn Listen>) -> Names {
        let forwarder = match (&dns.upstreams, dns.forward) {
            (_, false) => Forwarder::none(),
            (Some(upstreams), true) => Forwarder::new(watch::channel(upstreams.clone()).1),
            (None, true) => {
                let (write, read) = watch::channel(Vec::new());
                tokio::spawn(resolver::follow_upstreams("/etc/resolv.conf".into(), write));
                Forwarder::new(read)
            }
        };
        Names {
            dns: dns.clone(),
            sockets,
            service: Service { forwarder, counters: Arc::default(), limits: Limits::default() },
            zones: Arc::default(),
            rolls: BTreeMap::new(),
            changing: BTreeMap::new(),
            containers: BTreeMap::new(),
            synced: false,
            waiting: Some(Instant::now() + PATIENCE),
        }
    }

    /// The zones as served.
    pub fn zones(&self) -> Arc<BTreeMap<NetworkId, Arc<Zone>>> {
        self.zones.clone()
    }

    /// What the listeners counted.
    pub fn counters(&self) -> Arc<Counters> {
        self.service.counters.clone()
    }

    /// Opens the listener of a member's container, if it has none yet.
    pub fn listen(&mut self, entry: &Entry) -> Result<(), Refusal> {
        if self.containers.contains_key(&entry.netns.cookie) {
            return Ok(());
        }
        self.serve(entry, (BTreeSet::from([entry.network]), entry.claim.forwards()))
    }

    fn serve(&mut self, entry: &Entry, sees: (BTreeSet<NetworkId>, bool)) -> Result<(), Refusal> {
        let sockets = self.sockets.open(&entry.netns, self.dns.listener()).map_err(|error| {
            let detail = format!("cannot listen on {} in the container: {error}", self.dns.listener());
            Refusal::new(RefusalKind::Failed, detail)
                .hint("set `dns.listen` to a loopback address that is free there")
        })?;
        let (scope, scopes) = watch::channel(Arc::new(self.scope(&sees)));
        let serve = |sockets| Listener::serve(sockets, scopes, self.service.clone());
        let listener = sockets.map(serve).transpose().map_err(|error| {
            Refusal::new(RefusalKind::Failed, format!("cannot serve names in the container: {error}"))
        })?;
        self.containers.insert(entry.netns.cookie, Container { sees, scope, _listener: listener });
        Ok(())
    }

    /// Makes zones, scopes and listeners follow the view and the journal. Of the networks only those
    /// that `touched` names are looked at, and those that have become calm.
    pub fn follow(&mut self, view: &View, ledger: &Ledger, journal: &Journal, touched: &Touched) {
        // A view that is not whole but holds hosts is the persisted one: better than silence.
        let synced = view.whole || view.hosts.len() > 1;
        let changed = self.follow_zones(view, ledger, journal, touched);
        if let Some(until) = self.waiting {
            if !view.whole && Instant::now() < until {
                self.hold(journal);
                return;
            }
            self.waiting = None;
        } else if changed.is_none() && (self.synced || !synced) {
            return;
        }
        let (changed, woken) = (changed.unwrap_or_default(), synced && !self.synced);
        self.synced |= synced;

        let mut wanted: BTreeMap<u64, ((BTreeSet<NetworkId>, bool), &Entry)> = BTreeMap::new();
        for entry in journal.served().filter(|e| e.state == MemberState::Ready) {
            let (sees, _) =
                wanted.entry(entry.netns.cookie).or_insert_with(|| ((BTreeSet::new(), true), entry));
            sees.0.insert(entry.network);
            sees.1 &= entry.claim.forwards();
        }
        let before = self.containers.len();
        self.containers.retain(|cookie, _| wanted.contains_key(cookie));
        if self.containers.len() < before {
            self.sockets.retain(&self.containers.keys().copied().collect());
        }
        for (cookie, (sees, entry)) in wanted {
            if !self.containers.contains_key(&cookie) {
                if let Err(refusal) = self.serve(entry, sees) {
                    tracing::warn!(container = %entry.container, "{refusal}");
                }
                continue;
            }
            let scope = self.scope(&sees);
            if let Some(container) = self.containers.get_mut(&cookie)
                && (woken || container.sees != sees || !sees.0.is_disjoint(&changed))
            {
                container.sees = sees;
                container.scope.send_replace(Arc::new(scope));
            }
        }
    }

    /// Opens sockets that nobody reads yet: queries wait there.
    fn hold(&self, journal: &Journal) {
        for entry in journal.durable().filter(|e| e.state == MemberState::Ready) {
            if let Err(error) = self.sockets.open(&entry.netns, self.dns.listener()) {
                tracing::debug!(container = %entry.container, "no DNS socket yet: {error}");
            }
        }
    }

    /// Whether time alone makes a difference to [`Names::follow`]: a network has not changed for so long that its TTL
    /// may rise, or the region was waited for long enough.
    pub fn is_due(&self, now: Instant) -> bool {
        self.changing.values().any(|until| *until <= now) || self.waiting.is_some_and(|until| until <= now)
    }

    /// Makes zones follow; gives those that are others now, and nothing where nobody touched a network with members
    /// here.
    fn follow_zones(
        &mut self,
        view: &View,
        ledger: &Ledger,
        journal: &Journal,
        touched: &Touched,
    ) -> Option<BTreeSet<NetworkId>> {
        let now = Instant::now();
        let calm: BTreeSet<NetworkId> =
            self.changing.iter().filter(|(_, until)| **until <= now).map(|(n, _)| *n).collect();
        self.changing.retain(|_, until| *until > now);
        let here: BTreeSet<NetworkId> = journal.live().map(|e| e.network).collect();
        let same = |network: &NetworkId| {
            here.contains(network) && touched.of(network).is_none() && !calm.contains(network)
        };
        if here.len() == self.rolls.len() && self.rolls.keys().all(same) {
            return None;
        }
        let mut zones = BTreeMap::clone(&self.zones);
        zones.retain(|network, _| here.contains(network));
        self.rolls.retain(|network, _| here.contains(network));
        let mut changed = BTreeSet::new();
        for network in here {
            let own = journal.live().find(|e| e.network == network).map(|e| e.claim.subnet);
            let subnet = ledger.networks.get(network).map(|n| n.subnet).or(own);
            let subnet = subnet.unwrap_or(crate::claims::DEFAULT_SUBNET);
            let last = self.rolls.remove(&network);
            let new = last.is_none();
            let roll = last.map_or_else(|| Roll::new(network, &self.dns.zone, self.dns.ttl_s, subnet), Ok);
            let mut roll = match roll {
                Ok(roll) => roll,
                Err(error) => {
                    tracing::error!(%network, "names cannot be served: {error}");
                    continue;
                }
            };
            let extent = if new { Some(&Extent::Whole) } else { touched.of(&network) };
            let moved = extent.is_some_and(|extent| roll.follow(view, ledger, extent)) || new;
            if moved {
                self.changing.insert(network, now + CHANGING);
            }
            let most = if self.changing.contains_key(&network) { CHANGING_TTL_S } else { u32::MAX };
            if roll.set_terms(self.dns.ttl_s.min(most), subnet) || moved {
                zones.insert(network, Arc::new(roll.zone()));
                changed.insert(network);
            }
            self.rolls.insert(network, roll);
        }
        self.zones = Arc::new(zones);
        Some(changed)
    }

    fn scope(&self, (networks, forward): &(BTreeSet<NetworkId>, bool)) -> Scope {
        let zones = networks.iter().filter_map(|n| self.zones.get(n)).cloned().collect();
        scope(&self.dns, zones, self.synced, *forward)
    }
}

/// What a container in these networks may see; `forward` is whether each of them lets other names be passed on.
pub fn scope(dns: &Dns, zones: Vec<Arc<Zone>>, synced: bool, forward: bool) -> Scope {
    let answers = if synced { Answers::Zones(zones) } else { Answers::NotReady };
    let name_server: Ipv4Addr = dns.listen;
    Scope::new(&dns.zone, name_server, answers, dns.forward && forward)
        .unwrap_or_else(|error| unreachable!("the zone was checked with the configuration: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::fixtures::{entry, pn, view};
    use gossip::Standing;
    use gossip::record::Forwarding;
    use hickory_proto::op::{Message, MessageType, OpCode, Query};
    use hickory_proto::rr::{Name, RecordType};

    /// The TTL of the app's own name.
    fn ttl_s(names: &Names) -> u32 {
        let scope = scope(&names.dns, names.zones().values().cloned().collect(), true, true);
        let named = names.zones()[&pn()].names().remove(0).name;
        let mut query = Message::new(1, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(named).unwrap(), RecordType::A));
        let (query, mut reply) = (query.to_vec().unwrap(), Vec::new());
        resolver::answer(&query, &scope, resolver::Transport::Tcp, &mut rand::rng(), &mut reply);
        Message::from_vec(&reply).unwrap().answers[0].ttl
    }

    fn dns() -> Dns {
        Dns { forward: false, ..Dns::default() }
    }

    /// Counts what was opened, and serves nothing.
    #[derive(Default)]
    struct Counting(std::sync::atomic::AtomicUsize);

    impl Listen for Counting {
        fn open(&self, _netns: &NetnsRef, _listener: SocketAddrV4) -> io::Result<Option<Sockets>> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(None)
        }

        fn retain(&self, _cookies: &BTreeSet<u64>) {}
    }

    #[tokio::test(start_paused = true)]
    async fn queries_wait_for_the_region_but_not_for_ever() {
        let (sockets, members) =
            (Arc::new(Counting::default()), [1, 2].map(|n| entry(n, MemberState::Ready)));
        let mut names = Names::new(&dns(), sockets.clone());
        let journal = Journal::restore(members[..1].to_vec(), BTreeMap::new(), Instant::now());
        let both = [("a", Standing::Answering, &members[..1]), ("b", Standing::Answering, &members[1..])];
        let remembered = View { whole: false, ..view(&both) };
        names.follow(&remembered, &Ledger::of(&remembered), &journal, &Touched::everything());
        let opened = sockets.0.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(
            (opened, names.containers.len()),
            (1, 0),
            "the queue is there, and nobody answers from memory"
        );
        assert!(!names.is_due(Instant::now()));

        let mut told = Names::new(&dns(), sockets.clone());
        let whole = View { whole: true, ..view(&both) };
        told.follow(&whole, &Ledger::of(&whole), &journal, &Touched::everything());
        assert_eq!((told.containers.len(), told.synced), (1, true));

        tokio::time::advance(PATIENCE).await;
        assert!(names.is_due(Instant::now()), "memory is better than silence");
        names.follow(&remembered, &Ledger::of(&remembered), &journal, &Touched::default());
        assert_eq!((names.containers.len(), names.synced), (1, true));
        assert!(!names.is_due(Instant::now()));
    }

    #[tokio::test]
    async fn one_network_of_several_is_enough_to_keep_other_names_here() {
        let dns = Dns { upstreams: Some(Vec::new()), ..Dns::default() };
        let mut names = Names::new(&dns, Arc::new(NotListening));
        let other: NetworkId = "pn-5e1b5a3c-9d41-4b0e-8f5e-0b6f2b7f1c22".parse().unwrap();
        let said = |off| Some(Forwarding { counter: 1, off });
        for (first, second, forwards) in
            [(None, said(false), true), (None, said(true), false), (said(true), None, false)]
        {
            let mut members = [1, 2].map(|n| entry(n, MemberState::Ready));
            members[1].network = other;
            (members[1].claim.subnet, members[1].address) =
                ("10.241.0.0/24".parse().unwrap(), [10, 241, 0, 2].into());
            (members[0].claim.forwarding, members[1].claim.forwarding) = (first, second);
            let cookie = members[0].netns.cookie;
            let journal = Journal::restore(members.to_vec(), BTreeMap::new(), Instant::now());
            let view = View { whole: true, ..view(&[("a", Standing::Answering, &members)]) };
            names.follow(&view, &Ledger::of(&view), &journal, &Touched::everything());
            let mut query = Message::new(1, MessageType::Query, OpCode::Query);
            query.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::A));
            let scope = names.containers[&cookie].scope.borrow().clone();
            let query = query.to_vec().unwrap();
            let outcome =
                resolver::answer(&query, &scope, resolver::Transport::Udp, &mut rand::rng(), &mut Vec::new());
            assert_eq!(outcome == resolver::Outcome::Forward, forwards, "{outcome:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_changes_is_kept_for_less_time() {
        let dns = dns();
        let mut names = Names::new(&dns, Arc::new(NotListening));
        let members = [1, 2, 3].map(|n| entry(n, MemberState::Ready));
        let journal = Journal::restore(members[..1].to_vec(), BTreeMap::new(), Instant::now());
        let follow = |names: &mut Names, others: &[Entry], touched: bool| {
            let view = view(&[("a", Standing::Answering, &members[..1]), ("b", Standing::Answering, others)]);
            let touched = if touched { Touched::everything() } else { Touched::default() };
            names.follow(&view, &Ledger::of(&view), &journal, &touched);
            ttl_s(names)
        };
        assert_eq!(follow(&mut names, &members[1..2], true), CHANGING_TTL_S);
        tokio::time::advance(CHANGING - Duration::from_secs(1)).await;
        assert_eq!(follow(&mut names, &members[1..], true), CHANGING_TTL_S);
        // Looked at again, and the same: the minute counts from the change.
        tokio::time::advance(CHANGING - Duration::from_secs(1)).await;
        assert_eq!(follow(&mut names, &members[1..], true), CHANGING_TTL_S);
        assert!(!names.is_due(Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(names.is_due(Instant::now()));
        assert_eq!(follow(&mut names, &members[1..], false), dns.ttl_s);
        assert!(!names.is_due(Instant::now()));
        assert_eq!(follow(&mut names, &members[1..2], true), CHANGING_TTL_S);
    }
}
