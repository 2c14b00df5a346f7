//! A network's names as its members come and go.

use super::{Node, Zone, ZoneError, ZoneMember, parse_suffix};
use crate::name::{self, Labels, Suffix};
use crate::records::{Facts, RecordSet};
use crate::reverse::Reverse;
use crate::services::{Services, Target};
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The process type an application's bare name stands for.
const DEFAULT_PROCESS: &str = "web";

/// The names of one network while its members come and go: a [`Zone`] of it costs what changed since the last one.
///
/// An address has one member at a time.
#[derive(Debug)]
pub struct Draft {
    network: String,
    suffix: Suffix,
    ttl_s: u32,
    subnet: Ipv4Net,
    members: BTreeMap<Ipv4Addr, Box<Placed>>,
    /// Why each name is there, by its labels before the suffix; in order, and never nothing.
    reasons: BTreeMap<Labels, Vec<(Ipv4Addr, Reason)>>,
    /// Names that are not as `names` has them.
    touched: BTreeSet<Labels>,
    /// Of the last zone.
    names: Arc<BTreeMap<Labels, Arc<Node>>>,
    reverse: Reverse,
}

/// A member, and where it stands.
#[derive(Debug)]
struct Placed {
    member: ZoneMember,
    /// The name that says most about it.
    own: Labels,
    /// It has a name that says who it is.
    numbered: bool,
    places: Box<[(Labels, Reason)]>,
}

/// Why a name is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// There is a name below it.
    Above,
    /// The member's addresses stand there; at a number also its facts.
    Held,
    /// It publishes that service, on this port.
    Published(u16),
}

impl Draft {
    /// No member yet; as for [`Zone::build`].
    ///
    /// # Errors
    /// [`ZoneError::Name`].
    pub fn new(network: &str, zone: &str, ttl_s: u32, subnet: Ipv4Net) -> Result<Draft, ZoneError> {
        let suffix = parse_suffix(&format!("{network}.{zone}"))?;
        // The network's own name is there without anybody.
        let names = BTreeMap::from([(Labels::default(), Arc::default())]).into();
        Ok(Draft {
            network: network.to_owned(),
            suffix,
            ttl_s,
            subnet,
            members: BTreeMap::new(),
            reasons: BTreeMap::new(),
            touched: BTreeSet::new(),
            names,
            reverse: Reverse::new(subnet),
        })
    }

    /// Sets what [`Draft::new`] was told of every answer's time to live and of the addresses that have names; whether
    /// that is anything new.
    pub fn set_terms(&mut self, ttl_s: u32, subnet: Ipv4Net) -> bool {
        if (self.ttl_s, self.subnet) == (ttl_s, subnet) {
            return false;
        }
        if self.ttl_s != ttl_s {
            self.touched.extend(self.reasons.keys().cloned());
        }
        if self.subnet != subnet {
            self.reverse = Reverse::new(subnet);
            for (address, placed) in &self.members {
                self.reverse.set(*address, Some(placed.own.clone()));
            }
        }
        (self.ttl_s, self.subnet) = (ttl_s, subnet);
        true
    }

    /// The members, in the order of their addresses.
    pub fn members(&self) -> impl Iterator<Item = &ZoneMember> {
        self.members.values().map(|placed| &placed.member)
    }

    /// The member at an address.
    pub fn at(&self, address: Ipv4Addr) -> Option<&ZoneMember> {
        self.members.get(&address).map(|placed| &placed.member)
    }

    /// Puts a member in the place of the one that has its address.
    ///
    /// # Errors
    /// Names that DNS cannot hold; nobody is at its address then.
    pub fn put(&mut self, member: ZoneMember) -> Result<(), ZoneError> {
        let address = member.address;
        self.remove(address);
        let placed = self.place(member)?;
        self.reverse.set(address, Some(placed.own.clone()));
        for (labels, reason) in &placed.places {
            let (reasons, reason) = (self.reasons.entry(labels.clone()).or_default(), (address, *reason));
            reasons.insert(reasons.partition_point(|there| *there < reason), reason);
            self.touched.insert(labels.clone());
        }
        self.members.insert(address, Box::new(placed));
        Ok(())
    }

    /// Takes away the member at an address, if there is one.
    pub fn remove(&mut self, address: Ipv4Addr) {
        let Some(placed) = self.members.remove(&address) else { return };
        self.reverse.set(address, None);
        for (labels, reason) in placed.places {
            if let Some(reasons) = self.reasons.get_mut(&labels) {
                if let Ok(place) = reasons.binary_search(&(address, reason)) {
                    reasons.remove(place);
                }
                if reasons.is_empty() {
                    self.reasons.remove(&labels);
                }
            }
            self.touched.insert(labels);
        }
    }

    /// What is to be served now. `serial` as for [`Zone::build`].
    pub fn zone(&mut self, serial: u32) -> Zone {
        let touched = std::mem::take(&mut self.touched);
        if !touched.is_empty() {
            let mut names = std::mem::take(&mut self.names);
            let changed = Arc::make_mut(&mut names);
            for labels in touched {
                match self.reasons.get(&labels) {
                    Some(reasons) => {
                        _ = changed.insert(labels.clone(), Arc::new(self.encode(&labels, reasons)))
                    }
                    None => _ = changed.remove(&labels),
                }
            }
            self.names = names;
        }
        Zone {
            network: self.network.clone(),
            suffix: self.suffix.clone(),
            ttl_s: self.ttl_s,
            serial,
            names: self.names.clone(),
            reverse: self.reverse.clone(),
        }
    }

    /// Where a member stands.
    fn place(&self, member: ZoneMember) -> Result<Placed, ZoneError> {
        let labels = MemberLabels::new(&member)?;
        self.fits(&member, labels.own())?;
        let mut places = vec![(labels.app.clone(), Reason::Above)];
        for held in labels.held() {
            places.push((held.clone(), Reason::Held));
            for port in &member.ports {
                let transport = below(&member, &format!("_{}", port.protocol), held)?;
                let service = below(&member, &format!("_{}", port.service), &transport)?;
                self.fits(&member, &service)?;
                places.push((transport, Reason::Above));
                places.push((service, Reason::Published(port.number)));
            }
        }
        places.sort();
        places.dedup();
        let by_name = places.chunk_by(|(one, _), (other, _)| one == other);
        let shared = by_name.flat_map(|reasons| {
            let labels = self.shared(&reasons[0].0);
            reasons.iter().map(move |(_, reason)| (labels.clone(), *reason))
        });
        let places: Box<[(Labels, Reason)]> = shared.collect();
        let is_own = |(place, _): &&(Labels, Reason)| **place == *labels.own();
        let own = places.iter().find(is_own).map_or_else(|| labels.own().into(), |(own, _)| own.clone());
        Ok(Placed { numbered: labels.ordinal.is_some(), member, own, places })
    }

    /// The copy that is there already, were it in the last zone, or a new one.
    fn shared(&self, labels: &[u8]) -> Labels {
        let named = || self.names.get_key_value(labels).map(|(there, _)| there);
        let there = self.reasons.get_key_value(labels).map(|(there, _)| there).or_else(named);
        there.cloned().unwrap_or_else(|| labels.into())
    }

    fn fits(&self, member: &ZoneMember, labels: &[u8]) -> Result<(), ZoneError> {
        if self.suffix.has_room(labels) { Ok(()) } else { Err(ZoneError::TooLong(member.address)) }
    }

    /// The records of a name, given why it is there.
    fn encode(&self, labels: &[u8], reasons: &[(Ipv4Addr, Reason)]) -> Node {
        let mut name = Name::default();
        for (address, reason) in reasons {
            if let Some(placed) = self.members.get(address) {
                name.add(labels, placed, *reason);
            }
        }
        name.encode(self.ttl_s, &self.suffix)
    }
}

/// A target's labels, and the port.
type Published<'d> = (&'d [u8], u16);

/// What stands at a name; of each address and target, whether all that stand behind it are late.
#[derive(Default)]
struct Name<'d> {
    a: BTreeMap<Ipv4Addr, bool>,
    aaaa: BTreeMap<Ipv6Addr, bool>,
    targets: BTreeMap<Published<'d>, (bool, Option<Ipv4Addr>)>,
    /// Those of the member with the least address.
    facts: Option<&'d Facts>,
}

impl<'d> Name<'d> {
    fn add(&mut self, labels: &[u8], placed: &'d Placed, reason: Reason) {
        let member = &placed.member;
        match reason {
            Reason::Above => {}
            Reason::Held => {
                self.a.insert(member.address, member.late);
                if let Some(address6) = member.address6 {
                    *self.aaaa.entry(address6).or_insert(true) &= member.late;
                }
                if placed.numbered && *placed.own == *labels {
                    self.facts = self.facts.or(Some(&member.facts));
                }
            }
            Reason::Published(port) => {
                let address = placed.numbered.then_some(member.address);
                self.targets.entry((&placed.own, port)).or_insert((true, address)).0 &= member.late;
            }
        }
    }

    fn encode(self, ttl_s: u32, suffix: &Suffix) -> Node {
        let targets = self.targets.into_iter().map(|((labels, port), (late, address))| Target {
            name: [labels, suffix.wire()].concat(),
            port,
            late,
            address,
        });
        Node {
            a: RecordSet::a(ttl_s, &self.a),
            aaaa: RecordSet::aaaa(ttl_s, &self.aaaa),
            txt: self.facts.cloned().unwrap_or_default(),
            services: Services::new(ttl_s, targets),
        }
    }
}

/// The labels of a member's names, in wire form without the network's.
struct MemberLabels {
    app: Vec<u8>,
    process: Vec<u8>,
    ordinal: Option<Vec<u8>>,
    is_default: bool,
}

impl MemberLabels {
    fn new(member: &ZoneMember) -> Result<MemberLabels, ZoneError> {
        let app = below(member, &member.app, &[])?;
        let process = below(member, &member.process, &app)?;
        let ordinal = match member.ordinal {
            Some(0) => return Err(ZoneError::Ordinal(member.address)),
            Some(ordinal) => Some(below(member, &ordinal.to_string(), &process)?),
            None => None,
        };
        let is_default = member.process.eq_ignore_ascii_case(DEFAULT_PROCESS);
        Ok(MemberLabels { app, process, ordinal, is_default })
    }

    /// The name that says most about the member.
    fn own(&self) -> &[u8] {
        self.ordinal.as_ref().unwrap_or(&self.process)
    }

    /// Every name the member's addresses stand at.
    fn held(&self) -> impl Iterator<Item = &Vec<u8>> {
        [self.is_default.then_some(&self.app), Some(&self.process), self.ordinal.as_ref()]
            .into_iter()
            .flatten()
    }
}

/// `label` before `parent`.
fn below(member: &ZoneMember, label: &str, parent: &[u8]) -> Result<Vec<u8>, ZoneError> {
    let mut wire = Vec::new();
    name::push_label(&mut wire, label)
        .ok_or_else(|| ZoneError::Label { address: member.address, label: label.to_owned() })?;
    wire.extend_from_slice(parent);
    Ok(wire)
}

#[cfg(test)]
mod tests;
