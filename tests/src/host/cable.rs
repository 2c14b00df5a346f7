//! How a host hangs on the underlay, and whom it hears there.

use std::net::IpAddr;

use super::Host;
use crate::netns::Netns;

/// Between a port of the switch and the host's `eth0`.
pub(super) fn lay(underlay: &Netns, number: u8, mtu: u32, (netns, address): (&Netns, IpAddr)) {
    let peer = netns.path().display();
    underlay.run(&format!("ip link add p{number} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}"));
    underlay.run(&format!("ip link set p{number} master br0 up"));
    netns.run("ip link set eth0 up");
    add_address(netns, address);
}

/// An address that is not probed for duplicates: the agent starts at once.
fn add_address(netns: &Netns, address: IpAddr) {
    let options = if address.is_ipv6() { "/64 dev eth0 nodad" } else { "/24 dev eth0" };
    netns.run(&format!("ip address add {address}{options}"));
}

impl Host {
    /// Gives it another address on the underlay, which its agent uses from the next start on; the old one is gone.
    pub fn renumber(&mut self, number: u8) {
        let old = std::mem::replace(&mut self.address, self.site.address(number));
        let prefix = if old.is_ipv6() { 64 } else { 24 };
        self.netns.run(&format!("ip address del {old}/{prefix} dev eth0"));
        // After it: the second address of a subnet goes with the first.
        add_address(&self.netns, self.address);
    }

    /// Its `eth0` goes and comes back as another link, with the same address and an MTU of 1500.
    pub fn replace_cable(&self) {
        self.netns.run("ip link del eth0");
        lay(&self.site.underlay, self.number, 1500, (&self.netns, self.address));
    }

    /// Pulls the host's cable.
    pub fn cut(&self) {
        self.site.underlay.run(&format!("ip link set p{} down", self.number));
    }

    /// Plugs the host's cable in again.
    pub fn heal(&self) {
        self.site.underlay.run(&format!("ip link set p{} up", self.number));
    }

    /// From now on its firewall drops whatever another host sends.
    pub fn ignore(&self, other: &Host) {
        let chain = "add table inet cut ; \
                     add chain inet cut in { type filter hook prerouting priority -300 ; }";
        let family = if other.address().is_ipv6() { "ip6" } else { "ip" };
        self.netns
            .run(&format!("nft {chain} ; add rule inet cut in {family} saddr {} drop", other.address()));
    }

    /// It hears everybody again.
    pub fn hear(&self) {
        // It may have ignored nobody.
        let _ = self.netns.try_run("nft delete table inet cut");
    }
}
