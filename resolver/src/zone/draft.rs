//! A network's names while its members are gathered.

use super::{Node, Zone, ZoneError, ZoneMember};
use crate::name::{self, Suffix};
use crate::records::RecordSet;
use crate::reverse::Reverse;
use crate::services::{Services, Target};
use ipnet::Ipv4Net;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The process type an application's bare name stands for.
const DEFAULT_PROCESS: &str = "web";

/// Names and pointers so far.
pub(super) struct Draft {
    suffix: Suffix,
    /// By their labels before the suffix, in wire form.
    names: BTreeMap<Vec<u8>, Name>,
    /// What each address is called; the least of several names.
    pointers: BTreeMap<Ipv4Addr, Vec<u8>>,
}

/// What stands at a name; of each address and target, whether all that stand behind it are late.
#[derive(Default)]
struct Name {
    a: BTreeMap<Ipv4Addr, bool>,
    aaaa: BTreeMap<Ipv6Addr, bool>,
    /// By the target's whole name and the port.
    targets: BTreeMap<(Vec<u8>, u16), (bool, Option<Ipv4Addr>)>,
    /// Those of the member with the least address.
    facts: Option<(Ipv4Addr, Vec<String>)>,
}

impl Draft {
    pub(super) fn new(suffix: Suffix) -> Draft {
        // The network's own name, which has names below it.
        let names = BTreeMap::from([(Vec::new(), Name::default())]);
        Draft { suffix, names, pointers: BTreeMap::new() }
    }

    /// Adds a member's names.
    pub(super) fn add(&mut self, member: &ZoneMember) -> Result<(), ZoneError> {
        let labels = MemberLabels::new(member)?;
        let own = self.whole(member, labels.own())?;
        let pointer = self.pointers.entry(member.address).or_insert_with(|| own.clone());
        if own < *pointer {
            pointer.clone_from(&own);
        }
        self.names.entry(labels.app.clone()).or_default();
        for held in labels.held() {
            self.add_services(member, &labels, held, &own)?;
            self.names.entry(held.clone()).or_default().add(member);
        }
        if let Some(numbered) = labels.ordinal {
            self.names.entry(numbered).or_default().describe(member);
        }
        Ok(())
    }

    /// Adds the member's services below one of its names. `own` is what SRV records call it.
    fn add_services(
        &mut self,
        member: &ZoneMember,
        labels: &MemberLabels,
        held: &[u8],
        own: &[u8],
    ) -> Result<(), ZoneError> {
        for port in &member.ports {
            let transport = below(member, &format!("_{}", port.protocol), held)?;
            let service = below(member, &format!("_{}", port.service), &transport)?;
            self.whole(member, &service)?;
            self.names.entry(transport).or_default();
            let targets = &mut self.names.entry(service).or_default().targets;
            let address = labels.ordinal.as_ref().map(|_| member.address);
            targets.entry((own.to_owned(), port.number)).or_insert((true, address)).0 &= member.late;
        }
        Ok(())
    }

    /// A member's whole name.
    fn whole(&self, member: &ZoneMember, labels: &[u8]) -> Result<Vec<u8>, ZoneError> {
        self.suffix.below(labels).ok_or(ZoneError::TooLong(member.address))
    }

    pub(super) fn encode(self, network: &str, ttl_s: u32, serial: u32, subnet: Ipv4Net) -> Zone {
        let names =
            self.names.into_iter().map(|(labels, name)| (labels.into(), Arc::new(name.encode(ttl_s))));
        Zone {
            network: network.to_owned(),
            serial,
            names: names.collect(),
            reverse: Reverse::new(subnet, ttl_s, &self.pointers),
            suffix: self.suffix,
        }
    }
}

impl Name {
    fn add(&mut self, member: &ZoneMember) {
        *self.a.entry(member.address).or_insert(true) &= member.late;
        if let Some(address6) = member.address6 {
            *self.aaaa.entry(address6).or_insert(true) &= member.late;
        }
    }

    fn describe(&mut self, member: &ZoneMember) {
        if self.facts.as_ref().is_none_or(|(address, _)| member.address < *address) {
            self.facts = Some((member.address, member.facts.clone()));
        }
    }

    fn encode(self, ttl_s: u32) -> Node {
        let facts = self.facts.map(|(_, facts)| facts).filter(|facts| !facts.is_empty());
        let targets = self.targets.into_iter().map(|((name, port), (late, address))| Target {
            name,
            port,
            late,
            address,
        });
        Node {
            a: RecordSet::a(ttl_s, &self.a),
            aaaa: RecordSet::aaaa(ttl_s, &self.aaaa),
            txt: facts.map(|facts| RecordSet::txt(ttl_s, &facts)).unwrap_or_default(),
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
