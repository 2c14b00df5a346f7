//! Members that wait to be built: a few are built together, so that they are ready while the next ones are built.

use std::collections::VecDeque;

use gossip::id::MemberId;
use netplumb::kernel::Kernel;
use tokio::sync::oneshot;

use super::Agent;
use crate::store::Store;

/// As many are built together. Nobody is told ready before the last of them stands; each round tells all members of
/// the network of those that are new.
const TOGETHER: usize = 6;

/// The queue.
#[derive(Default)]
pub(super) struct Building {
    waiting: VecDeque<(MemberId, oneshot::Sender<u64>)>,
    /// What the kernel has to follow before the next ones are let in.
    revision: u64,
}

impl Building {
    /// A member whose entry is on disk; its revision is answered when it is let in.
    pub(super) fn wait(&mut self, member: MemberId, reply: oneshot::Sender<u64>) {
        self.waiting.push_back((member, reply));
    }

    /// Who is let in, in the order they came, when the kernel has followed `built`. Whoever gave up is not.
    fn next(&mut self, built: u64) -> Vec<(MemberId, oneshot::Sender<u64>)> {
        if built < self.revision {
            return Vec::new();
        }
        self.waiting.retain(|(_, reply)| !reply.is_closed());
        self.waiting.drain(..self.waiting.len().min(TOGETHER)).collect()
    }
}

impl<K: Kernel, S: Store + Clone> Agent<K, S> {
    /// Lets the next members be built, unless others are.
    pub(super) async fn build_next(&mut self) {
        let built = self.context.built.borrow().revision;
        let round = self.building.next(built);
        if round.is_empty() {
            return;
        }
        for (member, _) in &round {
            self.journal().mark_durable(member);
        }
        self.follow().await;
        self.building.revision = self.revision;
        for (_, reply) in round {
            let _ = reply.send(self.revision);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_built_while_the_others_wait() {
        let mut building = Building::default();
        let ids: Vec<MemberId> = (0..TOGETHER + 4).map(|_| MemberId::random()).collect();
        let mut answers = Vec::new();
        let mut come = |building: &mut Building, ids: &[MemberId]| {
            for id in ids {
                let (reply, answer) = oneshot::channel();
                building.wait(id.clone(), reply);
                answers.push(Some(answer));
            }
        };
        let next = |building: &mut Building, built| -> Vec<MemberId> {
            building.next(built).into_iter().map(|(member, _)| member).collect()
        };
        come(&mut building, &ids[..1]);
        assert_eq!(next(&mut building, 0), ids[..1], "the first one waits for nobody");
        building.revision = 1;
        come(&mut building, &ids[1..]);
        assert_eq!(next(&mut building, 0), [], "it is being built");
        answers[2] = None;
        let round: Vec<MemberId> = next(&mut building, 1);
        assert_eq!(round[0], ids[1]);
        assert_eq!(round[1..], ids[3..TOGETHER + 2], "whoever gave up is left out");
        building.revision = 2;
        assert_eq!(next(&mut building, 1), []);
        assert_eq!(next(&mut building, 2), ids[TOGETHER + 2..]);
        assert_eq!(next(&mut building, 2), []);
    }
}
