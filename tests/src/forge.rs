//! Frames nobody honest would send.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::host::Host;
use crate::netns::Netns;
use crate::sniffer::link_address;

/// The VNI of a network, as a host has it.
#[track_caller]
pub fn vni(host: &Host, network: &str) -> u32 {
    let rows = host.warren(&["networks", "-o", "json"]).rows();
    let row = rows.iter().find(|row| row["network"] == network).expect("the network is known");
    row["vni"].as_u64().expect("it has a VNI") as u32
}

/// A MAC address from its text.
pub fn mac(text: &str) -> [u8; 6] {
    let mut mac = [0; 6];
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal"));
    mac.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
    mac
}

/// An Ethernet frame with a UDP datagram; the UDP checksum is left out (RFC 768 allows it).
pub fn udp_frame(
    (source_mac, source, source_port): ([u8; 6], Ipv4Addr, u16),
    (mac, destination, port): ([u8; 6], Ipv4Addr, u16),
    payload: &[u8],
) -> Vec<u8> {
    let length = (20 + 8 + payload.len()) as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(source.octets());
    header.extend(destination.octets());
    let checksum = checksum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut frame = [mac, source_mac].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(header);
    frame.extend(source_port.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend((length - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// The Internet checksum (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Sends a frame in VXLAN from a namespace to a host: no key is needed for that.
#[track_caller]
pub fn send_vxlan(from: &Netns, to: IpAddr, vni: u32, frame: &[u8]) {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(frame);
    let any = if to.is_ipv6() { IpAddr::from(Ipv6Addr::UNSPECIFIED) } else { Ipv4Addr::UNSPECIFIED.into() };
    let sent = from.enter(|| UdpSocket::bind((any, 0))?.send_to(&payload, (to, 4789)));
    sent.unwrap_or_else(|e| panic!("cannot send to {to}: {e}"));
}

/// Sends a frame out of a link of a namespace, whatever its addresses say.
#[track_caller]
pub fn send_raw(from: &Netns, link: &str, frame: &[u8]) {
    let send = || -> io::Result<()> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        socket.send_to(frame, &link_address(link, 0)?)?;
        Ok(())
    };
    from.enter(send).unwrap_or_else(|e| panic!("cannot send on {link}: {e}"));
}
