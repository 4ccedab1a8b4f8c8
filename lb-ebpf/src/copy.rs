//! Copying structs.

/// Writes the value at `from` to `to`. An assignment lets the compiler fear that the two places
/// overlap, and then it moves byte by byte, which costs a packet more than a map look-up.
#[inline(always)]
pub fn copy<T: Copy>(from: &T, to: &mut T) {
    // SAFETY: references to two values, so they do not overlap.
    unsafe { core::ptr::copy_nonoverlapping(from, to, 1) };
}
