//! Reading what others write, in order.

/// The pointer itself; what is read through it is read after the value was. Processors of the x86 family never
/// read out of order as far as others can see; others wait where an address depends on a value, and that is
/// all they wait for.
#[cfg(all(target_arch = "bpf", not(bpf_target_arch = "x86_64")))]
#[inline(always)]
pub fn after<T>(mut value: u64, pointer: *const T) -> *const T {
    // Zero, which the compiler does not know of and the verifier does.
    // SAFETY: changes a register.
    unsafe { core::arch::asm!("{0} &= 0", inout(reg) value, options(pure, nomem, nostack)) };
    pointer.wrapping_byte_add(value as usize)
}

/// The same where there is nothing to be done: see there. On the host nobody writes meanwhile.
#[cfg(not(all(target_arch = "bpf", not(bpf_target_arch = "x86_64"))))]
#[inline(always)]
pub fn after<T>(_: u64, pointer: *const T) -> *const T {
    pointer
}
