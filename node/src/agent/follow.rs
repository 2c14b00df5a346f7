//! Everything that follows from the view and the journal: own records, the kernel, names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use gossip::id::NetworkId;
use gossip::record::{HostRecord, Key, MemberState, Record};
use gossip::view::{Host, HostRecords};
use gossip::{Change, View};
use netplumb::kernel::Kernel;
use netplumb::plan::Prune;
use tokio::time::Instant;

use super::reconcile::Wanted;
use super::{Agent, Built, EventKind, Own, Snapshot};
use crate::claims::{Changes, Extent, MemberKey, Touched};
use crate::journal::Journal;
use crate::project::{self, Renewed, Whole, World};
use crate::store::{Entry, Store};

/// A record younger than this makes its readers send the first packet, unless its host has heard that they have it.
const YOUNG: Duration = Duration::from_secs(10);

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Makes everything follow. What did not change is not looked at.
    pub(super) async fn follow(&mut self) {
        let mut touched = Touched::default();
        self.advance(&mut touched);
        if self.follow_claims() | self.follow_mtu() {
            self.advance(&mut touched);
        }
        self.publish().await;
        self.want(&touched);
        self.names.follow(&self.followed, &self.ledger, &self.journal, &touched);
        self.answer_pending();
        self.tell();
        self.settle_contested();
    }

    /// Follows from the last view to the newest.
    fn advance(&mut self, touched: &mut Touched) {
        let own = if self.journal.has_changed() { self.journal().take_changed() } else { BTreeSet::new() };
        let view = self.with_own();
        let old = std::mem::replace(&mut self.followed, view);
        if !Arc::ptr_eq(&old, &self.followed) {
            self.advance_from(&old, touched);
        }
        for network in own {
            self.ledger.open(network, &self.followed);
            touched.whole(network);
        }
    }

    fn advance_from(&mut self, old: &View, touched: &mut Touched) {
        let now = Instant::now();
        let changes = Changes::between(old, &self.followed);
        self.bench.follow(&changes, now);
        let news = self.ledger.follow(&changes);
        for change in &changes.hosts {
            let members = change.new.map(|h| &h.records.members).into_iter().flatten();
            for ((network, _), record) in members.filter(|(_, r)| r.state != MemberState::Released) {
                self.grants.claimed(*network, record);
            }
        }
        if self.gossip.is_some() {
            self.young.extend(news.fresh.into_iter().map(|key| (key, now)));
        }
        let of_region = |view: &View| (view.whole, view.stale, view.cut_off, view.twin);
        touched.extend(news.touched);
        let mut all = of_region(old) != of_region(&self.followed);
        if news.hosts {
            let mtu = project::fabric_mtu(&self.followed, &self.here);
            all |= mtu != self.mtu;
            self.mtu = mtu;
        }
        if all {
            touched.extend(Touched::everything());
        }
        self.tell_region(old);
    }

    /// Own members have an IPv6 address where their container takes one and the region's MTU allows it. Whether
    /// anything changed.
    fn follow_mtu(&mut self) -> bool {
        if self.mtu == 0 {
            return false;
        }
        let fits = self.mtu_takes_ipv6();
        let stale = |e: &&Entry| e.address6.is_some() != (e.ipv6 && fits);
        let stale: Vec<Entry> = self.journal.live().filter(stale).cloned().collect();
        for entry in &stale {
            let address6 = fits.then(|| project::address6(entry.network, entry.address));
            self.change(Entry { address6, ..entry.clone() });
        }
        !stale.is_empty()
    }

    /// Whether `wgN` is wide enough for IPv6 in this region.
    pub(super) fn mtu_takes_ipv6(&self) -> bool {
        netplumb::state::wg_mtu(self.mtu) >= netplumb::state::IPV6_MTU_MIN
    }

    /// A container that refused its IPv6 address is not found by it.
    pub(super) async fn drop_refused_ipv6(&mut self, built: &Built) {
        let refused =
            |e: &&Entry| e.ipv6 && e.state == MemberState::Ready && built.without_ipv6.contains(&e.member);
        let refused: Vec<Entry> = self.journal.live().filter(refused).cloned().collect();
        for entry in &refused {
            self.change(Entry { ipv6: false, address6: None, ..entry.clone() });
        }
        if !refused.is_empty() {
            self.follow().await;
        }
    }

    fn tell_region(&mut self, old: &View) {
        let new = &self.followed;
        match (old.cut_off, new.cut_off) {
            (false, true) => {
                self.events.note(EventKind::CutOff, "no other host answers: names are frozen".into())
            }
            (true, false) => self.events.note(EventKind::Healed, "other hosts answer again".into()),
            _ => {}
        }
        if let (None, Some(twin)) = (old.twin, new.twin) {
            let detail = format!("another machine at {twin} answers under this host's name");
            self.events.note(EventKind::Fenced, detail);
        }
    }

    /// The view with this host's intent in place of what it has published.
    fn with_own(&mut self) -> Arc<View> {
        if !self.own.journal.as_ref().is_some_and(|journal| Arc::ptr_eq(journal, &self.journal)) {
            self.own = Own {
                journal: Some(self.journal.clone()),
                records: Some(Arc::new(HostRecords {
                    host: self.host_record(),
                    networks: self.journal.claims(),
                    members: self.journal.records(),
                })),
                ours: Arc::new(project::ours(self.journal.in_kernel())),
            };
        }
        let Some(records) = self.own.records.clone() else { return self.view.clone() };
        let own = self.own_host();
        if own.is_some_and(|own| says_the_same(own, &records)) {
            return self.view.clone();
        }
        let own = Host {
            generation: own.map_or(0, |h| h.generation),
            version: own.map_or(0, |h| h.version),
            address: self.advertise,
            standing: gossip::Standing::Answering,
            silent_since: None,
            via: gossip::view::Via::Chitchat,
            records,
        };
        let mut view = View::clone(&self.view);
        view.hosts.insert(self.here.host.clone(), own);
        Arc::new(view)
    }

    /// This host as it was published.
    fn own_host(&self) -> Option<&Host> {
        self.view.hosts.get(&self.here.host)
    }

    /// This host's first records; `host` is put last by gossip.
    pub(super) fn initial(&self) -> Vec<Record> {
        self.journal.initial().into_iter().chain([Record::Host(self.host_record())]).collect()
    }

    fn host_record(&self) -> HostRecord {
        let vtep = SocketAddr::new(self.here.vtep.address, self.here.vtep.port);
        HostRecord {
            counter: self.ledger.counter_max,
            draining: self.journal.draining(),
            ..HostRecord::new(self.here.host.clone(), vtep, self.here.underlay_mtu)
        }
    }

    /// Tells gossip what differs from what it was told.
    async fn publish(&mut self) {
        let Some(gossip) = self.gossip.clone() else { return };
        let none = BTreeMap::new();
        let (told, drained) = match &self.published {
            Some((journal, _)) if Arc::ptr_eq(journal, &self.journal) => return,
            Some((journal, told)) => (told, journal.draining()),
            None => (&none, self.own_host().is_some_and(|own| own.records.host.draining)),
        };
        let target: BTreeMap<Key, Record> =
            self.journal.initial().into_iter().map(|record| (record.key(), record)).collect();
        // Networks come before members (the order of keys), what goes comes last: readers never see a
        // member of a network nobody has a word on.
        let gone = told.keys().filter(|k| !target.contains_key(k)).cloned().map(Change::Delete);
        let new = target.iter().filter(|(k, r)| told.get(k) != Some(r));
        let host =
            (drained != self.journal.draining()).then(|| Change::Put(Record::Host(self.host_record())));
        let changes: Vec<Change> = new.map(|(_, r)| Change::Put(r.clone())).chain(gone).chain(host).collect();
        if !changes.is_empty()
            && let Err(error) = gossip.publish(changes).await
        {
            tracing::error!("own records were refused: {error}");
            return;
        }
        self.published = Some((self.journal.clone(), target));
    }

    /// Asks the reconciler to make the kernel follow, when that is something new.
    fn want(&mut self, touched: &Touched) {
        let journal = self.journal.clone();
        let mut own: BTreeMap<NetworkId, Vec<&Entry>> = BTreeMap::new();
        for entry in journal.served() {
            own.entry(entry.network).or_default().push(entry);
        }
        let known = self.view.whole && !self.view.stale && !self.view.cut_off;
        let prune = if known { Prune::All } else { Prune::HoldRemote };
        let had = self.desired.networks.keys().filter_map(|network| network.parse().ok());
        let concerned: BTreeSet<NetworkId> =
            own.keys().copied().chain(had).filter(|network| touched.of(network).is_some()).collect();
        if concerned.is_empty() && self.want.borrow().prune == prune {
            return;
        }
        let mut changed = false;
        for network in concerned {
            let own = own.get(&network).map_or(&[][..], Vec::as_slice);
            changed |= self.project(network, own, touched.of(&network));
        }
        let ours = self.own.ours.clone();
        let same = {
            let last = self.want.borrow();
            last.revision > 0 && !changed && *last.ours == *ours && last.prune == prune
        };
        if !same {
            self.revision += 1;
            let (revision, desired) = (self.revision, Arc::new(self.desired.clone()));
            self.want.send_replace(Wanted { revision, desired, ours, prune });
        }
    }

    /// Makes what is desired of a network follow, as far as it was touched; whether that is anything new.
    fn project(&mut self, network: NetworkId, own: &[&Entry], touched: Option<&Extent>) -> bool {
        let now = Instant::now();
        let young = |key: &MemberKey| self.young.get(key).is_some_and(|since| now - *since < YOUNG);
        let (view, ledger) = (&self.followed, &self.ledger);
        let world = World { view, ledger, here: &self.here, mtu: self.mtu, young: &young };
        let name = network.to_string();
        let last = self.desired.networks.get(&name);
        let renewed = match (touched, last) {
            (Some(Extent::Addresses(addresses)), Some(last)) if !self.tangled.contains(&network) => {
                project::renewed(&world, network, own, last, addresses)
            }
            _ => Renewed::Tangled,
        };
        let whole = match renewed {
            Renewed::Same => return false,
            Renewed::Changed(network) => Some(Whole { network, tangled: false }),
            Renewed::Tangled => project::whole(&world, network, own),
        };
        let Some(whole) = whole else { return self.desired.networks.remove(&name).is_some() };
        if whole.tangled {
            self.tangled.insert(network)
        } else {
            self.tangled.remove(&network)
        };
        // What is the same stays the same one: nobody compares it again.
        let changed = last.is_none_or(|last| **last != whole.network);
        if changed {
            self.desired.networks.insert(name, Arc::new(whole.network));
        }
        changed
    }

    pub(super) fn tell(&self) {
        self.snapshot.send_replace(Snapshot {
            view: self.followed.clone(),
            journal: self.journal.clone(),
            zones: self.names.zones(),
            generation: self.gossip.as_ref().map_or(0, |g| g.generation()),
            unjoined: self.unjoined.clone(),
            events: self.events.log(),
            mtu: netplumb::state::wg_mtu(self.mtu),
        });
    }

    /// The journal, to be changed: whoever reads the last one keeps it as it was.
    pub(super) fn journal(&mut self) -> &mut Journal {
        Arc::make_mut(&mut self.journal)
    }

    /// Forgets who is not young any more.
    pub(super) fn grow_up(&mut self) {
        let now = Instant::now();
        self.young.retain(|_, since| now - *since < YOUNG);
    }
}

fn says_the_same(published: &Host, own: &HostRecords) -> bool {
    let published = &published.records;
    published.networks == own.networks
        && published.members == own.members
        && published.host.draining == own.host.draining
}
