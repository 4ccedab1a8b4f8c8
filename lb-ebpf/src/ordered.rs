//! Reading what others write, in order.

/// The pointer itself; what is read through it is read after the value was. Processors of the x86 family never
/// read out of order as far as others can see; others wait where an address depends on a value, and that is
/// all they wait for.
#[inline(always)]
pub fn after<T>(value: u64, pointer: *const T) -> *const T {
    if cfg!(bpf_target_arch = "x86_64") { pointer } else { pointer.wrapping_byte_add(nothing(value) as usize) }
}

/// Zero, which the compiler does not know of and the verifier does.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn nothing(mut value: u64) -> u64 {
    // SAFETY: changes a register.
    unsafe { core::arch::asm!("{0} &= 0", inout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// One thread runs a program on the host.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
const fn nothing(_: u64) -> u64 {
    0
}
