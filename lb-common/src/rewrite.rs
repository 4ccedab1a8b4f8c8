//! Translating a packet in place: new addresses, ports and TTL, checksums by increment.

use crate::{
    abi::{Address, Port, Protocol},
    checksum::Delta,
    packet::{Field, PacketAccess},
    parse::{NETWORK_OFFSET, Network, Part, Transport},
};

/// What the packet carries after [`translate`]: both addresses of the packet's own family; or of the
/// other one after [`crate::family::write`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
}

/// What is rewritten of the headers begins with the TTL (RFC 791, 3.1) or hop limit (RFC 8200, 3).
const V4_REST: usize = NETWORK_OFFSET + 8;
const V6_REST: usize = NETWORK_OFFSET + 7;

/// Offsets of the checksum in the TCP (RFC 9293, 3.1) and the UDP header (RFC 768).
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;

/// Writes the translation and takes one from the TTL, which the caller has found to be above 1.
/// `None` when the frame is shorter than `transport` says; the frame is then to be dropped.
#[inline(always)]
pub fn translate<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    transport: &Transport,
    to: &Translation,
) -> Option<()> {
    let addresses =
        if network.v4 { network_v4(frame, network, to)? } else { network_v6(frame, network, transport.ttl, to)? };

    // The first fragment's checksum is the whole datagram's, and has taken in the change.
    if transport.part == Part::Later {
        return Some(());
    }
    ports(frame, transport, transport.offset as usize, addresses, to)
}

/// Writes the ports, and the checksum for them and for addresses that changed by `addresses`.
/// `offset`: of the transport header.
#[inline(always)]
pub(crate) fn ports<P: PacketAccess>(
    frame: &mut P,
    transport: &Transport,
    offset: usize,
    addresses: Delta,
    to: &Translation,
) -> Option<()> {
    let delta =
        addresses.port(transport.source_port, to.source_port).port(transport.destination_port, to.destination_port);
    let [a, b] = to.source_port.to_wire();
    let [c, d] = to.destination_port.to_wire();
    frame.write(offset, [a, b, c, d])?;
    match transport.protocol {
        Protocol::Tcp => {
            let check: [u8; 2] = frame.read(offset + TCP_CHECK)?;
            frame.write(offset + TCP_CHECK, delta.apply(check))
        }
        Protocol::Udp => {
            let check: [u8; 2] = frame.read(offset + UDP_CHECK)?;
            frame.write(offset + UDP_CHECK, delta.apply_udp(check))
        }
        // Its checksum covers all of the packet: it is not translated.
        Protocol::Sctp => None,
    }
}

/// Takes one from the TTL or hop limit and changes nothing else; `None` as in [`translate`].
#[inline(always)]
pub fn lower_ttl<P: PacketAccess>(frame: &mut P, network: &Network, transport: &Transport) -> Option<()> {
    let ttl = if network.v4 { frame.read(V4_REST)? } else { [transport.ttl, 0, 0, 0] };
    lower_known_ttl(frame, network.v4, ttl)
}

/// [`lower_ttl`] of a packet of which this was read: the four bytes of the IPv4 header that begin with the
/// TTL, or the hop limit alone.
#[inline(always)]
pub fn lower_known_ttl<P: PacketAccess>(frame: &mut P, v4: bool, known: [u8; 4]) -> Option<()> {
    let [ttl, protocol, c0, c1] = known;
    let lowered = ttl.wrapping_sub(1);
    if !v4 {
        return frame.write(V6_REST, lowered);
    }
    let delta = Delta::ZERO.field(u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([lowered, protocol]));
    let [c0, c1] = delta.apply([c0, c1]);
    frame.write(V4_REST, [lowered, protocol, c0, c1])
}

/// The IPv4 header from the TTL to its fixed end (RFC 791, 3.1), written at once: in XDP each access
/// has its price.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct V4Rest {
    ttl: u8,
    protocol: u8,
    check: [u8; 2],
    source: u32,
    destination: u32,
}
// SAFETY: bytes and integers, packed.
unsafe impl Field for V4Rest {}

/// The IPv6 header from the hop limit on (RFC 8200, 3).
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct V6Rest {
    hop_limit: u8,
    source: Words,
    destination: Words,
}
// SAFETY: a byte and integers, packed.
unsafe impl Field for V6Rest {}

/// An address as four words and not as an array, which the BPF compiler would copy byte by byte.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub(crate) struct Words(pub u32, pub u32, pub u32, pub u32);
// SAFETY: integers, packed.
unsafe impl Field for Words {}

#[inline(always)]
pub(crate) fn words(address: &Address) -> Words {
    let [a, b, c, d] = address.words();
    Words(a, b, c, d)
}

/// Gives the change of the addresses, for the checksums of the pseudo-header.
#[inline(always)]
pub(crate) fn network_v4<P: PacketAccess>(frame: &mut P, network: &Network, to: &Translation) -> Option<Delta> {
    let [ttl, protocol, c0, c1]: [u8; 4] = frame.read(V4_REST)?;
    let lowered = ttl.wrapping_sub(1);
    let addresses =
        Delta::ZERO.address_v4(&network.source, &to.source).address_v4(&network.destination, &to.destination);
    // TTL and protocol share a 16-bit word of the checksum.
    let delta = addresses.field(u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([lowered, protocol]));
    frame.write(
        V4_REST,
        V4Rest {
            ttl: lowered,
            protocol,
            check: delta.apply([c0, c1]),
            source: to.source.words()[3],
            destination: to.destination.words()[3],
        },
    )?;
    Some(addresses)
}

#[inline(always)]
pub(crate) fn network_v6<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    ttl: u8,
    to: &Translation,
) -> Option<Delta> {
    let (s, d) = (to.source.words(), to.destination.words());
    let rest = V6Rest {
        hop_limit: ttl.wrapping_sub(1),
        source: Words(s[0], s[1], s[2], s[3]),
        destination: Words(d[0], d[1], d[2], d[3]),
    };
    frame.write(V6_REST, rest)?;
    Some(Delta::ZERO.address(&network.source, &to.source).address(&network.destination, &to.destination))
}
