//! Translation between IPv4 and IPv6 (RFC 7915): a packet of one family leaves as one of the other.
//!
//! The caller reads the new header with [`read`], asks for the way of a packet of
//! [`Header::packet_len`] bytes, moves the start of the frame by [`Header::growth`] and has [`write`]
//! write it. Of TCP and UDP nothing changes but ports and checksum: the pseudo-headers of the two
//! families differ in the addresses alone.

pub mod error;
pub mod icmp;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::{
    abi::{Address, Protocol, limits::EXTENSION_HEADERS},
    checksum::{Delta, Sum},
    numbers::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING},
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Network, Transport},
    rewrite::{self, Translation, Words, words},
};

const IPV4_LEN: u16 = size_of::<Ipv4Hdr>() as u16;
const IPV6_LEN: u16 = size_of::<Ipv6Hdr>() as u16;

/// The largest IPv4 packet that a router may fragment after its translation: with the headers of the
/// other family it still fits where IPv6's least MTU does (RFC 7915, 5.1).
const FRAGMENTABLE: u16 = 1260;
const DONT_FRAGMENT: u8 = 0x40;

/// IPv4 options (RFC 791, 3.1).
const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;
const OPTIONS_MAX: usize = 40;

/// Offset of the checksum in the UDP header (RFC 768).
const UDP_CHECK: usize = 6;

/// What the header of the translated packet says, addresses aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Whether the translated packet is an IPv4 packet.
    pub v4: bool,
    /// IPv4: whether routers may not fragment it.
    dont_fragment: bool,
    /// ToS or traffic class, copied whole (RFC 7915, 4.1 and 5.1).
    traffic_class: u8,
    /// Lowered by one already.
    hop_limit: u8,
    protocol: u8,
    /// IPv4.
    id: u16,
    /// Bytes of the network header that the packet came with, options and extension headers included.
    replaced: u16,
    /// Bytes behind the network header.
    payload: u16,
}

impl Header {
    /// Bytes of the header.
    #[inline(always)]
    pub const fn len(&self) -> u16 {
        if self.v4 { IPV4_LEN } else { IPV6_LEN }
    }

    /// Never.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Bytes by which the frame grows at its start; negative: shrinks.
    #[inline(always)]
    pub const fn growth(&self) -> i32 {
        self.len() as i32 - self.replaced as i32
    }

    /// Bytes of the IP packet as it came.
    #[inline(always)]
    pub const fn replaced_len(&self) -> u16 {
        self.payload + self.replaced
    }

    /// Bytes of the translated IP packet, or the most that can be said.
    #[inline(always)]
    pub const fn packet_len(&self) -> u16 {
        self.payload.saturating_add(self.len())
    }
}

/// The header that a packet of the other family gets. `id`: the identification of an IPv4 packet,
/// another one each time (RFC 7915, 5.1). `None`: the packet says something that the other family
/// cannot say: a source route that is not used up (4.1), an authentication header, mobility.
#[inline(always)]
pub fn read<P: PacketAccess>(frame: &P, network: &Network, transport: &Transport, id: u16) -> Option<Header> {
    if network.v4 { from_v4(frame, transport) } else { from_v6(frame, transport, id) }
}

/// Options are ignored, but for a source route, which must be refused.
#[inline(always)]
fn from_v4<P: PacketAccess>(frame: &P, transport: &Transport) -> Option<Header> {
    let tos: u8 = frame.read(NETWORK_OFFSET + 1)?;
    if source_routed(frame, transport.offset as usize) {
        return None;
    }
    Some(header(transport, false, tos))
}

/// What both directions have in common.
#[inline(always)]
const fn header(transport: &Transport, v4: bool, traffic_class: u8) -> Header {
    let replaced = transport.offset - NETWORK_OFFSET as u16;
    Header {
        v4,
        dont_fragment: false,
        traffic_class,
        hop_limit: transport.ttl.wrapping_sub(1),
        protocol: transport.protocol as u8,
        id: 0,
        replaced,
        payload: transport.packet_len - replaced,
    }
}

/// Whether the IPv4 options, which end at `end`, hold a source route with hosts left. Options that
/// contradict themselves count as one.
#[inline(always)]
fn source_routed<P: PacketAccess>(frame: &P, end: usize) -> bool {
    let mut at = NETWORK_OFFSET + IPV4_LEN as usize;
    for _ in 0..OPTIONS_MAX {
        if at >= end {
            return false;
        }
        // Behind the last option there is a transport header: three bytes are always there.
        let Some([kind, length, pointer]) = frame.read::<[u8; 3]>(at) else { return true };
        if kind == END_OF_OPTIONS {
            return false;
        }
        if kind == NO_OPERATION {
            at += 1;
            continue;
        }
        if length < 2 || (kind == LOOSE_SOURCE_ROUTE || kind == STRICT_SOURCE_ROUTE) && pointer <= length {
            return true;
        }
        at += length as usize;
    }
    false
}

#[inline(always)]
fn from_v6<P: PacketAccess>(frame: &P, transport: &Transport, id: u16) -> Option<Header> {
    let [a, b, _, _, _, _, next, _]: [u8; 8] = frame.read(NETWORK_OFFSET)?;
    let mut header = header(transport, true, a << 4 | b >> 4);
    header.id = id;
    header.dont_fragment = header.packet_len() > FRAGMENTABLE;
    skip_extensions(frame, transport.offset as usize, next, &mut header)?;
    Some(header)
}

/// Walks the extension headers, which the parser has found to lead to `end`. An atomic fragment
/// keeps its identification (RFC 7915, 5.1.1), other headers are ignored.
#[inline(always)]
fn skip_extensions<P: PacketAccess>(frame: &P, end: usize, mut next: u8, header: &mut Header) -> Option<()> {
    let mut at = NETWORK_OFFSET + IPV6_LEN as usize;
    for _ in 0..EXTENSION_HEADERS {
        if at >= end {
            break;
        }
        let [following, length, _, _, _, _, id_high, id_low]: [u8; 8] = frame.read(at)?;
        match next {
            FRAGMENT => {
                header.id = u16::from_be_bytes([id_high, id_low]);
                header.dont_fragment = false;
                at += 8;
            }
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => at += (length as usize + 1) * 8,
            _ => return None,
        }
        next = following;
    }
    Some(())
}

/// Whether the packet is UDP over IPv4 whose sender left the checksum out. IPv6 has none such: it must
/// be given one ([`complete_checksum`]) before it is translated (RFC 7915, 4.5).
#[inline(always)]
pub fn lacks_checksum<P: PacketAccess>(frame: &P, network: &Network, transport: &Transport) -> bool {
    network.v4
        && transport.protocol == Protocol::Udp
        && frame.read::<[u8; 2]>(transport.offset as usize + UDP_CHECK) == Some([0, 0])
}

/// Writes the checksum that the sender of a UDP packet left out, for the packet as it came. `datagram`
/// is the sum of all bytes of the UDP header and what it carries (`length` bytes).
#[inline(always)]
pub fn complete_checksum<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    transport: &Transport,
    datagram: Sum,
    length: u16,
) -> Option<()> {
    let sum = datagram.pseudo_header(&network.source, &network.destination, Protocol::Udp as u8, length);
    let check = match sum.finish() {
        [0, 0] => [0xff, 0xff],
        check => check,
    };
    frame.write(transport.offset as usize + UDP_CHECK, check)
}

/// Writes the translated packet's headers into a frame whose start was moved by [`Header::growth`]
/// since `header`, `network` and `transport` were read from it. Link-layer addresses are the caller's.
/// `None` when the frame is shorter than they say, or the packet longer than the other family can say;
/// the frame is then to be dropped.
#[inline(always)]
pub fn write<P: PacketAccess>(
    frame: &mut P,
    header: &Header,
    network: &Network,
    transport: &Transport,
    to: &Translation,
) -> Option<()> {
    let ethertype: [u8; 2] = if header.v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    frame.write(NETWORK_OFFSET - 2, ethertype)?;
    write_header(frame, NETWORK_OFFSET, header, &to.source, &to.destination)?;
    let addresses = Delta::ZERO.address(&network.source, &to.source).address(&network.destination, &to.destination);
    rewrite::ports(frame, transport, NETWORK_OFFSET + header.len() as usize, addresses, to)
}

/// Writes a header at an offset.
#[inline(always)]
fn write_header<P: PacketAccess>(
    frame: &mut P,
    at: usize,
    header: &Header,
    source: &Address,
    destination: &Address,
) -> Option<()> {
    if header.v4 {
        write_v4(frame, at, header, source.words()[3], destination.words()[3])
    } else {
        write_v6(frame, at, header, words(source), words(destination))
    }
}

#[inline(always)]
fn write_v4<P: PacketAccess>(frame: &mut P, at: usize, header: &Header, source: u32, destination: u32) -> Option<()> {
    let [l0, l1] = header.payload.checked_add(IPV4_LEN)?.to_be_bytes();
    let [i0, i1] = header.id.to_be_bytes();
    let flags = if header.dont_fragment { DONT_FRAGMENT } else { 0 };
    let first = [0x45, header.traffic_class, l0, l1, i0, i1, flags, 0, header.hop_limit, header.protocol];
    let [c0, c1] = Sum::ZERO.bytes(&first).word(source).word(destination).finish();
    let [a, b, c, d, e, f, g, h, i, j] = first;
    frame.write(at, [a, b, c, d, e, f, g, h, i, j, c0, c1])?;
    frame.write(at + 12, source)?;
    frame.write(at + 16, destination)
}

/// The flow label is 0 (RFC 7915, 4.1).
#[inline(always)]
fn write_v6<P: PacketAccess>(
    frame: &mut P,
    at: usize,
    header: &Header,
    source: Words,
    destination: Words,
) -> Option<()> {
    let ([l0, l1], class) = (header.payload.to_be_bytes(), header.traffic_class);
    frame.write(at, [0x60 | class >> 4, class << 4, 0, 0, l0, l1, header.protocol, header.hop_limit])?;
    frame.write(at + 8, source)?;
    frame.write(at + 24, destination)
}
