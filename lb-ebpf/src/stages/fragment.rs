//! Fragments of UDP and TCP. The first one has the ports and goes its way like a whole packet; the
//! map `fragments` keeps what it told, and the others follow it.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{AddressRoles, FragmentFlow, FragmentKey, Mode, Protocol, limits::FRAGMENT_TICKS},
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
};

/// A fragment under way: under what its first one is kept, and what that one told.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Fragmented {
    pub key: FragmentKey,
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
    packet.now = now();
    if fragment.is_first() {
        packet.transport = match fragment::first(&frame, &packet.network, &fragment) {
            Ok(transport) => transport,
            Err(problem) => return refused(problem, to),
        };
        return ON_ITS_WAY;
    }
    // SAFETY: the value may be given to another datagram while it is read, as fragments in the
    // network may be mixed up: its receiver finds out by the checksum.
    let Some(first) = (unsafe { FRAGMENTS.get(packet.fragmented.key) }) else { return early(to) };
    packet.fragmented.flow = *first;
    let flow = &packet.fragmented.flow;
    if packet.now.wrapping_sub(flow.seen) > FRAGMENT_TICKS {
        return early(to);
    }
    if flow.passed != 0 {
        return Reason::NoService as u32;
    }
    let Some(protocol) = Protocol::from_number(flow.protocol) else { return Reason::Internal as u32 };
    packet.transport = fragment.transport(flow, protocol);
    ON_ITS_WAY
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
    if packet.transport.part == Part::First && (sent || reason == Reason::NoService) {
        packet.fragmented.flow = FragmentFlow {
            source_port: packet.transport.source_port,
            destination_port: packet.transport.destination_port,
            protocol: packet.transport.protocol as u8,
            tcp_flags: packet.transport.tcp_flags,
            id: if translated { next_id() } else { [0; 2] },
            backend_id: packet.flow.backend_id,
            seen: packet.now,
            passed: !sent as u8,
            zero: [0; 3],
        };
        // Full, it forgets the one that was used least; no other failure is left.
        let _ = FRAGMENTS.insert(packet.fragmented.key, packet.fragmented.flow, 0);
    }
    if translated && fragment::renumber(&mut Frame::of(md), packet.fragmented.flow.id).is_none() {
        return Verdict::of(Reason::Internal).bits();
    }
    verdict.bits()
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
