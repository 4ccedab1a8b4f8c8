//! Picking a backend for a new flow or packet.

use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use lb_common::abi::ServiceValue;

use crate::{
    maps::{CURSORS, SELECTION},
    packet::NO_BACKEND,
};

/// The id of the next backend in turn, or [`NO_BACKEND`] when none is ready.
///
/// Each CPU takes its own turns, so that CPUs share no cache line, and each begins at another slot:
/// with `n` CPUs a backend gets at most `n` flows more than another of the same weight.
#[inline(always)]
pub fn next(service: &ServiceValue) -> u32 {
    if service.selection_len == 0 {
        return NO_BACKEND;
    }
    let Some(cursor) = CURSORS.get_ptr_mut(service.id) else { return NO_BACKEND };
    // SAFETY: this CPU's element.
    let turn = unsafe {
        let turn = *cursor;
        *cursor = turn.wrapping_add(1);
        turn
    };
    // SAFETY: has no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let slot = turn.wrapping_add(cpu) % service.selection_len;
    SELECTION.get(service.selection_base.wrapping_add(slot)).copied().unwrap_or(NO_BACKEND)
}
