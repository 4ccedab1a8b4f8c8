//! The atomic operations of `atomic.rs`, for a program on the host.

use core::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

/// # Safety
/// `place` points to eight aligned bytes of a map value.
#[inline(always)]
pub unsafe fn compare_exchange(place: *mut u64, old: u64, new: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { AtomicU64::from_ptr(place) }.compare_exchange(old, new, SeqCst, SeqCst).unwrap_or_else(|seen| seen)
}

/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_or(place: *mut u64, bits: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { AtomicU64::from_ptr(place) }.fetch_or(bits, SeqCst)
}

/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_and(place: *mut u64, mask: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { AtomicU64::from_ptr(place) }.fetch_and(mask, SeqCst)
}

/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_add(place: *mut u64, change: u64) -> u64 {
    // SAFETY: the caller vouches for the pointer.
    unsafe { AtomicU64::from_ptr(place) }.fetch_add(change, SeqCst)
}

/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn add(place: *mut i64, change: i64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe { AtomicI64::from_ptr(place) }.fetch_add(change, SeqCst);
}
