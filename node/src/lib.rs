//! The host agent of warren, and its command line.
//!
//! A node is a projection of the gossiped view: local intent ([`journal`]) becomes this host's own
//! records, gossip merges everybody's into a view, and pure functions ([`project`]) turn the view
//! into the kernel state that should be and the names that should resolve. It opens no socket but
//! its API's ([`api`]) and those that container runtimes ask on ([`runtime`]), and writes no file but
//! its store's ([`store`]).

pub mod agent;
pub mod api;
pub mod attach;
pub mod claims;
pub mod cli;
pub mod config;
pub mod doctor;
pub mod explain;
pub mod http;
pub mod journal;
pub mod lookup;
pub mod metrics;
pub mod names;
mod page;
pub mod project;
pub mod runtime;
mod schema;
pub mod store;
