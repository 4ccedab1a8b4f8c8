//! Atomic operations. Rust has none for the BPF target; the kernel has those that return the old
//! value since 5.12 (BPF_CMPXCHG and BPF_FETCH), fully ordered.

use core::arch::asm;

/// Stores `new` where `old` stands; returns what stood there, which is `old` if it was stored.
///
/// # Safety
/// `place` points to eight aligned bytes of a map value.
#[inline(always)]
pub unsafe fn compare_exchange(place: *mut u64, old: u64, new: u64) -> u64 {
    let seen: u64;
    // SAFETY: the caller vouches for the pointer; r0 is the operation's fixed register.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({place} + 0, r0, {new})",
            place = in(reg) place,
            new = in(reg) new,
            inout("r0") old => seen,
        );
    }
    seen
}

/// Sets bits; returns the value before.
///
/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_or(place: *mut u64, bits: u64) -> u64 {
    let mut value = bits;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({place} + 0), {value})",
            place = in(reg) place,
            value = inout(reg) value,
        );
    }
    value
}

/// Clears all bits but `mask`.
///
/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_and(place: *mut u64, mask: u64) -> u64 {
    let mut value = mask;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "{value} = atomic_fetch_and((u64 *)({place} + 0), {value})",
            place = in(reg) place,
            value = inout(reg) value,
        );
    }
    value
}

/// Adds to a number; returns the value before.
///
/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn fetch_add(place: *mut u64, change: u64) -> u64 {
    let mut value = change;
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({place} + 0), {value})",
            place = in(reg) place,
            value = inout(reg) value,
        );
    }
    value
}

/// Adds to a number; nobody asks for the old value.
///
/// # Safety
/// As for [`compare_exchange`].
#[inline(always)]
pub unsafe fn add(place: *mut i64, change: i64) {
    // SAFETY: the caller vouches for the pointer.
    unsafe {
        asm!(
            "lock *(u64 *)({place} + 0) += {change}",
            place = in(reg) place,
            change = in(reg) change,
        );
    }
}
