//! ICMP errors about our own tunnels. That a packet did not fit is told to the client whose packet was
//! in the tunnel, as if the service had said so (RFC 2003, 4.1 and 5.1; RFC 2473, 8); everything else
//! is the host's, which may have something to do with it. That a backend cannot be reached is noted.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{Address, AddressRoles, Mode, Port, Protocol, ServiceValue},
    encap::GRE_LEN,
    icmp::too_big,
    numbers::{GRE, ICMPV6, IPIP},
    packet::{HEADERS_MAX, PacketAccess},
    parse::{NETWORK_OFFSET, Part, Transport},
    verdict::Reason,
};

use super::{
    admit,
    errors::read_quoted,
    knock, owner,
    refuse::{cut, icmp_allowed},
};
use crate::{ctx::Frame, maps::SERVICE_INFO, opaque::opaque, packet::Packet, transmit};

const UDP_LEN: usize = 8;
const ETHERTYPE: usize = NETWORK_OFFSET - 2;

/// Tells the client. [`Reason::TunnelError`]: there is none that could be told, or nothing to tell;
/// the frame is then as it was.
#[inline(always)]
pub fn relay(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    if !packet.error.too_big && !packet.error.gone || find_inner(md) == 0 {
        return Reason::TunnelError;
    }
    if packet.error.gone && packet.service.has(ServiceValue::WATCHED) {
        knock::unreachable(packet.flow.backend_id, &packet.network.source);
    }
    if !packet.error.too_big || is_right(md) == 0 {
        return Reason::TunnelError;
    }
    let Some(info) = SERVICE_INFO.get(packet.flow.service_id) else { return Reason::Internal };
    if !icmp_allowed(packet) {
        return Reason::AnswerLimited;
    }
    packet.send_to_client(info.address);
    // Of the copy: what is sent to the client takes no tunnel.
    packet.flow.mode = Mode::Nat as u8;
    let hop = transmit::next_hop(md, packet, true);
    if hop != Reason::ToClient {
        return hop;
    }
    if write_answer(md) != 0 { Reason::ErrorToClient } else { Reason::Internal }
}

/// Finds the client's packet in the quoted tunnel and its flow. 0: it is not there, or none of ours.
///
/// Leaves the client's packet in `packet.quoted`, and in `packet.transport` what describes the answer:
/// ports of the flow, and the answer's length.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_inner(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let (gue, gre) = (packet.quoted.protocol == Protocol::Udp as u8, packet.quoted.protocol == GRE);
    let between = if gue { UDP_LEN } else { GRE_LEN * gre as usize };
    let start = (opaque(packet.quoted.transport as usize) & (HEADERS_MAX - 1)) + between;
    // GUE variant 1 has the inner packet's version right behind the UDP header; what GRE says of it, the
    // packet says too.
    let v4 = if gue || gre {
        let first: u8 = Frame::of(md).read(start).unwrap_or(0);
        first >> 4 == 4
    } else {
        packet.quoted.protocol == IPIP
    };
    let to = packet.quoted.network.destination;
    let port = if gue { packet.quoted.destination_port } else { Port::ANY };
    let end = packet.error.end as u32;
    if read_quoted(md, v4 as u32, start as u32, end) == 0 {
        return 0;
    }
    let inner = &packet.quoted;
    let Some(protocol) = Protocol::from_number(inner.protocol) else { return 0 };
    let quotation = too_big::quotation(v4, end as usize - start);
    packet.network = inner.network;
    packet.transport = Transport {
        protocol,
        source_port: inner.source_port,
        destination_port: inner.destination_port,
        tcp_flags: 0,
        ttl: packet.error.ttl,
        part: Part::Whole,
        offset: inner.transport,
        packet_len: (too_big::headers(v4) + quotation) as u16,
    };
    has_flow(packet, &to, port, gre) as u32
}

/// Whether the packet in the tunnel is one that we have sent: of a flow whose backend is at the tunnel's
/// end. Sets the flow.
#[inline(always)]
fn has_flow(packet: &mut Packet, end: &Address, port: Port, gre: bool) -> bool {
    let to = admit::roles(&packet.network.destination);
    if !to.has(AddressRoles::SERVICE) || !admit::any_service(packet, to) {
        return false;
    }
    let Some(backend) = owner::find(packet) else { return false };
    Mode::is_tunnel(packet.flow.mode)
        && (packet.flow.mode == Mode::DsrGre as u8) == gre
        && backend.address == *end
        && backend.tunnel_port == port
}

/// Whether the error has come through undamaged: what is written anew gets a right checksum. 0: no.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_right(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let error = &packet.error;
    let offset = opaque(error.offset as usize) & (HEADERS_MAX - 1);
    let length = NETWORK_OFFSET + error.packet_len as usize - offset;
    let Some(mut sum) = Frame::of(md).sum(offset, length) else { return 0 };
    if !error.outer.v4 {
        sum = sum.pseudo_header(&error.outer.source, &error.outer.destination, ICMPV6, length as u16);
    }
    sum.is_right() as u32
}

/// Writes the answer over the headers of error and tunnel, which always take more room than its own: the
/// client's packet stays where it is. 0: it cannot be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_answer(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let mut frame = Frame::of(md);
    let v4 = packet.network.v4;
    let (start, headers) = (packet.quoted.start as usize, too_big::headers(v4));
    let mtu = too_big::within(packet.error.mtu, (start - packet.error.quotation()) as u32);
    let length = packet.transport.packet_len as usize;
    let ethertype: [u8; 2] = if v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    let written = frame
        .adjust_head(start as i32 - (NETWORK_OFFSET + headers) as i32)
        .and_then(|()| cut(&mut frame, NETWORK_OFFSET + length))
        .and_then(|()| too_big::write(&mut frame, &packet.to.source, &packet.to.destination, length - headers, mtu))
        .and_then(|()| frame.write(ETHERTYPE, ethertype))
        .and_then(|()| transmit::link_layer(&mut frame, &packet.hop));
    written.is_some() as u32
}
