//! Counters. Each map is per CPU, so plain additions suffice.

use lb_common::{abi::DirectionCounters, verdict::Reason};

use crate::maps::{BACKEND_STATS, SERVICE_STATS, VERDICT_STATS};

/// Counts the one verdict of a packet of `bytes` as received.
#[inline(always)]
pub fn verdict(reason: Reason, bytes: u64) {
    count(reason as u32, bytes);
}

/// The same by the reason's number.
#[inline(always)]
pub fn count(reason: u32, bytes: u64) {
    if let Some(counters) = VERDICT_STATS.get_ptr_mut(reason) {
        // SAFETY: the pointer is of this CPU's element, and the program is not preempted on it.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes;
        }
    }
}

/// Counts a packet that was sent on, for its service and its backend.
#[inline(always)]
pub fn sent(service_id: u32, backend_id: u32, reply: bool, bytes: u64) {
    if let Some(counters) = SERVICE_STATS.get_ptr_mut(service_id) {
        // SAFETY: as in `count`.
        unsafe {
            add(if reply { &raw mut (*counters).reply } else { &raw mut (*counters).forward }, bytes);
        }
    }
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(backend_id) {
        // SAFETY: as in `count`.
        unsafe {
            add(if reply { &raw mut (*counters).reply } else { &raw mut (*counters).forward }, bytes);
        }
    }
}

/// Counts a new flow.
#[inline(always)]
pub fn flow_begun(service_id: u32, backend_id: u32) {
    if let Some(counters) = SERVICE_STATS.get_ptr_mut(service_id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).flows += 1 };
    }
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(backend_id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).flows += 1 };
    }
}

/// Counts a flow that came from another backend.
#[inline(always)]
pub fn flow_moved(backend_id: u32) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(backend_id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).flows += 1 };
    }
}

/// Counts a connection that a backend has refused.
#[cfg(not(feature = "fixture-older"))]
#[inline(always)]
pub fn refusal(backend_id: u32) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(backend_id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).refusals += 1 };
    }
}

#[cfg(feature = "fixture-older")]
#[inline(always)]
pub fn refusal(_: u32) {}

/// Counts a connection that was sent to another backend; `unanswered`: because `from` was silent.
#[inline(always)]
pub fn rescued(service_id: u32, from: u32, unanswered: bool) {
    if let Some(counters) = SERVICE_STATS.get_ptr_mut(service_id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).rescued += 1 };
    }
    passed_over(from, unanswered);
}

#[cfg(not(feature = "fixture-older"))]
#[inline(always)]
fn passed_over(backend_id: u32, unanswered: bool) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(backend_id) {
        // SAFETY: as in `count`.
        unsafe {
            (*counters).rescued += 1;
            (*counters).unanswered += unanswered as u64;
        }
    }
}

#[cfg(feature = "fixture-older")]
#[inline(always)]
fn passed_over(_: u32, _: bool) {}

/// Counts a flow that was over with its backend: reset, or scheduled anew.
#[inline(always)]
pub fn flow_over(backend_id: u32, moved: bool) {
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(backend_id) {
        // SAFETY: as in `count`.
        unsafe {
            if moved {
                (*counters).moved += 1;
            } else {
                (*counters).reset += 1;
            }
        }
    }
}

/// Counts a packet that was answered by the balancer itself.
#[inline(always)]
pub fn refused(service_id: u32) {
    if let Some(counters) = SERVICE_STATS.get_ptr_mut(service_id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).refused += 1 };
    }
}

/// Counts a client's packet that was dropped.
#[inline(always)]
pub fn dropped(service_id: u32) {
    if let Some(counters) = SERVICE_STATS.get_ptr_mut(service_id) {
        // SAFETY: as in `count`.
        unsafe { (*counters).dropped += 1 };
    }
}

/// # Safety
/// `counters` points into this CPU's element.
#[inline(always)]
unsafe fn add(counters: *mut DirectionCounters, bytes: u64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        (*counters).packets += 1;
        (*counters).bytes += bytes;
    }
}
