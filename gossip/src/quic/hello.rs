//! The first words on a connection: who is there, and whether both want to talk.

use std::net::SocketAddr;

use quinn::{Connection, ConnectionError, ReadToEndError, VarInt, WriteError};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::id::{HostId, Region};
use crate::identity::name_in;
use crate::wire::Refusal;

/// Application error codes (RFC 9000, section 20.2): left for good, or not needed any more.
pub(super) const DONE: VarInt = VarInt::from_u32(0);
/// Refused; the reason phrase is a [`Refusal`] in JSON.
pub(super) const REFUSED: VarInt = VarInt::from_u32(1);

const HELLO_BYTES_MAX: usize = 4096;
/// TLS alerts as QUIC errors (RFC 9001, section 4.8).
const TLS_ALERTS: std::ops::Range<u64> = 0x100..0x200;

/// What each side says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) region: Region,
    pub(super) host: HostId,
    /// Where the agent wants to be reached.
    pub(super) advertise: SocketAddr,
    /// New at each start: a new process at an old address.
    pub(super) incarnation: u64,
}

/// Why a connection did not come about, or ended.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum Ended {
    /// We refused the peer.
    #[error("refused by this host: {0}")]
    ByUs(Refusal),
    /// The peer refused us.
    #[error("refused by the peer: {0}")]
    ByPeer(Refusal),
    /// Nobody there, or the path broke.
    #[error(transparent)]
    Lost(#[from] ConnectionError),
    /// The peer says nothing that makes sense.
    #[error("no answer")]
    Silent,
}

impl Ended {
    /// The refusal, whoever's it was.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        match self {
            Ended::ByUs(refusal) | Ended::ByPeer(refusal) => Some(refusal),
            Ended::Lost(_) | Ended::Silent => None,
        }
    }

    /// Reads a connection's end.
    pub(super) fn from_connection(error: ConnectionError) -> Self {
        match &error {
            ConnectionError::ApplicationClosed(close) if close.error_code == REFUSED => {
                let refusal = serde_json::from_slice(&close.reason);
                Ended::ByPeer(refusal.unwrap_or_else(|_| Refusal::Protocol("an unreadable refusal".into())))
            }
            ConnectionError::TransportError(tls) if TLS_ALERTS.contains(&u64::from(tls.code)) => {
                Ended::ByUs(Refusal::Tls(tls.reason.clone()))
            }
            ConnectionError::ConnectionClosed(close) if TLS_ALERTS.contains(&u64::from(close.error_code)) => {
                Ended::ByPeer(Refusal::Tls(close.to_string()))
            }
            _ => Ended::Lost(error),
        }
    }
}

impl From<WriteError> for Ended {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Ended::from_connection(error),
            _ => Ended::Silent,
        }
    }
}

impl From<ReadToEndError> for Ended {
    fn from(error: ReadToEndError) -> Self {
        match error {
            ReadToEndError::Read(quinn::ReadError::ConnectionLost(error)) => Ended::from_connection(error),
            _ => Ended::Silent,
        }
    }
}

/// Says hello, hears the peer's, and holds it to its certificate.
pub(super) async fn exchange(connection: &Connection, own: &Hello) -> Result<Hello, Ended> {
    let mut stream = connection.open_uni().await.map_err(Ended::from_connection)?;
    let words = serde_json::to_vec(own).expect("a hello has a JSON form");
    stream.write_all(&words).await?;
    // It fails when the connection is gone, which the next read tells.
    _ = stream.finish();
    let mut stream = connection.accept_uni().await.map_err(Ended::from_connection)?;
    let words = stream.read_to_end(HELLO_BYTES_MAX).await?;
    let hello: Hello = serde_json::from_slice(&words)
        .map_err(|error| Ended::ByUs(Refusal::Protocol(format!("its hello is malformed: {error}"))))?;
    check(own, &hello, certified(connection)).map_err(Ended::ByUs)?;
    Ok(hello)
}

/// The name in the certificate that the handshake has verified.
fn certified(connection: &Connection) -> Option<(Region, HostId)> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    name_in(identity.first()?)
}

fn check(own: &Hello, peer: &Hello, certified: Option<(Region, HostId)>) -> Result<(), Refusal> {
    let Some((region, host)) = certified else {
        return Err(Refusal::Name("the certificate has no warren:// name".into()));
    };
    if region != own.region || peer.region != own.region {
        let text = format!(
            "{host} is of region {region} and claims {}, {} is of {}",
            peer.region, own.host, own.region
        );
        return Err(Refusal::Region(text));
    }
    if host != peer.host {
        return Err(Refusal::Name(format!(
            "the certificate of {host} is used by an agent that claims to be {}",
            peer.host
        )));
    }
    if peer.host == own.host {
        return Err(Refusal::Twin { host, address: peer.advertise });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_held_to_its_certificate() {
        let hello = |region: &str, host: &str| Hello {
            region: region.parse().unwrap(),
            host: host.parse().unwrap(),
            advertise: "192.0.2.1:7946".parse().unwrap(),
            incarnation: 1,
        };
        let own = hello("r", "a");
        let cases = [
            ("peer", hello("r", "b"), Some(("r", "b")), None),
            ("no name", hello("r", "b"), None, Some("name")),
            ("other region in the certificate", hello("r", "b"), Some(("s", "b")), Some("region")),
            ("other region claimed", hello("s", "b"), Some(("r", "b")), Some("region")),
            ("other host claimed", hello("r", "c"), Some(("r", "b")), Some("name")),
            ("our name claimed", hello("r", "a"), Some(("r", "b")), Some("name")),
            ("our own certificate", hello("r", "a"), Some(("r", "a")), Some("twin")),
        ];
        for (case, peer, certified, expected) in cases {
            let certified = certified.map(|(region, host)| (region.parse().unwrap(), host.parse().unwrap()));
            let refusal = check(&own, &peer, certified).err();
            assert_eq!(refusal.as_ref().map(Refusal::reason), expected, "{case}");
        }
    }
}
