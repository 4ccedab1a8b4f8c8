//! ICMP errors about flows: to the backend or the client that sent the packet they are about.
//!
//! | about | quotes | comes to | goes to |
//! | --- | --- | --- | --- |
//! | a reply, from the network of the clients | service -> client | the service | the flow's backend |
//! | a client's packet, from the side of the backends | what the backend got | its source | the client |
//! | a packet in a tunnel | tunnel, in it client -> service | the tunnel's source | the client, rewritten |
//!
//! An error never changes a flow: neither its state nor its age, because nobody vouches for it (RFC
//! 5927). It may say that a backend is not there; health checks find out.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{AddressRoles, BackendState, Granularity, Mode, Protocol},
    icmp::{
        error::translate,
        quote::{IcmpError, NoError, Quoted},
    },
    packet::HEADERS_MAX,
    parse::{Network, Part, Transport},
    rewrite::Translation,
    verdict::{Action, Reason, Verdict},
};

use super::{admit, select, table, tunnel_error};
use crate::{
    ctx::Frame,
    maps::{BACKENDS, SERVICE_INFO},
    opaque::opaque,
    packet::{NO_BACKEND, Packet},
    pipeline::now,
    transmit,
};

/// Protocol numbers of IPv4 and IPv6 in a tunnel.
pub const IPIP: u8 = 4;
pub const IPV6: u8 = 41;

/// Brings an error where it belongs. ICMP of other kinds, and errors that are about no flow, are the
/// host's.
#[inline(always)]
pub fn run(md: *mut xdp_md, network: &Network, to: AddressRoles) -> Verdict {
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    let (is_forward, is_reply) = directions(network, to);
    let (other, malformed) = match (is_forward, is_reply) {
        (true, _) => (Reason::NotTransport, Reason::Malformed),
        (false, true) => (Reason::NotTransport, Reason::MalformedPassed),
        (false, false) => (Reason::NotForUs, Reason::NotForUs),
    };
    match IcmpError::of(&Frame::of(md), network) {
        Ok(error) => packet.error = error,
        Err(NoError::Other) => return Verdict::of(other),
        Err(NoError::Malformed) => return Verdict::of(malformed),
    }
    let (start, end) = (packet.error.quotation() as u32, packet.error.end as u32);
    // An error goes to the sender of the packet that it quotes.
    if read_quoted(md, network.v4 as u32, start, end) == 0
        || packet.quoted.network.source != packet.error.outer.destination
    {
        return Verdict::of(malformed);
    }
    let reason = decide(md, packet, to, is_forward);
    match reason.action() {
        Action::Forward => transmit::leave(packet, reason),
        Action::Pass if reason == Reason::NoFlow && !is_reply => {
            Verdict::of(if is_forward { Reason::NoService } else { Reason::NotForUs })
        }
        Action::Pass if reason == Reason::NotTransport => Verdict::of(other),
        _ => Verdict::of(reason),
    }
}

#[inline(always)]
fn directions(network: &Network, to: AddressRoles) -> (bool, bool) {
    let is_forward = to.has(AddressRoles::SERVICE);
    let is_reply = to.has(AddressRoles::SOURCE) || admit::roles(&network.source).has(AddressRoles::NAT_BACKEND);
    (is_forward, is_reply)
}

/// Finds out what the error is about, and sends it on. [`Reason::NoFlow`]: about nothing of ours.
#[inline(always)]
fn decide(md: *mut xdp_md, packet: &mut Packet, to: AddressRoles, is_forward: bool) -> Reason {
    packet.now = now();
    let Some(protocol) = Protocol::from_number(packet.quoted.protocol) else {
        return match packet.quoted.protocol {
            IPIP | IPV6 => tunnel_error::relay(md, packet),
            _ => Reason::NotTransport,
        };
    };
    // What answers the quoted packet is of the same flow, and is found like any packet of it.
    let quoted = packet.quoted;
    packet.network =
        Network { v4: quoted.network.v4, source: quoted.network.destination, destination: quoted.network.source };
    packet.transport = Transport {
        protocol,
        source_port: quoted.destination_port,
        destination_port: quoted.source_port,
        tcp_flags: 0,
        ttl: packet.error.ttl,
        part: Part::Whole,
        offset: packet.error.offset,
        packet_len: packet.error.packet_len,
    };
    if is_forward && admit::any_service(packet, to) {
        return to_backend(md, packet);
    }
    let reason = to_client(md, packet);
    if reason == Reason::NoFlow && protocol == Protocol::Udp && tunnel_error::relay(md, packet) == Reason::ErrorToClient
    {
        return Reason::ErrorToClient;
    }
    reason
}

/// Reads the packet that is quoted from `start` to `end`, both in bytes from the start of the frame,
/// into the packet under way. 0: it is not all there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn read_quoted(md: *mut xdp_md, v4: u32, start: u32, end: u32) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let start = opaque(start as usize);
    if start >= HEADERS_MAX {
        return 0;
    }
    match Quoted::at(&Frame::of(md), v4 != 0, start, end as usize) {
        Some(quoted) => {
            packet.quoted = quoted;
            1
        }
        None => 0,
    }
}

/// Finds whose the client's packet is that `packet` describes: sets its flow. This is the place for
/// services whose flows may live without an entry in the table.
///
/// Of a client whose packets are scheduled one by one, nothing tells which backend sent the reply:
/// one that would have the client's next packet gets the error, so that in turn all of them learn.
#[inline(always)]
pub fn find_owner(packet: &mut Packet) -> bool {
    packet.backend_id = NO_BACKEND;
    if packet.service.granularity == Granularity::Packet as u8 {
        packet.backend_id = select::pick(0);
        if packet.backend_id == NO_BACKEND {
            return false;
        }
    }
    packet.set_tuple(packet.backend_id.wrapping_add(1));
    table::find_forward() != 0 && table::copy(packet)
}

/// An error about a reply. `nat` keeps its sender, which is of the network that its backends see; in
/// `full-nat` they see nothing but the balancer, so it is the sender (RFC 5508, REQ-5, of that side).
#[inline(always)]
fn to_backend(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    if !find_owner(packet) {
        return Reason::ErrorOfNoFlow;
    }
    let Some(backend) = BACKENDS.get(packet.flow.backend_id) else { return Reason::ErrorOfNoFlow };
    let same = backend.generation == packet.flow.backend_generation;
    if !same || !BackendState::keeps_flows(backend.state) {
        return Reason::ErrorOfNoFlow;
    }
    packet.send_to_backend(backend);
    send(md, packet, false)
}

/// An error about a client's packet. Its sender is the service, whoever it was (RFC 5508, REQ-5):
/// addresses behind the balancer mean nothing to the client, or should not be known to it.
#[inline(always)]
fn to_client(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    packet.set_tuple(0);
    if table::find_reply() == 0 || !table::copy(packet) {
        return Reason::NoFlow;
    }
    let Some(info) = SERVICE_INFO.get(packet.flow.service_id) else { return Reason::Internal };
    packet.send_to_client(info.address);
    send(md, packet, true)
}

#[inline(always)]
fn send(md: *mut xdp_md, packet: &mut Packet, reply: bool) -> Reason {
    if packet.error.ttl <= 1 {
        return Reason::TtlExpired;
    }
    match transmit::next_hop(md, packet, reply) {
        Reason::ToBackend | Reason::ToClient => {}
        // An error is never answered with one.
        Reason::TooBig => return Reason::Unanswerable,
        reason => return reason,
    }
    let sent = if Mode::is_one_sided(packet.flow.mode) { transmit::hand_on(md) } else { readdress(md, reply as u32) };
    match (sent, reply) {
        (0, _) => Reason::Internal,
        (_, false) => Reason::ErrorToBackend,
        (_, true) => Reason::ErrorToClient,
    }
}

/// Translates the error and gives it its link-layer addresses. 0: it cannot be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn readdress(md: *mut xdp_md, reply: u32) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let mut frame = Frame::of(md);
    let keeps_sender = reply == 0 && packet.flow.mode == Mode::Nat as u8;
    let source = if keeps_sender { packet.error.outer.source } else { packet.to.source };
    packet.quoted_to = Translation {
        source: packet.to.destination,
        destination: packet.to.source,
        source_port: packet.to.destination_port,
        destination_port: packet.to.source_port,
    };
    translate(&mut frame, &packet.error, &packet.quoted, &source, &packet.to.destination, &packet.quoted_to)
        .and_then(|()| transmit::link_layer(&mut frame, &packet.hop))
        .is_some() as u32
}
