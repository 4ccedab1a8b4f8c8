//! A packet's way, stage by stage:
//! parse -> admit -> service -> flow -> (select) -> transmit (next hop, rewrite) or refuse.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_ktime_get_coarse_ns};
use lb_common::{
    abi::{AddressRoles, BackendState, Granularity, Protocol},
    flow::{State, TCP_ACK, TCP_RST, TCP_SYN, ticks},
    parse::{self, NotOurs, Problem, Transport},
    verdict::{Action, Reason, Stage, Verdict},
};

use crate::{
    ctx::Frame,
    maps::{BACKENDS, SERVICE_INFO},
    packet::{NO_BACKEND, Packet},
    stages::{admit, begin::begin, quic, refuse::refuse, select, table},
    stats, transmit,
};

/// Decides a packet's verdict and carries it out on the frame.
#[inline(always)]
pub fn run(frame: &Frame) -> Verdict {
    let network = match parse::network(frame) {
        Ok(network) => network,
        Err(NotOurs::NotIp) => return Verdict::of(Reason::NotIp),
        Err(NotOurs::Short) => return Verdict::of(Reason::MalformedPassed),
    };
    let to = admit::roles(&network.destination);
    let is_forward = to.has(AddressRoles::SERVICE);
    let is_reply = to.has(AddressRoles::SOURCE) || admit::roles(&network.source).has(AddressRoles::NAT_BACKEND);
    if !is_forward && !is_reply {
        return Verdict::of(Reason::NotForUs);
    }
    let transport = match parse::transport(frame, &network) {
        Ok(transport) => transport,
        Err(Problem::NotTransport) => return Verdict::of(Reason::NotTransport),
        Err(Problem::Icmp) => return Verdict::go_on(Stage::Icmp),
        Err(Problem::Fragment) => return Verdict::of(Reason::Fragment),
        Err(Problem::Malformed) if is_forward => return Verdict::of(Reason::Malformed),
        Err(Problem::Malformed) => return Verdict::of(Reason::MalformedPassed),
    };
    let Some(packet) = Packet::new(network, transport) else { return Verdict::of(Reason::Internal) };
    let mut reason = Reason::NoService;
    if is_forward && admit::service(packet, to) {
        reason = forward(frame.md(), packet);
    } else if is_reply {
        reason = reply(packet);
    }
    match reason.action() {
        Action::Forward => transmit::send(frame.md(), packet, reason),
        Action::Refuse => refuse(frame.md(), packet, reason),
        Action::Drop => {
            stats::dropped(packet.service.id);
            Verdict::of(reason)
        }
        Action::Pass | Action::Answer => Verdict::of(reason),
    }
}

/// From a client to a service: finds or begins the flow, and says where the packet goes.
#[inline(never)]
fn forward(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    if packet.transport.ttl <= 1 {
        return Reason::TtlExpired;
    }
    packet.now = now();
    packet.backend_id = NO_BACKEND;
    if packet.service.granularity == Granularity::Packet as u8 {
        packet.backend_id = select::pick(0);
        if packet.backend_id == NO_BACKEND {
            return Reason::NoBackend;
        }
    }
    // Flows of one tuple to several backends are told apart by the backend's number.
    packet.set_tuple(packet.backend_id.wrapping_add(1));
    if packet.service.quic_server_id != 0 {
        quic::follow_connection(md);
    }
    if table::find_forward() != 0 {
        match known(packet) {
            Known::Go => return Reason::ToBackend,
            Known::Refuse => return Reason::BackendDead,
            Known::Over => {}
        }
    }
    if packet.transport.protocol.has_connections() && !opens(&packet.transport) {
        let sctp = packet.transport.protocol == Protocol::Sctp;
        return if sctp { Reason::UnknownAssociation } else { Reason::UnknownFlow };
    }
    begin(md, packet)
}

/// What becomes of a packet whose flow was found.
#[derive(PartialEq, Eq)]
enum Known {
    Go,
    /// The backend is dead: tell the client.
    Refuse,
    /// The flow is gone; the packet may begin another.
    Over,
}

#[inline(always)]
fn known(packet: &mut Packet) -> Known {
    if !table::copy(packet) {
        return Known::Over;
    }
    let Some(backend) = BACKENDS.get(packet.flow.backend_id) else { return Known::Over };
    let same = backend.generation == packet.flow.backend_generation;
    if same && backend.state == BackendState::Live as u8 {
        // A connection that begins where another was closed: the client uses its port again.
        if packet.place.word.state() != State::Closed || !opens(&packet.transport) {
            packet.send_to_backend(backend);
            return Known::Go;
        }
    }
    table::end();
    let dead = same && backend.state == BackendState::Dead as u8;
    if dead && !opens(&packet.transport) { Known::Refuse } else { Known::Over }
}

/// Whether the packet is a connection's first: TCP's SYN, SCTP's INIT.
#[inline(always)]
fn opens(transport: &Transport) -> bool {
    transport.protocol.has_connections() && transport.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN
}

/// From a backend to a client: finds the flow, and says where the packet goes.
#[inline(never)]
fn reply(packet: &mut Packet) -> Reason {
    packet.now = now();
    packet.set_tuple(0);
    if table::find_reply() == 0 || !table::copy(packet) {
        return Reason::NoFlow;
    }
    if packet.transport.ttl <= 1 {
        return Reason::TtlExpired;
    }
    let Some(info) = SERVICE_INFO.get(packet.flow.service_id) else { return Reason::Internal };
    packet.service.id = packet.flow.service_id;
    packet.send_to_client(info.address);
    Reason::ToClient
}

#[inline(always)]
fn now() -> u32 {
    // SAFETY: has no arguments. The coarse clock costs 1 ns where the fine one costs 23, and ticks
    // are 134 ms.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}
