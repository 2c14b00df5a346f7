//! Names for addresses: `d.c.b.a.in-addr.arpa` (RFC 1035 §3.5).

use crate::name::{Labels, QuestionName};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// What the addresses of one subnet point to, which answers for its addresses alone: they never reach an upstream.
///
/// A subnet need not end at a whole octet, a zone must: a /22 is served as its four /24 zones.
#[derive(Clone, Debug)]
pub(crate) struct Reverse {
    subnet: Ipv4Net,
    apex_octets: usize,
    /// The labels of each target before the network's; copies share them until one is changed.
    pointers: Arc<BTreeMap<Ipv4Addr, Labels>>,
}

/// Where in a [`Reverse`] a name lies.
pub(crate) enum ReversePlace<'r> {
    /// A zone's own name.
    Apex,
    /// There are names below it, and nothing at it.
    Empty,
    /// An address that points to the name with these labels before the network's.
    Pointer(&'r [u8]),
    /// There is no such name.
    Missing,
}

impl Reverse {
    pub(crate) fn new(subnet: Ipv4Net) -> Reverse {
        let apex_octets = usize::from(subnet.prefix_len()).div_ceil(8);
        Reverse { subnet, apex_octets, pointers: Arc::default() }
    }

    /// Sets what an address points to; one outside the subnet is left out.
    pub(crate) fn set(&mut self, address: Ipv4Addr, target: Option<Labels>) {
        let target = target.filter(|_| self.subnet.contains(&address));
        if self.pointers.get(&address) == target.as_ref() {
            return;
        }
        let pointers = Arc::make_mut(&mut self.pointers);
        match target {
            Some(target) => _ = pointers.insert(address, target),
            None => _ = pointers.remove(&address),
        }
    }

    /// How many labels the names of the zones have: the octets and `in-addr.arpa`.
    pub(crate) fn apex_labels(&self) -> usize {
        self.apex_octets + 2
    }

    /// Where `name` lies; `None` if outside the subnet.
    pub(crate) fn place(&self, name: &QuestionName) -> Option<ReversePlace<'_>> {
        let in_addr_arpa =
            name.label_from_right(0) == Some(b"arpa") && name.label_from_right(1) == Some(b"in-addr");
        let below =
            name.labels().checked_sub(2).filter(|below| in_addr_arpa && *below >= self.apex_octets)?;
        let mut octets = [0; 4];
        for (index, place) in octets.iter_mut().enumerate().take(self.apex_octets) {
            *place = octet(name.label_from_right(2 + index)?)?;
        }
        if !self.subnet.contains(&Ipv4Addr::from(octets)) {
            return None;
        }
        for index in self.apex_octets..below {
            match (octets.get_mut(index), name.label_from_right(2 + index).and_then(octet)) {
                (Some(place), Some(value)) => *place = value,
                _ => return Some(ReversePlace::Missing),
            }
        }
        Some(self.inside(octets, below))
    }

    fn inside(&self, octets: [u8; 4], given: usize) -> ReversePlace<'_> {
        if let Some(target) = self.pointers.get(&Ipv4Addr::from(octets)).filter(|_| given == 4) {
            return ReversePlace::Pointer(target);
        }
        let mut last = octets;
        last[given..].fill(u8::MAX);
        let has_names_below =
            self.pointers.range(Ipv4Addr::from(octets)..=Ipv4Addr::from(last)).next().is_some();
        match (given == self.apex_octets, has_names_below) {
            (true, _) => ReversePlace::Apex,
            (false, true) => ReversePlace::Empty,
            (false, false) => ReversePlace::Missing,
        }
    }
}

/// An octet as `in-addr.arpa` spells it: decimal, without leading zeros.
fn octet(label: &[u8]) -> Option<u8> {
    let canonical = label == b"0" || label.first().is_some_and(|first| *first != b'0');
    let digits = label.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(label).ok().filter(|_| canonical && digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Suffix;

    #[test]
    fn every_name_has_its_place() {
        let check = |subnet: &str, name: &str, expected: &str| {
            let mut reverse = Reverse::new(subnet.parse().unwrap());
            for (address, target) in [("10.240.1.7", b"\x01x"), ("192.0.2.1", b"\x01y")] {
                reverse.set(address.parse().unwrap(), Some(target.as_slice().into()));
            }
            let wire = Suffix::parse(name).unwrap();
            let place = match reverse.place(&QuestionName::read(wire.wire()).unwrap()) {
                None => "outside",
                Some(ReversePlace::Apex) => "apex",
                Some(ReversePlace::Empty) => "empty",
                Some(ReversePlace::Pointer(_)) => "pointer",
                Some(ReversePlace::Missing) => "missing",
            };
            assert_eq!(place, expected, "{name} in {subnet}");
        };
        let cases = [
            ("7.1.240.10.in-addr.arpa", "pointer"),
            ("8.1.240.10.in-addr.arpa", "missing"),
            ("255.3.240.10.in-addr.arpa", "missing"),
            ("07.1.240.10.in-addr.arpa", "missing"),
            ("256.1.240.10.in-addr.arpa", "missing"),
            ("x.1.240.10.in-addr.arpa", "missing"),
            ("1.7.1.240.10.in-addr.arpa", "missing"),
            ("1.240.10.in-addr.arpa", "apex"),
            ("3.240.10.in-addr.arpa", "apex"),
            ("4.240.10.in-addr.arpa", "outside"),
            ("1.4.240.10.in-addr.arpa", "outside"),
            ("240.10.in-addr.arpa", "outside"),
            ("in-addr.arpa", "outside"),
            ("arpa", "outside"),
            ("1.2.0.192.in-addr.arpa", "outside"),
            ("7.1.240.10.in-addr.example", "outside"),
            ("7.1.240.10.ip6.arpa", "outside"),
        ];
        for (name, expected) in cases {
            check("10.240.0.0/22", name, expected);
        }
        check("10.0.0.0/8", "1.240.10.in-addr.arpa", "empty");
        check("10.0.0.0/8", "2.240.10.in-addr.arpa", "missing");
        check("10.0.0.0/8", "10.in-addr.arpa", "apex");
        check("10.240.1.0/28", "7.1.240.10.in-addr.arpa", "pointer");
        check("10.240.1.0/28", "8.1.240.10.in-addr.arpa", "apex");
        check("10.240.1.0/28", "16.1.240.10.in-addr.arpa", "outside");
        check("0.0.0.0/0", "in-addr.arpa", "apex");
        check("0.0.0.0/0", "240.10.in-addr.arpa", "empty");
    }
}
