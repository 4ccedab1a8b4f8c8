//! How many open flows each backend has, for schedulers that ask and for backends that take no more than
//! some: one number a backend, shared by all CPUs. Nobody else counts, so that their CPUs share no cache line.

use lb_common::{
    abi::{Backend, Flow, Scheduler},
    flow::Word,
};

use crate::{atomic::add, maps::BACKEND_LOAD};

/// [`Flow::COUNTED`] where this scheduler, or the backend, wants flows to be counted.
#[inline(always)]
pub fn flag(scheduler: u8, backend: &Backend) -> u8 {
    if Scheduler::counts_flows(scheduler) || backend.max_flows != 0 { Flow::COUNTED } else { 0 }
}

/// Whether a backend has as many open flows as it may have. CPUs that ask at the same moment may each send
/// it one more.
#[inline(always)]
pub fn is_full(id: u32, backend: &Backend) -> bool {
    backend.max_flows != 0 && of(id) >= backend.max_flows as u64
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
