//! Fragments of UDP and TCP. The first one has the ports and goes its way like a whole packet; the
//! map `fragments` keeps what it told, and the others follow it. Those that come before their first
//! are taken to be of the flow that the last datagram in pieces between the two addresses was of; the
//! first then gets the identification that they were given. They never begin a flow.
#![expect(clippy::needless_borrows_for_generic_args, reason = "a key or value given whole would lie on the stack")]

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{AddressRoles, FragmentFlow, FragmentKey, Granularity, Mode, Protocol, limits::FRAGMENT_TICKS},
    flow::TCP_ACK,
    fragment,
    parse::{Part, Problem},
    verdict::{Action, Reason, Verdict},
};

use super::{admit, unusual::ON_ITS_WAY};
use crate::{
    atomic::fetch_add,
    ctx::Frame,
    maps::{FRAGMENT_IDS, FRAGMENTS},
    packet::Packet,
    pipeline::now,
    stats,
};

/// A fragment under way: under what its first one is kept, and what that one told; and under what is
/// kept what its sender's last one told.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Fragmented {
    pub key: FragmentKey,
    pub sender: FragmentKey,
    pub flow: FragmentFlow,
}

/// Finds out where a fragment to or from one of our addresses goes, as
/// [`unusual::meet`]; the packet has its network. `roles` are those of its destination.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn meet_fragment(md: *mut xdp_md, roles: u32) -> u32 {
    let Some(packet) = Packet::current() else { return Reason::Internal as u32 };
    let to = AddressRoles(roles);
    let frame = Frame::of(md);
    let fragment = match fragment::read(&frame, &packet.network) {
        Ok(fragment) => fragment,
        Err(problem) => return refused(problem, to),
    };
    packet.fragmented.key = fragment.key(&packet.network);
    packet.fragmented.sender = packet.fragmented.key.of_sender();
    packet.now = now();
    if fragment.is_first() {
        packet.transport = match fragment::first(&frame, &packet.network, &fragment) {
            Ok(transport) => transport,
            Err(problem) => return refused(problem, to),
        };
        return ON_ITS_WAY;
    }
    if !is_told(packet) && !guess(packet, to) {
        return early(to);
    }
    let flow = &packet.fragmented.flow;
    if flow.passed != 0 {
        return Reason::NoService as u32;
    }
    let Some(protocol) = Protocol::from_number(flow.protocol) else { return Reason::Internal as u32 };
    packet.transport = fragment.transport(flow, protocol);
    ON_ITS_WAY
}

/// Whether it is known where the datagram's fragments go.
#[inline(always)]
fn is_told(packet: &mut Packet) -> bool {
    // SAFETY: the value may be given to another datagram while it is read, as fragments in the
    // network may be mixed up: its receiver finds out by the checksum.
    let Some(told) = (unsafe { FRAGMENTS.get(&packet.fragmented.key) }) else { return false };
    packet.fragmented.flow = *told;
    packet.now.wrapping_sub(told.seen) <= FRAGMENT_TICKS
}

/// Takes the datagram to go where its sender's last one went. What comes to a source of `full-nat`
/// goes to any of the clients, so the last one says nothing.
#[inline(always)]
fn guess(packet: &mut Packet, to: AddressRoles) -> bool {
    if to.has(AddressRoles::SOURCE) {
        return false;
    }
    // SAFETY: as in `is_told`.
    let Some(last) = (unsafe { FRAGMENTS.get(&packet.fragmented.sender) }) else { return false };
    packet.fragmented.flow = *last;
    let flow = &mut packet.fragmented.flow;
    (flow.seen, flow.id, flow.guessed) = (packet.now, next_id(), 1);
    true
}

/// Whether the packet would begin a flow that may be none.
#[inline(always)]
pub fn begins_by_guess(packet: &Packet) -> bool {
    packet.begins != 0 && packet.transport.part == Part::Later && packet.fragmented.flow.guessed != 0
}

#[inline(always)]
fn refused(problem: Problem, to: AddressRoles) -> u32 {
    let reason = match problem {
        Problem::Malformed => admit::malformed(to),
        _ => Reason::Fragment,
    };
    reason as u32
}

/// Nothing is known of the first fragment. To a service there is no way on; what else it may be is
/// the host's to find out.
#[inline(always)]
fn early(to: AddressRoles) -> u32 {
    if to.has(AddressRoles::SERVICE) { Reason::FragmentEarly as u32 } else { Reason::Fragment as u32 }
}

/// Keeps what a first fragment told once its verdict is known, and numbers those that are sent on
/// translated. Gives the verdict on the packet, which may be whole.
#[inline(always)]
pub fn settled(md: *mut xdp_md, packet: &Packet, verdict: Verdict) -> Verdict {
    match packet.transport.part {
        Part::Whole => verdict,
        Part::First | Part::Later => Verdict::from_bits(settle(md, verdict.bits())),
    }
}

/// Verdicts go in and out as [`Verdict::bits`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn settle(md: *mut xdp_md, verdict: u64) -> u64 {
    let verdict = Verdict::from_bits(verdict);
    let Some(packet) = Packet::current() else { return verdict.bits() };
    let reason = Reason::from_number(verdict.reason());
    let sent = reason.action() == Action::Forward;
    let translated = sent && packet.network.v4 && !Mode::is_one_sided(packet.flow.mode);
    let first = packet.transport.part == Part::First;
    if first && (sent || reason == Reason::NoService) {
        tell(packet, reason, translated);
    } else if sent && packet.fragmented.flow.guessed != 0 && !first {
        stats::verdict(Reason::FragmentGuessed, 0);
        // Full, it forgets the one that was used least; no other failure is left.
        let _ = FRAGMENTS.insert(&packet.fragmented.key, &packet.fragmented.flow, 0);
    }
    if translated && fragment::renumber(&mut Frame::of(md), packet.fragmented.flow.id).is_none() {
        return Verdict::of(Reason::Internal).bits();
    }
    verdict.bits()
}

/// Keeps what a first fragment tells the others of its datagram, and of others of its sender that come
/// before their first.
#[inline(always)]
fn tell(packet: &mut Packet, reason: Reason, translated: bool) {
    // Whether datagrams after this one are likely to go its way.
    let guides = match reason {
        Reason::ToBackend => packet.service.granularity != Granularity::Packet as u8,
        Reason::ToClient => packet.flow.mode == Mode::Nat as u8,
        _ => true,
    };
    let backend_id = packet.flow.backend_id;
    let id = if translated { id_of(packet, backend_id) } else { [0; 2] };
    packet.fragmented.flow = FragmentFlow {
        source_port: packet.transport.source_port,
        destination_port: packet.transport.destination_port,
        protocol: packet.transport.protocol as u8,
        tcp_flags: packet.transport.tcp_flags,
        id,
        backend_id,
        seen: packet.now,
        passed: (reason == Reason::NoService) as u8,
        guessed: 0,
        zero: [0; 2],
    };
    // As above.
    let _ = FRAGMENTS.insert(&packet.fragmented.key, &packet.fragmented.flow, 0);
    if guides && !is_remembered(packet) {
        let flags = packet.fragmented.flow.tcp_flags;
        // Of a fragment that is known to be one of a connection's middle.
        packet.fragmented.flow.tcp_flags = if flags != 0 { TCP_ACK } else { 0 };
        let _ = FRAGMENTS.insert(&packet.fragmented.sender, &packet.fragmented.flow, 0);
    }
}

/// Whether the sender's last datagram told the same: then nothing needs to be written.
#[inline(always)]
fn is_remembered(packet: &Packet) -> bool {
    let flow = &packet.fragmented.flow;
    // SAFETY: as in `is_told`.
    let Some(last) = (unsafe { FRAGMENTS.get(&packet.fragmented.sender) }) else { return false };
    (last.source_port, last.destination_port) == (flow.source_port, flow.destination_port)
        && (last.protocol, last.passed) == (flow.protocol, flow.passed)
}

/// The identification that fragments before the first one have left with, to the same backend; else a
/// new one.
#[inline(always)]
fn id_of(packet: &Packet, backend_id: u32) -> [u8; 2] {
    // SAFETY: as in `is_told`.
    match unsafe { FRAGMENTS.get(&packet.fragmented.key) } {
        Some(told) if told.guessed != 0 && packet.now.wrapping_sub(told.seen) <= FRAGMENT_TICKS => {
            if told.backend_id == backend_id { told.id } else { next_id() }
        }
        _ => next_id(),
    }
}

/// An identification that none of the last 65,535 fragmented datagrams has got: multiplying by an
/// odd number leaves all different.
#[inline(always)]
fn next_id() -> [u8; 2] {
    let Some(counter) = FRAGMENT_IDS.get_ptr_mut(0) else { return [0; 2] };
    // SAFETY: an aligned number of a map value.
    let number = unsafe { fetch_add(counter, 1) };
    (number as u16).wrapping_mul(0x9e37).to_ne_bytes()
}
