//! Links: bridge, VXLAN device, veth, their flags and what they are.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVeth, InfoVxlan, LinkAttribute,
    LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

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
        match self.get(RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build()))? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(Some(link.into())),
            _ => Ok(None),
        }
    }

    /// All links by name.
    pub(crate) fn links(&mut self) -> io::Result<BTreeMap<String, Seen>> {
        let skip_stats = LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]);
        let asked = LinkMessageBuilder::<LinkUnspec>::new().append_extra_attribute(skip_stats);
        let rows = self.dump(RouteNetlinkMessage::GetLink(asked.build()))?;
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
        let link = LinkUnspec::new_with_index(index);
        let link = attributes.into_iter().fold(link, LinkMessageBuilder::append_extra_attribute);
        self.set(if up { link.up() } else { link })
    }

    /// Removes a link; an absent one is as good.
    pub(crate) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        match self.link(name)? {
            None => Ok(()),
            Some(link) => {
                let gone = LinkUnspec::new_with_index(link.index).build();
                absent(self.request(RouteNetlinkMessage::DelLink(gone), 0))
            }
        }
    }

    fn set(&mut self, link: LinkMessageBuilder<LinkUnspec>) -> io::Result<()> {
        self.request(RouteNetlinkMessage::SetLink(link.build()), 0)
    }

    /// Makes a link by one message; EEXIST if there is one of its name.
    pub(crate) fn create_link<T>(&mut self, link: LinkMessageBuilder<T>) -> io::Result<()> {
        self.request(RouteNetlinkMessage::NewLink(link.build()), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Changes what belongs to the link's kind.
    fn change_link<T>(&mut self, link: LinkMessageBuilder<T>) -> io::Result<()> {
        self.request(RouteNetlinkMessage::NewLink(link.build()), 0)
    }

    /// `br0`, up, without snooping.
    pub(crate) fn bridge(&mut self, mtu: u32) -> io::Result<()> {
        let furnished = |bridge: LinkMessageBuilder<LinkBridge>| bridge.mcast_snooping(false).mtu(mtu).up();
        match self.link(BRIDGE)? {
            Some(link) => self.change_link(furnished(of_kind(InfoKind::Bridge, link.index))),
            None => self.create_link(furnished(LinkBridge::new(BRIDGE))),
        }
    }

    /// A port of `br0`: enslaved, then its flags, then up, so that no frame passes before.
    pub(crate) fn port(&mut self, name: &str, flags: PortFlags) -> io::Result<()> {
        let bridge = self.index(BRIDGE)?;
        let Some(link) = self.link(name)? else { return Err(io::Error::from_raw_os_error(libc::ENODEV)) };
        let port = || LinkUnspec::new_with_index(link.index);
        if link.up && link.master != Some(bridge) {
            self.set(port().down())?;
        }
        self.set(port().controller(bridge))?;
        let flagged = LinkBridgePort::new(link.index)
            .learning(flags.learning)
            .flood(flags.flood)
            .mcast_flood(flags.mcast_flood)
            .bcast_flood(flags.bcast_flood);
        self.change_link(flagged)?;
        self.set(port().up())
    }

    /// Changes address and MTU of `vxlan0` in place; its VNI and port cannot change.
    pub(crate) fn change_vxlan(&mut self, index: u32, local: IpAddr, mtu: u32) -> io::Result<()> {
        self.change_link(at(of_kind(InfoKind::Vxlan, index), local).learning(false))?;
        // Not in the same message: "Cannot change mtu" (vxlan_nl2conf).
        self.set(LinkUnspec::new_with_index(index).mtu(mtu))
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
        let vxlan = at(LinkVxlan::new(VXLAN, vni), local.address).port(local.port).learning(false);
        self.create_link(vxlan.mtu(mtu).setns_by_fd(target.as_raw_fd()))
    }

    /// Both ends of a veth: `name` here, `eth0` with `mac` in `target`.
    pub(crate) fn create_veth(
        &mut self,
        name: &str,
        target: BorrowedFd<'_>,
        mac: Mac,
        mtu: u32,
    ) -> io::Result<()> {
        let there = LinkUnspec::new_with_name(ETHERNET)
            .mtu(mtu)
            .address(mac.0.to_vec())
            .setns_by_fd(target.as_raw_fd());
        let pair = InfoData::Veth(InfoVeth::Peer(there.build()));
        self.create_link(LinkVeth::new(name, ETHERNET).mtu(mtu).set_info_data(pair))
    }
}

/// A link that is there, to be changed. Without its name: kernels refuse one while the link is up, even the same (6.1).
fn of_kind<T: Default>(kind: InfoKind, index: u32) -> LinkMessageBuilder<T> {
    LinkMessageBuilder::new_with_info_kind(kind).index(index)
}

/// With this tunnel end.
fn at(vxlan: LinkMessageBuilder<LinkVxlan>, local: IpAddr) -> LinkMessageBuilder<LinkVxlan> {
    match local {
        IpAddr::V4(local) => vxlan.local(local),
        IpAddr::V6(local) => vxlan.local6(local),
    }
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
