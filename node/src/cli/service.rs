//! The service manager's side of a process that stays: the sockets it opened before, and what it wants to hear
//! (sd_listen_fds(3), sd_notify(3)). Without one nothing of this does anything.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;

/// Listeners that were open before this process began: who connected meanwhile has waited.
pub struct Inherited(Vec<UnixListener>);

impl Inherited {
    /// Takes them out of the environment, which no other thread may be reading.
    pub fn take_all() -> Inherited {
        let mut given = ListenFd::from_env();
        let listeners = (0..given.len()).filter_map(|i| match given.take_unix_listener(i) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!("a socket of the service manager is of no use: {error}");
                None
            }
        });
        Inherited(listeners.collect())
    }

    /// The one that listens on `path`.
    pub fn listener(&mut self, path: &Path) -> Option<UnixListener> {
        let is_it = |listener: &UnixListener| {
            listener.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
        };
        let at = self.0.iter().position(is_it)?;
        Some(self.0.swap_remove(at))
    }
}

/// The process serves.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The process was told to end, and is about to.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often the watchdog is to hear of this process, when there is one: twice in the time it waits.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|patience| patience / 2)
}

/// The process is not stuck.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("the service manager does not hear: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_by_where_it_listens() {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["a.sock", "b.sock"].map(|name| dir.path().join(name));
        let mut inherited = Inherited(paths.iter().map(|path| UnixListener::bind(path).unwrap()).collect());
        assert!(inherited.listener(&dir.path().join("c.sock")).is_none());
        let second = inherited.listener(&paths[1]).unwrap();
        assert_eq!(second.local_addr().unwrap().as_pathname(), Some(paths[1].as_path()));
        assert!(inherited.listener(&paths[1]).is_none(), "it is taken once");
    }
}
