//! Fragments of IP datagrams (RFC 791, 3.2; RFC 8200, 4.5). Only the first has a transport header;
//! what cannot be part of an honest datagram is malformed (RFC 1858, RFC 3128, RFC 7112).

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    abi::{FragmentFlow, FragmentKey, Port, Protocol, limits::EXTENSION_HEADERS},
    checksum::Delta,
    numbers::{AUTHENTICATION, FRAGMENT, ICMP, ICMPV6, ROUTING},
    packet::{HEADERS_MAX, PacketAccess},
    parse::{NETWORK_OFFSET, Network, Part, Problem, Transport, is_extension},
    sctp,
};

/// Where the identification and the checksum stand in the IPv4 header.
const V4_ID: usize = NETWORK_OFFSET + 4;
const V4_CHECK: usize = NETWORK_OFFSET + 10;

/// A fragment's place in its datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    /// Network order, read as a native integer.
    pub id: u32,
    /// What the data begins with: a protocol number, or of IPv6 also an extension header's.
    pub next: u8,
    /// Bytes of the datagram before this fragment's.
    pub offset: u16,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes from the start of the frame to the data.
    pub start: u16,
    /// Bytes of the IP packet.
    pub packet_len: u16,
}

impl Fragment {
    #[inline(always)]
    pub const fn is_first(&self) -> bool {
        self.offset == 0
    }

    /// Under which the first fragment is remembered.
    #[inline(always)]
    pub const fn key(&self, network: &Network) -> FragmentKey {
        let protocol = if network.v4 { self.next } else { 0 };
        let (source, destination, kind) = (network.source, network.destination, FragmentKey::DATAGRAM);
        FragmentKey { source, destination, id: self.id, protocol, kind, zero: [0; 2] }
    }

    /// The transport of a fragment behind the first, as that one told it.
    #[inline(always)]
    pub const fn transport(&self, first: &FragmentFlow, protocol: Protocol) -> Transport {
        Transport {
            protocol,
            source_port: first.source_port,
            destination_port: first.destination_port,
            tcp_flags: first.tcp_flags,
            ttl: self.ttl,
            part: Part::Later,
            offset: 0,
            packet_len: self.packet_len,
        }
    }
}

/// Reads the place of a packet that [`crate::parse::transport`] found to be a fragment.
///
/// # Errors
/// [`Problem::Malformed`]; [`Problem::NotTransport`] for fragments of what is not balanced, as far as
/// this one tells.
#[inline(always)]
pub fn read<P: PacketAccess>(frame: &P, network: &Network) -> Result<Fragment, Problem> {
    let (fragment, more) = if network.v4 { read_v4(frame)? } else { read_v6(frame)? };
    let end = NETWORK_OFFSET + fragment.packet_len as usize;
    let start = fragment.start as usize;
    if start >= end {
        return Err(Problem::Malformed);
    }
    let length = end - start;
    // All but the last are whole units of 8 bytes, and together they are no longer than a packet can
    // be ("ping of death").
    if more && !length.is_multiple_of(8) || fragment.offset as usize + length > u16::MAX as usize {
        return Err(Problem::Malformed);
    }
    // Behind the first, yet within the TCP header: it would replace flags that were looked at.
    if fragment.next == Protocol::Tcp as u8 && !fragment.is_first() && (fragment.offset as usize) < size_of::<TcpHdr>()
    {
        return Err(Problem::Malformed);
    }
    let balanced = Protocol::from_number(fragment.next).is_some() || (!network.v4 && is_extension(fragment.next));
    if balanced { Ok(fragment) } else { Err(Problem::NotTransport) }
}

/// With whether more fragments follow.
#[inline(always)]
fn read_v4<P: PacketAccess>(frame: &P) -> Result<(Fragment, bool), Problem> {
    let header: Ipv4Hdr = frame.read(NETWORK_OFFSET).ok_or(Problem::Malformed)?;
    let bits = u16::from_be_bytes(header.frags);
    if header.proto == ICMP {
        return Err(Problem::NotTransport);
    }
    let fragment = Fragment {
        id: u16::from_ne_bytes(header.id) as u32,
        next: header.proto,
        offset: (bits & 0x1fff) << 3,
        ttl: header.ttl,
        start: NETWORK_OFFSET as u16 + (header.vihl & 0xf) as u16 * 4,
        packet_len: u16::from_be_bytes(header.tot_len),
    };
    Ok((fragment, bits & 0x2000 != 0))
}

#[inline(always)]
fn read_v6<P: PacketAccess>(frame: &P) -> Result<(Fragment, bool), Problem> {
    let header: Ipv6Hdr = frame.read(NETWORK_OFFSET).ok_or(Problem::Malformed)?;
    let packet_len = size_of::<Ipv6Hdr>() as u16 + u16::from_be_bytes(header.payload_len);
    let mut next = header.next_hdr;
    let mut offset = NETWORK_OFFSET + size_of::<Ipv6Hdr>();
    for _ in 0..EXTENSION_HEADERS {
        if next == FRAGMENT {
            let [next, _, high, low, a, b, c, d]: [u8; 8] = frame.read(offset).ok_or(Problem::Malformed)?;
            if next == ICMPV6 {
                return Err(Problem::NotTransport);
            }
            let bits = u16::from_be_bytes([high, low]);
            let (id, start) = (u32::from_ne_bytes([a, b, c, d]), offset as u16 + 8);
            let fragment = Fragment { id, next, offset: bits & 0xfff8, ttl: header.hop_limit, start, packet_len };
            return Ok((fragment, bits & 1 != 0));
        }
        if !is_extension(next) {
            break;
        }
        let [following, length]: [u8; 2] = frame.read(offset).ok_or(Problem::Malformed)?;
        offset += extension_len(next, length);
        next = following;
    }
    Err(Problem::Malformed)
}

/// Bytes of an extension header that is no fragment's, by the length it names (RFC 8200, 4; RFC
/// 4302, 2.2).
#[inline(always)]
const fn extension_len(kind: u8, length: u8) -> usize {
    if kind == AUTHENTICATION { (length as usize + 2) * 4 } else { (length as usize + 1) * 8 }
}

/// The transport header of a first fragment, which must hold all of it.
///
/// # Errors
/// [`Problem::Malformed`], [`Problem::NotTransport`].
#[inline(always)]
pub fn first<P: PacketAccess>(frame: &P, network: &Network, fragment: &Fragment) -> Result<Transport, Problem> {
    let end = NETWORK_OFFSET + fragment.packet_len as usize;
    let (mut next, mut offset) = (fragment.next, fragment.start as usize);
    if !network.v4 {
        for _ in 0..EXTENSION_HEADERS {
            if !is_extension(next) || next == FRAGMENT {
                break;
            }
            let [following, length, _, left]: [u8; 4] = frame.read(offset).ok_or(Problem::Malformed)?;
            if next == ROUTING && left != 0 {
                return Err(Problem::NotTransport);
            }
            offset += extension_len(next, length);
            next = following;
        }
        if is_extension(next) {
            return Err(Problem::Malformed);
        }
    }
    if offset > end || offset > HEADERS_MAX - size_of::<TcpHdr>() {
        return Err(Problem::Malformed);
    }
    let header = header(frame, next, offset, end)?;
    Ok(Transport { ttl: fragment.ttl, offset: offset as u16, packet_len: fragment.packet_len, ..header })
}

#[inline(always)]
fn header<P: PacketAccess>(frame: &P, next: u8, offset: usize, end: usize) -> Result<Transport, Problem> {
    let protocol = Protocol::from_number(next).ok_or(Problem::NotTransport)?;
    let (ports, tcp_flags) = match protocol {
        Protocol::Tcp => {
            let header: [u8; 14] = frame.read(offset).ok_or(Problem::Malformed)?;
            let length = (header[12] >> 4) as usize * 4;
            // RFC 1858, 3.2: a header that is spread over fragments hides what it is about.
            if length < size_of::<TcpHdr>() || offset + length > end {
                return Err(Problem::Malformed);
            }
            ([header[0], header[1], header[2], header[3]], header[13])
        }
        Protocol::Udp => {
            let header: [u8; 6] = frame.read(offset).ok_or(Problem::Malformed)?;
            // The length is that of the whole datagram, which is not here.
            let length = u16::from_be_bytes([header[4], header[5]]) as usize;
            if length < size_of::<UdpHdr>() || offset + size_of::<UdpHdr>() > end {
                return Err(Problem::Malformed);
            }
            ([header[0], header[1], header[2], header[3]], 0)
        }
        Protocol::Sctp => {
            let ports: [u8; 4] = frame.read(offset).ok_or(Problem::Malformed)?;
            if offset + sctp::PACKET_MIN > end {
                return Err(Problem::Malformed);
            }
            (ports, sctp::flags(frame, offset).ok_or(Problem::Malformed)?)
        }
    };
    Ok(Transport {
        protocol,
        source_port: Port::from_wire([ports[0], ports[1]]),
        destination_port: Port::from_wire([ports[2], ports[3]]),
        tcp_flags,
        ttl: 0,
        part: Part::First,
        offset: 0,
        packet_len: 0,
    })
}

/// Gives an IPv4 fragment another identification (network order): after a translation, datagrams of
/// several senders may come from one address (RFC 6864, 5.3).
#[inline(always)]
pub fn renumber<P: PacketAccess>(frame: &mut P, id: [u8; 2]) -> Option<()> {
    let old: [u8; 2] = frame.read(V4_ID)?;
    let check: [u8; 2] = frame.read(V4_CHECK)?;
    let delta = Delta::ZERO.field(u16::from_ne_bytes(old), u16::from_ne_bytes(id));
    frame.write(V4_ID, id)?;
    frame.write(V4_CHECK, delta.apply(check))
}
