//! Podman: its containers by name. Its API's socket is mostly off, so the command is asked.

use std::process::Command;

use super::docker::engine::Container;
use crate::attach::{Refusal, RefusalKind};

/// Where Podman's API is served, if `podman.socket` is started.
pub const DEFAULT_SOCKET: &str = "/run/podman/podman.sock";

/// A container by name or id, as Docker would describe it.
///
/// # Errors
/// It is not there, or there is no Podman.
pub fn container(name: &str) -> Result<Container, Refusal> {
    let asked =
        Command::new("podman").args(["container", "inspect", "--format", "json", "--", name]).output();
    let output = asked.map_err(|error| {
        Refusal::new(RefusalKind::Failed, format!("podman cannot be run: {error}"))
            .hint("install it, or attach by --pid")
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Refusal::new(RefusalKind::NotFound, format!("podman: {}", text.trim())));
    }
    let found: Result<Vec<Container>, _> = serde_json::from_slice(&output.stdout);
    let found = found.map_err(|error| {
        let detail = format!("what Podman says of container {name} is not understood: {error}");
        Refusal::new(RefusalKind::Failed, detail)
    })?;
    let gone = || Refusal::new(RefusalKind::NotFound, format!("Podman has no container {name}"));
    found.into_iter().next().ok_or_else(gone)
}
