//! The order in which the ports of a [`PortPool`](crate::abi::PortPool) are used.

use crate::abi::limits::PORT_POOL_WORDS;

/// Odd, so that it visits every word once in a round, and far apart, so that a run of words that
/// are wholly outside the configured ports is stepped over at once.
const STRIDE: u32 = 397;

/// The word to look at in a turn, and the bit in it to begin with: every word once with one bit,
/// then every word with the next.
#[inline(always)]
pub const fn in_turn(turn: u32) -> (u32, u32) {
    (turn.wrapping_mul(STRIDE) % PORT_POOL_WORDS as u32, turn / PORT_POOL_WORDS as u32 % 64)
}

/// The first clear bit of `used` from `first_bit` on, wrapping around. `used` has a clear bit.
#[inline(always)]
pub const fn lowest_free(used: u64, first_bit: u32) -> u32 {
    let free = (!used >> first_bit) | (!used << ((64 - first_bit) % 64));
    (lowest_set(free) + first_bit) % 64
}

/// Place of the lowest set bit: the number of ones below it (H. S. Warren, "Hacker's Delight", 5-1
/// and 5-4). BPF has no instruction for it, and its verifier would follow each branch of a search.
#[inline(always)]
const fn lowest_set(bits: u64) -> u32 {
    let below = (bits & bits.wrapping_neg()).wrapping_sub(1);
    let pairs = below - ((below >> 1) & 0x5555_5555_5555_5555);
    let nibbles = (pairs & 0x3333_3333_3333_3333) + ((pairs >> 2) & 0x3333_3333_3333_3333);
    let bytes = (nibbles + (nibbles >> 4)) & 0x0f0f_0f0f_0f0f_0f0f;
    (bytes.wrapping_mul(0x0101_0101_0101_0101) >> 56) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_bit_is_found_from_any_start() {
        for first in 0..64 {
            assert_eq!(lowest_free(0, first), first);
            for free in 0..64 {
                assert_eq!(lowest_free(!(1 << free), first), free);
            }
        }
        assert_eq!(lowest_free(0b1011, 0), 2);
        assert_eq!(lowest_free(u64::MAX << 3, 10), 0);
    }

    #[test]
    fn every_port_is_used_once_before_one_is_used_again() {
        let mut used = std::collections::HashSet::new();
        for turn in 0..65_536 {
            let (word, bit) = in_turn(turn);
            assert!(used.insert(word * 64 + bit));
        }
    }
}
