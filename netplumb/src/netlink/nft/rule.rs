//! Rules as nf_tables expressions, and back: pure.
//!
//! `nft --debug=netlink` prints the same expressions for the same rules. A rule read back may carry
//! more attributes than were written (kernels add some), never fewer or others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4};

use ipnet::{Ipv4Net, Ipv6Net};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChecksumType, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook,
    Immediate, InetHookNumber, Meta, MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use super::Rules;

/// One rule: its expressions in order.
pub(super) type Rule = Vec<Vec<ExpressionAttribute>>;

/// Before conntrack and before anybody's own rules (NF_IP_PRI_RAW).
const PRIORITY_RAW: u32 = -300_i32 as u32;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const IFNAMSIZ: usize = 16;
const DNS_PORT: u16 = 53;

/// Where an address stands in its header.
const SOURCE4: u32 = 12;
const DESTINATION4: u32 = 16;
const SOURCE6: u32 = 8;
const DESTINATION6: u32 = 24;

/// Where a port stands in the transport header.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

/// A protocol's number, and where its checksum stands.
const UDP: (u8, u32) = (17, 6);
const TCP: (u8, u32) = (6, 16);

/// The order of comparisons in a guard rule and in a DNS rule.
const GUARD_IFNAME: usize = 1;
const GUARD_ADDRESS: usize = 3;
const DNS_ADDRESS: usize = 1;

/// What makes a chain a base chain of ours at `hook`.
pub(super) fn base_chain(hook: InetHookNumber) -> Vec<ChainAttribute> {
    vec![
        ChainAttribute::Hook(vec![Hook::Number(hook.into()), Hook::Priority(PRIORITY_RAW)]),
        ChainAttribute::Policy(NF_ACCEPT),
        ChainAttribute::Type("filter".to_owned()),
    ]
}

/// Whether a chain read back is such a base chain.
pub(super) fn is_base_chain(found: &[ChainAttribute], hook: InetHookNumber) -> bool {
    base_chain(hook).iter().all(|wanted| {
        found.iter().any(|attribute| match (wanted, attribute) {
            (ChainAttribute::Hook(wanted), ChainAttribute::Hook(found)) => subset(wanted, found),
            _ => wanted == attribute,
        })
    })
}

/// The rules of a member's own chain.
pub(super) fn guard(rules: &Rules) -> Vec<Rule> {
    let mut guard = vec![
        only_by(&rules.ifname, DESTINATION4, rules.address.into(), 32),
        only_by(&rules.ifname, SOURCE4, rules.subnet.network().into(), rules.subnet.prefix_len()),
    ];
    if let Some(address) = rules.address6 {
        guard.push(only_by(&rules.ifname, DESTINATION6, address.into(), 128));
    }
    if let Some(ula) = rules.ula {
        guard.push(only_by(&rules.ifname, SOURCE6, ula.network().into(), ula.prefix_len()));
    }
    guard
}

/// The rules of the shared chain: port 53 of the listener's address is its real port, both ways, without
/// conntrack, so that the container may bind port 53 itself and no lookup leaves an entry behind.
pub(super) fn dns(listener: SocketAddrV4) -> Vec<Rule> {
    let (address, port) = (*listener.ip(), listener.port());
    vec![
        rewrite(UDP, DESTINATION4, address, DESTINATION_PORT, DNS_PORT, port),
        rewrite(TCP, DESTINATION4, address, DESTINATION_PORT, DNS_PORT, port),
        rewrite(UDP, SOURCE4, address, SOURCE_PORT, port, DNS_PORT),
        rewrite(TCP, SOURCE4, address, SOURCE_PORT, port, DNS_PORT),
    ]
}

/// The [`Rules`] that both chains, read back, amount to; None unless they are exactly those rules.
pub(super) fn read(found_guard: &[Rule], found_dns: &[Rule]) -> Option<Rules> {
    let (destination, source) = (found_guard.first()?, found_guard.get(1)?);
    let mut rules = Rules {
        ifname: name(compared(destination, GUARD_IFNAME)?)?,
        address: Ipv4Addr::from(array(compared(destination, GUARD_ADDRESS)?)?),
        subnet: Ipv4Net::new(array(compared(source, GUARD_ADDRESS)?)?.into(), mask_length(source)?).ok()?,
        address6: None,
        ula: None,
        listener: read_listener(found_dns.first()?)?,
    };
    for rule in &found_guard[2..] {
        let address = Ipv6Addr::from(array(compared(rule, GUARD_ADDRESS)?)?);
        match loaded_from(rule)? {
            DESTINATION6 => rules.address6 = Some(address),
            _ => rules.ula = Some(Ipv6Net::new(address, mask_length(rule)?).ok()?),
        }
    }
    let whole = same(&guard(&rules), found_guard) && same(&dns(rules.listener), found_dns);
    whole.then_some(rules)
}

/// `iifname != lo, iifname != ifname, <address at offset> in <address/length>: drop`.
fn only_by(ifname: &str, offset: u32, address: IpAddr, length: u8) -> Rule {
    let (protocol, bytes) = match address {
        IpAddr::V4(address) => (NFPROTO_IPV4, address.octets().to_vec()),
        IpAddr::V6(address) => (NFPROTO_IPV6, address.octets().to_vec()),
    };
    let mut rule = vec![
        meta(MetaKey::Iifname),
        compare(Operator::NotEqual, padded_name("lo")),
        meta(MetaKey::Iifname),
        compare(Operator::NotEqual, padded_name(ifname)),
        meta(MetaKey::Nfproto),
        compare(Operator::Equal, vec![protocol]),
        load(NETWORK_HEADER, offset, bytes.len()),
    ];
    if usize::from(length) < bytes.len() * 8 {
        rule.push(mask(bytes.len(), length));
    }
    rule.push(compare(Operator::Equal, bytes));
    rule.push(drop_packet());
    rule
}

/// `<address at offset> address, <protocol> <port at offset> from: set to, notrack`.
fn rewrite(
    (protocol, checksum): (u8, u32),
    address_offset: u32,
    address: Ipv4Addr,
    port_offset: u32,
    from: u16,
    to: u16,
) -> Rule {
    vec![
        meta(MetaKey::Nfproto),
        compare(Operator::Equal, vec![NFPROTO_IPV4]),
        load(NETWORK_HEADER, address_offset, 4),
        compare(Operator::Equal, address.octets().to_vec()),
        meta(MetaKey::L4Proto),
        compare(Operator::Equal, vec![protocol]),
        load(TRANSPORT_HEADER, port_offset, 2),
        compare(Operator::Equal, from.to_be_bytes().to_vec()),
        immediate(to.to_be_bytes().to_vec()),
        store(port_offset, 2, checksum),
        vec![ExpressionAttribute::Name("notrack".to_owned())],
    ]
}

fn expression(name: &str, data: Expressions) -> Vec<ExpressionAttribute> {
    vec![ExpressionAttribute::Name(name.to_owned()), ExpressionAttribute::Data(data)]
}

fn meta(key: MetaKey) -> Vec<ExpressionAttribute> {
    expression("meta", Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]))
}

fn compare(operator: Operator, value: Vec<u8>) -> Vec<ExpressionAttribute> {
    expression(
        "cmp",
        Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value)),
        ]),
    )
}

fn load(base: u32, offset: u32, length: usize) -> Vec<ExpressionAttribute> {
    expression(
        "payload",
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length as u32),
        ]),
    )
}

fn store(offset: u32, length: u32, checksum: u32) -> Vec<ExpressionAttribute> {
    expression(
        "payload",
        Expressions::Payload(vec![
            Payload::SourceRegister(Register::Reg1),
            Payload::Base(TRANSPORT_HEADER),
            Payload::Offset(offset),
            Payload::Len(length),
            Payload::CsumType(ChecksumType::Inet),
            Payload::CsumOffset(checksum),
        ]),
    )
}

fn mask(bytes: usize, length: u8) -> Vec<ExpressionAttribute> {
    let mask = (u128::MAX << (128 - u32::from(length.max(1)))).to_be_bytes();
    let mask = if length == 0 { vec![0; bytes] } else { mask[..bytes].to_vec() };
    expression(
        "bitwise",
        Expressions::Bitwise(vec![
            Bitwise::SourceRegister(Register::Reg1),
            Bitwise::DestinationRegister(Register::Reg1),
            Bitwise::Length(bytes as u32),
            Bitwise::Mask(DataAttribute::Value(mask)),
            Bitwise::Xor(DataAttribute::Value(vec![0; bytes])),
        ]),
    )
}

fn immediate(value: Vec<u8>) -> Vec<ExpressionAttribute> {
    expression(
        "immediate",
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Reg1),
            Immediate::Data(DataAttribute::Value(value)),
        ]),
    )
}

fn drop_packet() -> Vec<ExpressionAttribute> {
    let verdict = VerdictAttribute::Code(Verdict::Other(NF_DROP));
    expression(
        "immediate",
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![verdict])),
        ]),
    )
}

fn padded_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

fn same(wanted: &[Rule], found: &[Rule]) -> bool {
    wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| same_rule(wanted, found))
}

fn same_rule(wanted: &Rule, found: &Rule) -> bool {
    wanted.len() == found.len()
        && wanted.iter().zip(found).all(|(wanted, found)| {
            wanted.iter().all(|attribute| found.iter().any(|other| same_attribute(attribute, other)))
        })
}

fn same_attribute(wanted: &ExpressionAttribute, found: &ExpressionAttribute) -> bool {
    let (ExpressionAttribute::Data(wanted), ExpressionAttribute::Data(found)) = (wanted, found) else {
        return wanted == found;
    };
    match (wanted, found) {
        (Expressions::Meta(wanted), Expressions::Meta(found)) => subset(wanted, found),
        (Expressions::Cmp(wanted), Expressions::Cmp(found)) => subset(wanted, found),
        (Expressions::Payload(wanted), Expressions::Payload(found)) => subset(wanted, found),
        (Expressions::Bitwise(wanted), Expressions::Bitwise(found)) => subset(wanted, found),
        (Expressions::Immediate(wanted), Expressions::Immediate(found)) => subset(wanted, found),
        _ => false,
    }
}

fn subset<T: PartialEq>(wanted: &[T], found: &[T]) -> bool {
    wanted.iter().all(|attribute| found.contains(attribute))
}

fn data(rule: &Rule) -> impl Iterator<Item = &Expressions> {
    rule.iter().flatten().filter_map(|attribute| match attribute {
        ExpressionAttribute::Data(data) => Some(data),
        _ => None,
    })
}

/// The value of the rule's `nth` comparison.
fn compared(rule: &Rule, nth: usize) -> Option<&[u8]> {
    let mut comparisons = data(rule).filter_map(|expression| match expression {
        Expressions::Cmp(cmp) => Some(cmp),
        _ => None,
    });
    comparisons.nth(nth)?.iter().find_map(|attribute| match attribute {
        Cmp::Data(data) => value(data),
        _ => None,
    })
}

/// The prefix length that the rule's mask leaves.
fn mask_length(rule: &Rule) -> Option<u8> {
    let mask = data(rule).find_map(|expression| match expression {
        Expressions::Bitwise(attributes) => attributes.iter().find_map(|attribute| match attribute {
            Bitwise::Mask(mask) => value(mask),
            _ => None,
        }),
        _ => None,
    });
    match mask {
        Some(mask) => u8::try_from(mask.iter().map(|byte| byte.count_ones()).sum::<u32>()).ok(),
        None => u8::try_from(compared(rule, GUARD_ADDRESS)?.len() * 8).ok(),
    }
}

/// The offset of the first thing the rule loads from the packet.
fn loaded_from(rule: &Rule) -> Option<u32> {
    data(rule).find_map(|expression| match expression {
        Expressions::Payload(attributes) => attributes.iter().find_map(|attribute| match attribute {
            Payload::Offset(offset) => Some(*offset),
            _ => None,
        }),
        _ => None,
    })
}

fn read_listener(rule: &Rule) -> Option<SocketAddrV4> {
    let port = data(rule).find_map(|expression| match expression {
        Expressions::Immediate(attributes) => attributes.iter().find_map(|attribute| match attribute {
            Immediate::Data(data) => value(data),
            _ => None,
        }),
        _ => None,
    })?;
    let address: [u8; 4] = array(compared(rule, DNS_ADDRESS)?)?;
    Some(SocketAddrV4::new(address.into(), u16::from_be_bytes(array(port)?)))
}

fn value(data: &DataAttribute) -> Option<&[u8]> {
    match data {
        DataAttribute::Value(bytes) => Some(bytes),
        _ => None,
    }
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.try_into().ok()
}

fn name(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            ifname: "wg0".to_owned(),
            address: Ipv4Addr::new(10, 240, 0, 2),
            subnet: "10.240.0.0/22".parse().unwrap(),
            address6: Some("fd00::2".parse().unwrap()),
            ula: Some("fd00::/64".parse().unwrap()),
            listener: "127.240.0.53:61053".parse().unwrap(),
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let subnet = |text: &str| Rules { subnet: text.parse().unwrap(), ..rules() };
        let cases = [
            rules(),
            Rules { address6: None, ..rules() },
            Rules { ula: None, ..rules() },
            Rules { address6: None, ula: None, ..rules() },
            Rules { ifname: "fifteen-bytes-x".to_owned(), ..rules() },
            subnet("10.0.0.0/8"),
            subnet("0.0.0.0/0"),
            subnet("10.240.0.2/32"),
        ];
        for rules in cases {
            assert_eq!(read(&guard(&rules), &dns(rules.listener)), Some(rules));
        }
    }

    #[test]
    fn attributes_that_a_kernel_adds_change_nothing() {
        let (mut guard, dns) = (guard(&rules()), dns(rules().listener));
        for attribute in guard.iter_mut().flatten().flatten() {
            if let ExpressionAttribute::Data(Expressions::Bitwise(attributes)) = attribute {
                attributes.insert(0, Bitwise::Op(0));
            }
        }
        assert_eq!(read(&guard, &dns), Some(rules()));
    }

    #[test]
    fn an_edited_chain_is_not_whole() {
        type Edit = fn(&mut Vec<Rule>, &mut Vec<Rule>);
        let cases: [(&str, Edit); 9] = [
            ("flushed", |guard, _| guard.clear()),
            ("one rule less", |guard, _| drop(guard.remove(1))),
            ("one rule more", |guard, _| guard.push(guard[0].clone())),
            ("without its verdict", |guard, _| drop(guard[0].pop())),
            ("another interface in one rule", |guard, _| guard[1][3] = guard[1][1].clone()),
            ("another verdict", |guard, _| {
                let accept = VerdictAttribute::Code(Verdict::Other(NF_ACCEPT));
                let accept = Immediate::Data(DataAttribute::Verdict(vec![accept]));
                let register = Immediate::DestinationRegister(Register::Verdict);
                let attributes = Expressions::Immediate(vec![register, accept]);
                *guard[0].last_mut().unwrap() = expression("immediate", attributes);
            }),
            ("dns flushed", |_, dns| dns.clear()),
            ("dns without tcp", |_, dns| drop(dns.remove(1))),
            ("dns tracked", |_, dns| drop(dns[2].pop())),
        ];
        for (name, edit) in cases {
            let (mut guard, mut dns) = (guard(&rules()), dns(rules().listener));
            edit(&mut guard, &mut dns);
            assert_eq!(read(&guard, &dns), None, "{name}");
        }
    }
}
