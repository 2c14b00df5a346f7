//! Links: bridge, VXLAN device, veth, their flags and what they are.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, InfoVxlan,
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};

use crate::netlink::socket::Rtnl;
use crate::observed::{Port, PortFlags};
use crate::state::{Mac, Vtep};

/// Name of the bridge in `net-<pn>`.
pub(crate) const BRIDGE: &str = "br0";
/// Name of the VXLAN device in `net-<pn>`.
pub(crate) const VXLAN: &str = "vxlan0";
/// Name of the veth's end in `bind-<member>`.
pub(crate) const ETHERNET: &str = "eth0";
/// Name of the loopback device everywhere.
pub(crate) const LOOPBACK: &str = "lo";

/// A link as the kernel describes it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    /// IFLA_GROUP: the one mark that can be set at birth.
    pub(crate) group: u32,
    pub(crate) mac: Option<Mac>,
    pub(crate) alias: String,
    /// Index of the bridge.
    pub(crate) master: Option<u32>,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) snooping: bool,
    pub(crate) flags: PortFlags,
    pub(crate) vxlan: Option<SeenVxlan>,
}

/// The VXLAN side of a link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SeenVxlan {
    pub(crate) vni: u32,
    pub(crate) local: Option<IpAddr>,
    pub(crate) port: u16,
    pub(crate) learning: bool,
}

impl Seen {
    /// As a port of the bridge with this index.
    pub(crate) fn port(&self, bridge: Option<u32>) -> Port {
        let enslaved = bridge.is_some() && self.master == bridge;
        Port { mtu: self.mtu, up: self.up, enslaved, flags: self.flags }
    }
}

impl From<LinkMessage> for Seen {
    fn from(message: LinkMessage) -> Seen {
        let mut seen = Seen {
            index: message.header.index,
            name: String::new(),
            up: message.header.flags.contains(LinkFlags::Up),
            mtu: 0,
            group: 0,
            mac: None,
            alias: String::new(),
            master: None,
            kind: None,
            snooping: false,
            flags: PortFlags::DEFAULT,
            vxlan: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => seen.name = name,
                LinkAttribute::Mtu(mtu) => seen.mtu = mtu,
                LinkAttribute::Group(group) => seen.group = group,
                LinkAttribute::Address(bytes) => seen.mac = bytes.try_into().ok().map(Mac),
                LinkAttribute::IfAlias(alias) => seen.alias = alias,
                LinkAttribute::Controller(index) => seen.master = Some(index),
                LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|info| seen.read(info)),
                _ => {}
            }
        }
        seen
    }
}

impl Seen {
    fn read(&mut self, info: LinkInfo) {
        match info {
            LinkInfo::Kind(kind) => self.kind = Some(kind),
            LinkInfo::Data(InfoData::Bridge(infos)) => {
                self.snooping = infos.contains(&InfoBridge::MulticastSnooping(true));
            }
            LinkInfo::Data(InfoData::Vxlan(infos)) => self.vxlan = Some(SeenVxlan::from(infos)),
            LinkInfo::PortData(InfoPortData::BridgePort(infos)) => {
                for info in infos {
                    match info {
                        InfoBridgePort::Learning(on) => self.flags.learning = on,
                        InfoBridgePort::UnicastFlood(on) => self.flags.flood = on,
                        InfoBridgePort::MulticastFlood(on) => self.flags.mcast_flood = on,
                        InfoBridgePort::BroadcastFlood(on) => self.flags.bcast_flood = on,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

impl From<Vec<InfoVxlan>> for SeenVxlan {
    fn from(infos: Vec<InfoVxlan>) -> SeenVxlan {
        let mut seen = SeenVxlan { vni: 0, local: None, port: 0, learning: false };
        for info in infos {
            match info {
                InfoVxlan::Id(vni) => seen.vni = vni,
                InfoVxlan::Local(address) => seen.local = Some(address.into()),
                InfoVxlan::Local6(address) => seen.local = Some(address.into()),
                InfoVxlan::Port(port) => seen.port = port,
                InfoVxlan::Learning(on) => seen.learning = on,
                _ => {}
            }
        }
        seen
    }
}

impl Rtnl {
    /// The link of this name.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Seen>> {
        let message = message(0, vec![LinkAttribute::IfName(name.to_owned())]);
        match self.get(RouteNetlinkMessage::GetLink(message))? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link.into())),
            _ => Ok(None),
        }
    }

    /// All links by name.
    pub(crate) fn links(&mut self) -> io::Result<BTreeMap<String, Seen>> {
        let skip_stats = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
        let rows = self.dump(RouteNetlinkMessage::GetLink(message(0, skip_stats)))?;
        let links = rows.into_iter().filter_map(|row| match row {
            RouteNetlinkMessage::NewLink(link) => Some(Seen::from(link)),
            _ => None,
        });
        Ok(links.map(|link| (link.name.clone(), link)).collect())
    }

    /// Sets `attributes` of the link, and up where asked.
    pub(crate) fn set_link(
        &mut self,
        index: u32,
        attributes: Vec<LinkAttribute>,
        up: bool,
    ) -> io::Result<()> {
        self.request(RouteNetlinkMessage::SetLink(with_up(message(index, attributes), up)), 0)
    }

    /// Removes a link; an absent one is as good.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        match self.link(name)? {
            None => Ok(()),
            Some(link) => absent(self.request(RouteNetlinkMessage::DelLink(message(link.index, vec![])), 0)),
        }
    }

    /// Makes a link by one message; EEXIST if there is one of its name.
    pub(crate) fn create_link(&mut self, attributes: Vec<LinkAttribute>, up: bool) -> io::Result<()> {
        let message = with_up(message(0, attributes), up);
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes what belongs to the link's kind.
    fn change_link(&mut self, index: u32, attributes: Vec<LinkAttribute>, up: bool) -> io::Result<()> {
        self.request(RouteNetlinkMessage::NewLink(with_up(message(index, attributes), up)), 0)
    }

    /// `br0`, up, without snooping.
    pub(crate) fn bridge(&mut self, mtu: u32) -> io::Result<()> {
        let info = vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
        ];
        let mut attributes = vec![LinkAttribute::Mtu(mtu), LinkAttribute::LinkInfo(info)];
        match self.link(BRIDGE)? {
            Some(link) => self.change_link(link.index, attributes, true),
            None => {
                attributes.push(LinkAttribute::IfName(BRIDGE.to_owned()));
                self.create_link(attributes, true)
            }
        }
    }

    /// A port of `br0`: enslaved, then its flags, then up, so that no frame passes before.
    pub(crate) fn port(&mut self, name: &str, flags: PortFlags) -> io::Result<()> {
        let bridge = self.index(BRIDGE)?;
        let Some(link) = self.link(name)? else { return Err(io::Error::from_raw_os_error(libc::ENODEV)) };
        if link.up && link.master != Some(bridge) {
            let mut down = message(link.index, vec![]);
            down.header.change_mask = LinkFlags::Up;
            self.request(RouteNetlinkMessage::SetLink(down), 0)?;
        }
        self.set_link(link.index, vec![LinkAttribute::Controller(bridge)], false)?;
        let data = vec![
            InfoBridgePort::Learning(flags.learning),
            InfoBridgePort::UnicastFlood(flags.flood),
            InfoBridgePort::MulticastFlood(flags.mcast_flood),
            InfoBridgePort::BroadcastFlood(flags.bcast_flood),
        ];
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(data)),
        ];
        self.change_link(link.index, vec![LinkAttribute::LinkInfo(info)], false)?;
        self.set_link(link.index, vec![], true)
    }

    /// Changes address and MTU of `vxlan0` in place; its VNI and port cannot change.
    pub(crate) fn change_vxlan(&mut self, index: u32, local: IpAddr, mtu: u32) -> io::Result<()> {
        let info = vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(vec![local_address(local), InfoVxlan::Learning(false)])),
        ];
        self.change_link(index, vec![LinkAttribute::LinkInfo(info)], false)?;
        // Not in the same message: "Cannot change mtu" (vxlan_nl2conf).
        self.set_link(index, vec![LinkAttribute::Mtu(mtu)], false)
    }

    /// `vxlan0`, born in `target` from this socket's namespace, where its UDP socket stays. No
    /// `dev`: it would die with the lower interface.
    pub(crate) fn create_vxlan(
        &mut self,
        target: BorrowedFd<'_>,
        vni: u32,
        local: Vtep,
        mtu: u32,
    ) -> io::Result<()> {
        let data = vec![
            InfoVxlan::Id(vni),
            local_address(local.address),
            InfoVxlan::Port(local.port),
            InfoVxlan::Learning(false),
        ];
        let info = vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))];
        let attributes = vec![
            LinkAttribute::IfName(VXLAN.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::NetNsFd(target.as_raw_fd()),
            LinkAttribute::LinkInfo(info),
        ];
        self.create_link(attributes, false)
    }

    /// Both ends of a veth: `name` here, `eth0` with `mac` in `target`.
    pub(crate) fn create_veth(
        &mut self,
        name: &str,
        target: BorrowedFd<'_>,
        mac: Mac,
        mtu: u32,
    ) -> io::Result<()> {
        let peer = vec![
            LinkAttribute::IfName(ETHERNET.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::NetNsFd(target.as_raw_fd()),
        ];
        let info = vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(message(0, peer)))),
        ];
        let attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(info),
        ];
        self.create_link(attributes, false)
    }
}

fn local_address(address: IpAddr) -> InfoVxlan {
    match address {
        IpAddr::V4(address) => InfoVxlan::Local(address),
        IpAddr::V6(address) => InfoVxlan::Local6(address),
    }
}

fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn with_up(mut message: LinkMessage, up: bool) -> LinkMessage {
    if up {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    }
    message
}

/// An object that is not there need not be removed.
pub(crate) fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}
