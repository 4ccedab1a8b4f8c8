//! Answers that the balancer gives itself: a TCP reset, or an ICMP "port unreachable" for UDP.
//! Each is a whole frame of fixed length, built from what the packet said.

use network_types::{eth::EthHdr, tcp::TcpHdr};

use crate::{
    abi::Address,
    checksum::Sum,
    flow::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Network, Transport},
};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = size_of::<TcpHdr>();
const ICMP_LEN: usize = 8;
/// TTL and hop limit of our own packets (RFC 1700's recommended 64).
const TTL: u8 = 64;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_ICMPV6: u8 = 58;

/// Length of the frame that [`reset`] writes.
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
    let tcp: TcpHdr = frame.read(offset)?;
    let bits: [u8; 1] = frame.read(offset + 12)?;
    let (sequence, acknowledgement, flags) = if transport.tcp_flags & TCP_ACK != 0 {
        (tcp.ack_seq, [0; 4], TCP_RST)
    } else {
        let header_len = offset - NETWORK_OFFSET + (bits[0] >> 4) as usize * 4;
        let payload = (transport.packet_len as u32).wrapping_sub(header_len as u32);
        let syn_fin = (transport.tcp_flags & TCP_SYN != 0) as u32 + (transport.tcp_flags & TCP_FIN != 0) as u32;
        let end = u32::from_be_bytes(tcp.seq).wrapping_add(payload).wrapping_add(syn_fin);
        ([0; 4], end.to_be_bytes(), TCP_RST | TCP_ACK)
    };

    swap_ethernet(frame)?;
    let ip_len = if network.v4 {
        write_ipv4(frame, &network.destination, &network.source, PROTOCOL_TCP, (IPV4_LEN + TCP_LEN) as u16)?;
        IPV4_LEN
    } else {
        write_ipv6(frame, &network.destination, &network.source, PROTOCOL_TCP, TCP_LEN as u16)?;
        IPV6_LEN
    };
    let s = transport.destination_port.to_wire();
    let d = transport.source_port.to_wire();
    let ([q0, q1, q2, q3], [a0, a1, a2, a3]) = (sequence, acknowledgement);
    // Data offset 5 words; window, checksum and urgent pointer 0.
    let mut header: [u8; TCP_LEN] =
        [s[0], s[1], d[0], d[1], q0, q1, q2, q3, a0, a1, a2, a3, 5 << 4, flags, 0, 0, 0, 0, 0, 0];
    let check = Sum::ZERO
        .pseudo_header(&network.source, &network.destination, PROTOCOL_TCP, TCP_LEN as u16)
        .bytes(&header)
        .finish();
    header[16] = check[0];
    header[17] = check[1];
    frame.write(NETWORK_OFFSET + ip_len, header)
}

/// Bytes of the packet that an unreachable quotes: its network header without options and eight
/// bytes more. RFC 792 wants the whole header; with options the quotation ends early, and receivers
/// that need the ports look at the header length.
const fn quoted(v4: bool) -> usize {
    if v4 { IPV4_LEN + 8 } else { IPV6_LEN + 8 }
}

/// Bytes by which the caller grows the head of the frame before [`unreachable`].
pub const fn unreachable_growth(v4: bool) -> usize {
    ICMP_LEN + if v4 { IPV4_LEN } else { IPV6_LEN }
}

/// Length of the frame that [`unreachable`] writes.
pub const fn unreachable_len(v4: bool) -> usize {
    NETWORK_OFFSET + unreachable_growth(v4) + quoted(v4)
}

/// Turns the frame, whose head was grown by [`unreachable_growth`] and which was then cut to
/// [`unreachable_len`], into "port unreachable" to its sender (RFC 792: type 3 code 3; RFC 4443,
/// 3.1: type 1 code 4). `ethernet` is the header that the packet came with.
#[inline(always)]
pub fn unreachable<P: PacketAccess>(frame: &mut P, ethernet: &EthHdr, network: &Network) -> Option<()> {
    frame.write(
        0,
        EthHdr { dst_addr: ethernet.src_addr, src_addr: ethernet.dst_addr, ether_type: ethernet.ether_type },
    )?;
    if network.v4 {
        write_ipv4(
            frame,
            &network.destination,
            &network.source,
            PROTOCOL_ICMP,
            (IPV4_LEN + ICMP_LEN + quoted(true)) as u16,
        )?;
        let icmp = NETWORK_OFFSET + IPV4_LEN;
        let quote: [u8; quoted(true)] = frame.read(icmp + ICMP_LEN)?;
        let mut header = [3, 3, 0, 0, 0, 0, 0, 0];
        let check = Sum::ZERO.bytes(&header).bytes(&quote).finish();
        header[2] = check[0];
        header[3] = check[1];
        frame.write(icmp, header)
    } else {
        let length = (ICMP_LEN + quoted(false)) as u16;
        write_ipv6(frame, &network.destination, &network.source, PROTOCOL_ICMPV6, length)?;
        let icmp = NETWORK_OFFSET + IPV6_LEN;
        let quote: [u8; quoted(false)] = frame.read(icmp + ICMP_LEN)?;
        let mut header = [1, 4, 0, 0, 0, 0, 0, 0];
        let check = Sum::ZERO
            .pseudo_header(&network.destination, &network.source, PROTOCOL_ICMPV6, length)
            .bytes(&header)
            .bytes(&quote)
            .finish();
        header[2] = check[0];
        header[3] = check[1];
        frame.write(icmp, header)
    }
}

#[inline(always)]
fn swap_ethernet<P: PacketAccess>(frame: &mut P) -> Option<()> {
    let ethernet: EthHdr = frame.read(0)?;
    frame.write(0, EthHdr { dst_addr: ethernet.src_addr, src_addr: ethernet.dst_addr, ether_type: ethernet.ether_type })
}

#[inline(always)]
fn write_ipv4<P: PacketAccess>(
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
fn write_ipv6<P: PacketAccess>(
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
