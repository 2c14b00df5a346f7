//! Joining in two steps: hear what the region says, then publish what this host says.

use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::Config;
use crate::greeting::{self, Greeting, Welcome};
use crate::merge::ViewBuilder;
use crate::own::OwnRecords;
use crate::record::Record;
use crate::seat::{Seat, Stay};
use crate::seeds::{self, Seeds};
use crate::snapshot::{self, Snapshot};
use crate::view::View;
use crate::wire::Wire;
use crate::{ASKS_WAITING_MAX, Ask, COMMANDS_WAITING_MAX, Gossip, Inner, JoinError, hear_questions};

/// A host before the door: it has heard the region and has not yet said anything.
///
/// Made by [`at`](Self::at). What the node decides from [`view`](Self::view), which of its members
/// it gives up and which it takes over from an older self, goes into the records it
/// [`join`](Self::join)s with.
pub struct Arrival {
    config: Config,
    wire: Arc<dyn Wire>,
    seeds: watch::Receiver<Seeds>,
    greeting: Greeting,
    snapshot: Option<Snapshot>,
    builder: ViewBuilder,
    tasks: JoinSet<()>,
    /// Answers others until this host is in; ends with it.
    door: JoinSet<()>,
}

impl Arrival {
    /// Asks seeds and known hosts, for 2 s at most, for the highest generation seen of this host,
    /// and one that answers for a snapshot of the region; meanwhile answers those who ask the same.
    ///
    /// # Errors
    /// [`JoinError::Twin`] and [`JoinError::RegionFull`].
    pub async fn at(config: Config, wire: impl Wire) -> Result<Self, JoinError> {
        let wire: Arc<dyn Wire> = Arc::new(wire);
        let (mut tasks, mut door) = (JoinSet::new(), JoinSet::new());
        let known = config.known.iter().map(|known| (known.host.clone(), known.generation)).collect();
        door.spawn(greeting::answer_others(known, wire.clone()));
        let seeds = seeds::follow(&config.seeds, config.advertise, &mut tasks);
        let Welcome { greeting, peers } = greeting::greet(&config, &*wire, seeds.clone()).await;
        if let Some(address) = greeting.twin {
            return Err(JoinError::Twin { host: config.host.clone(), address });
        }
        if let Some(bytes) = greeting.full {
            return Err(JoinError::RegionFull { bytes });
        }
        let snapshot = snapshot::ask(&*wire, peers).await;
        let now = Instant::now();
        let mut builder = ViewBuilder::new(
            &config.host,
            &config.known,
            config.timings,
            wire.counters(),
            config.parsed.clone(),
            now,
        );
        if let Some(snapshot) = &snapshot {
            snapshot.remember(&mut builder, now);
        }
        builder.build();
        Ok(Self { config, wire, seeds, greeting, snapshot, builder, tasks, door })
    }

    /// What is known before the first word: the persisted view and the region's snapshot. An older
    /// generation of this host that the region remembers is there under its name.
    pub fn view(&self) -> Arc<View> {
        self.builder.view().clone()
    }

    /// Publishes the records in a generation above every one seen of this host, and returns the
    /// seat in the region and the questions other nodes ask.
    ///
    /// `persist` stores the generation before anything is published, and each later one.
    ///
    /// # Errors
    /// [`JoinError::Persist`], [`JoinError::Records`] and [`JoinError::Start`].
    pub async fn join(
        self,
        records: Vec<Record>,
        persist: impl Fn(u64) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<(Gossip, mpsc::Receiver<Ask>), JoinError> {
        let Self { config, wire, seeds, greeting, snapshot, builder, mut tasks, mut door } = self;
        let own = OwnRecords::new(&config.host, records)?;
        let host = config.host.clone();
        let heard = snapshot.as_ref().and_then(|snapshot| snapshot.generation(&host.node_id()));
        let seen = greeting.generation.max(heard);
        let stay = Stay { config, wire: wire.clone(), persist: Box::new(persist), seeds };
        let seat = Seat::take(stay, own, builder, snapshot, seen).await?;
        door.shutdown().await;
        let (views, generation) = (seat.views(), seat.generation());
        let (commands, received) = mpsc::channel(COMMANDS_WAITING_MAX);
        let (asks, asked) = mpsc::channel(ASKS_WAITING_MAX);
        tasks.spawn(seat.run(received));
        tasks.spawn(hear_questions(wire.clone(), commands.clone(), asks.clone()));
        let seat = Inner { host, wire, views, generation, commands, asks, _tasks: tasks };
        Ok((Gossip { seat: Arc::new(seat) }, asked))
    }
}
