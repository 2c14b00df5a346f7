//! Which hosts answer, are late, dead, gone or away. Pure, by the local monotonic clock only.

use serde::{Deserialize, Serialize};

/// How a host stands with this agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Its agent answers, or is too new to be judged.
    Answering,
    /// It stopped its agent on purpose a short while ago; its containers go on.
    Away,
    /// It answers, but its last heartbeat is older than half the detection bound: last in answers.
    Late,
    /// Out of answers; its datapath is kept.
    Dead,
    /// Its datapath is removed; its claims remain as ghosts.
    Gone,
}
