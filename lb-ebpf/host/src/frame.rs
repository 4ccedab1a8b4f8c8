//! Frames, written in the plainest way.

use lb_common::abi::{Address, Protocol};

use crate::judge::{fold, pseudo_header};

pub const ETHERNET: usize = 14;

/// Numbers of protocols (IANA).
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

/// Flags of TCP (RFC 9293, 3.1).
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// Two ends of a flow, the sender's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub source: Address,
    pub destination: Address,
    pub source_port: u16,
    pub destination_port: u16,
}

impl Ends {
    pub const fn back(self) -> Self {
        let Self { source, destination, source_port, destination_port } = self;
        Self { source: destination, destination: source, source_port: destination_port, destination_port: source_port }
    }
}

/// A packet of a transport protocol, with right checksums; `flags` are TCP's, and tell SCTP's chunk: SYN is an
/// INIT.
pub fn packet(ends: Ends, ttl: u8, protocol: Protocol, flags: u8, payload: &[u8]) -> Vec<u8> {
    let Ends { source, destination, .. } = ends;
    ip(source, destination, ttl, protocol as u8, &segment(ends, protocol, flags, payload))
}

/// The same without its IP header.
pub fn segment(ends: Ends, protocol: Protocol, flags: u8, payload: &[u8]) -> Vec<u8> {
    let ports = [ends.source_port.to_be_bytes(), ends.destination_port.to_be_bytes()].concat();
    let mut segment = match protocol {
        Protocol::Tcp => {
            let options: &[u8] = if flags & SYN != 0 { &[2, 4, 5, 0xb4] } else { &[] };
            let words = 5 + options.len() as u8 / 4;
            [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 2, words << 4, flags, 16, 0, 0, 0, 0, 0], options, payload].concat()
        }
        Protocol::Udp => {
            let length = (8 + payload.len() as u16).to_be_bytes();
            [&ports[..], &length[..], &[0, 0], payload].concat()
        }
        Protocol::Sctp => {
            let kind = if flags & SYN != 0 {
                1
            } else if flags & RST != 0 {
                6
            } else {
                0
            };
            let length = (4 + payload.len() as u16).to_be_bytes();
            [&ports[..], &[0, 0, 0, 1, 1, 2, 3, 4, kind, 0, length[0], length[1]], payload].concat()
        }
    };
    let at = match protocol {
        Protocol::Tcp => 16,
        Protocol::Udp => 6,
        Protocol::Sctp => return segment,
    };
    put_checksum(&mut segment, at, pseudo_header(&ends.source, &ends.destination, protocol as u8));
    segment
}

/// An ICMP error that quotes a packet; `head` has its type, code, and four bytes more.
pub fn icmp_error(source: Address, destination: Address, head: [u8; 6], quoted: &[u8]) -> Vec<u8> {
    let [kind, code, rest @ ..] = head;
    let mut message = [&[kind, code, 0, 0], &rest[..], quoted].concat();
    let v4 = source.is_v4();
    let protocol = if v4 { ICMP } else { ICMPV6 };
    let pseudo = if v4 { Vec::new() } else { pseudo_header(&source, &destination, ICMPV6) };
    put_checksum(&mut message, 2, pseudo);
    ip(source, destination, 64, protocol, &message)
}

/// An IP packet.
pub fn ip(source: Address, destination: Address, ttl: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    if !source.is_v4() {
        let length = (payload.len() as u16).to_be_bytes();
        let head = [0x60, 0, 0, 0, length[0], length[1], protocol, ttl];
        return [&head[..], &source.octets(), &destination.octets(), payload].concat();
    }
    let length = (20 + payload.len() as u16).to_be_bytes();
    let head = [0x45, 0, length[0], length[1], 0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0];
    let mut header = [&head[..], &source.v4_octets(), &destination.v4_octets()].concat();
    put_checksum(&mut header, 10, Vec::new());
    [header, payload.to_vec()].concat()
}

/// The same UDP packet with bytes behind its datagram, which no checksum covers (RFC 9868).
pub fn with_surplus(packet: &[u8], bytes: &[u8]) -> Vec<u8> {
    lengthened([packet, bytes].concat(), bytes.len())
}

/// The same UDP packet without a checksum.
pub fn without_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    let at = header_len(&packet) + 6;
    packet[at..at + 2].fill(0);
    packet
}

/// The same packet with options that say nothing: of IPv4 in its header, of IPv6 in one of their own.
pub fn with_options(packet: &[u8]) -> Vec<u8> {
    let (header, rest) = packet.split_at(header_len(packet));
    let mut header = header.to_vec();
    let options = if header[0] >> 4 == 4 {
        header[0] += 1;
        vec![1, 1, 1, 0]
    } else {
        vec![std::mem::replace(&mut header[6], 60), 0, 1, 4, 0, 0, 0, 0]
    };
    lengthened([&header, &options, rest].concat(), options.len())
}

/// Bytes of the IP header of a packet made here, without options.
fn header_len(packet: &[u8]) -> usize {
    if packet[0] >> 4 == 4 { 20 } else { 40 }
}

/// Mends the header of a packet that has got so many bytes more.
fn lengthened(mut packet: Vec<u8>, more: usize) -> Vec<u8> {
    let v4 = packet[0] >> 4 == 4;
    let at = if v4 { 2 } else { 4 };
    let length = u16::from_be_bytes([packet[at], packet[at + 1]]) + more as u16;
    packet[at..at + 2].copy_from_slice(&length.to_be_bytes());
    if v4 {
        let len = usize::from(packet[0] & 15) * 4;
        put_checksum(&mut packet[..len], 10, Vec::new());
    }
    packet
}

/// The pieces of an IP packet, of which all but the last have `chunk` bytes (a multiple of eight) of it.
pub fn pieces(packet: &[u8], chunk: usize, id: u8) -> Vec<Vec<u8>> {
    let v4 = packet[0] >> 4 == 4;
    let (header, payload) = packet.split_at(header_len(packet));
    let count = payload.len().div_ceil(chunk);
    let piece = |(number, part): (usize, &[u8])| {
        let more = u16::from(number + 1 < count);
        let units = (number * chunk / 8) as u16;
        let mut header = header.to_vec();
        let mut extension = Vec::new();
        if v4 {
            header[2..4].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
            header[4..8].copy_from_slice(&[0, id, (more << 5 | units >> 8) as u8, units as u8]);
            put_checksum(&mut header, 10, Vec::new());
        } else {
            let [high, low] = (units << 3 | more).to_be_bytes();
            extension = vec![header[6], 0, high, low, 0, 0, 0, id];
            header[4..6].copy_from_slice(&(8 + part.len() as u16).to_be_bytes());
            header[6] = 44;
        }
        [header, extension, part.to_vec()].concat()
    };
    payload.chunks(chunk).enumerate().map(piece).collect()
}

/// A frame with a packet in it, and these tags: type, priority and number.
pub fn frame(to: [u8; 6], from: [u8; 6], tags: &[[u8; 4]], packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet.first().is_none_or(|byte| byte >> 4 == 4) { [8, 0] } else { [0x86, 0xdd] };
    [&to, &from, tags.as_flattened(), &ethertype, packet].concat()
}

fn put_checksum(bytes: &mut [u8], at: usize, before: Vec<u8>) {
    bytes[at..at + 2].fill(0);
    let length = if before.is_empty() { 0 } else { bytes.len() as u32 };
    let sum = !fold(&[&before, &length.to_be_bytes()[..], bytes]);
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
