//! Names served here: a zone for each network with members on this host, a listener for each
//! container, and what each container may see.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use gossip::View;
use gossip::id::NetworkId;
use gossip::record::MemberState;
use netplumb::state::NetnsRef;
use resolver::{Answers, Counters, Forwarder, Limits, Listener, Scope, Service, Sockets, Zone, ZoneMember};
use tokio::sync::watch;

use crate::attach::{Refusal, RefusalKind};
use crate::claims::Ledger;
use crate::config::{Config, Dns};
use crate::journal::Journal;
use crate::project;
use crate::store::Entry;

/// Opens the DNS sockets in a container's namespace; none where names are not served.
pub type Listen = fn(&NetnsRef, SocketAddrV4) -> io::Result<Option<Sockets>>;

/// The zones and listeners of one agent.
pub struct Names {
    dns: Dns,
    open: Listen,
    service: Service,
    zones: Arc<BTreeMap<NetworkId, Arc<Zone>>>,
    /// What each zone was built from: a zone that would be the same is not built again.
    contents: BTreeMap<NetworkId, Vec<ZoneMember>>,
    /// By the cookie of the container's namespace.
    containers: BTreeMap<u64, Container>,
    synced: bool,
}

struct Container {
    scope: watch::Sender<Arc<Scope>>,
    networks: BTreeSet<NetworkId>,
    // A socket pins the container's namespace: dropped with the last membership.
    _listener: Option<Listener>,
}

impl Names {
    /// Names as configured; upstreams are followed from now on. Needs a tokio runtime.
    pub fn new(config: &Config, open: Listen) -> Names {
        let forwarder = match (&config.dns.upstreams, config.dns.forward) {
            (_, false) => Forwarder::none(),
            (Some(upstreams), true) => Forwarder::new(watch::channel(upstreams.clone()).1),
            (None, true) => {
                let (write, read) = watch::channel(Vec::new());
                tokio::spawn(resolver::follow_upstreams("/etc/resolv.conf".into(), write));
                Forwarder::new(read)
            }
        };
        Names {
            dns: config.dns.clone(),
            open,
            service: Service { forwarder, counters: Arc::default(), limits: Limits::default() },
            zones: Arc::default(),
            contents: BTreeMap::new(),
            containers: BTreeMap::new(),
            synced: false,
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
        let sockets = (self.open)(&entry.netns, self.dns.listener()).map_err(|error| {
            let detail = format!("cannot listen on {} in the container: {error}", self.dns.listener());
            Refusal::new(RefusalKind::Failed, detail)
                .hint("set `dns.listen` to a loopback address that is free there")
        })?;
        let networks = BTreeSet::from([entry.network]);
        let (scope, scopes) = watch::channel(Arc::new(self.scope(&networks)));
        let serve = |sockets| Listener::serve(sockets, scopes, self.service.clone());
        let listener = sockets.map(serve).transpose().map_err(|error| {
            Refusal::new(RefusalKind::Failed, format!("cannot serve names in the container: {error}"))
        })?;
        self.containers.insert(entry.netns.cookie, Container { scope, networks, _listener: listener });
        Ok(())
    }

    /// Makes zones, scopes and listeners follow the view and the journal. Of the networks only those
    /// that `touched` says have changed are looked at.
    pub fn follow(
        &mut self,
        view: &View,
        ledger: &Ledger,
        journal: &Journal,
        touched: impl Fn(&NetworkId) -> bool,
    ) {
        // A view that is not whole but holds hosts is the persisted one: better than silence.
        let synced = view.whole || view.hosts.len() > 1;
        if !self.build(view, ledger, journal, touched) && (self.synced || !synced) {
            return;
        }
        self.synced |= synced;

        let mut wanted: BTreeMap<u64, (BTreeSet<NetworkId>, &Entry)> = BTreeMap::new();
        for entry in journal.durable().filter(|e| e.state == MemberState::Ready) {
            let container = wanted.entry(entry.netns.cookie).or_insert_with(|| (BTreeSet::new(), entry));
            container.0.insert(entry.network);
        }
        self.containers.retain(|cookie, _| wanted.contains_key(cookie));
        for (cookie, (networks, entry)) in wanted {
            if let Err(refusal) = self.listen(entry) {
                tracing::warn!(container = %entry.container, "{refusal}");
                continue;
            }
            let scope = Arc::new(self.scope(&networks));
            if let Some(container) = self.containers.get_mut(&cookie) {
                container.networks = networks;
                container.scope.send_replace(scope);
            }
        }
    }

    /// Whether something was touched.
    fn build(
        &mut self,
        view: &View,
        ledger: &Ledger,
        journal: &Journal,
        touched: impl Fn(&NetworkId) -> bool,
    ) -> bool {
        let here: BTreeSet<NetworkId> = journal.live().map(|e| e.network).collect();
        let same = |network: &NetworkId| here.contains(network) && !touched(network);
        if here.len() == self.zones.len() && self.zones.keys().all(same) {
            return false;
        }
        let mut zones = BTreeMap::new();
        let mut contents = BTreeMap::new();
        for network in here {
            let last = self.zones.get(&network).zip(self.contents.remove(&network));
            let last = last.map(|(zone, members)| (zone.clone(), members));
            let built = match last {
                Some(last) if !touched(&network) => Ok(last),
                last => {
                    let members = project::zone_members(view, ledger, network);
                    match last.filter(|(_, before)| *before == members) {
                        Some(last) => Ok(last),
                        None => self
                            .zone(network, &members, ledger, journal)
                            .map(|zone| (Arc::new(zone), members)),
                    }
                }
            };
            match built {
                Ok((zone, members)) => {
                    zones.insert(network, zone);
                    contents.insert(network, members);
                }
                Err(error) => tracing::error!(%network, "names cannot be served: {error}"),
            }
        }
        self.zones = Arc::new(zones);
        self.contents = contents;
        true
    }

    fn zone(
        &self,
        network: NetworkId,
        members: &[ZoneMember],
        ledger: &Ledger,
        journal: &Journal,
    ) -> Result<Zone, resolver::ZoneError> {
        let own = journal.live().find(|e| e.network == network).map(|e| e.claim.subnet);
        let subnet = ledger.networks.get(network).map(|n| n.subnet).or(own);
        Zone::build(
            &network.to_string(),
            &self.dns.zone,
            self.dns.ttl_s,
            project::serial(members),
            subnet.unwrap_or(crate::claims::DEFAULT_SUBNET),
            members,
        )
    }

    fn scope(&self, networks: &BTreeSet<NetworkId>) -> Scope {
        scope(&self.dns, networks.iter().filter_map(|n| self.zones.get(n)).cloned().collect(), self.synced)
    }
}

/// What a container in these networks may see.
pub fn scope(dns: &Dns, zones: Vec<Arc<Zone>>, synced: bool) -> Scope {
    let answers = if synced { Answers::Zones(zones) } else { Answers::NotReady };
    let name_server: Ipv4Addr = dns.listen;
    Scope::new(&dns.zone, name_server, answers, dns.forward)
        .unwrap_or_else(|error| unreachable!("the zone was checked with the configuration: {error}"))
}
