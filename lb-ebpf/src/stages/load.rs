//! How many open flows each backend has, for schedulers that ask: one number a backend, shared by all
//! CPUs. Services with other schedulers do not count, so that their CPUs share no cache line.

use lb_common::{
    abi::{Flow, Scheduler},
    flow::Word,
};

use crate::{atomic::add, maps::BACKEND_LOAD};

/// [`Flow::COUNTED`] where this scheduler wants flows to be counted.
#[inline(always)]
pub fn flag(scheduler: u8) -> u8 {
    if Scheduler::counts_flows(scheduler) { Flow::COUNTED } else { 0 }
}

/// Counts a change of a counted flow's word: it begins, closes or ends.
#[inline(always)]
pub fn changed(flow: &Flow, before: Word, after: Word) {
    let change = after.open() as i64 - before.open() as i64;
    if change == 0 || flow.flags & Flow::COUNTED == 0 {
        return;
    }
    if let Some(load) = BACKEND_LOAD.get_ptr_mut(flow.backend_id) {
        // SAFETY: the pointer is to an aligned number of a map value.
        unsafe { add(load, change) };
    }
}

/// Open flows of a backend.
#[inline(always)]
pub fn of(backend_id: u32) -> u64 {
    let Some(load) = BACKEND_LOAD.get_ptr_mut(backend_id) else { return 0 };
    // SAFETY: as in `changed`.
    let load = unsafe { load.read_volatile() };
    if load > 0 { load as u64 } else { 0 }
}
