//! Members of a network, served by an engine in this process.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use boringtun::x25519::{PublicKey, StaticSecret};
use netplumb::engine::{Engine, Framing, Interface, InterfaceState, PeerConfig, open_tun, open_udp};
use netplumb::state::{Addresses, Key, PrivateKey};

use crate::scratch::Netns;
use crate::veth::join;

/// Of the TUNs.
pub const MTU: u32 = 1390;

/// One member: the binding namespace holds the UDP socket, the app's one the TUN, moved there.
pub struct Member {
    number: u8,
    pub id: String,
    pub app: Netns,
    pub bind: Netns,
}

impl Member {
    pub fn new(number: u8) -> Member {
        Member { number, id: format!("m{number}"), app: Netns::new(), bind: Netns::new() }
    }

    pub fn private_key(&self) -> PrivateKey {
        PrivateKey([self.number; 32])
    }

    pub fn key(&self) -> Key {
        Key(PublicKey::from(&StaticSecret::from(self.private_key().0)).to_bytes())
    }

    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 240, 0, self.number)
    }

    pub fn allowed(&self) -> Addresses {
        [IpAddr::V4(self.address()), format!("fd00:0:0:1::{}", self.number).parse().unwrap()].into()
    }

    pub fn endpoint(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, self.number), 51820)
    }

    /// A TUN `wg0` with addresses and routes in the app's namespace.
    fn tun(&self, framing: Framing) -> OwnedFd {
        let tun = self.bind.run(move || open_tun("wg0", framing).unwrap());
        self.bind.sh(&format!("ip link set wg0 netns {}", self.app.tid()));
        let (number, address) = (self.number, self.address());
        self.app.sh(&format!(
            "ip addr add {address}/32 dev wg0; ip addr add fd00:0:0:1::{number}/128 dev wg0 nodad
             ip link set wg0 mtu {MTU} up
             ip route add 10.240.0.0/22 dev wg0 src {address}; ip route add fd00:0:0:1::/64 dev wg0"
        ));
        tun
    }

    pub fn serve(&self, engine: &mut Engine, framing: Framing) {
        let udp = self.bind.run(|| open_udp(51820).unwrap());
        let interface = Interface {
            tun: self.tun(framing).into(),
            udp: udp.into(),
            private_key: self.private_key(),
            mtu: MTU,
            address: self.address(),
            address6: Some(format!("fd00:0:0:1::{}", self.number).parse().unwrap()),
        };
        engine.add(&self.id, interface, vec![]).unwrap();
    }

    pub fn as_peer(&self, endpoint: SocketAddrV4, greet: bool) -> PeerConfig {
        PeerConfig { key: self.key(), endpoint, allowed: self.allowed(), greet }
    }

    pub fn knows(&self, engine: &Engine, other: &Member, greet: bool) {
        engine.set_peers(&self.id, vec![other.as_peer(other.endpoint(), greet)]).unwrap();
    }

    pub fn state(&self, engine: &Engine) -> InterfaceState {
        engine.observe(&self.id).unwrap()
    }

    pub fn pings(&self, to: &str, options: &str) -> bool {
        self.app.try_sh(&format!("ping -n -c 1 -W 2 {options} {to}")).0
    }
}

/// Two members joined by a veth, served by one engine; they do not know each other yet.
pub fn strangers(engine: &mut Engine, framings: [Framing; 2]) -> (Member, Member) {
    let (a, b) = (Member::new(1), Member::new(2));
    join(&a.bind, "192.0.2.1/24", &b.bind, "192.0.2.2/24");
    a.serve(engine, framings[0]);
    b.serve(engine, framings[1]);
    (a, b)
}

/// Two members that know each other.
pub fn pair(engine: &mut Engine, framings: [Framing; 2]) -> (Member, Member) {
    let (a, b) = strangers(engine, framings);
    a.knows(engine, &b, false);
    b.knows(engine, &a, false);
    (a, b)
}
