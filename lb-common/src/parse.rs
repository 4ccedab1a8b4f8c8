//! A frame's headers, in two steps: [`network`] reads just enough to ask whether the packet is
//! ours, [`transport`] checks and reads the rest of those that are.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::{
    abi::{Address, Port, Protocol, VlanTag, limits::EXTENSION_HEADERS},
    numbers::{AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, MOBILITY, ROUTING},
    packet::{HEADERS_MAX, PacketAccess},
    sctp,
};

/// Where the network header begins. Frames with VLAN tags are handled without them ([`crate::vlan`]).
pub const NETWORK_OFFSET: usize = size_of::<EthHdr>();

const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
const ETHERTYPE_QTAG: u16 = VlanTag::CUSTOMER.to_be();
const ETHERTYPE_STAG: u16 = VlanTag::SERVICE.to_be();

/// The part of the network header that tells whether a packet is ours. Nothing is checked yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    pub v4: bool,
    pub source: Address,
    pub destination: Address,
}

/// The frame is none of ours: pass it on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotOurs {
    /// Neither IPv4 nor IPv6, or IPv6 with a mapped IPv4 address, which has no place on the wire
    /// and would look like an IPv4 packet's.
    NotIp,
    /// Has VLAN tags, and what is behind them was not looked at.
    Tagged,
    /// Says it is IP, but ends before the addresses do.
    Short,
}

/// Why the rest of a packet to one of our addresses cannot be balanced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// Neither TCP nor UDP nor SCTP, or on its way to further nodes (IPv6 routing header).
    NotTransport,
    /// ICMP in IPv4, ICMPv6 in IPv6.
    Icmp,
    Fragment,
    /// Too short or contradictory.
    Malformed,
}

/// How much of a datagram a packet holds.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    Whole = 0,
    /// The first fragment: it has the transport header.
    First = 1,
    /// A fragment behind it, which has none.
    Later = 2,
}

/// The transport header, checked against the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transport {
    pub protocol: Protocol,
    pub source_port: Port,
    pub destination_port: Port,
    /// As in the 14th byte of the TCP header; 0 for UDP; for SCTP see [`sctp::flags`].
    pub tcp_flags: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// All but [`Part::Whole`] come from [`crate::fragment`].
    pub part: Part,
    /// Bytes from the start of the frame to the transport header; 0 where there is none.
    pub offset: u16,
    /// Bytes of the IP packet, without link-layer header and padding.
    pub packet_len: u16,
}

/// Reads the addresses.
#[inline(always)]
pub fn network<P: PacketAccess>(frame: &P) -> Result<Network, NotOurs> {
    let ethernet: EthHdr = frame.read(0).ok_or(NotOurs::NotIp)?;
    match ethernet.ether_type {
        ETHERTYPE_IPV4 => {
            let header: Ipv4Hdr = frame.read(NETWORK_OFFSET).ok_or(NotOurs::Short)?;
            Ok(Network { v4: true, source: Address::v4(header.src_addr), destination: Address::v4(header.dst_addr) })
        }
        ETHERTYPE_IPV6 => {
            let header: Ipv6Hdr = frame.read(NETWORK_OFFSET).ok_or(NotOurs::Short)?;
            let (source, destination) = (Address::v6(header.src_addr), Address::v6(header.dst_addr));
            if source.is_v4() || destination.is_v4() {
                return Err(NotOurs::NotIp);
            }
            Ok(Network { v4: false, source, destination })
        }
        ETHERTYPE_QTAG | ETHERTYPE_STAG => Err(NotOurs::Tagged),
        _ => Err(NotOurs::NotIp),
    }
}

/// Checks and reads what follows the addresses.
#[inline(always)]
pub fn transport<P: PacketAccess>(frame: &P, network: &Network) -> Result<Transport, Problem> {
    if network.v4 { transport_v4(frame) } else { transport_v6(frame) }
}

#[inline(always)]
fn transport_v4<P: PacketAccess>(frame: &P) -> Result<Transport, Problem> {
    let header: Ipv4Hdr = frame.read(NETWORK_OFFSET).ok_or(Problem::Malformed)?;
    let header_len = (header.vihl & 0xf) as usize * 4;
    let packet_len = u16::from_be_bytes(header.tot_len);
    if header.vihl >> 4 != 4
        || header_len < size_of::<Ipv4Hdr>()
        || (packet_len as usize) < header_len
        || !frame.holds(NETWORK_OFFSET + packet_len as usize)
    {
        return Err(Problem::Malformed);
    }
    // "More fragments", or an offset (RFC 791, 3.1).
    if u16::from_be_bytes(header.frags) & 0x3fff != 0 {
        return Err(Problem::Fragment);
    }
    if header.proto == ICMP {
        return Err(Problem::Icmp);
    }
    ports(frame, header.proto, NETWORK_OFFSET + header_len, packet_len, header.ttl)
}

#[inline(always)]
fn transport_v6<P: PacketAccess>(frame: &P) -> Result<Transport, Problem> {
    let header: Ipv6Hdr = frame.read(NETWORK_OFFSET).ok_or(Problem::Malformed)?;
    let payload_len = u16::from_be_bytes(header.payload_len);
    let packet_len = size_of::<Ipv6Hdr>() + payload_len as usize;
    if header.vcf[0] >> 4 != 6 || packet_len > u16::MAX as usize || !frame.holds(NETWORK_OFFSET + packet_len) {
        return Err(Problem::Malformed);
    }
    let mut next = header.next_hdr;
    let mut offset = NETWORK_OFFSET + size_of::<Ipv6Hdr>();
    for _ in 0..EXTENSION_HEADERS {
        if !is_extension(next) {
            break;
        }
        // RFC 8200, 4: each names the next header and, but for the fragment, its own length.
        let [following, length, kind, left]: [u8; 4] = frame.read(offset).ok_or(Problem::Malformed)?;
        offset += match next {
            FRAGMENT => {
                // An offset, or "more fragments"; without both it is an atomic fragment (RFC 6946).
                if u16::from_be_bytes([kind, left]) & 0xfff9 != 0 {
                    return Err(Problem::Fragment);
                }
                8
            }
            // RFC 4302, 2.2: counts in 4 bytes, less two.
            AUTHENTICATION => (length as usize + 2) * 4,
            // Segments left: the checksum is about another destination (RFC 8200, 8.1).
            ROUTING if left != 0 => return Err(Problem::NotTransport),
            _ => (length as usize + 1) * 8,
        };
        next = following;
    }
    // The last: every field that will be rewritten is within reach.
    if is_extension(next) || offset > NETWORK_OFFSET + packet_len || offset > HEADERS_MAX - size_of::<TcpHdr>() {
        return Err(Problem::Malformed);
    }
    if next == ICMPV6 {
        return Err(Problem::Icmp);
    }
    ports(frame, next, offset, packet_len as u16, header.hop_limit)
}

#[inline(always)]
pub(crate) const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY)
}

/// `offset`: of the transport header; `packet_len`: checked to lie within the frame.
#[inline(always)]
fn ports<P: PacketAccess>(
    frame: &P,
    protocol: u8,
    offset: usize,
    packet_len: u16,
    ttl: u8,
) -> Result<Transport, Problem> {
    let end = NETWORK_OFFSET + packet_len as usize;
    match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => {
            // Ports, numbers, data offset and flags in one read: each has its price in XDP.
            let header: [u8; 14] = frame.read(offset).ok_or(Problem::Malformed)?;
            let header_len = (header[12] >> 4) as usize * 4;
            if header_len < size_of::<TcpHdr>() || offset + header_len > end {
                return Err(Problem::Malformed);
            }
            Ok(Transport {
                protocol: Protocol::Tcp,
                source_port: Port::from_wire([header[0], header[1]]),
                destination_port: Port::from_wire([header[2], header[3]]),
                tcp_flags: header[13],
                ttl,
                part: Part::Whole,
                offset: offset as u16,
                packet_len,
            })
        }
        Some(Protocol::Udp) => {
            let header: UdpHdr = frame.read(offset).ok_or(Problem::Malformed)?;
            let length = u16::from_be_bytes(header.len) as usize;
            if length < size_of::<UdpHdr>() || offset + length > end {
                return Err(Problem::Malformed);
            }
            Ok(Transport {
                protocol: Protocol::Udp,
                source_port: Port::from_wire(header.src),
                destination_port: Port::from_wire(header.dst),
                tcp_flags: 0,
                ttl,
                part: Part::Whole,
                offset: offset as u16,
                packet_len,
            })
        }
        Some(Protocol::Sctp) => {
            let [a, b, c, d]: [u8; 4] = frame.read(offset).ok_or(Problem::Malformed)?;
            if offset + sctp::PACKET_MIN > end {
                return Err(Problem::Malformed);
            }
            Ok(Transport {
                protocol: Protocol::Sctp,
                source_port: Port::from_wire([a, b]),
                destination_port: Port::from_wire([c, d]),
                tcp_flags: sctp::flags(frame, offset).ok_or(Problem::Malformed)?,
                ttl,
                part: Part::Whole,
                offset: offset as u16,
                packet_len,
            })
        }
        None => Err(Problem::NotTransport),
    }
}
