//! Translating a packet in place: new addresses, ports and TTL, checksums by increment.

use crate::{
    abi::{Address, Port, Protocol},
    checksum::Delta,
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Network, Transport},
};

/// What the packet carries after [`translate`]. Both addresses are of the packet's own family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
}

/// Offsets in the IPv4 header (RFC 791, 3.1) and the IPv6 header (RFC 8200, 3).
const V4_TTL: usize = NETWORK_OFFSET + 8;
const V4_CHECK: usize = NETWORK_OFFSET + 10;
const V4_SOURCE: usize = NETWORK_OFFSET + 12;
const V4_DESTINATION: usize = NETWORK_OFFSET + 16;
const V6_HOP_LIMIT: usize = NETWORK_OFFSET + 7;
const V6_SOURCE: usize = NETWORK_OFFSET + 8;
const V6_DESTINATION: usize = NETWORK_OFFSET + 24;

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
    if network.v4 {
        network_v4(frame, network, to)?
    } else {
        network_v6(frame, transport, to)?
    }

    let delta = Delta::ZERO
        .address(&network.source, &to.source)
        .address(&network.destination, &to.destination)
        .port(transport.source_port, to.source_port)
        .port(transport.destination_port, to.destination_port);
    let offset = transport.offset as usize;
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
    }
}

#[inline(always)]
fn network_v4<P: PacketAccess>(frame: &mut P, network: &Network, to: &Translation) -> Option<()> {
    // TTL and protocol share a 16-bit word of the checksum.
    let [ttl, protocol]: [u8; 2] = frame.read(V4_TTL)?;
    let lowered = [ttl.wrapping_sub(1), protocol];
    let delta = Delta::ZERO
        .address_v4(&network.source, &to.source)
        .address_v4(&network.destination, &to.destination)
        .field(u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes(lowered));
    let check: [u8; 2] = frame.read(V4_CHECK)?;
    frame.write(V4_TTL, lowered)?;
    frame.write(V4_CHECK, delta.apply(check))?;
    frame.write(V4_SOURCE, to.source.words()[3])?;
    frame.write(V4_DESTINATION, to.destination.words()[3])
}

#[inline(always)]
fn network_v6<P: PacketAccess>(frame: &mut P, transport: &Transport, to: &Translation) -> Option<()> {
    frame.write(V6_HOP_LIMIT, transport.ttl.wrapping_sub(1))?;
    let source = to.source.words();
    let destination = to.destination.words();
    let mut i = 0;
    while i < 4 {
        frame.write(V6_SOURCE + i * 4, source[i])?;
        frame.write(V6_DESTINATION + i * 4, destination[i])?;
        i += 1;
    }
    Some(())
}
