//! Hiding from the compiler what the verifier cannot know.

/// The value itself, of which the compiler no longer knows where it comes from: it keeps a check or
/// a mask that follows, and uses the very register that was checked. The verifier needs both.
///
/// It is a move onto itself; an empty template would put two source lines on one instruction, which
/// the kernel refuses.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: moves a register onto itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value
}

/// No verifier looks at a program on the host.
#[cfg(not(target_arch = "bpf"))]
#[inline(always)]
pub fn opaque(value: usize) -> usize {
    value
}
