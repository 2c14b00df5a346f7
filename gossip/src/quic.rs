//! The wire on QUIC (RFC 9000): one endpoint per agent, mutual TLS 1.3, a stream per message.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use chitchat::ChitchatEnvelope;

use crate::counters::Counters;
use crate::identity::Identity;
use crate::wire::{AskError, Question, Received, Wire};

/// The wire on QUIC.
pub struct Quic {}

/// Why the endpoint was not opened.
#[derive(Debug, thiserror::Error)]
pub enum QuicError {
    /// The address cannot be bound.
    #[error("{address}/UDP cannot be bound for gossip: {error}; is another agent running?")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the kernel says.
        #[source]
        error: std::io::Error,
    },
    /// rustls does not take the certificate.
    #[error("the identity cannot be used for TLS: {0}")]
    Tls(#[from] rustls::Error),
}

impl Quic {
    /// Opens the endpoint; peers know it by `advertise`.
    pub async fn bind(
        listen: SocketAddr,
        advertise: SocketAddr,
        identity: &Identity,
    ) -> Result<Self, QuicError> {
        let _ = (listen, advertise, identity);
        todo!()
    }

    /// Where the endpoint listens; tells the port when 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        todo!()
    }
}

#[async_trait]
impl Wire for Quic {
    fn advertise(&self) -> SocketAddr {
        todo!()
    }

    fn send(&self, to: SocketAddr, envelope: ChitchatEnvelope) {
        let _ = (to, envelope);
        todo!()
    }

    async fn recv(&self) -> Option<Received> {
        todo!()
    }

    async fn ask(&self, to: SocketAddr, body: Vec<u8>) -> Result<Vec<u8>, AskError> {
        let _ = (to, body);
        todo!()
    }

    async fn asked(&self) -> Option<Question> {
        todo!()
    }

    async fn close(&self) {
        todo!()
    }

    fn counters(&self) -> Arc<Counters> {
        todo!()
    }
}
