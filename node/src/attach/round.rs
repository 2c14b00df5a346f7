//! The search for scarce things, in rounds: the loop says whom to ask, or when to come again, until it gives them.

use gossip::id::HostId;
use netplumb::kernel::Kernel;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Context, Refusal, RefusalKind};
use crate::agent::Step;
use crate::claims::{Question, Told};
use crate::store::Store;

/// What the loop says to one round.
pub type Round<T> = Result<T, Halt>;

/// Why a round gives nothing.
pub enum Halt {
    /// Judges are to be asked first.
    Ask(Box<Told>, Vec<(HostId, Question)>),
    /// Nothing can be had before then; why, in words.
    Later(Box<Told>, Instant, String),
    /// Another round would be of no use.
    Refused(Refusal),
}

impl From<Refusal> for Halt {
    fn from(refusal: Refusal) -> Halt {
        Halt::Refused(refusal)
    }
}

impl<K: Kernel, S: Store> Context<K, S> {
    /// Goes round until the loop gives or refuses; without a deadline, as long as the agent runs.
    pub(super) async fn rounds<T>(
        &self,
        deadline: Option<Instant>,
        make: impl Fn(Box<Told>, oneshot::Sender<Round<T>>) -> Step,
    ) -> Result<T, Refusal> {
        let mut told = Box::<Told>::default();
        loop {
            told = match self.step(|reply| make(told, reply)).await? {
                Ok(things) => return Ok(things),
                Err(Halt::Refused(refusal)) => return Err(refusal),
                Err(Halt::Later(_, then, why)) if deadline.is_some_and(|deadline| then > deadline) => {
                    return Err(Refusal::new(RefusalKind::Unready, why));
                }
                Err(Halt::Later(told, then, _)) => {
                    tokio::time::sleep_until(then).await;
                    told
                }
                Err(Halt::Ask(told, questions)) => self.ask(told, questions).await?,
            };
        }
    }

    /// Asks judges, all at once.
    async fn ask(
        &self,
        mut told: Box<Told>,
        questions: Vec<(HostId, Question)>,
    ) -> Result<Box<Told>, Refusal> {
        let asked = Instant::now();
        let ask = |(judge, question): &(HostId, Question)| {
            let (judge, question) = (judge.clone(), question.clone());
            self.step(|reply| Step::Ask(judge, question, reply))
        };
        let answers = futures::future::try_join_all(questions.iter().map(ask)).await?;
        for ((judge, question), answer) in questions.iter().zip(answers) {
            told.hear(judge, question, answer, asked);
        }
        Ok(told)
    }
}
