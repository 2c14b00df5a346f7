//! ICMP echo (RFC 792) out of the calling thread's namespace, and how many came in there.

use std::fs;
use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::Instant;

use crate::kernel::Echo;

/// Bytes of an IPv4 header without options.
const IP_HEADER: usize = 20;
/// Bytes of an echo's header.
const ICMP_HEADER: usize = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;

/// Sends one request of `packet_bytes`, IP header included, that may not be fragmented, and waits for its reply.
///
/// Errors: what keeps a raw socket from being opened. That nobody answers, or somebody refuses, is an answer.
pub(crate) fn echo(to: Ipv4Addr, packet_bytes: u32, bound: Duration) -> io::Result<Echo> {
    let mut socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    // DF, whatever path MTU somebody's message had cached; errors of the network are told, not only of this host.
    set(&socket, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    set(&socket, libc::IP_RECVERR, 1)?;
    let identifier: u16 = rand::random();
    let request = request(identifier, packet_bytes as usize);
    let started = Instant::now();
    let sent = socket.connect(&SocketAddrV4::new(to, 0).into()).and_then(|()| socket.send(&request));
    if let Err(error) = sent {
        return Ok(Echo::Refused(error.to_string()));
    }
    let mut reply = vec![0; 65_536];
    loop {
        let left = bound.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Ok(Echo::Silent);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut reply) {
            Ok(length) if answers(&reply[..length], identifier) => {
                return Ok(Echo::Answered(started.elapsed()));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok(Echo::Refused(error.to_string())),
        }
    }
}

/// How many echo requests the namespace's own stack was sent so far.
pub(crate) fn heard() -> io::Result<u64> {
    let table = fs::read_to_string("/proc/thread-self/net/snmp")?;
    Ok(requests_of(&table))
}

/// `Icmp: InMsgs … InEchos …`, names in one line and numbers in the next.
fn requests_of(table: &str) -> u64 {
    let mut lines = table.lines().filter(|line| line.starts_with("Icmp:"));
    let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else { return 0 };
    let mut pairs = names.split(' ').zip(numbers.split(' '));
    pairs.find(|(name, _)| *name == "InEchos").and_then(|(_, number)| number.parse().ok()).unwrap_or(0)
}

fn request(identifier: u16, packet_bytes: usize) -> Vec<u8> {
    let mut message = vec![0; packet_bytes.saturating_sub(IP_HEADER).max(ICMP_HEADER)];
    message[0] = ECHO_REQUEST;
    message[4..6].copy_from_slice(&identifier.to_be_bytes());
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A raw socket is given the IP header too, and everybody's messages.
fn answers(packet: &[u8], identifier: u16) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
    let Some(message) = packet.get(header..) else { return false };
    message.len() >= ICMP_HEADER && message[0] == ECHO_REPLY && message[4..6] == identifier.to_be_bytes()
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn set(socket: &Socket, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is an integer of the length given, and outlives the call.
    let set = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, option, (&raw const value).cast(), length)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_carry_a_good_checksum_and_only_their_reply_answers() {
        for bytes in [28, 29, 1450] {
            let message = request(0x1234, bytes);
            assert_eq!(message.len(), bytes - IP_HEADER);
            assert_eq!(checksum(&message), 0, "the sum of a good message is zero");
            let mut packet = vec![0x45; IP_HEADER];
            packet.extend(&message);
            assert!(!answers(&packet, 0x1234), "a request is no reply");
            packet[IP_HEADER] = ECHO_REPLY;
            assert!(answers(&packet, 0x1234) && !answers(&packet, 0x1235));
            assert!(!answers(&packet[..IP_HEADER + 4], 0x1234));
        }
        assert!(!answers(&[], 1));
    }

    #[test]
    fn requests_are_read_off_the_kernel_s_table() {
        let table = "Ip: Forwarding\nIp: 2\nIcmp: InMsgs InErrors InEchos\nIcmp: 9 1 7\n";
        assert_eq!(requests_of(table), 7);
        assert_eq!(requests_of("Icmp: InEchos\n"), 0);
    }
}
