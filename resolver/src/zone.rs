//! The names of one network, the addresses behind them encoded once.

mod draft;

pub use self::draft::Draft;
use crate::name::{self, Labels, Suffix};
use crate::records::{Facts, RecordSet};
use crate::reverse::Reverse;
use crate::services::{Port, Services};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// One container's attachment to the network, as its names need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneMember {
    /// The application, `ap-<uuid>`.
    pub app: String,
    /// The process type, such as `web`.
    pub process: String,
    /// The container's number within its type, counted from 1; without it the member has no name of its own.
    pub ordinal: Option<u32>,
    /// Its address in the network.
    pub address: Ipv4Addr,
    /// Its unique local address, where IPv6 is on.
    pub address6: Option<Ipv6Addr>,
    /// The ports it publishes.
    pub ports: Vec<Port>,
    /// What a TXT record at its own name tells a person, as `key=value`.
    pub facts: Facts,
    /// Its host has not been heard of for a while: it comes last in every answer.
    pub late: bool,
}

/// Why a zone cannot be built or served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// The zone's or network's name is no host name.
    #[error("{0:?} is no domain name: give labels of 1 to 63 letters, digits, '-' or '_', 200 bytes in all")]
    Name(String),
    /// A member's application or process type cannot be a label.
    #[error("member {address}: {label:?} cannot be a label: use 1 to 63 letters, digits, '-' or '_'")]
    Label {
        /// The member's address.
        address: Ipv4Addr,
        /// What was given.
        label: String,
    },
    /// A member's number is 0; the first container is number 1.
    #[error("member {0}: containers are numbered from 1, not 0")]
    Ordinal(Ipv4Addr),
    /// A member's name would be longer than 255 bytes (RFC 1035 §2.3.4).
    #[error("member {0}: its name would be longer than 255 bytes: shorten the process type or the zone")]
    TooLong(Ipv4Addr),
    /// The zone lies elsewhere than the scope that should serve it.
    #[error("network {network} lies outside {suffix}: build its zone with the scope's suffix")]
    Elsewhere {
        /// The zone's network.
        network: String,
        /// The scope's suffix.
        suffix: String,
    },
}

/// The names of one network; immutable, another one whenever the network changes.
///
/// With `Z` the zone: `<app>.<network>.Z` and `<type>.<app>.<network>.Z` hold every container of the type (`web`
/// for the former), `<n>.<type>.<app>.<network>.Z` one container. `_<service>._<protocol>` before any of these
/// holds who of them publishes the service, and where.
#[derive(Debug)]
pub struct Zone {
    network: String,
    suffix: Suffix,
    ttl_s: u32,
    serial: u32,
    /// By the labels before [`Self::suffix`]; holds empty non-terminals too (RFC 8020). Shared with the draft until
    /// that is changed.
    names: Arc<BTreeMap<Labels, Arc<Node>>>,
    reverse: Reverse,
}

/// What stands at one name.
#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) a: RecordSet,
    pub(crate) aaaa: RecordSet,
    pub(crate) txt: Facts,
    pub(crate) services: Services,
}

/// A name and everything it resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedAddresses {
    /// The whole name, without the final dot.
    pub name: String,
    /// IPv4 addresses, ascending, those of late hosts last.
    pub addresses: Vec<Ipv4Addr>,
    /// IPv6 addresses, in the same order.
    pub addresses6: Vec<Ipv6Addr>,
}

impl Zone {
    /// Builds the names of `network` (`pn-<uuid>`) below `zone` (`private-network.internal`).
    ///
    /// `ttl_s` is the time to live of every answer in seconds. `serial` is the SOA's (RFC 1035 §3.3.13): equal
    /// on all hosts that see the same members. Addresses within `subnet` get PTR records.
    ///
    /// An address has one member: of several that are given, the last one.
    ///
    /// # Errors
    /// A name that DNS cannot hold; the zone is then not built at all.
    pub fn build(
        network: &str,
        zone: &str,
        ttl_s: u32,
        serial: u32,
        subnet: Ipv4Net,
        members: &[ZoneMember],
    ) -> Result<Zone, ZoneError> {
        let mut draft = Draft::new(network, zone, ttl_s, subnet)?;
        for member in members {
            draft.put(member.clone())?;
        }
        Ok(draft.zone(serial))
    }

    /// The network's name, `pn-<uuid>`.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Every name that has an address, sorted by application, type and number.
    pub fn names(&self) -> Vec<NamedAddresses> {
        let mut names: Vec<_> = self.names.iter().filter(|(_, node)| !node.a.is_empty()).collect();
        names.sort_by_cached_key(|(wire, _)| sort_key(&name::labels(wire)));
        names.into_iter().map(|(wire, node)| self.named(wire, node)).collect()
    }

    fn named(&self, wire: &[u8], node: &Node) -> NamedAddresses {
        let labels = [name::labels(wire), name::labels(self.suffix.wire())].concat();
        let addresses = node.a.data().filter_map(|data| <[u8; 4]>::try_from(data).ok());
        let addresses6 = node.aaaa.data().filter_map(|data| <[u8; 16]>::try_from(data).ok());
        NamedAddresses {
            name: labels.join("."),
            addresses: addresses.map(Ipv4Addr::from).collect(),
            addresses6: addresses6.map(Ipv6Addr::from).collect(),
        }
    }

    pub(crate) fn suffix(&self) -> &Suffix {
        &self.suffix
    }

    /// How long answers may be kept, in seconds.
    pub(crate) fn ttl_s(&self) -> u32 {
        self.ttl_s
    }

    pub(crate) fn serial(&self) -> u32 {
        self.serial
    }

    pub(crate) fn reverse(&self) -> &Reverse {
        &self.reverse
    }

    /// What stands at the name with these labels before the network's; `None` if nothing does.
    pub(crate) fn node(&self, labels: &[u8]) -> Option<&Node> {
        self.names.get(labels).map(Arc::as_ref)
    }
}

/// Room is left for the labels of members and name servers.
const SUFFIX_BYTES_MAX: usize = 200;

/// Reads a zone's name.
pub(crate) fn parse_suffix(text: &str) -> Result<Suffix, ZoneError> {
    Suffix::parse(text)
        .filter(|suffix| suffix.wire().len() <= SUFFIX_BYTES_MAX)
        .ok_or_else(|| ZoneError::Name(text.to_owned()))
}

/// Applications, then types, then numbers by value: `10.web` after `9.web`.
fn sort_key(labels: &[&str]) -> Vec<(u32, String)> {
    labels.iter().rev().map(|label| (label.parse().unwrap_or(0), (*label).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NETWORK: &str = "pn-ad0fd6a1-d05e-40ea-bf63-c4f8a75a9d8c";

    fn member(app: &str, process: &str, ordinal: Option<u32>, last: u8) -> ZoneMember {
        ZoneMember {
            app: app.into(),
            process: process.into(),
            ordinal,
            address: Ipv4Addr::new(10, 240, 0, last),
            address6: None,
            ports: Vec::new(),
            facts: Facts::default(),
            late: false,
        }
    }

    fn build(members: &[ZoneMember]) -> Result<Zone, ZoneError> {
        Zone::build(NETWORK, "private-network.internal", 30, 1, "10.240.0.0/22".parse().unwrap(), members)
    }

    #[test]
    fn names_are_listed_as_people_read_them() {
        let zone = build(&[
            member("ap-2", "worker", Some(1), 9),
            member("ap-1", "web", Some(10), 4),
            ZoneMember { late: true, ..member("ap-1", "web", Some(9), 3) },
            member("ap-2", "web", None, 5),
            ZoneMember { address6: Some("fd00::1".parse().unwrap()), ..member("AP-1", "Web", None, 5) },
        ])
        .unwrap();
        let end = format!(".{NETWORK}.private-network.internal");
        let names: Vec<_> = zone
            .names()
            .into_iter()
            .map(|named| {
                let last: Vec<u8> = named.addresses.iter().map(|a| a.octets()[3]).collect();
                (named.name.strip_suffix(&end).unwrap().to_owned(), last, named.addresses6.len())
            })
            .collect();
        let expected: [(&str, &[u8], usize); 6] = [
            ("ap-1", &[4, 5, 3], 1),
            ("web.ap-1", &[4, 5, 3], 1),
            ("9.web.ap-1", &[3], 0),
            ("10.web.ap-1", &[4], 0),
            ("worker.ap-2", &[9], 0),
            ("1.worker.ap-2", &[9], 0),
        ];
        let expected: Vec<_> = expected.map(|(n, last, six)| (n.to_owned(), last.to_vec(), six)).into();
        assert_eq!(names, expected);
    }

    #[test]
    fn what_dns_cannot_hold_is_refused() {
        let address = Ipv4Addr::new(10, 240, 0, 1);
        let label = |label: &str| ZoneError::Label { address, label: label.into() };
        let cases = [
            (member("ap.1", "web", None, 1), label("ap.1")),
            (member("ap-1", "", None, 1), label("")),
            (member("ap-1", "wéb", None, 1), label("wéb")),
            (member("ap-1", "web", Some(0), 1), ZoneError::Ordinal(address)),
            (member(&"a".repeat(63), &"b".repeat(63), Some(u32::MAX), 1), ZoneError::TooLong(address)),
        ];
        for (member, expected) in cases {
            let long_zone = format!("{}.internal.example", "z".repeat(63));
            let built = Zone::build(NETWORK, &long_zone, 30, 1, "10.240.0.0/22".parse().unwrap(), &[member]);
            assert_eq!(built.unwrap_err(), expected);
        }
        let built = Zone::build("pn 1", "internal", 30, 1, "10.240.0.0/22".parse().unwrap(), &[]);
        assert_eq!(built.unwrap_err(), ZoneError::Name("pn 1.internal".into()));
    }
}
