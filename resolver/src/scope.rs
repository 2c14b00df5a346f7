//! What one container may see.

use crate::name::{QuestionName, Suffix};
use crate::reverse::ReversePlace;
use crate::zone::{Node, Zone, ZoneError, parse_suffix};
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Bytes of a message before its question (RFC 1035 §4.1.1).
pub(crate) const HEADER_BYTES: usize = 12;
/// The name server's label below the scope's suffix.
pub(crate) const NAME_SERVER_LABEL: &[u8] = b"\x02ns";

/// The networks a container is in, as far as they are known.
#[derive(Clone, Debug)]
pub enum Answers {
    /// The view is not whole yet: everything below the suffix is SERVFAIL, which clients retry, and never
    /// NXDOMAIN, which they believe.
    NotReady,
    /// One zone for each network the container is in.
    Zones(Vec<Arc<Zone>>),
}

/// What one container may see: the scope belongs to its socket.
#[derive(Clone, Debug)]
pub struct Scope {
    suffix: Suffix,
    name_server: Ipv4Addr,
    answers: Answers,
    forward: bool,
}

impl Scope {
    /// A scope that answers everything below `suffix` (`private-network.internal`) itself.
    ///
    /// `name_server` is the address containers ask, which `ns.<suffix>` resolves to. `forward` says whether other
    /// names are relayed; they do not exist otherwise.
    ///
    /// # Errors
    /// `suffix` is no domain name, or a zone lies outside it.
    pub fn new(
        suffix: &str,
        name_server: Ipv4Addr,
        answers: Answers,
        forward: bool,
    ) -> Result<Scope, ZoneError> {
        let scope = Scope { suffix: parse_suffix(suffix)?, name_server, answers, forward };
        for zone in scope.zones() {
            let inside = QuestionName::read(zone.suffix().wire())
                .and_then(|name| name.strip(&scope.suffix).map(|before| !before.is_empty()));
            if inside != Some(true) {
                let network = zone.network().to_owned();
                return Err(ZoneError::Elsewhere { network, suffix: suffix.to_owned() });
            }
        }
        Ok(scope)
    }

    /// The zones, in the order given; none while not ready.
    pub fn zones(&self) -> &[Arc<Zone>] {
        match &self.answers {
            Answers::NotReady => &[],
            Answers::Zones(zones) => zones,
        }
    }

    pub(crate) fn forwards(&self) -> bool {
        self.forward
    }

    /// Whether names of ours lie below `name`: who heard that it is missing would not ask for them (RFC 8020).
    pub(crate) fn is_above_ours(&self, name: &QuestionName) -> bool {
        self.suffix.is_below(name)
    }

    pub(crate) fn suffix(&self) -> &Suffix {
        &self.suffix
    }

    pub(crate) fn name_server(&self) -> Ipv4Addr {
        self.name_server
    }

    /// What is known of `name`.
    pub(crate) fn place(&self, name: &QuestionName) -> Place<'_> {
        for (index, zone) in self.zones().iter().enumerate() {
            if let Some(labels) = name.strip(zone.suffix()) {
                let content = match zone.node(labels) {
                    _ if labels.is_empty() => Content::Apex,
                    Some(node) => Content::Node(zone, node),
                    None => Content::Missing,
                };
                let apex = name.len() - zone.suffix().wire().len();
                return Place::inside(
                    Authority::forward(self, name, apex, zone.serial()),
                    Some(index),
                    content,
                );
            }
        }
        if let Some(labels) = name.strip(&self.suffix) {
            return match self.answers {
                Answers::NotReady => Place::Unknown,
                Answers::Zones(_) => Place::inside(self.authority(name), None, self.own(labels)),
            };
        }
        self.reverse_place(name).unwrap_or(Place::Outside)
    }

    /// The authority of the suffix itself. Where several networks meet, its serial is the greatest of theirs.
    pub(crate) fn authority(&self, name: &QuestionName) -> Authority {
        let serial = self.zones().iter().map(|zone| zone.serial()).max().unwrap_or(0);
        Authority::forward(self, name, name.len() - self.suffix.wire().len(), serial)
    }

    /// Names of other networks are as missing as any: nobody learns which networks there are.
    fn own(&self, labels: &[u8]) -> Content<'_> {
        match labels {
            [] => Content::Apex,
            NAME_SERVER_LABEL => Content::NameServer,
            _ => Content::Missing,
        }
    }

    fn reverse_place(&self, name: &QuestionName) -> Option<Place<'_>> {
        self.zones().iter().enumerate().find_map(|(index, zone)| {
            let content = match zone.reverse().place(name)? {
                ReversePlace::Apex => Content::Apex,
                ReversePlace::Empty => Content::Empty,
                ReversePlace::Pointer(labels) => Content::Pointer(zone, labels),
                ReversePlace::Missing => Content::Missing,
            };
            let apex = name.start_of_last(zone.reverse().apex_labels())?;
            let authority =
                Authority { owner: (HEADER_BYTES + apex) as u16, suffix: None, serial: zone.serial() };
            Some(Place::inside(authority, Some(index), content))
        })
    }
}

/// Where a question's name lies.
pub(crate) enum Place<'s> {
    /// Elsewhere in the world.
    Outside,
    /// Below the suffix, and the view is not whole.
    Unknown,
    /// Ours to answer. `zone` is an index into [`Scope::zones`]; the suffix itself belongs to none.
    Inside { authority: Authority, zone: Option<usize>, content: Content<'s> },
}

impl<'s> Place<'s> {
    fn inside(authority: Authority, zone: Option<usize>, content: Content<'s>) -> Place<'s> {
        Place::Inside { authority, zone, content }
    }
}

/// What stands at a name of ours.
pub(crate) enum Content<'s> {
    /// No such name: NXDOMAIN.
    Missing,
    /// Names below it, nothing at it: NODATA (RFC 8020).
    Empty,
    /// SOA and NS.
    Apex,
    /// Containers of a network.
    Node(&'s Zone, &'s Node),
    /// An address of a network's container, which points to the name with these labels before the network's.
    Pointer(&'s Zone, &'s [u8]),
    /// The address of the name server itself.
    NameServer,
}

/// Who is authoritative for a name: enough to write its SOA and NS records. Places are offsets in the reply, whose
/// question starts at [`HEADER_BYTES`].
#[derive(Clone, Copy)]
pub(crate) struct Authority {
    /// Where the zone's own name starts.
    pub(crate) owner: u16,
    /// Where the scope's suffix starts, if the question ends in it.
    pub(crate) suffix: Option<u16>,
    pub(crate) serial: u32,
}

impl Authority {
    fn forward(scope: &Scope, name: &QuestionName, apex: usize, serial: u32) -> Authority {
        let suffix = name.len() - scope.suffix.wire().len();
        Authority {
            owner: (HEADER_BYTES + apex) as u16,
            suffix: Some((HEADER_BYTES + suffix) as u16),
            serial,
        }
    }
}
