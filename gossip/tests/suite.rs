//! Everything that takes real files, real sockets, or both kinds of wire.

#![expect(clippy::unwrap_used, reason = "clippy allows it in test functions only, not beside them")]

mod common;
mod eager;
mod identity;
mod region;
mod scale;
mod wire;
