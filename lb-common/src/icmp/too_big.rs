//! "Fragmentation needed" (RFC 1191, 4) and "packet too big" (RFC 4443, 3.2), written anew.

use super::{kinds::*, quote::ICMP_LEN};
use crate::{
    abi::Address,
    answer::{write_ipv4, write_ipv6},
    checksum::Sum,
    numbers::{ICMP, ICMPV6},
    packet::PacketAccess,
    parse::NETWORK_OFFSET,
};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
/// Every node has at least this MTU (RFC 8200, 5), and none believes in less (RFC 8201, 4).
pub(crate) const IPV6_MTU_MIN: u32 = 1280;

/// The longest error over IPv6 and over IPv4, in bytes (RFC 4443, 2.4 (c); RFC 1812, 4.3.2.3): an index is
/// whether it is IPv4.
pub(crate) const PACKET_MAX: [u16; 2] = [1280, 576];

/// Bytes before the quotation, without the link-layer header.
#[inline(always)]
pub const fn headers(v4: bool) -> usize {
    ICMP_LEN + if v4 { IPV4_LEN } else { IPV6_LEN }
}

/// Bytes that are quoted of a packet of `len`: as much as gives a packet of 576 bytes (RFC 1812,
/// 4.3.2.3) or of 1,280 (RFC 4443, 2.4 (c)). Senders that check errors by what they quote, as QUIC's
/// do (RFC 9000, 14.2.1), find what they need in it.
#[inline(always)]
pub const fn quotation(v4: bool, len: usize) -> usize {
    let most = PACKET_MAX[v4 as usize] as usize - headers(v4);
    if len < most { len } else { most }
}

/// Writes the headers before a quotation of so many bytes, which the frame holds already, right where
/// they end. The MTU is that of the packets that fit; 0, for IPv4 alone: not known (RFC 1191, 3).
/// The link-layer header is the caller's; the caller limits the rate too.
#[inline(always)]
pub fn write<P: PacketAccess>(
    frame: &mut P,
    source: &Address,
    destination: &Address,
    quotation: usize,
    mtu: u32,
) -> Option<()> {
    let v4 = source.is_v4();
    let icmp = NETWORK_OFFSET + headers(v4) - ICMP_LEN;
    let length = (ICMP_LEN + quotation) as u16;
    let (kind, code, mtu, sum) = if v4 {
        write_ipv4(frame, source, destination, ICMP, IPV4_LEN as u16 + length)?;
        let mtu = if mtu < u16::MAX as u32 { mtu } else { u16::MAX as u32 };
        (V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED, mtu, Sum::ZERO)
    } else {
        write_ipv6(frame, source, destination, ICMPV6, length)?;
        let mtu = if mtu > IPV6_MTU_MIN { mtu } else { IPV6_MTU_MIN };
        (V6_TOO_BIG, 0, mtu, Sum::ZERO.pseudo_header(source, destination, ICMPV6, length))
    };
    let [a, b, c, d] = mtu.to_be_bytes();
    let quoted = frame.sum(icmp + ICMP_LEN, quotation)?;
    let check = sum.pair([kind, code]).pair([a, b]).pair([c, d]).and(quoted).finish();
    frame.write(icmp, [kind, code, check[0], check[1], a, b, c, d])
}

/// What fits into a tunnel on whose way so much fits: less its headers; 0 stays 0.
#[inline(always)]
pub const fn within(mtu: u32, headers: u32) -> u32 {
    mtu.saturating_sub(headers)
}
