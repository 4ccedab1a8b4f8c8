//! Packets that go to, or come from, a service of another family than the backend's: the probe's socket speaks the
//! backend's, and what is in the tunnel the service's.

use lb_common::{
    abi::{Address, Protocol},
    checksum::Sum,
    packet::PacketAccess as _,
    parse::{NETWORK_OFFSET, Network, Part, Transport},
};

use crate::skb::Skb;

const IPV4_LEN: u16 = 20;
const IPV6_LEN: u16 = 40;

/// Gives the packet a header of the other family with these addresses; headers are to be read anew then. `None`:
/// the kernel refused, or the packet has more than plain headers, which no probe sends.
#[inline(always)]
pub fn change(
    skb: &mut Skb,
    network: &Network,
    transport: &Transport,
    source: Address,
    destination: Address,
) -> Option<()> {
    let old = if network.v4 { IPV4_LEN } else { IPV6_LEN };
    if transport.part != Part::Whole || transport.offset != NETWORK_OFFSET as u16 + old {
        return None;
    }
    let len = transport.packet_len.checked_sub(old)?;
    let class = traffic_class(skb, network.v4)?;
    skb.cover(transport, &[network.source, network.destination], &[source, destination])?;
    skb.change_family(!network.v4)?;
    let header = Header { class, len, protocol: transport.protocol, ttl: transport.ttl };
    if network.v4 { write_v6(skb, &header, source, destination) } else { write_v4(skb, &header, source, destination) }
}

struct Header {
    class: u8,
    /// Bytes behind it.
    len: u16,
    protocol: Protocol,
    ttl: u8,
}

/// ToS or traffic class.
#[inline(always)]
fn traffic_class(skb: &Skb, v4: bool) -> Option<u8> {
    let [a, b]: [u8; 2] = skb.read(NETWORK_OFFSET)?;
    Some(if v4 { b } else { a << 4 | b >> 4 })
}

#[inline(always)]
fn write_v4(skb: &mut Skb, header: &Header, source: Address, destination: Address) -> Option<()> {
    let total = header.len.checked_add(IPV4_LEN)?.to_be_bytes();
    // An IPv6 packet is never fragmented on its way, and needs no identification then (RFC 6864, 4.1).
    let (fragment, kind) = ([0x40, 0], [header.ttl, header.protocol as u8]);
    let (source, destination) = (source.words()[3], destination.words()[3]);
    let sum = Sum::ZERO.pair([0x45, header.class]).pair(total).pair(fragment).pair(kind);
    let check = sum.word(source).word(destination).finish();
    let at = NETWORK_OFFSET as u32;
    skb.store_summed(
        at,
        &[0x45, header.class, total[0], total[1], 0, 0, 0x40, 0, kind[0], kind[1], check[0], check[1]],
    )?;
    skb.store_summed(at + 12, &[source, destination])?;
    skb.store_summed(at - 2, &[0x08u8, 0x00])
}

#[inline(always)]
fn write_v6(skb: &mut Skb, header: &Header, source: Address, destination: Address) -> Option<()> {
    let (class, len) = (header.class, header.len.to_be_bytes());
    let at = NETWORK_OFFSET as u32;
    let first = [0x60 | class >> 4, class << 4, 0, 0, len[0], len[1], header.protocol as u8, header.ttl];
    skb.store_summed(at, &first)?;
    skb.store_summed(at + 8, &source.words())?;
    skb.store_summed(at + 24, &destination.words())?;
    skb.store_summed(at - 2, &[0x86u8, 0xdd])
}
