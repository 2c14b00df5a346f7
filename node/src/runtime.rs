//! Container runtimes: each surface translates what one of them asks into the one attach there is.

pub mod cdi;
pub mod cni;
pub mod docker;
pub mod hook;
pub mod netavark;
pub mod podman;
pub mod watch;
