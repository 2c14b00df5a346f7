//! Ports a member publishes, `tcp/3000:http`: what its SRV records say.

use std::fmt;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most ports one member may publish; its record has to fit.
pub const PORTS_MAX: usize = 16;
/// Longest service name (RFC 6335, section 5.1).
const NAME_BYTES_MAX: usize = 15;

/// A published port: `<protocol>/<port>[:<name>]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// The transport.
    pub protocol: Protocol,
    /// The port's number.
    pub number: NonZeroU16,
    /// The service's name (RFC 6335); the number stands for it where there is none.
    pub name: Option<String>,
}

/// A transport with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Text that is no published port.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "port {0:?} is malformed: expected tcp/PORT or udp/PORT, with :NAME behind it if the service has one \
     (up to 15 of a-z, 0-9 and single '-', one letter at least)"
)]
pub struct MalformedPort(String);

impl Port {
    /// The service's name in DNS, without its underscore.
    pub fn service(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.number.to_string())
    }
}

impl Protocol {
    /// As text, and in DNS without its underscore.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl FromStr for Port {
    type Err = MalformedPort;

    fn from_str(text: &str) -> Result<Port, MalformedPort> {
        let read = || {
            let (protocol, rest) = text.split_once('/')?;
            let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| p.as_str() == protocol)?;
            let (number, name) = match rest.split_once(':') {
                Some((number, name)) => (number, Some(name)),
                None => (rest, None),
            };
            if !number.bytes().all(|b| b.is_ascii_digit()) || name.is_some_and(|name| !is_service(name)) {
                return None;
            }
            Some(Port { protocol, number: number.parse().ok()?, name: name.map(Into::into) })
        };
        read().ok_or_else(|| MalformedPort(text.to_owned()))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol.as_str(), self.number)?;
        self.name.as_ref().map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

impl TryFrom<String> for Port {
    type Error = MalformedPort;

    fn try_from(text: String) -> Result<Port, MalformedPort> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> String {
        port.to_string()
    }
}

/// A service name by RFC 6335, section 5.1, lower case only: DNS does not tell the cases apart.
fn is_service(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(plain)
        && name.bytes().any(|b| b.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_they_are_written() {
        for text in ["tcp/1", "udp/65535", "tcp/3000:http", "tcp/80:h-2", "udp/53:12345678901234a"] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), text);
        }
        assert_eq!("tcp/3000".parse::<Port>().unwrap().service(), "3000");
        assert_eq!("tcp/3000:http".parse::<Port>().unwrap().service(), "http");
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "3000",
            "tcp",
            "tcp/",
            "tcp/0",
            "tcp/65536",
            "tcp/+1",
            "tcp/ 1",
            "sctp/1",
            "TCP/1",
            "tcp/1:",
            "tcp/1:1",
            "tcp/1:-a",
            "tcp/1:a-",
            "tcp/1:a--b",
            "tcp/1:A",
            "tcp/1:a_b",
            "tcp/1:a:b",
            "udp/53:123456789012345a",
        ] {
            let error = text.parse::<Port>().unwrap_err();
            assert!(error.to_string().contains("expected tcp/PORT"), "{error}");
        }
    }
}
