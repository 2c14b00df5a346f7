//! How far a long run is: a line that is overwritten on a terminal, one now and then elsewhere. On stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Between two lines where nothing can be overwritten.
const LINE_PAUSE: Duration = Duration::from_secs(30);
/// Between two looks at the same line of a terminal.
const REDRAW_PAUSE: Duration = Duration::from_millis(200);

/// A run on its way. Its time is that of whoever waits for it, also where tokio's clock is paused.
pub struct Progress {
    what: String,
    began: Instant,
    told: Option<Instant>,
}

impl Progress {
    /// Begins now.
    pub fn begin(what: &str) -> Progress {
        Progress { what: what.to_owned(), began: now(), told: None }
    }

    /// So much is done of so much; `detail` stands behind it.
    pub fn tell(&mut self, done: f64, total: f64, detail: &str) {
        let terminal = io::stderr().is_terminal();
        let now = now();
        let pause = if terminal { REDRAW_PAUSE } else { LINE_PAUSE };
        if now - self.told.unwrap_or(self.began) < pause {
            return;
        }
        self.told = Some(now);
        let line = self.line(done / total.max(1e-9), now - self.began, detail);
        let mut err = io::stderr().lock();
        // Nobody misses a progress line that cannot be written.
        let _ = if terminal { write!(err, "\r{line}\x1b[K") } else { writeln!(err, "{line}") };
        let _ = err.flush();
    }

    /// Leaves the terminal to what is said next.
    pub fn end(&mut self) {
        if io::stderr().is_terminal() && self.told.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn line(&self, share: f64, since: Duration, detail: &str) -> String {
        let filled = (share * 30.0) as usize;
        let left = since.as_secs_f64() * (1.0 / share.max(1e-9) - 1.0);
        let (bar, rest) = ("=".repeat(filled.min(30)), " ".repeat(30 - filled.min(30)));
        format!("{} [{bar}{rest}] {detail}, {left:.0} s left", self.what)
    }
}

#[expect(clippy::disallowed_methods, reason = "who waits for it waits in real time")]
fn now() -> Instant {
    Instant::now()
}
