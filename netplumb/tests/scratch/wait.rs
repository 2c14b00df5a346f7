//! Waiting for conditions, not for a while.

use std::time::Duration;

use tokio::time::Instant;

/// Waits until `holds`, five seconds at most.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "still not after 5 s: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
