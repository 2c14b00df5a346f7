//! A law that cannot fail is none.

use std::time::Duration;

use gossip::id::{AppId, NetworkId};
use netplumb::observed::{Observed, port_name};
use netplumb::state::{Key, Mac};
use node::attach::{Refusal, RefusalKind};
use tokio::time::{Instant, sleep};

use super::{at_any_time, once_quiet, once_rested};
use crate::cluster::{Answered, Choice, Cluster, Life, Promise, lock};
use crate::history::History;

const HOSTS: usize = 3;

/// Three hosts with a member each, of an app of its own, quiet for long.
async fn region() -> Cluster {
    let mut cluster = Cluster::new(HOSTS as u16, 1_700_000_000_000_000_000, History::begin(0)).unwrap();
    for host in 0..HOSTS {
        cluster.start(host).await.unwrap();
    }
    let network = NetworkId::random();
    sleep(Duration::from_secs(10)).await;
    at_any_time(&mut cluster).unwrap();
    for host in 0..HOSTS {
        cluster
            .attach(host, network, AppId::random(), "web".parse().unwrap(), Choice::None, Duration::ZERO)
            .unwrap();
    }
    sleep(Duration::from_secs(40)).await;
    check(&mut cluster).await.unwrap();
    cluster
}

async fn check(cluster: &mut Cluster) -> anyhow::Result<()> {
    at_any_time(cluster)?;
    once_quiet(cluster)?;
    once_rested(cluster)
}

async fn breaks(change: impl FnOnce(&mut Cluster), law: &str) {
    let mut cluster = region().await;
    change(&mut cluster);
    let error = check(&mut cluster).await.expect_err(law);
    assert!(format!("{error:#}").contains(law), "{error:#}");
}

fn promise(cluster: &mut Cluster, host: usize) -> &mut Promise {
    cluster.books.promises.values_mut().find(|promise| promise.host == host).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_dead_host_that_answers() {
    let dead = |cluster: &mut Cluster| {
        let Life::Up(long_ago) = cluster.hosts[1].life else { panic!("it runs") };
        cluster.hosts[1].life = Life::Crashed(long_ago);
    };
    breaks(dead, "a dead host leaves DNS in time").await;
}

#[tokio::test(start_paused = true)]
async fn a_live_host_that_does_not() {
    let mut cluster = region().await;
    // The books know nothing of it.
    for other in [0, 2] {
        let (here, there) = (cluster.hosts[1].address, cluster.hosts[other].address);
        cluster.weather.network.cut(here, there);
        cluster.weather.network.cut(there, here);
    }
    sleep(Duration::from_secs(8)).await;
    let error = at_any_time(&mut cluster).unwrap_err();
    assert!(format!("{error:#}").contains("a live host never leaves DNS"), "{error:#}");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_not_back_yet() {
    let mut cluster = region().await;
    cluster.crash(2);
    cluster.start(2).await.unwrap();
    let error = check(&mut cluster).await.unwrap_err();
    assert!(format!("{error:#}").contains("once quiet everybody is in"), "{error:#}");
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_lost() {
    let lost = |cluster: &mut Cluster| {
        let promise = promise(cluster, 0).clone();
        cluster.books.promises.insert("00000000000000aa".parse().unwrap(), promise);
    };
    breaks(lost, "law 5 broken").await;
}

#[tokio::test(start_paused = true)]
async fn a_member_whose_interface_is_gone() {
    let gone = |cluster: &mut Cluster| {
        let drop_devices = |kernel: &mut Observed| {
            let members = kernel.networks.values_mut().flat_map(|network| network.members.values_mut());
            members.filter_map(|member| member.inside.as_mut()).for_each(|inside| inside.device = None);
        };
        cluster.hosts[2].kernel.edit(drop_devices);
    };
    breaks(gone, "law 5 broken").await;
}

#[tokio::test(start_paused = true)]
async fn a_member_that_moved_in_calm() {
    let moved = |cluster: &mut Cluster| {
        promise(cluster, 0).entry.address = [192, 0, 2, 1].into();
    };
    breaks(moved, "in calm nobody moves").await;
}

#[tokio::test(start_paused = true)]
async fn an_address_given_twice() {
    let twice = |cluster: &mut Cluster| {
        let (first, began) = (promise(cluster, 0).clone(), Instant::now());
        let twin = Promise { host: 1, began, ..first };
        let member: gossip::id::MemberId = "00000000000000aa".parse().unwrap();
        cluster.books.promises.insert(member.clone(), twin);
        cluster.books.fresh.insert(member);
    };
    breaks(twice, "in calm no conflict arises").await;
}

fn answered(took: Duration, refusal: Option<Refusal>) -> impl FnOnce(&mut Cluster) {
    move |cluster| {
        let at = Instant::now();
        cluster.books.answered.push(Answered { host: 1, began: at - took, at, refusal });
    }
}

#[tokio::test(start_paused = true)]
async fn an_attach_that_takes_too_long() {
    breaks(answered(Duration::from_secs(5), None), "an attach ends in time").await;
}

#[tokio::test(start_paused = true)]
async fn an_attach_refused_in_calm_for_want_of_an_answer() {
    let refusal = Refusal::new(RefusalKind::Unready, "nobody answers");
    breaks(answered(Duration::from_secs(1), Some(refusal)), "in calm an attach").await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_that_everybody_leaves() {
    let left = |cluster: &mut Cluster| {
        let [a, b] = [0, 1].map(|host| promise(cluster, host).entry.clone());
        let mut shared = lock(&cluster.books.shared);
        let conflict = shared.conflicts.entry((a.network, a.address)).or_default();
        conflict.claimants = [a.member, b.member].into();
        conflict.left = conflict.claimants.clone();
    };
    breaks(left, "one re-address per conflict").await;
}

#[tokio::test(start_paused = true)]
async fn a_record_nobody_has_promised() {
    let forgotten = |cluster: &mut Cluster| {
        let member = cluster.books.promises.keys().next().unwrap().clone();
        cluster.books.promises.remove(&member);
    };
    breaks(forgotten, "law broken").await;
    let mut cluster = region().await;
    let member = cluster.books.promises.keys().next().unwrap().clone();
    cluster.books.promises.remove(&member);
    let error = once_rested(&cluster).unwrap_err();
    assert!(format!("{error:#}").contains("law 6 broken"), "{error:#}");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_missing() {
    let missing = |cluster: &mut Cluster| {
        let drop_rows = |kernel: &mut Observed| {
            let fabrics = kernel.networks.values_mut().filter_map(|network| network.fabric.as_mut());
            fabrics.for_each(|fabric| fabric.rows.clear());
        };
        cluster.hosts[1].kernel.edit(drop_rows);
    };
    breaks(missing, "a path stays as long as its ends").await;
    let mut cluster = region().await;
    missing(&mut cluster);
    let error = super::kernels::follow(&cluster).unwrap_err();
    assert!(format!("{error:#}").contains("has still to do"), "{error:#}");
    let error = super::kernels::know_the_members(&cluster).unwrap_err();
    assert!(format!("{error:#}").contains("has the rows"), "{error:#}");
    let error = super::reach::everybody_is_reached(&cluster).unwrap_err();
    assert!(error.to_string().contains("None gets it"), "{error:#}");
}

/// Another app's container with the key, the MAC and the addresses of the member it stands in for.
#[tokio::test(start_paused = true)]
async fn a_wrong_container() {
    let mut cluster = region().await;
    let victim = promise(&mut cluster, 1).entry.clone();
    let network = victim.network.to_string();
    // A row of it leads to another host, which has its key and its addresses in another container.
    let elsewhere = cluster.hosts[2].address.ip();
    cluster.hosts[0].kernel.edit(|kernel| {
        let mac = Mac::of_key(&Key(victim.public_key.0));
        let fabric = kernel.networks.get_mut(&network).unwrap().fabric.as_mut().unwrap();
        let ends = fabric.rows.get_mut(&mac).unwrap();
        *ends = ends.iter().map(|end| netplumb::state::Vtep { address: elsewhere, ..*end }).collect();
    });
    let stolen = cluster.hosts[1].kernel.state().networks[&network].members[victim.member.as_str()].clone();
    cluster.hosts[2].kernel.edit(|kernel| {
        let network = kernel.networks.get_mut(&network).unwrap();
        let thief = network.members.keys().next().unwrap().clone();
        let mac = stolen.binding.as_ref().unwrap().ethernet.as_ref().unwrap().mac;
        network.fabric.as_mut().unwrap().local_rows.insert(mac, port_name(&thief));
        network.members.insert(thief, stolen);
    });
    let error = super::reach::no_wrong_container(&cluster).unwrap_err();
    assert!(error.to_string().contains("gets it"), "{error:#}");
}

#[tokio::test(start_paused = true)]
async fn an_attach_without_end() {
    let mut cluster = region().await;
    cluster.hosts[0].store.slow_writes(Duration::from_secs(60));
    cluster
        .attach(0, NetworkId::random(), AppId::random(), "web".parse().unwrap(), Choice::None, Duration::ZERO)
        .unwrap();
    sleep(Duration::from_secs(61)).await;
    let error = at_any_time(&mut cluster).unwrap_err();
    assert!(format!("{error:#}").contains("law 7 broken"), "{error:#}");
}
