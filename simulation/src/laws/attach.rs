//! How long an attach may take, and what may refuse it.

use std::time::Duration;

use anyhow::ensure;
use node::attach::RefusalKind;
use tokio::time::Instant;

use super::claims::was_calm;
use crate::cluster::{Answered, Cluster};

/// Five judges that do not answer; beside that T_hold, for those that judge only later.
const UNHEARD: Duration = Duration::from_millis(1_500);
/// How long the other hosts are waited for, and twice that to build: a kernel in memory takes no time.
const MADE: Duration = Duration::from_millis(3 * 250);
/// How long a call waits for its host to join, or for a kernel that refuses (design §5).
const WHOLE_CALL: Duration = Duration::from_secs(15);
/// The claim, its journal entry, the promise; those of other calls come before.
const WRITES: u32 = 3;

/// An attach ends within its bound (law 7), and where all is calm it is not refused for want of an answer.
pub fn ends_in_time(cluster: &mut Cluster) -> anyhow::Result<()> {
    for call in std::mem::take(&mut cluster.books.answered) {
        let label = cluster.hosts[call.host].label();
        let (took, bound) = (call.at - call.began, bound(cluster, &call));
        ensure!(took <= bound, "an attach on {label} took {took:?} of {bound:?}");
        if let Some(refusal) = call.refusal.as_ref().filter(|_| is_undisturbed(cluster, &call)) {
            let unheard = matches!(refusal.kind, RefusalKind::Unready | RefusalKind::Timeout);
            ensure!(!unheard, "in calm an attach on {label} was refused: {refusal}");
        }
    }
    for call in cluster.books.unanswered() {
        let (took, bound) = (call.began.elapsed(), bound(cluster, &call));
        ensure!(
            took <= bound,
            "an attach on {} takes {took:?} of {bound:?}",
            cluster.hosts[call.host].label()
        );
    }
    Ok(())
}

/// The design's bound from the join on, and what a slow disk or a kernel that refuses adds.
fn bound(cluster: &Cluster, call: &Answered) -> Duration {
    let host = &cluster.hosts[call.host];
    let written = WRITES * host.slowest_write(call.began);
    let joined = cluster.books.joined(&host.label()).filter(|joined| *joined <= call.began + WHOLE_CALL);
    match joined {
        Some(joined) if !host.is_meddled(call.began) => {
            joined.max(call.began) - call.began + UNHEARD + cluster.timings.hold + MADE + written
        }
        _ => WHOLE_CALL + MADE + written,
    }
}

fn is_undisturbed(cluster: &Cluster, call: &Answered) -> bool {
    let host = &cluster.hosts[call.host];
    let joined = cluster.books.joined(&host.label()).is_some_and(|joined| joined <= call.began);
    // Who asks an old agent for an address that its caller chose has nobody else to ask.
    joined && was_calm(cluster, call.began) && !host.is_meddled(call.began) && !cluster.veterans()
}

/// How long a call to detach may take: as long as a kernel that refuses, and its entry.
pub const DETACH_BOUND: Duration = Duration::from_secs(17);

/// No call to detach goes on for ever.
pub fn detaches_end(cluster: &Cluster) -> anyhow::Result<()> {
    for (host, began) in cluster.books.detaching() {
        let label = cluster.hosts[host].label();
        ensure!(Instant::now() - began <= DETACH_BOUND, "a detach on {label} has no end");
    }
    Ok(())
}
