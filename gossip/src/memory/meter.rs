//! How long envelopes are that travel as values.
//!
//! chitchat's codec is private, but its in-memory transport encodes what it is given and tells the
//! length. That costs half a millisecond for a thousand hosts, all of it for the digest, while a
//! delta tells its length for nothing; so a sender's digest is measured every now and then, and
//! taken to be as long until the next time.

use std::net::{Ipv4Addr, SocketAddr};

use chitchat::transport::{ChannelTransport, RecvOutcome, Socket, Transport as _};
use chitchat::{ChitchatEnvelope, ChitchatMessage, ProtocolVersion, Serializable as _};
use futures::FutureExt as _;

/// Of so many digests of one sender one is measured, and more of its first ones, which grow.
const MEASURED_OF: u64 = 32;
/// Magic number, version and type.
const HEADER_BYTES: usize = 4;

/// Where chitchat's transport sends to itself.
const HERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// One sender's meter.
#[derive(Default)]
pub(super) struct Meter {
    digests: u64,
    /// Length of the digest measured last.
    digest_bytes: usize,
    socket: Option<Box<dyn Socket>>,
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Meter").field("digest_bytes", &self.digest_bytes).finish_non_exhaustive()
    }
}

impl Meter {
    /// An envelope's encoded length, and the envelope.
    pub(super) fn measure(&mut self, mut envelope: ChitchatEnvelope) -> (ChitchatEnvelope, usize) {
        let rest = HEADER_BYTES + beside_digest(&envelope);
        if !has_digest(&envelope) {
            return (envelope, rest);
        }
        self.digests += 1;
        let is_due = self.digests.is_multiple_of(MEASURED_OF)
            || (self.digests < MEASURED_OF && self.digests.is_power_of_two());
        if is_due {
            let bytes;
            (envelope, bytes) = self.encoded(envelope);
            self.digest_bytes = bytes - rest;
        }
        (envelope, rest + self.digest_bytes)
    }

    /// Sends an envelope to ourselves, compressed, as it would travel elsewhere. Nothing in there waits, but for tokio's budget, which is lifted.
    fn encoded(&mut self, envelope: ChitchatEnvelope) -> (ChitchatEnvelope, usize) {
        let (version, socket) = (envelope.version, &mut self.socket);
        let envelope = ChitchatEnvelope { version: ProtocolVersion::V1, ..envelope };
        let looping = async {
            if socket.is_none() {
                *socket = Some(ChannelTransport::default().open(HERE).await?);
            }
            let socket = socket.as_mut().expect("it was just opened");
            socket.send(HERE, envelope).await?;
            socket.recv().await
        };
        let outcome = tokio::task::unconstrained(looping).now_or_never();
        let RecvOutcome { envelope, num_bytes_received, .. } =
            outcome.expect("a loop in memory never waits").expect("a loop in memory never fails");
        (ChitchatEnvelope { version, ..envelope }, num_bytes_received)
    }
}

fn has_digest(envelope: &ChitchatEnvelope) -> bool {
    matches!(envelope.message, ChitchatMessage::Syn { .. } | ChitchatMessage::SynAck { .. })
}

/// The encoded length of what is neither header nor digest.
fn beside_digest(envelope: &ChitchatEnvelope) -> usize {
    match &envelope.message {
        ChitchatMessage::Syn { cluster_id, .. } => cluster_id.serialized_len(),
        ChitchatMessage::SynAck { delta, .. } | ChitchatMessage::Ack { delta } => delta.serialized_len(),
        ChitchatMessage::BadCluster => 0,
    }
}

/// A copy of an envelope, where chitchat's public parts allow one: of an ACK, by its delta's bytes.
pub(super) fn copy(envelope: &ChitchatEnvelope) -> Option<ChitchatEnvelope> {
    let ChitchatMessage::Ack { delta } = &envelope.message else { return None };
    let bytes = delta.serialize_to_vec();
    let delta = chitchat::Deserializable::deserialize(&mut &bytes[..]).ok()?;
    Some(ChitchatEnvelope { version: envelope.version, message: ChitchatMessage::Ack { delta } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Codec;

    fn envelope(message: ChitchatMessage) -> ChitchatEnvelope {
        ChitchatEnvelope { version: ProtocolVersion::V1, message }
    }

    fn syn() -> ChitchatEnvelope {
        envelope(ChitchatMessage::Syn { cluster_id: "osc-fr1".into(), digest: Default::default() })
    }

    fn messages() -> [ChitchatEnvelope; 4] {
        let syn_ack = ChitchatMessage::SynAck { digest: Default::default(), delta: Default::default() };
        let ack = ChitchatMessage::Ack { delta: Default::default() };
        [syn(), envelope(syn_ack), envelope(ack), envelope(ChitchatMessage::BadCluster)]
    }

    /// Measured or taken from the last time, the length is what the codec of the real wire makes.
    #[tokio::test]
    async fn an_envelope_is_as_long_as_on_the_real_wire() {
        let mut codec = Codec::open().await.unwrap();
        let mut meter = Meter::default();
        for _ in 0..100 {
            for (message, same) in messages().into_iter().zip(messages()) {
                let (message, bytes) = meter.measure(message);
                assert_eq!(message, same);
                assert_eq!(codec.encode(message).await.unwrap().len(), bytes);
            }
        }
    }

    #[test]
    fn only_an_ack_is_copied() {
        let copied = messages().map(|message| copy(&message).is_some_and(|copy| copy == message));
        assert_eq!(copied, [false, false, true, false]);
    }
}
