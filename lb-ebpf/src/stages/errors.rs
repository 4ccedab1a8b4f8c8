//! ICMP errors about flows: to the backend or the client that sent the packet they are about.
//!
//! | about | quotes | comes to | goes to |
//! | --- | --- | --- | --- |
//! | a reply, from the network of the clients | service -> client | the service | the flow's backend |
//! | a client's packet, from the side of the backends | what the backend got | its source | the client |
//! | a packet in a tunnel | tunnel, in it client -> service | the tunnel's source | the client, rewritten |
//!
//! An error never changes a flow: neither its state nor its age, because nobody vouches for it (RFC
//! 5927). It may say that a backend is not there: that is noted, and health checks find out. One about the
//! SYN of a connection that was kept, which whoever sent it has seen, is not passed on: the SYN goes to another
//! backend ([`super::rescue`]).

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{Flow, Knock, Mode, Protocol},
    icmp::{
        error::translate,
        quote::{IcmpError, NoError, Quoted},
    },
    numbers::{GRE, IPIP, IPV6},
    packet::{HEADERS_MAX, PacketAccess},
    parse::{Network, Part, Transport},
    rescue::Syn,
    rewrite::Translation,
    verdict::{Action, Reason, Stage, Verdict},
};

use super::{
    admit::{self, Directions},
    family_error, knock, owner, table, tunnel_error,
};
use crate::{
    ctx::Frame,
    maps::SERVICE_INFO,
    opaque::opaque,
    packet::Packet,
    pipeline::{DENIED, UNDENIED, now},
    stats, transmit,
};

/// Of the sequence number in a TCP header (RFC 9293, 3.1).
const SEQUENCE: usize = 4;

/// Brings an error where it belongs. ICMP of other kinds, and errors that are about no flow, are the
/// host's.
#[inline(always)]
pub fn run(md: *mut xdp_md, network: &Network, directions: Directions) -> Verdict {
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    let (other, malformed) = if directions.is_foreign() {
        (Reason::NotForUs, Reason::NotForUs)
    } else {
        (Reason::NotTransport, admit::malformed(directions.to))
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
    if packet.begins != UNDENIED {
        packet.begins = 0;
    }
    let reason = decide(md, packet, directions);
    if packet.begins == DENIED {
        return Verdict::go_on(Stage::Rescue);
    }
    packet.begins = 0;
    match reason.action() {
        Action::Forward => transmit::leave(packet, reason),
        Action::Pass if reason == Reason::NoFlow && !directions.is_reply => {
            Verdict::of(if directions.is_forward() { Reason::NoService } else { Reason::NotForUs })
        }
        Action::Pass if reason == Reason::NotTransport => Verdict::of(other),
        _ => Verdict::of(reason),
    }
}

/// Finds out what the error is about, and sends it on. [`Reason::NoFlow`]: about nothing of ours.
#[inline(always)]
fn decide(md: *mut xdp_md, packet: &mut Packet, directions: Directions) -> Reason {
    packet.now = now();
    let Some(protocol) = Protocol::from_number(packet.quoted.protocol) else {
        return match packet.quoted.protocol {
            IPIP | IPV6 | GRE => tunnel_error::relay(md, packet),
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
    if directions.is_forward() && admit::any_service(packet, directions.to) {
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

/// An error about a reply. `nat` keeps its sender, which is of the network that its backends see; in
/// `full-nat` they see nothing but the balancer, so it is the sender (RFC 5508, REQ-5, of that side).
#[inline(always)]
fn to_backend(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    match owner::find(packet) {
        Some(_) => send(md, packet, false),
        None => Reason::ErrorOfNoFlow,
    }
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
    let watched = packet.flow.flags & Flow::WATCHED != 0 && packet.begins != UNDENIED;
    if packet.error.gone && watched && denied(md) != 0 {
        packet.begins = DENIED;
        return Reason::Internal;
    }
    send(md, packet, true)
}

/// Notes that an error says that the backend of the packet's flow is not there. Not 0: it is about a SYN that was
/// kept.
///
/// Of TCP only a SYN counts that was not answered, by its sequence number; established connections live on
/// (RFC 5927, 6). Of UDP there is nothing but addresses and ports to know it by.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn denied(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    match packet.transport.protocol {
        Protocol::Udp => {
            knock::unreachable(packet.flow.backend_id, &packet.flow.client);
            return 0;
        }
        Protocol::Tcp if packet.place.word.is_unanswered() => {}
        _ => return 0,
    }
    let at = (opaque(packet.quoted.transport as usize) & (HEADERS_MAX - 1)) + SEQUENCE;
    let Some(sequence) = Frame::of(md).read::<[u8; 4]>(at) else { return 0 };
    let hash = knock::client_hash(packet);
    let Some(kept) = knock::place(hash) else { return 0 };
    if knock::stamp(kept) != Knock::stamp_of(hash) {
        return 0;
    }
    // SAFETY: a map value; if it changes meanwhile, the number does not fit, or the SYN is not taken.
    let known = unsafe { &*kept };
    let syn = Syn { v4: known.v4 != 0, len: known.len, headers: &known.headers };
    if !syn.is_quoted_by(sequence) {
        return 0;
    }
    knock::unreachable(packet.flow.backend_id, &packet.flow.client);
    stats::refusal(packet.flow.backend_id);
    1
}

#[inline(always)]
fn send(md: *mut xdp_md, packet: &mut Packet, reply: bool) -> Reason {
    if packet.error.ttl <= 1 {
        return Reason::TtlExpired;
    }
    let across = packet.flow.flags & Flow::ACROSS_FAMILIES != 0;
    let hop = if across { family_error::prepare(md, packet, reply) } else { transmit::next_hop(md, packet, reply) };
    match hop {
        Reason::ToBackend | Reason::ToClient => {}
        // An error is never answered with one.
        Reason::TooBig => return Reason::Unanswerable,
        reason => return reason,
    }
    let sent = if across {
        family_error::write_across(md)
    } else if Mode::is_one_sided(packet.flow.mode) {
        // It goes as it is: what is in the tunnel is the error and not what that quotes.
        packet.network = packet.error.outer;
        transmit::hand_on_icmp(md)
    } else {
        readdress(md, reply as u32)
    };
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
