//! Links between scratch namespaces.

use crate::scratch::Netns;

/// Joins two namespaces by a veth pair called `eth0` in both.
pub fn join(a: &Netns, address_a: &str, b: &Netns, address_b: &str) {
    a.sh(&format!("ip link add eth0 type veth peer name eth0 netns {}", b.tid()));
    a.sh(&format!("ip addr add {address_a} dev eth0 && ip link set eth0 up"));
    b.sh(&format!("ip addr add {address_b} dev eth0 && ip link set eth0 up"));
}
