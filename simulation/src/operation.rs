//! What can be done to a region, one thing at a time: a script is a list of these.

use std::time::Duration;

use crate::cluster::Role;

/// One step of a script. Hosts, networks and apps are numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// Time passes.
    Wait(Duration),
    /// Within its bound the region is quiet, and every law holds.
    Settle,
    /// Quarantines end, and nothing is held for nobody.
    Rest,
    /// All faults end, and every machine that is down starts again.
    Heal,

    /// A host's agent starts.
    Start(usize),
    /// It stops with a goodbye.
    Stop(usize),
    /// It ends without a word.
    Crash(usize),
    /// It ends without a word and starts again at once.
    Restart(usize),
    /// It ends without a word and starts again, while nothing passes from or to the host.
    RestartAlone(usize),
    /// It ends without a word, its state directory is lost, and it starts again at once.
    RestartEmpty(usize),
    /// The whole machine boots: its containers end. Its agent starts again at once.
    Reboot(usize),
    /// The machine is no more.
    Scrap(usize),
    /// The machine is no more; another one with its name starts, with nothing.
    Replace(usize),
    /// Another machine with the host's name and a copy of its disk starts.
    Clone(usize),
    /// From its next start on the host runs this agent.
    Become(usize, Role),
    /// The host's wall clock jumps by so many seconds.
    JumpClock(usize, i64),

    /// The host takes no new members, and names lead to those it has no more.
    Drain(usize),
    /// That is taken back.
    Undrain(usize),

    /// A container starts on the host and is attached.
    Attach(usize, Place),
    /// As [`Operation::Attach`], so many at once.
    AttachMany(usize, Place, usize),
    /// As [`Operation::Attach`], once on each host there is, one after the other within a second, so many networks in
    /// turn from a first one on.
    AttachEverywhere(usize, usize),
    /// As [`Operation::Attach`] on each of these hosts, so long from now.
    AttachEach(Vec<(usize, Place, Duration)>),
    /// As [`Operation::Attach`], with a number its caller chose.
    AttachNumbered(usize, Place, u32),
    /// As [`Operation::Attach`], with an address its caller chose: the so-manieth of the subnet.
    AttachAt(usize, Place, u8),
    /// A member of the host is detached, by its turn among the host's members.
    Detach(usize, usize),
    /// A member's container ends, by its turn among the host's members.
    Kill(usize, usize),
    /// Every member of the network is detached, and as many are attached on the same hosts meanwhile.
    Redeploy(usize),

    /// Nothing passes from the one host to the other.
    Cut(usize, usize),
    /// The hosts are islands: nothing passes between two of them. A host on none of them hears all.
    Split(Vec<Vec<usize>>),
    /// Everything passes between all hosts.
    Mend,
    /// Messages are lost, late, doubled and out of order as said.
    Weather(Sky),
    /// All messages to and from the host take so much longer; none at zero.
    Slow(usize, Duration),
    /// The host's virtual machine stands still: nothing reaches it, nothing leaves it. Its own time goes on, for
    /// there is only one clock.
    Suspend(usize),
    /// It goes on.
    Resume(usize),

    /// What the host's disk does from now on.
    Disk(usize, Disk),
    /// The host's kernel refuses every so-manieth operation; none at 0.
    Refuse(usize, usize),
    /// Somebody changes the host's kernel behind its agent's back.
    Sabotage(usize, Sabotage),
    /// A host without an agent joins the region, if it has not, and lies.
    Lie(Lie),
    /// It is no more.
    Silence,

    /// The network has so many members.
    Members(usize, usize),
    /// So many attaches were refused since the start.
    Refused(std::ops::RangeInclusive<usize>),
    /// No member has another address or number than it was acknowledged with.
    NobodyMoved,
    /// So many members have another address than they were acknowledged with.
    Moved(usize),
}

/// What a lying host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Malformed and oversized records of its own, frames that are none, answers that are noise.
    Nonsense,
    /// Frames of others are pushed on with a byte turned.
    Turn,
    /// Other hosts' records are written over, far ahead of their own versions.
    Forge,
    /// So many hosts that do not exist.
    Crowd(u64),
}

/// A network and an app in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The network.
    pub network: usize,
    /// The app.
    pub app: usize,
    /// Not its web servers but its workers.
    pub worker: bool,
}

/// What all links do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sky {
    /// 0.3 to 1.5 ms, nothing is lost.
    Fair,
    /// This share of all messages is lost.
    Lossy(f64),
    /// As [`Sky::Lossy`], but as QUIC does it: late instead of never.
    Resending(f64),
    /// Messages take up to so long.
    Distant(Duration),
    /// One in twenty takes up to a second, the others are near.
    LongTailed,
    /// A tenth comes twice, a tenth late.
    Confused,
}

/// A disk's faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Every write succeeds.
    Sound,
    /// Every write fails.
    Full,
    /// Only a part of the next journal entry is written.
    Tears,
    /// A journal entry takes so long.
    Slow(Duration),
}

/// What somebody does to a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// FDB rows are deleted.
    DropRows,
    /// FDB rows lead to another host.
    TurnRows,
    /// The tunnel device is deleted.
    DropTunnel,
    /// A member's interface is deleted.
    DropDevice,
    /// A member's peers are deleted.
    DropPeers,
    /// A whole network's namespace is deleted.
    DropNetwork,
    /// Ports learn and flood.
    Flood,
}

impl Sabotage {
    /// All of them.
    pub const ALL: [Sabotage; 7] = [
        Sabotage::DropRows,
        Sabotage::TurnRows,
        Sabotage::DropTunnel,
        Sabotage::DropDevice,
        Sabotage::DropPeers,
        Sabotage::DropNetwork,
        Sabotage::Flood,
    ];
}
