//! Picking a backend for a new flow or packet.
//!
//! | scheduler | slots of the selection table | which one |
//! | --- | --- | --- |
//! | round robin, also weighted | in turn, or by weight | the next |
//! | least connections | each backend once | the least loaded of up to 64 |
//! | random two | by weight | the less loaded of two |
//! | source hash, Maglev | the tables of Maglev | where the hash points |

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_get_smp_processor_id};
use lb_common::{
    abi::{Backend, BackendState, HashedBy, Scheduler, limits::LEAST_SCAN},
    hash::selection_slot,
};

use super::{hashed, load};
use crate::{
    maps::{BACKENDS, CURSORS},
    opaque::opaque,
    packet::{NO_BACKEND, Packet},
};

/// The id of a backend for the packet under way, or [`NO_BACKEND`] when none is ready. Where the
/// scheduler has a table of hashes, the packet's hash must be set ([`hashed::set_hash`]). The first
/// `attempt` is 0. Where that backend could not take the flow, the next attempt gets another slot:
/// by another hash, and in turn where loads were compared, because the least loaded backend would
/// be the same.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn pick(attempt: u32) -> u32 {
    let Some(packet) = Packet::current() else { return NO_BACKEND };
    let len = packet.service.selection_len;
    if len == 0 {
        return NO_BACKEND;
    }
    let scheduler = packet.service.scheduler;
    if HashedBy::of(scheduler, packet.service.granularity).is_some() {
        return at(packet, selection_slot(packet.slot_hash, attempt, len));
    }
    if attempt == 0 && scheduler == Scheduler::RandomTwo as u8 {
        return random_two(len);
    }
    let turn = next_turn(packet);
    if attempt == 0 && scheduler == Scheduler::LeastConnections as u8 {
        return least_loaded(turn, len);
    }
    at(packet, turn % len)
}

/// The id of a live backend that the packet's connection was not sent to yet, or [`NO_BACKEND`]: the next
/// one in turn, of as many slots as are compared otherwise.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn another() -> u32 {
    let Some(packet) = Packet::current() else { return NO_BACKEND };
    let len = packet.service.selection_len;
    if len == 0 {
        return NO_BACKEND;
    }
    first_that_takes(next_turn(packet), len, true)
}

/// The id of a live backend that has room for a flow, or [`NO_BACKEND`]: of as many slots as are compared
/// otherwise the first, from where the hash points, or the next in turn.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn with_room() -> u32 {
    let Some(packet) = Packet::current() else { return NO_BACKEND };
    let len = packet.service.selection_len;
    if len == 0 {
        return NO_BACKEND;
    }
    let hashed = HashedBy::of(packet.service.scheduler, packet.service.granularity).is_some();
    let first = if hashed { selection_slot(packet.slot_hash, 0, len) } else { next_turn(packet) };
    first_that_takes(first, len, false)
}

/// The first backend from a slot on that takes new flows, of `len` slots; not one that was tried, if so wanted.
#[inline(always)]
fn first_that_takes(first: u32, len: u32, untried: bool) -> u32 {
    for step in 0..LEAST_SCAN {
        // Or the compiler would count down from the lesser of both, which to the verifier of Linux 6.1 is no end.
        if opaque(step as usize) >= len as usize {
            break;
        }
        let id = taking(first.wrapping_add(step) % len, untried as u32);
        if id != NO_BACKEND {
            return id;
        }
    }
    NO_BACKEND
}

/// The backend of a slot, if it takes new flows and, with `untried`, was not tried.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn taking(slot: u32, untried: u32) -> u32 {
    let Some(packet) = Packet::current() else { return NO_BACKEND };
    let id = at(packet, slot);
    if untried != 0 && packet.rescue.tried.contains(&id) || !takes_flows(id) { NO_BACKEND } else { id }
}

/// Whether a backend lives and is not full.
#[inline(always)]
pub fn takes_flows(id: u32) -> bool {
    let takes = |backend: &Backend| backend.state == BackendState::Live as u8 && !load::is_full(id, backend);
    BACKENDS.get(id).is_some_and(takes)
}

/// The next number in turn.
///
/// Each CPU takes its own turns, so that CPUs share no cache line, and each begins at another slot:
/// with `n` CPUs a backend gets at most `n` flows more than another of the same weight.
#[inline(always)]
fn next_turn(packet: &Packet) -> u32 {
    let Some(cursor) = CURSORS.get_ptr_mut(packet.service.id) else { return 0 };
    // SAFETY: this CPU's element; the helper has no arguments.
    unsafe {
        let turn = *cursor;
        *cursor = turn.wrapping_add(1);
        turn.wrapping_add(bpf_get_smp_processor_id())
    }
}

/// The backend with the fewest flows for its weight among the slots from `turn` on; of equal ones the
/// first, so that they take turns. A long table is not walked whole: the window moves with the turn,
/// and the least loaded of [`LEAST_SCAN`] backends is rarely far from the least loaded of all.
#[inline(always)]
fn least_loaded(turn: u32, len: u32) -> u32 {
    forget_best();
    for step in 0..LEAST_SCAN {
        if step >= len {
            break;
        }
        consider(turn.wrapping_add(step) % len);
    }
    best()
}

/// The better one of two slots; never the same slot twice, unless there is only one.
#[inline(always)]
fn random_two(len: u32) -> u32 {
    forget_best();
    // SAFETY: has no arguments.
    let (first, second) = unsafe { (bpf_get_prandom_u32(), bpf_get_prandom_u32()) };
    let first = scaled(first, len);
    consider(first);
    consider((first + 1 + scaled(second, len - 1)) % len);
    best()
}

/// A random number below `len`; 0 where there is none.
#[inline(always)]
fn scaled(random: u32, len: u32) -> u32 {
    ((random as u64 * len as u64) >> 32) as u32
}

/// What [`consider`] keeps is reached anew each time: no reference to the packet may be held over a
/// call of it, or the compiler would take what it read before for what is there.
#[inline(always)]
fn forget_best() {
    if let Some(packet) = Packet::current() {
        packet.best = NO_BACKEND;
        packet.best_weight = 1;
        packet.best_load = u32::MAX as u64;
    }
}

#[inline(always)]
fn best() -> u32 {
    Packet::current().map_or(NO_BACKEND, |packet| packet.best)
}

/// Makes the backend of a slot the best one, if it lives, is not full and has fewer flows for its weight. A flow
/// more is counted on both sides, so that of two idle backends the heavier is first; fractions are
/// compared by their cross products.
///
/// The best one is kept in memory, which the verifier does not follow: its paths meet again after
/// each slot.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn consider(slot: u32) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let id = at(packet, slot);
    let Some(backend) = BACKENDS.get(id) else { return 0 };
    let load = load::of(id);
    if backend.state != BackendState::Live as u8 {
        return 0;
    }
    if backend.max_flows != 0 && load >= backend.max_flows as u64 {
        packet.full = 1;
        return 0;
    }
    let (load, weight) = (load + 1, backend.weight.max(1) as u64);
    if load.wrapping_mul(packet.best_weight as u64) < packet.best_load.wrapping_mul(weight) {
        packet.best = id;
        packet.best_weight = weight as u32;
        packet.best_load = load;
    }
    0
}

/// The backend id in a slot of the service's table.
#[inline(always)]
fn at(packet: &Packet, slot: u32) -> u32 {
    hashed::slot(packet, slot).current()
}
