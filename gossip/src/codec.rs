//! chitchat's wire format, borrowed.
//!
//! chitchat 0.13 keeps its codec private (quickwit-oss/chitchat#207), but its `UdpSocket` is
//! public and encodes what it sends and decodes what it receives. So one of those and one socket
//! of ours talk on loopback. Only our end can be connected: what the other receives from anybody
//! else is dropped here, or a local stranger could speak as gossip around the mutual TLS.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use chitchat::transport::Socket as _;
use chitchat::{ChitchatEnvelope, ChitchatMessage};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// chitchat's magic number, protocol version 0, message type 3: a whole `BadCluster`. It follows
/// the bytes to decode: bytes that are no message are swallowed without a word, and the sentinel
/// tells, where waiting would pair the next message with the wrong peer.
const SENTINEL: [u8; 4] = [0x53, 0xb0, 0, 3];
/// Where an encoded message tells its type.
const TYPE_OFFSET: usize = 3;
/// Most a UDP datagram carries; chitchat cuts its deltas to it, only a digest can be longer.
const DATAGRAM_BYTES_MAX: usize = 65_507;
/// A datagram between two sockets of one task is there at once, or was lost.
const BOUND: Duration = Duration::from_millis(100);

/// Why a message was not encoded or decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    /// The bytes are no chitchat message.
    #[error("not a chitchat message")]
    Invalid,
    /// A socket failed, most likely because the message is longer than a datagram.
    #[error("loopback socket: {0}")]
    Socket(anyhow::Error),
    /// The datagram did not arrive; both sockets are made anew.
    #[error("loopback lost a datagram")]
    Lost,
}

impl From<io::Error> for CodecError {
    fn from(error: io::Error) -> Self {
        CodecError::Socket(error.into())
    }
}

/// Whether encoded bytes are a `BadCluster`: it carries nothing, and it is what the sentinel is.
pub(crate) fn is_bad_cluster(bytes: &[u8]) -> bool {
    bytes.get(TYPE_OFFSET) == Some(&SENTINEL[TYPE_OFFSET])
}

/// Both ends of the loop; one job at a time, by `&mut`.
pub(crate) struct Codec {
    theirs: chitchat::transport::UdpSocket,
    theirs_at: SocketAddr,
    ours: UdpSocket,
    ours_at: SocketAddr,
    buffer: Vec<u8>,
}

impl Codec {
    /// Opens both sockets on loopback ports of the kernel's choice.
    pub(crate) async fn open() -> Result<Self, CodecError> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let theirs = chitchat::transport::UdpSocket::open(anywhere).await.map_err(CodecError::Socket)?;
        let theirs_at = theirs.local_addr().map_err(CodecError::Socket)?;
        let ours = UdpSocket::bind(anywhere).await?;
        ours.connect(theirs_at).await?;
        let ours_at = ours.local_addr()?;
        Ok(Self { theirs, theirs_at, ours, ours_at, buffer: vec![0; DATAGRAM_BYTES_MAX] })
    }

    /// The bytes of an envelope.
    pub(crate) async fn encode(&mut self, envelope: ChitchatEnvelope) -> Result<Vec<u8>, CodecError> {
        let outcome = timeout(BOUND, self.encode_unbounded(envelope)).await;
        self.settle(outcome).await
    }

    /// The envelope in some bytes, which must not be a [`is_bad_cluster`].
    pub(crate) async fn decode(&mut self, bytes: &[u8]) -> Result<ChitchatEnvelope, CodecError> {
        let outcome = timeout(BOUND, self.decode_unbounded(bytes)).await;
        self.settle(outcome).await
    }

    async fn encode_unbounded(&mut self, envelope: ChitchatEnvelope) -> Result<Vec<u8>, CodecError> {
        self.theirs.send(self.ours_at, envelope).await.map_err(CodecError::Socket)?;
        let length = self.ours.recv(&mut self.buffer).await?;
        Ok(self.buffer[..length].to_vec())
    }

    async fn decode_unbounded(&mut self, bytes: &[u8]) -> Result<ChitchatEnvelope, CodecError> {
        self.ours.send(bytes).await?;
        self.ours.send(&SENTINEL).await?;
        let first = self.receive().await?;
        if first.message == ChitchatMessage::BadCluster {
            return Err(CodecError::Invalid);
        }
        self.receive().await?;
        Ok(first)
    }

    /// The next message from our own end.
    async fn receive(&mut self) -> Result<ChitchatEnvelope, CodecError> {
        loop {
            let received = self.theirs.recv().await.map_err(CodecError::Socket)?;
            if received.from_addr == self.ours_at {
                return Ok(received.envelope);
            }
            tracing::warn!(from = %received.from_addr, to = %self.theirs_at, "a local process sent gossip to the codec; dropped");
        }
    }

    /// After anything but a clean outcome a datagram may still be on its way: start afresh.
    async fn settle<T>(
        &mut self,
        outcome: Result<Result<T, CodecError>, tokio::time::error::Elapsed>,
    ) -> Result<T, CodecError> {
        let outcome = outcome.unwrap_or(Err(CodecError::Lost));
        if matches!(outcome, Err(CodecError::Lost | CodecError::Socket(_))) {
            *self = Self::open().await?;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use chitchat::ProtocolVersion;

    use super::*;

    fn syn(cluster: &str) -> ChitchatEnvelope {
        let message = ChitchatMessage::Syn { cluster_id: cluster.into(), digest: Default::default() };
        ChitchatEnvelope { version: ProtocolVersion::V1, message }
    }

    #[tokio::test]
    async fn garbage_between_messages_pairs_nothing_wrongly() {
        let mut codec = Codec::open().await.unwrap();
        for round in 0..20 {
            let envelope = syn(&format!("cluster-{round}"));
            let bytes = codec.encode(syn(&format!("cluster-{round}"))).await.unwrap();
            for garbage in [&b""[..], b"junk", &SENTINEL[..3], &bytes[..bytes.len() - 1], &[0xff; 3000]] {
                assert!(matches!(codec.decode(garbage).await, Err(CodecError::Invalid)), "{garbage:?}");
            }
            assert_eq!(codec.decode(&bytes).await.unwrap(), envelope);
        }
    }

    #[tokio::test]
    async fn the_sentinel_is_what_chitchat_writes() {
        let mut codec = Codec::open().await.unwrap();
        let envelope =
            ChitchatEnvelope { version: ProtocolVersion::V0, message: ChitchatMessage::BadCluster };
        let bytes = codec.encode(envelope).await.unwrap();
        assert_eq!(bytes, SENTINEL);
        assert!(is_bad_cluster(&bytes));
    }

    #[tokio::test]
    async fn a_strangers_datagram_is_not_accepted() {
        let mut codec = Codec::open().await.unwrap();
        let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let forged = codec.encode(syn("forged")).await.unwrap();
        let good = codec.encode(syn("good")).await.unwrap();
        for to in [codec.theirs_at, codec.ours_at] {
            stranger.send_to(&forged, to).await.unwrap();
        }
        assert_eq!(codec.decode(&good).await.unwrap(), syn("good"));
        assert_eq!(codec.encode(syn("good")).await.unwrap(), good);
        assert!(matches!(codec.decode(b"junk").await, Err(CodecError::Invalid)));
    }

    #[tokio::test]
    async fn an_overlong_message_is_an_error_and_the_next_one_passes() {
        let mut codec = Codec::open().await.unwrap();
        let overlong = syn(&"x".repeat(65_510));
        assert!(matches!(codec.encode(overlong).await, Err(CodecError::Socket(_))));
        let bytes = codec.encode(syn("next")).await.unwrap();
        assert_eq!(codec.decode(&bytes).await.unwrap(), syn("next"));
    }
}
