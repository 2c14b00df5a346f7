//! The real kernel: hosts and containers are network namespaces of this machine. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

mod datapath;
mod kernel;
mod lab;
mod wireguard;
