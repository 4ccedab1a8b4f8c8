//! A packet's way, stage by stage:
//! parse -> admit -> service -> (hashed) -> flow -> (select) -> transmit (next hop, rewrite) or refuse.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_ktime_get_coarse_ns};
use lb_common::{
    abi::{AddressRoles, BackendState, Flow, Granularity, Protocol, ServiceValue},
    flow::{State, TCP_ACK, TCP_RST, TCP_SYN, ticks},
    hash::backend_extra,
    icmp,
    parse::{self, Network, NotOurs, Part, Problem, Transport},
    verdict::{Action, Reason, Stage, Verdict},
};

use crate::{
    ctx::Frame,
    maps::{BACKENDS, SERVICE_INFO},
    packet::{NO_BACKEND, Packet},
    stages::{
        admit::{self, Directions},
        begin::begin,
        dead_man, ending,
        hashed::{self, Unlisted},
        knock, quic,
        refuse::refuse,
        select, table,
    },
    stats, transmit,
};

/// Decides a packet's verdict and carries it out on the frame. Sets `bytes` to the frame's length
/// before anything changes it.
#[inline(always)]
pub fn run(frame: &Frame, bytes: &mut u64) -> Verdict {
    let network = match parse::network(frame) {
        Ok(network) => network,
        Err(NotOurs::NotIp) => return Verdict::of(Reason::NotIp),
        Err(NotOurs::Tagged) => return Verdict::go_on(Stage::Unusual),
        Err(NotOurs::Short) => return Verdict::of(Reason::MalformedPassed),
    };
    let (to_us, from_us) = (admit::maybe_ours(&network.destination), admit::maybe_ours(&network.source));
    if !to_us && !from_us {
        return not_for_us(frame, &network);
    }
    let transport = match parse::transport(frame, &network) {
        Ok(transport) => transport,
        Err(problem) => return unbalanced(frame, &network, problem),
    };
    let Some(packet) = Packet::new(network, transport) else { return Verdict::of(Reason::Internal) };
    packet.ingress = frame.ifindex();
    *bytes = frame.bytes_of(&packet.transport);
    // What most packets are for is found by one look-up.
    packet.begins = 0;
    let reason = if to_us && admit::service(packet) { forward(frame.md(), packet) } else { other(frame.md(), packet) };
    go(frame.md(), packet, reason)
}

/// Decides about a packet whose headers were read by a program of rare packets; for its reason see
/// [`go`].
#[inline(always)]
pub fn decide(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    packet.begins = 0;
    if admit::service(packet) { forward(md, packet) } else { other(md, packet) }
}

/// The rest of the way of a packet that was decided about: begins its flow where one is to begin.
#[inline(always)]
pub fn go(md: *mut xdp_md, packet: &mut Packet, mut reason: Reason) -> Verdict {
    if packet.begins == OF_ITSELF || packet.begins == OF_CLIENT {
        match dead_man::refuses(packet) {
            Some(refused) => reason = refused,
            None if packet.begins == OF_CLIENT => return Verdict::go_on(Stage::Client),
            None => reason = begin(md, packet),
        }
        if reason == Reason::ToBackend {
            knock::keep(md);
        }
    } else if packet.begins != 0 {
        return Verdict::go_on(Stage::Rescue);
    }
    carry_out(md, packet, reason)
}

/// Does with the packet what follows from the reason.
#[inline(always)]
pub fn carry_out(md: *mut xdp_md, packet: &mut Packet, reason: Reason) -> Verdict {
    match reason.action() {
        Action::Forward => transmit::send(md, packet, reason),
        Action::Refuse => refuse(md, packet, reason),
        Action::Drop => {
            stats::dropped(packet.service.id);
            Verdict::of(reason)
        }
        Action::Pass | Action::Answer => Verdict::of(reason),
    }
}

/// What becomes of a packet that no service on its port takes.
#[inline(always)]
fn other(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    let to = admit::roles(&packet.network.destination);
    if admit::service_of_any_port(packet, to) {
        return forward(md, packet);
    }
    if to.has(AddressRoles::SOURCE) || admit::roles(&packet.network.source).has(AddressRoles::NAT_BACKEND) {
        return reply(packet);
    }
    if to.has(AddressRoles::SERVICE) { Reason::NoService } else { Reason::NotForUs }
}

/// What becomes of a packet between two addresses that are not ours. ICMP errors come from anywhere on
/// the way, and go to whom a packet said it was from.
#[inline(always)]
fn not_for_us(frame: &Frame, network: &Network) -> Verdict {
    if icmp::is_icmp(frame, network) { Verdict::go_on(Stage::Icmp) } else { Verdict::of(Reason::NotForUs) }
}

/// What becomes of a packet without ports.
#[inline(always)]
fn unbalanced(frame: &Frame, network: &Network, problem: Problem) -> Verdict {
    let directions = Directions::of(network);
    if directions.is_foreign() {
        return not_for_us(frame, network);
    }
    match problem {
        Problem::NotTransport => Verdict::of(Reason::NotTransport),
        Problem::Icmp => Verdict::go_on(Stage::Icmp),
        Problem::Fragment => Verdict::go_on(Stage::Unusual),
        Problem::Malformed => Verdict::of(admit::malformed(directions.to)),
    }
}

/// `begins` of a packet whose flow is not known and may begin.
const OF_ITSELF: u32 = 1;
/// The same where the client may have a backend already.
const OF_CLIENT: u32 = 2;

/// A backend refuses a connection that it has not answered before.
pub const REFUSED: u32 = 3;
/// A client sends the first packet of such a connection again.
pub const REPEATED: u32 = 4;
/// A backend answers a connection that is not known.
pub const LATE: u32 = 5;
/// Somebody on the way to a backend refuses such a connection, by an ICMP error.
pub const DENIED: u32 = 6;
/// The same where no other backend can have the connection.
pub const UNDENIED: u32 = 7;

/// From a client to a service: finds the flow, and says where the packet goes; or that the flow is to
/// begin.
#[inline(never)]
fn forward(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    if packet.transport.ttl <= 1 {
        return Reason::TtlExpired;
    }
    packet.now = now();
    packet.backend_id = NO_BACKEND;
    packet.adopted = 0;
    packet.sought = Granularity::Flow as u32;
    let opens = opens(&packet.transport);
    let tracked = packet.service.has(ServiceValue::TRACKED);
    if tracked && opens {
        if parked(packet) {
            return Reason::Parked;
        }
        // What needs no entry would begin unseen.
        if let Some(refused) = dead_man::says() {
            return refused;
        }
    }
    if tracked && hashed::settled(opens as u32) != 0 {
        return Reason::ToBackend;
    }
    if packet.service.granularity == Granularity::Packet as u8 {
        if let Some(refused) = dead_man::says() {
            return refused;
        }
        packet.sought = Granularity::Packet as u32;
        packet.backend_id = match packet.transport.part {
            Part::Later => packet.fragmented.flow.backend_id,
            Part::Whole | Part::First => {
                hashed::set_hash();
                select::pick(0)
            }
        };
        if packet.backend_id == NO_BACKEND {
            return Reason::NoBackend;
        }
    }
    // Flows of one tuple to several backends are told apart by the backend's number.
    packet.set_tuple(backend_extra(packet.backend_id));
    if packet.service.quic_server_id != 0 {
        quic::follow_connection(md);
    }
    if !tracked {
        packet.hash = packet.tuple.hash;
    }
    if table::find_forward() != 0 {
        match known(packet) {
            Known::Go => return Reason::ToBackend,
            Known::Ended => match ending::forward(opens as u32) {
                ending::OVER => {}
                reason => return Reason::from_number(reason),
            },
            Known::Over => {}
        }
    }
    if tracked {
        match hashed::unlisted(packet, opens) {
            Unlisted::Sent => return Reason::ToBackend,
            Unlisted::Dead => return ending::unlisted(packet),
            Unlisted::Unknown => return unknown(&packet.transport),
            Unlisted::Begin => {}
        }
    } else if packet.transport.protocol.has_connections() && !opens {
        return unknown(&packet.transport);
    }
    if packet.sought == Granularity::Flow as u32 && !packet.service.has(ServiceValue::PAIRED) {
        hashed::set_hash();
    }
    if packet.adopted == 0 && parked(packet) {
        return Reason::Parked;
    }
    let continues = packet.adopted != 0 && packet.transport.protocol.has_connections();
    let of_client = packet.service.granularity == Granularity::Client as u8 && !continues;
    packet.begins = if of_client { OF_CLIENT } else { OF_ITSELF };
    Reason::Internal
}

/// Why a packet of a connection that nobody knows goes nowhere.
#[inline(always)]
fn unknown(transport: &Transport) -> Reason {
    if transport.protocol == Protocol::Sctp { Reason::UnknownAssociation } else { Reason::UnknownFlow }
}

/// What becomes of a packet whose flow was found.
#[derive(PartialEq, Eq)]
enum Known {
    Go,
    /// The flow is over with its backend.
    Ended,
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
    if same && !BackendState::keeps_flows(backend.state) {
        return Known::Ended;
    }
    if same {
        // A connection that begins where another was closed: the client uses its port again.
        if packet.place.word.state() != State::Closed || !opens(&packet.transport) {
            packet.send_to_backend(backend);
            if opens(&packet.transport) && packet.place.word.is_unanswered() && packet.service.retries != 0 {
                packet.begins = REPEATED;
            }
            return Known::Go;
        }
    }
    table::end();
    Known::Over
}

/// Whether what would begin a flow is to wait.
#[inline(always)]
fn parked(packet: &Packet) -> bool {
    packet.service.has(ServiceValue::PARKED)
        && SERVICE_INFO.get(packet.service.id).is_some_and(|info| info.is_parked(packet.now))
}

/// Whether the packet is a connection's first: TCP's SYN, SCTP's INIT. A fragment behind that has its flags,
/// and is not.
#[inline(always)]
pub fn opens(transport: &Transport) -> bool {
    transport.protocol.has_connections()
        && transport.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN
        && transport.part != Part::Later
}

/// From a backend to a client: finds the flow, and says where the packet goes.
#[inline(never)]
fn reply(packet: &mut Packet) -> Reason {
    packet.now = now();
    packet.set_tuple(0);
    let found = table::find_reply();
    if found == 0 || !table::copy(packet) {
        if packet.transport.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK {
            packet.begins = LATE;
        }
        return Reason::NoFlow;
    }
    if packet.transport.ttl <= 1 {
        return Reason::TtlExpired;
    }
    let Some(info) = SERVICE_INFO.get(packet.flow.service_id) else { return Reason::Internal };
    packet.service.id = packet.flow.service_id;
    packet.send_to_client(info.address);
    if packet.place.word.is_unanswered() && packet.flow.flags & Flow::WATCHED != 0 {
        let flags = packet.transport.tcp_flags;
        if flags & TCP_RST != 0 {
            packet.begins = REFUSED;
        } else if flags & TCP_SYN != 0 || packet.transport.protocol == Protocol::Udp {
            knock::answered();
        } else {
            knock::contested();
        }
    }
    // A connection that is refused may be rescued all the same.
    if found == table::ENDED && packet.begins != REFUSED {
        return Reason::from_number(ending::reply());
    }
    Reason::ToClient
}

/// Ticks of the coarse clock.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: has no arguments. The coarse clock costs 1 ns where the fine one costs 23, and ticks
    // are 134 ms.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}
