//! One change of a region, told by NetworkDB's name for it, and when a view has it.

use gossip::id::{HostId, MemberId};
use gossip::record::{Key, MemberState};
use gossip::view::{HostRecords, Via};
use gossip::{Change, View};

use super::seats::{Seats, member, member_id, name, network, takes_part};

/// The member that is written.
const TRACKED: usize = 63;

/// What is done to a quiet region. In each all hosts but those named take part in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Perturbation {
    /// The first host attaches a member.
    CreateEntry,
    /// The first host publishes a member anew.
    UpdateEntry,
    /// The first host releases a member.
    DeleteEntry,
    /// The last host, which is in the region, begins to take part.
    JoinNetwork,
    /// The last host begins to take part and attaches a member in the same breath.
    WriteAfterJoin,
    /// The last host, which is not in the region, joins it: it is to have what is there. (NetworkDB's
    /// last node is in the cluster and joins the network. Here every host of a region has all its
    /// networks, so that would be nothing to wait for; this is more.)
    JoinPopulatedNetwork,
    /// The last host, which has one member, releases it and takes part no more.
    LeaveNetwork,
    /// As [`CreateEntry`](Self::CreateEntry), while one host after another attaches 8 members every
    /// 20 ms and the last host leaves and joins the network every 100 ms.
    CreateEntryUnderChurn,
}

use Perturbation::*;

/// All of them, in the order of the peer's file.
pub const ALL: [Perturbation; 8] = [
    CreateEntry,
    UpdateEntry,
    DeleteEntry,
    JoinNetwork,
    WriteAfterJoin,
    JoinPopulatedNetwork,
    LeaveNetwork,
    CreateEntryUnderChurn,
];

impl Perturbation {
    /// NetworkDB's name.
    pub fn name(self) -> &'static str {
        match self {
            CreateEntry => "create-entry",
            UpdateEntry => "update-entry",
            DeleteEntry => "delete-entry",
            JoinNetwork => "join-network",
            WriteAfterJoin => "write-after-join",
            JoinPopulatedNetwork => "join-populated-network",
            LeaveNetwork => "leave-network",
            CreateEntryUnderChurn => "create-entry-under-churn",
        }
    }

    /// What it is, in few words.
    pub fn about(self) -> &'static str {
        match self {
            CreateEntry => "a member is attached",
            UpdateEntry => "a member's record changes",
            DeleteEntry => "a member is released",
            JoinNetwork => "a host begins to take part",
            WriteAfterJoin => "a host joins and attaches at once",
            JoinPopulatedNetwork => "a host joins and has everything",
            LeaveNetwork => "a host's last member goes",
            CreateEntryUnderChurn => "a member among 400 writes/s",
        }
    }

    /// The perturbation of a name.
    pub fn find(name: &str) -> Option<Perturbation> {
        ALL.into_iter().find(|perturbation| perturbation.name() == name)
    }

    /// How many hosts NetworkDB measured it with.
    pub fn sizes(self) -> &'static [usize] {
        match self {
            CreateEntry | UpdateEntry | DeleteEntry => &[2, 3, 5, 10, 25],
            JoinNetwork | WriteAfterJoin | JoinPopulatedNetwork | LeaveNetwork => &[3, 5, 10, 25],
            CreateEntryUnderChurn => &[5, 10, 25],
        }
    }

    /// How often NetworkDB measured it with each number of hosts.
    pub fn repetitions(self) -> u64 {
        if self.is_churned() { 30 } else { 45 }
    }

    /// Whether other things go on meanwhile; the last host is not waited for then.
    pub fn is_churned(self) -> bool {
        self == CreateEntryUnderChurn
    }

    /// How many members a host begins with; none: it takes no part in the network. `None`: it is not in
    /// the region.
    pub fn begins_with(self, host: usize, hosts: usize) -> Option<usize> {
        match self {
            JoinNetwork | WriteAfterJoin if host + 1 == hosts => Some(0),
            JoinPopulatedNetwork if host + 1 == hosts => None,
            _ => Some(1),
        }
    }

    /// What views are to show of it.
    pub fn goal(self, hosts: usize) -> anyhow::Result<Goal> {
        let last = hosts - 1;
        let (owner, reached) = match self {
            CreateEntry | CreateEntryUnderChurn => (0, Reached::member(0, TRACKED, 2, true)),
            UpdateEntry => (0, Reached::member(0, 0, 2, true)),
            DeleteEntry => (0, Reached::member(0, 0, 2, false)),
            JoinNetwork => (last, Reached::TakesPart),
            WriteAfterJoin => (last, Reached::member(last, TRACKED, 2, true)),
            JoinPopulatedNetwork => (0, Reached::member(0, 0, 1, true)),
            LeaveNetwork => (last, Reached::Left),
        };
        Ok(Goal { owner: name(owner)?, reached })
    }

    /// Does it.
    pub async fn perturb(self, seats: &mut Seats) -> anyhow::Result<()> {
        let last = seats.seats.len() - 1;
        let put = |host, number, state| Change::Put(member(host, number, 2, state));
        let (host, changes) = match self {
            CreateEntry | CreateEntryUnderChurn => (0, vec![put(0, TRACKED, MemberState::Ready)]),
            UpdateEntry => (0, vec![put(0, 0, MemberState::Ready)]),
            DeleteEntry => (0, vec![put(0, 0, MemberState::Released)]),
            JoinNetwork => (last, vec![Change::Put(takes_part())]),
            WriteAfterJoin => {
                seats.seat(last)?.publish(vec![Change::Put(takes_part())]).await?;
                (last, vec![put(last, TRACKED, MemberState::Ready)])
            }
            JoinPopulatedNetwork => {
                seats.seats[last] = Some(seats.arrival(last, 0)?.await?);
                return Ok(());
            }
            LeaveNetwork => {
                let left = Change::Delete(Key::Network(network()));
                (last, vec![put(last, 0, MemberState::Released), left])
            }
        };
        seats.seat(host)?.publish(changes).await
    }
}

/// What a view is to show.
#[derive(Debug)]
pub struct Goal {
    /// Whose records tell.
    pub owner: HostId,
    reached: Reached,
}

#[derive(Debug)]
enum Reached {
    /// The member, live or released, in this write or a later one.
    Member { member: MemberId, counter: u64, live: bool },
    /// The owner takes part in the network.
    TakesPart,
    /// The owner takes no part in the network and has no live member there.
    Left,
}

impl Reached {
    fn member(owner: usize, number: usize, counter: u64, live: bool) -> Reached {
        Reached::Member { member: member_id(owner, number), counter, live }
    }
}

impl Goal {
    /// Whether a view shows it, and how it came there.
    pub fn reached(&self, view: &View) -> Option<Via> {
        let owner = view.hosts.get(&self.owner)?;
        self.holds(&owner.records).then_some(owner.via)
    }

    fn holds(&self, records: &HostRecords) -> bool {
        let takes_part = records.networks.contains_key(&network());
        match &self.reached {
            Reached::Member { member, counter, live } => {
                let found = records.members.get(&(network(), member.clone()));
                found.is_some_and(|record| {
                    record.counter >= *counter && (record.state != MemberState::Released) == *live
                })
            }
            Reached::TakesPart => takes_part,
            Reached::Left => {
                !takes_part && records.members.values().all(|member| member.state == MemberState::Released)
            }
        }
    }
}

/// What goes on beside a tracked write: NetworkDB's numbers.
pub struct Churn {
    steps: usize,
    written: usize,
    takes_part: bool,
}

const WRITES_PER_STEP: usize = 8;
const WRITES_MAX: usize = 2000;
const STEPS_PER_FLAP: usize = 5;
/// Far from the members that the hosts begin with.
const FIRST_NUMBER: usize = 1 << 16;

impl Churn {
    /// Before its first step; the last host takes part.
    pub fn new() -> Churn {
        Churn { steps: 0, written: 0, takes_part: true }
    }

    /// One step: one of the hosts between the first and the last writes, and now and then the last one
    /// leaves or joins.
    ///
    /// # Errors
    /// None that is its own: a host that takes no more members is noise.
    pub async fn step(&mut self, seats: &Seats) -> anyhow::Result<()> {
        self.steps += 1;
        let last = seats.seats.len() - 1;
        if self.written < WRITES_MAX {
            let source = 1 + self.steps % (last - 1);
            for _ in 0..WRITES_PER_STEP {
                let junk = member(source, FIRST_NUMBER + self.written, 1, MemberState::Ready);
                if seats.seat(source)?.publish(vec![Change::Put(junk)]).await.is_ok() {
                    self.written += 1;
                }
            }
        }
        if self.steps.is_multiple_of(STEPS_PER_FLAP) {
            let network = match self.takes_part {
                true => Change::Delete(Key::Network(network())),
                false => Change::Put(takes_part()),
            };
            let state = if self.takes_part { MemberState::Released } else { MemberState::Ready };
            let member = Change::Put(member(last, 0, 1 + self.steps as u64, state));
            seats.seat(last)?.publish(vec![network, member]).await?;
            self.takes_part = !self.takes_part;
        }
        Ok(())
    }
}
