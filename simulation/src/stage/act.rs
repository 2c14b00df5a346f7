//! What each operation does to the cluster.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use gossip::id::{MemberId, NetworkId};
use gossip::memory::{Delay, Link};
use tokio::time::Instant;

use super::{REPAIR, Stage};
use crate::cluster::{Choice, Life};
use crate::liar::Liar;
use crate::operation::{Disk, Lie, Operation, Place, Sky};

impl Operation {
    /// For how long it does nothing but wait.
    pub fn waits(&self) -> Duration {
        if let Operation::Wait(time) = self { *time } else { Duration::ZERO }
    }

    /// Whether the region has something to get over after it.
    pub fn disturbs(&self) -> bool {
        !matches!(
            self,
            Operation::Wait(_)
                | Operation::Settle
                | Operation::Rest
                | Operation::Members(..)
                | Operation::Refused(_)
                | Operation::NobodyMoved
                | Operation::Moved(_)
        )
    }
}

impl Operation {
    /// Whether it makes a digest so long that it has to be compressed.
    pub fn crowds(&self) -> bool {
        matches!(self, Operation::Lie(Lie::Crowd(_)))
    }
}

impl Stage {
    pub(super) async fn act(&mut self, operation: &Operation) -> anyhow::Result<()> {
        let cluster = &mut self.cluster;
        match *operation {
            Operation::Wait(_) | Operation::Settle | Operation::Rest => {}
            Operation::Heal => self.heal().await?,

            Operation::Start(host) => cluster.start(host).await?,
            Operation::Stop(host) => cluster.stop(host).await,
            Operation::Crash(host) => cluster.crash(host),
            Operation::Restart(host) => {
                cluster.crash(host);
                cluster.start(host).await?;
            }
            Operation::RestartAlone(host) => {
                cluster.crash(host);
                self.suspend(host);
                self.cluster.start(host).await?;
            }
            Operation::RestartEmpty(host) => {
                cluster.crash(host);
                cluster.wipe(host);
                cluster.start(host).await?;
            }
            Operation::Reboot(host) => {
                cluster.crash(host);
                cluster.reboot(host);
                cluster.start(host).await?;
            }
            Operation::Scrap(host) => cluster.scrap(host),
            Operation::Replace(host) => {
                cluster.scrap(host);
                let next = cluster.add(cluster.hosts[host].id.clone())?;
                cluster.start(next).await?;
            }
            Operation::Clone(host) => {
                let copy = cluster.clone_machine(host)?;
                cluster.start(copy).await?;
            }
            Operation::Become(host, role) => cluster.hosts[host].role = role,
            Operation::JumpClock(host, seconds) => cluster.hosts[host].clock.jump(seconds),

            Operation::Drain(host) => cluster.drain(host, true).await?,
            Operation::Undrain(host) => cluster.drain(host, false).await?,

            Operation::Attach(host, place) => self.attach(host, place, Choice::None)?,
            Operation::AttachEach(ref attaches) => {
                for (host, place, then) in attaches {
                    self.attach_in(*host, *place, Choice::None, *then)?;
                }
            }
            Operation::AttachMany(host, place, count) => {
                for _ in 0..count {
                    self.attach(host, place, Choice::None)?;
                }
            }
            Operation::AttachEverywhere(networks, first) => {
                let hosts = cluster.hosts.len();
                for host in 0..hosts {
                    let place = Place { network: (host + first) % networks, app: 0, worker: false };
                    let then = Duration::from_secs_f64(host as f64 / hosts as f64);
                    self.attach_in(host, place, Choice::None, then)?;
                }
            }
            Operation::AttachNumbered(host, place, number) => {
                self.attach(host, place, Choice::Number(number))?
            }
            Operation::AttachAt(host, place, last) => self.attach(host, place, Choice::Address(last))?,
            Operation::Detach(host, turn) => {
                let member = self.member(host, turn)?;
                self.cluster.detach(&member)?;
            }
            Operation::Kill(host, turn) => {
                let member = self.member(host, turn)?;
                self.cluster.kill_container(&member);
            }
            Operation::Redeploy(network) => self.redeploy(network)?,
            Operation::Lie(lie) => self.lie(lie).await?,
            Operation::Silence => self.silence(),
            _ => {
                self.disturb(operation)?;
                self.expect(operation)?;
            }
        }
        Ok(())
    }

    fn disturb(&mut self, operation: &Operation) -> anyhow::Result<()> {
        match operation {
            Operation::Cut(from, to) => self.cluster.cut(*from, *to),
            Operation::Split(islands) => self.split(islands),
            Operation::Mend => self.cluster.weather.mend(),
            Operation::Weather(sky) => self.set_sky(*sky),
            Operation::Slow(host, longer) => self.cluster.slow(*host, *longer),
            Operation::Suspend(host) => self.suspend(*host),
            Operation::Resume(host) => self.resume(*host),
            Operation::Disk(host, disk) => self.set_disk(*host, *disk),
            Operation::Refuse(host, every) => {
                self.repairs();
                self.cluster.refuse(*host, *every);
            }
            Operation::Sabotage(host, sabotage) => {
                self.repairs();
                self.sabotage(*host, *sabotage)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn repairs(&mut self) {
        self.repairing = Some(Instant::now() + REPAIR);
    }

    fn attach(&mut self, host: usize, place: Place, choice: Choice) -> anyhow::Result<()> {
        self.attach_in(host, place, choice, Duration::ZERO)
    }

    fn attach_in(&mut self, host: usize, place: Place, choice: Choice, then: Duration) -> anyhow::Result<()> {
        let Place { network, app, worker } = place;
        let process = if worker { "worker" } else { "web" };
        let (network, app) = (self.network(network), self.apps[app]);
        self.cluster.attach(host, network, app, process.parse()?, choice, then)
    }

    /// The network of a number; most scripts get along with those there are.
    fn network(&mut self, number: usize) -> NetworkId {
        let missing = (number + 1).saturating_sub(self.networks.len());
        self.networks.extend((0..missing).map(|_| NetworkId::random()));
        self.networks[number]
    }

    /// What a script says must be so.
    fn expect(&self, operation: &Operation) -> anyhow::Result<()> {
        let promises = self.cluster.books.promises.values();
        let moved = || self.cluster.books.promises.values().map(|promise| promise.moves).sum::<usize>();
        match operation {
            Operation::Members(network, count) => {
                let found = promises.filter(|p| p.entry.network == self.networks[*network]).count();
                ensure!(found == *count, "the network has {found} members");
            }
            Operation::Refused(counts) => {
                let refused = self.cluster.books.refused.len();
                ensure!(counts.contains(&refused), "{refused} attaches were refused");
            }
            Operation::NobodyMoved => ensure!(moved() == 0, "{} members have moved", moved()),
            Operation::Moved(count) => ensure!(moved() == *count, "{} members have moved", moved()),
            _ => {}
        }
        Ok(())
    }

    fn silence(&mut self) {
        self.liar = None;
        if std::mem::take(&mut self.cluster.lied_to) {
            self.cluster.weather.stir();
        }
    }

    async fn lie(&mut self, lie: Lie) -> anyhow::Result<()> {
        if self.liar.is_none() {
            let peers = self.cluster.hosts.iter().map(|host| host.address).collect();
            let wire = self.cluster.stranger("liar")?;
            self.liar = Some(Liar::begin(wire, self.cluster.region(), "liar", peers).await?);
        }
        self.cluster.lied_to = true;
        let Some(liar) = &mut self.liar else { return Ok(()) };
        match lie {
            Lie::Nonsense => liar.talk_nonsense().await,
            Lie::Turn => liar.turn_frames(),
            Lie::Forge => liar.forge().await,
            Lie::Crowd(count) => liar.crowd(count).await,
        }
        Ok(())
    }

    /// A member of a host that is not leaving, by its turn.
    fn member(&self, host: usize, turn: usize) -> anyhow::Result<MemberId> {
        let promises = self.cluster.books.promises.iter();
        let members: Vec<&MemberId> =
            promises.filter(|(_, p)| p.host == host && !p.leaving).map(|(member, _)| member).collect();
        ensure!(!members.is_empty(), "host {host} has no member");
        Ok(members[turn % members.len()].clone())
    }

    /// Where the first member of a host is.
    pub fn place_of(&self, host: usize) -> Option<Place> {
        let entry = &self.cluster.books.promises.values().find(|promise| promise.host == host)?.entry;
        let network = self.networks.iter().position(|network| *network == entry.network)?;
        let app = self.apps.iter().position(|app| *app == entry.app)?;
        Some(Place { network, app, worker: entry.process.as_str() == "worker" })
    }

    fn redeploy(&mut self, network: usize) -> anyhow::Result<()> {
        let id = self.networks[network];
        let promises = self.cluster.books.promises.iter();
        let old: Vec<(MemberId, usize)> = promises
            .filter(|(_, p)| p.entry.network == id && !p.leaving && self.cluster.hosts[p.host].is_up())
            .map(|(member, promise)| (member.clone(), promise.host))
            .collect();
        for (member, host) in old {
            let entry = &self.cluster.books.promises[&member].entry;
            let (app, process) = (entry.app, entry.process.clone());
            self.cluster.detach(&member)?;
            self.cluster.attach(host, id, app, process, Choice::None, Duration::ZERO)?;
        }
        Ok(())
    }

    fn split(&mut self, islands: &[Vec<usize>]) {
        for (number, island) in islands.iter().enumerate() {
            for other in islands.iter().skip(number + 1) {
                for (a, b) in island.iter().flat_map(|a| other.iter().map(move |b| (*a, *b))) {
                    self.cluster.cut(a, b);
                    self.cluster.cut(b, a);
                }
            }
        }
    }

    fn set_sky(&mut self, sky: Sky) {
        let (near, millis) = (Link::default(), Duration::from_millis);
        let link = match sky {
            Sky::Fair => near,
            Sky::Lossy(loss) => Link { loss, ..near },
            Sky::Resending(loss) => Link { loss, loss_delay: Some(millis(100)), ..near },
            Sky::Distant(most) => Link { delay: Delay::Uniform(millis(1)..=most), ..near },
            Sky::LongTailed => {
                let delay = Delay::LongTail { base: millis(1), tail: millis(1_000), share: 0.05 };
                Link { delay, ..near }
            }
            Sky::Confused => {
                Link { delay: Delay::Uniform(millis(1)..=millis(30)), duplicate: 0.1, reorder: 0.1, ..near }
            }
        };
        self.cluster.weather.set_sky(link);
    }

    fn suspend(&mut self, host: usize) {
        self.suspended.push(host);
        self.set_suspended(host);
    }

    fn set_suspended(&mut self, host: usize) {
        for other in (0..self.cluster.hosts.len()).filter(|other| *other != host) {
            self.cluster.cut(host, other);
            self.cluster.cut(other, host);
        }
    }

    fn resume(&mut self, host: usize) {
        self.suspended.retain(|other| *other != host);
        self.cluster.weather.mend();
        for host in self.suspended.clone() {
            self.set_suspended(host);
        }
    }

    fn set_disk(&mut self, host: usize, disk: Disk) {
        let host = &mut self.cluster.hosts[host];
        match disk {
            Disk::Sound => {
                host.store.fail_writes(false);
                host.slow_writes(Duration::ZERO);
            }
            Disk::Full => host.store.fail_writes(true),
            Disk::Tears => {
                host.store.tear_next();
                host.torn = true;
            }
            Disk::Slow(time) => host.slow_writes(time),
        }
    }

    /// Ends all faults; a machine that is down starts again, a copy is taken away and its original started anew.
    async fn heal(&mut self) -> anyhow::Result<()> {
        self.suspended.clear();
        self.silence();
        self.cluster.weather.mend();
        self.set_sky(Sky::Fair);
        for host in 0..self.cluster.hosts.len() {
            self.cluster.slow(host, Duration::ZERO);
            self.set_disk(host, Disk::Sound);
            self.cluster.refuse(host, 0);
        }
        self.remove_copies().await?;
        for host in 0..self.cluster.hosts.len() {
            if matches!(self.cluster.hosts[host].life, Life::Crashed(_) | Life::Away(_)) {
                self.cluster.start(host).await.context("at its start")?;
            }
        }
        self.detach_again()
    }

    /// An operator finds out which of two machines with one name is not the one.
    async fn remove_copies(&mut self) -> anyhow::Result<()> {
        for copy in 0..self.cluster.hosts.len() {
            let Some(original) = self.cluster.original(copy) else { continue };
            self.cluster.scrap(copy);
            if self.cluster.hosts[original].is_up() {
                self.cluster.crash(original);
            }
        }
        Ok(())
    }

    /// Calls to detach that failed, or were lost with their agent, are made again.
    fn detach_again(&mut self) -> anyhow::Result<()> {
        let promises = self.cluster.books.promises.iter();
        let leaving: Vec<MemberId> = promises.filter(|(_, p)| p.leaving).map(|(m, _)| m.clone()).collect();
        for member in leaving {
            let host = self.cluster.books.promises[&member].host;
            if self.cluster.hosts[host].is_up() {
                self.cluster.detach(&member)?;
            }
        }
        Ok(())
    }
}
