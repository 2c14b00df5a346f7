//! Container runtimes: each surface translates what one of them asks into the one attach there is.

pub mod docker;
pub mod podman;
