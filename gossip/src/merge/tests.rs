use tokio::time::Instant;

use super::*;
use crate::fixtures::{host, member};
use crate::record::{HostRecord, Key, Record};

const INTERVAL: Duration = Duration::from_millis(500);

/// A look at a region: who is seen, with which records.
struct Region {
    builder: ViewBuilder,
    now: Instant,
    seen: Vec<Seen>,
}

#[derive(Clone)]
struct Seen {
    node_id: String,
    generation: u64,
    address: SocketAddr,
    version: u64,
    live: bool,
    key_values: Vec<(String, String)>,
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, host], 7946))
}

fn key_values(records: &[Record]) -> Vec<(String, String)> {
    records.iter().map(|record| (record.key().to_string(), record.encode())).collect()
}

fn seen(node_id: &str, generation: u64, version: u64, records: &[Record]) -> Seen {
    let address = address(node_id.as_bytes()[0]);
    Seen {
        node_id: node_id.into(),
        generation,
        address,
        version,
        live: true,
        key_values: key_values(records),
    }
}

impl Seen {
    fn owner(&self) -> ChitchatId {
        ChitchatId::new(self.node_id.as_str(), self.generation, self.address)
    }

    fn state(&self) -> NodeState {
        let mut state = NodeState::for_test();
        for (key, value) in &self.key_values {
            state.set(key, value);
        }
        state.set_max_version(self.version);
        state
    }
}

impl Region {
    fn of(known: &[KnownHost]) -> Self {
        let (own, now) = ("a".parse().unwrap(), Instant::now());
        let mut builder =
            ViewBuilder::new(&own, known, Timings::of(INTERVAL), Arc::default(), Interner::default(), now);
        builder.publishes(1, address(b'a'), now);
        Self { builder, now, seen: vec![seen("a", 1, 1, &[host("a")])] }
    }

    /// Replaces what is seen of a generation, looks, and tells the view.
    fn see(&mut self, new: Seen) -> Arc<View> {
        self.seen.retain(|old| (&old.node_id, old.generation) != (&new.node_id, new.generation));
        self.seen.push(new);
        self.after(Duration::from_millis(100))
    }

    fn after(&mut self, pause: Duration) -> Arc<View> {
        self.now += pause;
        let heartbeat = self.now.duration_since(Instant::now()).as_millis() as u64;
        let states: BTreeMap<ChitchatId, (NodeState, bool)> =
            self.seen.iter().map(|seen| (seen.owner(), (seen.state(), seen.live))).collect();
        for (owner, state) in self.builder.moved(states.iter().map(|(owner, (state, _))| (owner, state))) {
            self.builder.see(owner, state, Via::Chitchat, self.now);
        }
        let beats = states.iter().map(|(owner, (state, live))| Beat {
            owner,
            heartbeat,
            version: state.max_version(),
            timeout: live.then_some(Duration::from_secs(3600)),
        });
        self.builder.hear(beats, self.now);
        self.builder.build();
        self.builder.view().clone()
    }

    fn members(&self, host: &str) -> usize {
        self.builder
            .view()
            .hosts
            .get(&host.parse::<HostId>().unwrap())
            .map_or(0, |host| host.records.members.len())
    }
}

fn known(view: &View) -> Vec<KnownHost> {
    view.known(&"a".parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_generation_counts_once_its_host_record_is_here() {
    let mut region = Region::of(&[]);
    region.see(seen("b", 5, 1, &[member(1)]));
    assert!(!region.builder.view().hosts.contains_key(&"b".parse::<HostId>().unwrap()));
    region.see(seen("b", 5, 3, &[member(1), member(2), host("b")]));
    assert_eq!(region.members("b"), 2);
    // The next generation arrives in prefixes.
    region.see(seen("b", 6, 1, &[member(1)]));
    assert_eq!(region.members("b"), 2);
    let view = region.see(seen("b", 6, 2, &[member(1), host("b")]));
    assert_eq!((region.members("b"), view.hosts[&"b".parse::<HostId>().unwrap()].generation), (1, 6));
    // What the old one still says does not count any more.
    region.see(seen("b", 5, 9, &[member(1), member(2), member(3), host("b")]));
    assert_eq!(region.members("b"), 1);
}

#[tokio::test(start_paused = true)]
async fn within_a_generation_the_view_never_goes_back() {
    let mut region = Region::of(&[]);
    region.see(seen("b", 5, 9, &[member(1), member(2), host("b")]));
    // chitchat has reset the state and refills it.
    for version in 0..9 {
        region.see(seen("b", 5, version, &[]));
        assert_eq!(region.members("b"), 2, "at version {version}");
    }
    // It was collected, and comes back.
    region.seen.pop();
    region.after(INTERVAL);
    assert_eq!(region.members("b"), 2);
    region.see(seen("b", 5, 10, &[member(1), host("b")]));
    assert_eq!(region.members("b"), 1);
}

#[tokio::test(start_paused = true)]
async fn records_are_read_only_when_their_version_has_moved() {
    let mut region = Region::of(&[]);
    let first = region.see(seen("b", 5, 2, &[member(1), host("b")]));
    let quarantined =
        |region: &Region| region.builder.counters.get("records_quarantined_total", &[("reason", "value")]);
    let mut broken = seen("b", 5, 3, &[member(1), host("b")]);
    broken
        .key_values
        .push((Key::Network(crate::fixtures::NETWORK.parse().unwrap()).to_string(), "junk".into()));
    for _ in 0..5 {
        region.see(broken.clone());
    }
    assert_eq!(quarantined(&region), 1);
    let view = region.see(seen("c", 1, 1, &[host("c")]));
    let id: HostId = "b".parse().unwrap();
    assert_eq!(first.hosts[&id].records, view.hosts[&id].records);
    let again = region.see(seen("c", 1, 2, &[host("c"), member(3)]));
    assert!(Arc::ptr_eq(&view.hosts[&id].records, &again.hosts[&id].records));
}

#[tokio::test(start_paused = true)]
async fn a_host_record_that_breaks_leaves_the_last_one() {
    let mut region = Region::of(&[]);
    region.see(seen("b", 5, 2, &[member(1), host("b")]));
    let mut broken = seen("b", 5, 4, &[member(1), member(2)]);
    broken.key_values.push(("host".into(), host("b").encode().replace(r#""v":1"#, r#""v":9"#)));
    region.see(broken);
    assert_eq!(region.members("b"), 2);
    // Somebody's host record under another owner counts for nobody.
    let view = region.see(seen("d", 1, 1, &[host("b")]));
    assert_eq!(view.hosts.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn persisted_hosts_are_served_until_gossip_says_otherwise() {
    let mut before = Region::of(&[]);
    let view = before.see(seen("b", 5, 4, &[member(1), member(2), host("b")]));
    let known = known(&view);
    let stored: Vec<KnownHost> = serde_json::from_str(&serde_json::to_string(&known).unwrap()).unwrap();
    let mut region = Region::of(&stored);
    let view = region.after(Duration::ZERO);
    let id: HostId = "b".parse().unwrap();
    assert_eq!((view.hosts[&id].standing, region.members("b"), view.whole), (Standing::Answering, 2, false));
    // The same generation arrives in prefixes: nothing is lost meanwhile.
    region.see(seen("b", 5, 3, &[member(1), host("b")]));
    assert_eq!(region.members("b"), 2);
    let view = region.see(seen("b", 5, 5, &[member(2), host("b")]));
    assert_eq!((region.members("b"), view.whole), (1, true));
}

#[tokio::test(start_paused = true)]
async fn whole_means_alone_or_told_by_a_live_peer() {
    let mut region = Region::of(&[]);
    assert!(region.after(Duration::ZERO).whole, "alone");
    let mut newborn = seen("b", 5, 0, &[]);
    newborn.live = false;
    assert!(!region.see(newborn.clone()).whole, "somebody is there");
    newborn.live = true;
    assert!(!region.see(newborn).whole, "live, and its records are on their way");
    assert!(region.see(seen("b", 5, 1, &[host("b")])).whole);
    assert!(region.see(seen("c", 5, 0, &[])).whole, "once whole, whole");
}

#[tokio::test(start_paused = true)]
async fn cut_off_is_who_hears_nobody_of_three() {
    let silent = |node_id: &str, record: Record| Seen { live: false, ..seen(node_id, 1, 2, &[record]) };
    let away = |name: &str| match host(name) {
        Record::Host(record) => Record::Host(HostRecord { away: Some(120), ..record }),
        other => other,
    };
    let check = |others: Vec<Seen>, expected: bool| {
        let mut region = Region::of(&[]);
        for other in others {
            region.see(other);
        }
        assert!(!region.after(Duration::ZERO).cut_off, "newborns answer");
        assert_eq!(region.after(Duration::from_secs(7)).cut_off, expected);
    };
    check(vec![], false);
    check(vec![silent("b", host("b"))], false);
    check(vec![silent("b", host("b")), silent("c", host("c"))], true);
    check(vec![silent("b", host("b")), seen("c", 1, 1, &[host("c")])], false);
    // Who said goodbye is not missed.
    check(vec![silent("b", host("b")), silent("c", away("c"))], false);
}

#[tokio::test(start_paused = true)]
async fn a_newer_agent_of_the_own_name_elsewhere_is_a_twin() {
    let elsewhere =
        |generation, live, at| Seen { live, address: address(at), ..seen("a", generation, 1, &[host("a")]) };
    let check = |twin: Seen, expected: Option<SocketAddr>| {
        let mut region = Region::of(&[]);
        region.after(Duration::ZERO);
        assert_eq!(region.see(twin).twin, expected);
        let own = &region.builder.view().hosts[&"a".parse::<HostId>().unwrap()];
        assert_eq!((own.generation, own.standing), (1, Standing::Answering));
    };
    check(elsewhere(2, true, b'x'), Some(address(b'x')));
    check(elsewhere(2, false, b'x'), None);
    check(elsewhere(0, true, b'x'), None);
    check(elsewhere(2, true, b'a'), None);
}

#[tokio::test(start_paused = true)]
async fn a_generation_begun_anew_does_not_bury_the_others() {
    let mut region = Region::of(&[]);
    region.see(seen("b", 5, 1, &[host("b")]));
    let view = region.after(Duration::from_secs(100));
    let b: HostId = "b".parse().unwrap();
    assert_eq!(view.hosts[&b].standing, Standing::Answering);
    // The new failure detector has heard nobody yet.
    region.builder.publishes(1, address(b'a'), region.now);
    let unheard = Seen { live: false, ..seen("b", 5, 1, &[host("b")]) };
    assert_eq!(region.see(unheard).hosts[&b].standing, Standing::Answering);
    assert_eq!(region.after(Duration::from_secs(7)).hosts[&b].standing, Standing::Dead);
}

#[tokio::test(start_paused = true)]
async fn a_long_name_is_known_by_its_record() {
    let name = "host-00001.eu-west-1.example.internal";
    let id: HostId = name.parse().unwrap();
    let mut region = Region::of(&[]);
    let view = region.see(seen(&id.node_id(), 1, 1, &[host(name)]));
    assert!(view.hosts.contains_key(&id));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_kept_of_the_forgotten() {
    let mut region = Region::of(&[]);
    region.see(Seen { live: false, ..seen("b", 1, 2, &[host("b"), member(1)]) });
    region.seen.pop();
    let gone = Duration::from_secs(6 + 15 * 60 + 1);
    region.after(Duration::from_secs(7));
    let view = region.after(gone);
    assert_eq!((view.hosts.len(), view.members().count()), (2, 0), "gone, and not forgotten");
    assert_eq!(region.after(Duration::from_secs(24 * 3600)).hosts.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_from_disk_is_stale_until_somebody_says_the_same() {
    let mut before = Region::of(&[]);
    let written = known(&before.see(seen("b", 5, 3, &[member(1), host("b")])));
    let check = |heard: Option<Seen>, stale: bool| {
        let mut region = Region::of(&written);
        assert!(region.after(Duration::ZERO).stale);
        if let Some(heard) = heard {
            region.see(heard);
        }
        assert_eq!(region.after(Duration::ZERO).stale, stale);
        // Who is gone holds nothing, and nobody waits for it.
        let gone = Timings::of(INTERVAL).gone;
        region.seen.clear();
        region.after(gone);
        assert!(!region.after(gone).stale);
    };
    check(None, true);
    check(Some(seen("b", 5, 2, &[host("b")])), true);
    check(Some(Seen { live: false, ..seen("b", 5, 3, &[member(1), host("b")]) }), false);
    check(Some(seen("b", 5, 4, &[host("b")])), false);
    check(Some(seen("b", 6, 1, &[host("b")])), false);
    // A generation without its `host` record does not count, and takes nothing back.
    check(Some(seen("b", 6, 1, &[member(1)])), true);
    let mut region = Region::of(&written);
    region.builder.complete();
    assert!(!region.after(Duration::ZERO).stale, "a snapshot says it all");
}
