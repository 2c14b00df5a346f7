//! Into the region: what outlived the last agent, how soon to join, and joining.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use gossip::record::{MemberState, Record};
use gossip::{Arrival, Ask, Gossip, JoinError, KnownHost, View};
use netplumb::kernel::Kernel;
use tokio::sync::mpsc;

use crate::store::{Entry, Store};

/// What joining the region takes.
pub(super) struct Join<S, W> {
    pub(super) config: gossip::Config,
    pub(super) wire: W,
    pub(super) store: S,
    pub(super) delay: Duration,
}

pub(super) enum Joined {
    In(Gossip, mpsc::Receiver<Ask>),
    Not(JoinError),
}

impl<S: Store + Clone, W: gossip::Wire + Clone> Join<S, W> {
    pub(super) async fn once(&self, records: Vec<Record>, delay: Duration) -> Joined {
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let store = self.store.clone();
        let persist = move |generation| store.set_generation(generation);
        let joined =
            async { Arrival::at(self.config.clone(), self.wire.clone()).await?.join(records, persist).await };
        match joined.await {
            Ok((gossip, asks)) => Joined::In(gossip, asks),
            Err(error) => Joined::Not(error),
        }
    }
}

/// Three starts within a minute delay the next join by 5 s, 10 s … 60 s: every start is a new
/// generation in everybody's digest. `starts` are the last ones in wall-clock seconds; this one is
/// added.
pub(super) fn start_delay(now_s: u64, starts: &mut Vec<u64>) -> Duration {
    starts.retain(|s| s.abs_diff(now_s) <= 60);
    starts.push(now_s);
    let kept = starts.len().saturating_sub(16);
    starts.drain(..kept);
    Duration::from_secs((starts.len().saturating_sub(2) as u64 * 5).min(60))
}

/// Entries of another boot, of an unfinished attach or of a namespace that is gone are released:
/// what is left of them is torn down from the journal.
pub(super) async fn settle<K: Kernel, S: Store>(
    mut entries: Vec<Entry>,
    boot: &str,
    kernel: &K,
    store: &S,
) -> io::Result<Vec<Entry>> {
    for entry in &mut entries {
        let alive = entry.boot == boot && kernel.alive(&entry.netns, entry.inode).await;
        if entry.state == MemberState::Released || (entry.state == MemberState::Ready && alive) {
            continue;
        }
        tracing::info!(member = %entry.member, container = %entry.container, alive, "member did not outlive the agent");
        entry.state = MemberState::Released;
        store.put(entry).await?;
    }
    Ok(entries)
}

/// The view of a host that has just started: the others as it last saw them.
pub(super) fn known_view(known: &[KnownHost]) -> View {
    let mut view = View::default();
    for host in known {
        let decode = |(key, value): (&String, &String)| Record::decode(host.host.as_str(), key, value).ok();
        let (mut networks, mut members, mut own) = (BTreeMap::new(), BTreeMap::new(), None);
        for record in host.key_values.iter().filter_map(decode) {
            match record {
                Record::Host(record) => own = Some(record),
                Record::Network(pn, record) => drop(networks.insert(pn, record)),
                Record::Member(pn, member, record) => drop(members.insert((pn, member), record)),
            }
        }
        let Some(own) = own else { continue };
        let records = gossip::view::HostRecords { host: own, networks, members };
        view.hosts.insert(
            host.host.clone(),
            gossip::view::Host {
                generation: host.generation,
                version: host.version,
                address: host.address,
                standing: gossip::Standing::Answering,
                silent_since: None,
                via: gossip::view::Via::Disk,
                records: Arc::new(records),
            },
        );
    }
    view
}
