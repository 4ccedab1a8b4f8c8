//! The port pools, changed while the data path takes and gives back ports.
//!
//! A set bit is a port in use or outside the ranges. The data path sets a bit when it takes the port
//! and clears it when the flow ends; the agent changes single bits atomically and clears a bit only
//! when no live flow can own it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use lb_common::abi::{
    PortPool,
    limits::{PORT_POOL_WORDS, PORT_RANGES},
};

use super::mmap::SharedArray;
use crate::config::PortRange;

/// Bits of all ports, as in [`PortPool::words`].
pub(super) type PortBits = [u64; PORT_POOL_WORDS];
/// Ports that flows own, by pool.
pub(super) type OwnedPorts = BTreeMap<u32, BTreeSet<u16>>;

/// Port 0 is never handed out: its bit says that the pool is ready.
const READY_BIT: u64 = 1;
/// First 32-bit unit of the ranges: after the words, the cursor and a zero.
const RANGES_AT: usize = PORT_POOL_WORDS * 2 + 2;

pub(super) struct Pools(pub SharedArray<PortPool>);

impl Pools {
    /// The ranges of a pool that is ready.
    pub fn ranges(&self, pool: u32) -> Option<Vec<PortRange>> {
        if self.0.words(pool)?[0].load(Ordering::Acquire) & READY_BIT == 0 {
            return None;
        }
        let units = self.0.units(pool)?.get(RANGES_AT..RANGES_AT + PORT_RANGES)?;
        let pair = |unit: u32| -> [u16; 2] { bytemuck::cast(unit) };
        let ranges = units.iter().map(|unit| pair(unit.load(Ordering::Acquire)));
        Some(ranges.filter(|pair| *pair != [0, 0]).map(|[first, last]| PortRange { first, last }).collect())
    }

    /// Makes the pool hand out `ranges` (at most [`PORT_RANGES`], none with port 0) and nothing
    /// else. `owned` are ports of flows that live now; it is asked after ports have been closed.
    ///
    /// Ends half-way only with the agent: then a port may stay set without an owner, which the
    /// audit mends, but never clear with one.
    pub fn set(&self, pool: u32, ranges: &[PortRange], owned: impl FnOnce() -> BTreeSet<u16>) -> Option<()> {
        let words = self.0.words(pool)?;
        let before = self.ranges(pool);
        let fresh = words[..PORT_POOL_WORDS].iter().all(|word| word.load(Ordering::Acquire) == 0);
        let allowed = bits(ranges);
        // 1. Close what is outside. Word 0 comes last: its ready bit follows the others.
        for (word, allowed) in words[..PORT_POOL_WORDS].iter().zip(&allowed).rev() {
            word.fetch_or(!allowed, Ordering::AcqRel);
        }
        self.store_ranges(pool, ranges)?;
        // 2. Open what was closed and is not in use. Ports open before are the data path's: one may
        //    have been taken since `owned` was gathered. No new flow can have taken a closed one.
        let was_open = before.as_deref().map_or([0; PORT_POOL_WORDS], bits);
        let mut open: PortBits = std::array::from_fn(|i| allowed[i] & !was_open[i]);
        // The walk over the flow table is spared where nothing opens, or nothing can be owned yet.
        if !fresh && open.iter().any(|open| *open != 0) {
            for port in owned() {
                open[port as usize / 64] &= !(1 << (port % 64));
            }
        }
        for (word, open) in words.iter().zip(&open).filter(|(_, open)| **open != 0) {
            word.fetch_and(!open, Ordering::AcqRel);
        }
        Some(())
    }

    /// Takes the pool out of use: no port of it is handed out any more.
    pub fn clear(&self, pool: u32) -> Option<()> {
        let words = self.0.words(pool)?;
        for word in &words[1..PORT_POOL_WORDS] {
            word.fetch_or(u64::MAX, Ordering::AcqRel);
        }
        self.store_ranges(pool, &[])?;
        words[0].store(!READY_BIT, Ordering::Release);
        Some(())
    }

    /// Gives a port back, unless the pool no longer hands it out.
    pub fn free(&self, pool: u32, port: u16) -> Option<()> {
        let ranges = self.ranges(pool)?;
        if ranges.iter().any(|range| (range.first..=range.last).contains(&port)) {
            let word = &self.0.words(pool)?[port as usize / 64];
            word.fetch_and(!(1 << (port % 64)), Ordering::AcqRel);
        }
        Some(())
    }

    /// Closes ports outside the ranges that the data path gave back after the ranges had changed.
    /// `None`: the pool is not ready.
    pub fn close(&self, pool: u32) -> Option<()> {
        let allowed = bits(&self.ranges(pool)?);
        for (word, allowed) in self.0.words(pool)?[..PORT_POOL_WORDS].iter().zip(&allowed) {
            if word.load(Ordering::Acquire) | allowed != u64::MAX {
                word.fetch_or(!allowed, Ordering::AcqRel);
            }
        }
        Some(())
    }

    /// Ports within the ranges that are in use. `None`: the pool is not ready.
    pub fn taken(&self, pool: u32) -> Option<BTreeSet<u16>> {
        let allowed = bits(&self.ranges(pool)?);
        let mut taken = BTreeSet::new();
        for (i, word) in self.0.words(pool)?[..PORT_POOL_WORDS].iter().enumerate() {
            let mut used = word.load(Ordering::Acquire) & allowed[i];
            while used != 0 {
                taken.insert((i * 64) as u16 + used.trailing_zeros() as u16);
                used &= used - 1;
            }
        }
        Some(taken)
    }

    fn store_ranges(&self, pool: u32, ranges: &[PortRange]) -> Option<()> {
        let units = self.0.units(pool)?.get(RANGES_AT..RANGES_AT + PORT_RANGES)?;
        for (i, unit) in units.iter().enumerate() {
            let pair = ranges.get(i).map_or([0, 0], |range| [range.first, range.last]);
            unit.store(bytemuck::cast(pair), Ordering::Release);
        }
        Some(())
    }
}

/// The ports of the ranges.
pub(super) fn bits(ranges: &[PortRange]) -> PortBits {
    let mut bits = [0; PORT_POOL_WORDS];
    for port in ranges.iter().flat_map(|range| range.first..=range.last) {
        bits[port as usize / 64] |= 1 << (port % 64);
    }
    bits
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn the_ranges_lie_where_the_layout_says() {
        assert_eq!(offset_of!(PortPool, ranges), RANGES_AT * 4);
    }

    #[test]
    fn bits_hold_first_and_last_port() {
        let bits = bits(&[PortRange { first: 1024, last: 1025 }, PortRange { first: 65_535, last: 65_535 }]);
        assert_eq!(bits[16], 3);
        assert_eq!(bits[1023], 1 << 63);
        assert_eq!(bits.iter().map(|word| word.count_ones()).sum::<u32>(), 3);
    }
}
