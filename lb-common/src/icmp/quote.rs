//! Reading ICMP errors (RFC 792; RFC 4443, 3) and the packets they quote. Nobody vouches for either.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use super::kinds::*;
use crate::{
    abi::{Address, Port, Protocol, limits::EXTENSION_HEADERS},
    numbers::{AUTHENTICATION, FRAGMENT, ICMP, ICMPV6},
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Network, is_extension},
};

/// Length of the header before the quotation.
pub(crate) const ICMP_LEN: usize = 8;

/// An ICMP error: unreachable, too big, time exceeded or parameter problem. (A redirect is for the
/// host alone, and a source quench for nobody: RFC 6633.)
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Who sent it, and to whom.
    pub outer: Network,
    /// TTL or hop limit.
    pub ttl: u8,
    /// "Fragmentation needed" or "packet too big".
    pub too_big: bool,
    /// The receiver of what is quoted is not there or may not be reached: host, port, prohibition.
    pub gone: bool,
    /// With `too_big`: the MTU that the sender of the error tells; 0: it does not know (RFC 1191, 4).
    pub mtu: u32,
    /// Bytes of the IP packet.
    pub packet_len: u16,
    /// Bytes from the start of the frame to the ICMP header; the quotation follows 8 bytes later.
    pub offset: u16,
    /// Where the quotation ends, without extensions (RFC 4884).
    pub end: u16,
}

/// What an error quotes: the packet it is about, or one within that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted {
    pub network: Network,
    /// The first header that is no extension; that of IPv6 fragments where the packet is one without
    /// the transport header, of either family.
    pub protocol: u8,
    /// TCP and UDP; otherwise [`Port::ANY`].
    pub source_port: Port,
    pub destination_port: Port,
    /// Bytes from the start of the frame to its IP header, and to the header of `protocol`, of which 8
    /// bytes are there at least.
    pub start: u16,
    pub transport: u16,
}

/// Why ICMP is no error that could be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoError {
    /// ICMP of another kind; not ICMP; or behind IPv6 extension headers, as no router sends them.
    Other,
    /// Too short or contradictory.
    Malformed,
}

impl IcmpError {
    /// Reads an error's own headers.
    #[inline(always)]
    pub fn of<P: PacketAccess>(frame: &P, network: &Network) -> Result<Self, NoError> {
        if network.v4 { of_v4(frame, network) } else { of_v6(frame, network) }
    }

    /// Where the quoted packet begins.
    #[inline(always)]
    pub const fn quotation(&self) -> usize {
        self.offset as usize + ICMP_LEN
    }
}

#[inline(always)]
fn of_v4<P: PacketAccess>(frame: &P, network: &Network) -> Result<IcmpError, NoError> {
    let header: Ipv4Hdr = frame.read(NETWORK_OFFSET).ok_or(NoError::Malformed)?;
    if header.proto != ICMP || u16::from_be_bytes(header.frags) & 0x3fff != 0 {
        return Err(NoError::Other);
    }
    let packet_len = u16::from_be_bytes(header.tot_len);
    let offset = NETWORK_OFFSET + (header.vihl & 0xf) as usize * 4;
    if header.vihl >> 4 != 4 || offset < NETWORK_OFFSET + size_of::<Ipv4Hdr>() {
        return Err(NoError::Malformed);
    }
    let [kind, code, _, _, _, words, high, low]: [u8; ICMP_LEN] = frame.read(offset).ok_or(NoError::Malformed)?;
    let gone = kind == V4_UNREACHABLE && code < 32 && V4_GONE >> code & 1 != 0;
    if !matches!(kind, V4_UNREACHABLE | V4_TIME_EXCEEDED | V4_PARAMETER_PROBLEM) {
        return Err(NoError::Other);
    }
    let too_big = kind == V4_UNREACHABLE && code == V4_FRAGMENTATION_NEEDED;
    let mtu = if too_big { u16::from_be_bytes([high, low]) as u32 } else { 0 };
    let end = end(frame, offset, packet_len, words as usize * 4)?;
    Ok(IcmpError { outer: *network, ttl: header.ttl, too_big, gone, mtu, packet_len, offset: offset as u16, end })
}

#[inline(always)]
fn of_v6<P: PacketAccess>(frame: &P, network: &Network) -> Result<IcmpError, NoError> {
    let header: Ipv6Hdr = frame.read(NETWORK_OFFSET).ok_or(NoError::Malformed)?;
    if header.next_hdr != ICMPV6 {
        return Err(NoError::Other);
    }
    let payload_len = u16::from_be_bytes(header.payload_len);
    let packet_len = payload_len.checked_add(size_of::<Ipv6Hdr>() as u16).ok_or(NoError::Malformed)?;
    let offset = NETWORK_OFFSET + size_of::<Ipv6Hdr>();
    let [kind, code, _, _, a, b, c, d]: [u8; ICMP_LEN] = frame.read(offset).ok_or(NoError::Malformed)?;
    let gone = kind == V6_UNREACHABLE && code < 32 && V6_GONE >> code & 1 != 0;
    if !matches!(kind, V6_UNREACHABLE | V6_TOO_BIG | V6_TIME_EXCEEDED | V6_PARAMETER_PROBLEM) {
        return Err(NoError::Other);
    }
    let too_big = kind == V6_TOO_BIG;
    let mtu = if too_big { u32::from_be_bytes([a, b, c, d]) } else { 0 };
    let quoted = if matches!(kind, V6_UNREACHABLE | V6_TIME_EXCEEDED) { a as usize * 8 } else { 0 };
    let end = end(frame, offset, packet_len, quoted)?;
    Ok(IcmpError { outer: *network, ttl: header.hop_limit, too_big, gone, mtu, packet_len, offset: offset as u16, end })
}

/// The end of the quotation. `quoted`: its length as the error tells it, which counts from 128 bytes
/// on; what is behind it are extensions (RFC 4884, 4).
#[inline(always)]
fn end<P: PacketAccess>(frame: &P, offset: usize, packet_len: u16, quoted: usize) -> Result<u16, NoError> {
    let end = NETWORK_OFFSET + packet_len as usize;
    if end > frame.len() || end > u16::MAX as usize || offset + ICMP_LEN > end {
        return Err(NoError::Malformed);
    }
    let told = offset + ICMP_LEN + quoted;
    Ok(if quoted >= 128 && told < end { told as u16 } else { end as u16 })
}

impl Quoted {
    /// Reads the headers of a packet that begins at `start` and of which there is something until
    /// `end`, both in bytes from the start of the frame; `None` where they are not all there, or
    /// contradictory.
    #[inline(always)]
    pub fn at<P: PacketAccess>(frame: &P, v4: bool, start: usize, end: usize) -> Option<Self> {
        let (network, protocol, transport) = if v4 { quoted_v4(frame, start)? } else { quoted_v6(frame, start)? };
        if transport + 8 > end {
            return None;
        }
        let [a, b, c, d]: [u8; 4] = frame.read(transport)?;
        let with_ports = Protocol::from_number(protocol).is_some();
        let port = |wire| if with_ports { Port::from_wire(wire) } else { Port::ANY };
        Some(Self {
            network,
            protocol,
            source_port: port([a, b]),
            destination_port: port([c, d]),
            start: start as u16,
            transport: transport as u16,
        })
    }
}

#[inline(always)]
fn quoted_v4<P: PacketAccess>(frame: &P, start: usize) -> Option<(Network, u8, usize)> {
    let header: Ipv4Hdr = frame.read(start)?;
    let header_len = (header.vihl & 0xf) as usize * 4;
    if header.vihl >> 4 != 4 || header_len < size_of::<Ipv4Hdr>() {
        return None;
    }
    // A fragment's offset (RFC 791, 3.1): only the first has the transport header.
    let first = u16::from_be_bytes(header.frags) & 0x1fff == 0;
    let network = Network { v4: true, source: Address::v4(header.src_addr), destination: Address::v4(header.dst_addr) };
    Some((network, if first { header.proto } else { FRAGMENT }, start + header_len))
}

#[inline(always)]
fn quoted_v6<P: PacketAccess>(frame: &P, start: usize) -> Option<(Network, u8, usize)> {
    let header: Ipv6Hdr = frame.read(start)?;
    let (source, destination) = (Address::v6(header.src_addr), Address::v6(header.dst_addr));
    if header.vcf[0] >> 4 != 6 || source.is_v4() || destination.is_v4() {
        return None;
    }
    let mut next = header.next_hdr;
    let mut offset = start + size_of::<Ipv6Hdr>();
    for _ in 0..EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        // RFC 8200, 4: each names the next header and, but for the fragment, its own length.
        let [following, length, high, low]: [u8; 4] = frame.read(offset)?;
        if next == FRAGMENT && u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
            break;
        }
        offset += match next {
            FRAGMENT => 8,
            // RFC 4302, 2.2: counts in 4 bytes, less two.
            AUTHENTICATION => (length as usize + 2) * 4,
            _ => (length as usize + 1) * 8,
        };
        next = following;
    }
    Some((Network { v4: false, source, destination }, next, offset))
}
