//! Hiding from the compiler what the verifier cannot know.

use core::arch::asm;

/// The value itself, of which the compiler no longer knows where it comes from: it keeps a check or
/// a mask that follows, and uses the very register that was checked. The verifier needs both.
///
/// It is a move onto itself; an empty template would put two source lines on one instruction, which
/// the kernel refuses.
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: moves a register onto itself.
    unsafe { asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack)) };
    value
}
