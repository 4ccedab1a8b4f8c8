//! Answers that the balancer gives itself: a TCP reset, or an ICMP "port unreachable" for UDP.
//! Each is a whole frame, built from what the packet said.

use network_types::{eth::EthHdr, tcp::TcpHdr};

use crate::{
    abi::{Address, Protocol},
    checksum::Sum,
    flow::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    icmp::kinds::{V4_PORT, V4_UNREACHABLE, V6_PORT, V6_UNREACHABLE},
    numbers::{ICMP, ICMPV6},
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Network, Transport},
};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = size_of::<TcpHdr>();
const ICMP_LEN: usize = 8;
/// TTL and hop limit of our own packets (RFC 1700's recommended 64).
const TTL: u8 = 64;

/// Whether the packet may be answered at all: it came to us alone, from a single host. Nothing is
/// sent in answer to a link-layer group, nor to a source that is a group, unspecified, loopback or
/// reserved (RFC 1122, 3.2.2 and 4.2.3.10; RFC 4443, 2.4 (e)).
#[inline(always)]
pub fn answerable(ethernet: &EthHdr, network: &Network) -> bool {
    const GROUP: u8 = 1;
    if (ethernet.dst_addr[0] | ethernet.src_addr[0]) & GROUP != 0 {
        return false;
    }
    if network.v4 {
        // 0/8 "this network", 127/8 loopback, 224/4 groups, 240/4 reserved and broadcast.
        let first = network.source.v4_octets()[0];
        first != 0 && first != 127 && first < 224
    } else {
        let words = network.source.words();
        let first = words[0].to_ne_bytes()[0];
        // `::` and `::1` have nothing before the last word; neither has any address in use.
        first != 0xff && words[0] | words[1] | words[2] != 0
    }
}

/// Length of the frame that [`reset`] writes.
#[inline(always)]
pub const fn reset_len(v4: bool) -> usize {
    NETWORK_OFFSET + TCP_LEN + if v4 { IPV4_LEN } else { IPV6_LEN }
}

/// Turns the frame into a reset to its sender (RFC 9293, 3.10.7.1): with the acknowledgement
/// number of the packet as sequence number if it has one, else sequence 0 and an acknowledgement of
/// everything the packet carried. The frame is at least [`reset_len`] long (a TCP packet is), and
/// the caller cuts it to that length. Never call it for a packet that is a reset itself.
#[inline(always)]
pub fn reset<P: PacketAccess>(frame: &mut P, network: &Network, transport: &Transport) -> Option<()> {
    let offset = transport.offset as usize;
    let tcp: [u8; 14] = frame.read(offset)?;
    let (sequence, acknowledgement, flags) = if transport.tcp_flags & TCP_ACK != 0 {
        ([tcp[8], tcp[9], tcp[10], tcp[11]], [0; 4], TCP_RST)
    } else {
        let header_len = offset - NETWORK_OFFSET + (tcp[12] >> 4) as usize * 4;
        let payload = (transport.packet_len as u32).wrapping_sub(header_len as u32);
        let syn_fin = (transport.tcp_flags & TCP_SYN != 0) as u32 + (transport.tcp_flags & TCP_FIN != 0) as u32;
        let end = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(payload).wrapping_add(syn_fin);
        ([0; 4], end.to_be_bytes(), TCP_RST | TCP_ACK)
    };

    swap_ethernet(frame)?;
    let ip_len = if network.v4 {
        write_ipv4(frame, &network.destination, &network.source, Protocol::Tcp as u8, (IPV4_LEN + TCP_LEN) as u16)?;
        IPV4_LEN
    } else {
        write_ipv6(frame, &network.destination, &network.source, Protocol::Tcp as u8, TCP_LEN as u16)?;
        IPV6_LEN
    };
    let s = transport.destination_port.to_wire();
    let d = transport.source_port.to_wire();
    let ([q0, q1, q2, q3], [a0, a1, a2, a3]) = (sequence, acknowledgement);
    // Data offset 5 words; window, checksum and urgent pointer 0.
    let mut header: [u8; TCP_LEN] =
        [s[0], s[1], d[0], d[1], q0, q1, q2, q3, a0, a1, a2, a3, 5 << 4, flags, 0, 0, 0, 0, 0, 0];
    let check = Sum::ZERO
        .pseudo_header(&network.source, &network.destination, Protocol::Tcp as u8, TCP_LEN as u16)
        .bytes(&header)
        .finish();
    header[16] = check[0];
    header[17] = check[1];
    frame.write(NETWORK_OFFSET + ip_len, header)
}

/// The longest quotation of [`unreachable`], in bytes: an IPv4 header with all options and eight
/// bytes more are 68; an IPv6 packet may carry extension headers of 80 bytes and still show its
/// ports. A multiple of four.
pub const QUOTE_MAX: usize = 128;

/// Bytes by which the caller grows the head of the frame before [`unreachable`].
#[inline(always)]
pub const fn unreachable_growth(v4: bool) -> usize {
    ICMP_LEN + if v4 { IPV4_LEN } else { IPV6_LEN }
}

/// Length of the frame that [`unreachable`] writes: what the caller cuts the grown frame to. Never
/// more than the grown frame has, because `transport` was checked against the packet.
#[inline(always)]
pub const fn unreachable_len(network: &Network, transport: &Transport) -> usize {
    NETWORK_OFFSET + unreachable_growth(network.v4) + quoted(transport)
}

/// Bytes of the packet that an unreachable quotes: all headers before the transport header and
/// eight bytes of that (RFC 792). RFC 4443, 2.4 (c) would have as much as fits into 1,280 bytes;
/// what lies behind the ports is of no use to the sender and would have to be summed here. Always a
/// multiple of four, as every header before the transport header is.
#[inline(always)]
const fn quoted(transport: &Transport) -> usize {
    let wanted = transport.offset as usize - NETWORK_OFFSET + 8;
    if wanted < QUOTE_MAX { wanted } else { QUOTE_MAX }
}

/// Turns the frame, whose head was grown by [`unreachable_growth`] and which was then cut to
/// [`unreachable_len`], into "port unreachable" to its sender (RFC 792: type 3 code 3; RFC 4443,
/// 3.1: type 1 code 4). `ethernet`, `network` and `transport` are what the packet came with; the
/// quotation is what the frame holds now, so call it before any translation. The caller limits the
/// rate (RFC 4443, 2.4 (f)).
#[inline(always)]
pub fn unreachable<P: PacketAccess>(
    frame: &mut P,
    ethernet: &EthHdr,
    network: &Network,
    transport: &Transport,
) -> Option<()> {
    let length = (ICMP_LEN + quoted(transport)) as u16;
    frame.write(
        0,
        EthHdr { dst_addr: ethernet.src_addr, src_addr: ethernet.dst_addr, ether_type: ethernet.ether_type },
    )?;
    let (icmp, kind, code, sum) = if network.v4 {
        write_ipv4(frame, &network.destination, &network.source, ICMP, IPV4_LEN as u16 + length)?;
        (NETWORK_OFFSET + IPV4_LEN, V4_UNREACHABLE, V4_PORT, Sum::ZERO)
    } else {
        write_ipv6(frame, &network.destination, &network.source, ICMPV6, length)?;
        let sum = Sum::ZERO.pseudo_header(&network.destination, &network.source, ICMPV6, length);
        (NETWORK_OFFSET + IPV6_LEN, V6_UNREACHABLE, V6_PORT, sum)
    };
    let check = sum_quotation(frame, icmp + ICMP_LEN, quoted(transport), sum.pair([kind, code]))?.finish();
    frame.write(icmp, [kind, code, check[0], check[1], 0, 0, 0, 0])
}

/// Adds `len` bytes from `start` on: a multiple of four, at most [`QUOTE_MAX`]. The constant bound
/// is what the verifier follows.
#[inline(always)]
fn sum_quotation<P: PacketAccess>(frame: &P, start: usize, len: usize, mut sum: Sum) -> Option<Sum> {
    for i in 0..QUOTE_MAX / 4 {
        if i * 4 >= len {
            break;
        }
        sum = sum.word(frame.read(start + i * 4)?);
    }
    Some(sum)
}

#[inline(always)]
pub(crate) fn swap_ethernet<P: PacketAccess>(frame: &mut P) -> Option<()> {
    let ethernet: EthHdr = frame.read(0)?;
    frame.write(0, EthHdr { dst_addr: ethernet.src_addr, src_addr: ethernet.dst_addr, ether_type: ethernet.ether_type })
}

#[inline(always)]
pub(crate) fn write_ipv4<P: PacketAccess>(
    frame: &mut P,
    source: &Address,
    destination: &Address,
    protocol: u8,
    length: u16,
) -> Option<()> {
    let [l0, l1] = length.to_be_bytes();
    let [s0, s1, s2, s3] = source.v4_octets();
    let [d0, d1, d2, d3] = destination.v4_octets();
    // "Don't fragment" set, so that the identification may be 0 (RFC 6864, 4.1).
    let mut header: [u8; IPV4_LEN] =
        [0x45, 0, l0, l1, 0, 0, 0x40, 0, TTL, protocol, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
    let check = Sum::ZERO.bytes(&header).finish();
    header[10] = check[0];
    header[11] = check[1];
    frame.write(NETWORK_OFFSET, header)
}

#[inline(always)]
pub(crate) fn write_ipv6<P: PacketAccess>(
    frame: &mut P,
    source: &Address,
    destination: &Address,
    next_header: u8,
    length: u16,
) -> Option<()> {
    let [l0, l1] = length.to_be_bytes();
    frame.write(NETWORK_OFFSET, [0x60, 0, 0, 0, l0, l1, next_header, TTL])?;
    frame.write(NETWORK_OFFSET + 8, source.octets())?;
    frame.write(NETWORK_OFFSET + 24, destination.octets())
}
