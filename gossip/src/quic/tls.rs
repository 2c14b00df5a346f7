//! The endpoint's configuration: mutual TLS 1.3 under the region's CA, and QUIC's parameters.

use std::sync::Arc;
use std::time::Duration;

use blake2::{Blake2b512, Digest as _};
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, TransportConfig, VarInt};
use rustls::client::Resumption;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;

use super::QuicError;
use crate::identity::{Identity, provider};
use crate::wire::MESSAGE_BYTES_MAX;

const ALPN: &[u8] = b"warren/1";
const IDLE_TIMEOUT_MS: u32 = 30_000;
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// A cold connection must carry a digest of a thousand hosts, some 30 kB, in one flight.
const INITIAL_WINDOW_BYTES: u64 = 128 * 1024;
const STREAMS_MAX: u32 = 64;
const RECEIVE_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_ID_BYTES: usize = 8;

/// For connections this agent accepts.
pub(super) fn server(identity: &Identity) -> Result<quinn::ServerConfig, QuicError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots.clone(), provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session would not look at the certificate again.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    tls.send_tls13_tickets = 0;
    let tls = QuicServerConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport()));
    // An agent that moves says hello anew.
    config.migration(false);
    Ok(config)
}

/// For connections this agent makes.
pub(super) fn client(identity: &Identity) -> Result<quinn::ClientConfig, QuicError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(identity.roots.clone())
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    tls.resumption = Resumption::disabled();
    let tls = QuicClientConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    let mut transport = transport();
    // One end is enough.
    transport.keep_alive_interval(Some(KEEP_ALIVE));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// What an agent started anew shares with its former self: the key by which it tells peers that
/// their old connections to it are dead (RFC 9000, section 10.3), long before they time out.
pub(super) fn endpoint(identity: &Identity) -> EndpointConfig {
    let mut config = EndpointConfig::new(Arc::new(ResetKey::of(identity)));
    // quinn's default generator drops connection ids of a former process without a word.
    config.cid_generator(|| Box::new(RandomIds));
    config
}

fn transport() -> TransportConfig {
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW_BYTES);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .max_concurrent_uni_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(MESSAGE_BYTES_MAX as u32 + 1))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        // Regions are metropolitan; the default of 333 ms would repeat a lost first packet late.
        .initial_rtt(Duration::from_millis(50))
        .congestion_controller_factory(Arc::new(congestion));
    transport
}

struct ResetKey([u8; 64]);

impl ResetKey {
    fn of(identity: &Identity) -> Self {
        let mut hash = Blake2b512::new();
        hash.update(b"warren stateless reset");
        hash.update(identity.key.secret_der());
        Self(hash.finalize().into())
    }

    fn tag(&self, data: &[u8]) -> [u8; 64] {
        // BLAKE2 cannot be extended, so a prefixed key makes a MAC (RFC 7693, section 2.9).
        Blake2b512::new().chain_update(self.0).chain_update(data).finalize().into()
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&self.tag(data));
    }

    fn signature_len(&self) -> usize {
        64
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        if self.tag(data) == signature { Ok(()) } else { Err(CryptoError) }
    }
}

struct RandomIds;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&rand::random::<[u8; CONNECTION_ID_BYTES]>())
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
