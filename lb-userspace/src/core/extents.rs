//! Where selection tables lie in the one array of slots: extents that never overlap.

use std::collections::BTreeMap;

/// A run of slots that belongs to one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub base: u32,
    pub len: u32,
}

/// Longest table whose size is rounded up.
const ROUNDED: u32 = 4096;

/// The free runs of the array; first fit, lowest first. Small sizes are rounded up to powers of two
/// while there is room, so that freed extents fit the next table; large tables are mostly of one size.
#[derive(Clone, Debug)]
pub(super) struct Extents {
    /// First slot to length; neighbours are always merged.
    free: BTreeMap<u32, u32>,
    slots: u32,
}

impl Extents {
    /// An array of this many slots, all free.
    pub(super) fn new(slots: u32) -> Self {
        let free = if slots == 0 { BTreeMap::new() } else { BTreeMap::from([(0, slots)]) };
        Self { free, slots }
    }

    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// An extent of at least `len` slots (`len` > 0); `None` when no free run is long enough.
    pub(super) fn take(&mut self, len: u32) -> Option<Extent> {
        debug_assert!(len > 0);
        let rounded = if len <= ROUNDED { len.next_power_of_two() } else { len };
        self.first_fit(rounded).or_else(|| self.first_fit(len))
    }

    /// Takes an extent that was found in use; false when it lies outside or some of it is taken.
    pub(super) fn reserve(&mut self, extent: Extent) -> bool {
        let Some(end) = extent.base.checked_add(extent.len).filter(|_| extent.len > 0) else { return false };
        let Some((&base, &len)) = self.free.range(..=extent.base).next_back() else { return false };
        if base + len < end {
            return false;
        }
        self.free.remove(&base);
        self.put(base, extent.base - base);
        self.put(end, base + len - end);
        true
    }

    /// The extent is free again.
    pub(super) fn give_back(&mut self, extent: Extent) {
        let Extent { mut base, mut len } = extent;
        if let Some((&before, &length)) = self.free.range(..base).next_back() {
            debug_assert!(before + length <= base, "slots from {base} were given back twice");
            if before + length == base {
                self.free.remove(&before);
                base = before;
                len += length;
            }
        }
        if let Some(after) = self.free.remove(&(base + len)) {
            len += after;
        }
        self.put(base, len);
    }

    fn first_fit(&mut self, len: u32) -> Option<Extent> {
        let (base, length) = self.free.iter().map(|(&b, &l)| (b, l)).find(|&(_, l)| l >= len)?;
        self.free.remove(&base);
        self.put(base + len, length - len);
        Some(Extent { base, len })
    }

    fn put(&mut self, base: u32, len: u32) {
        if len > 0 {
            self.free.insert(base, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_rounded_up_while_there_is_room() {
        let mut extents = Extents::new(8);
        assert_eq!(extents.take(3), Some(Extent { base: 0, len: 4 }));
        assert_eq!(extents.take(1), Some(Extent { base: 4, len: 1 }));
        assert_eq!(extents.take(3), Some(Extent { base: 5, len: 3 }), "the exact length is the last resort");
        assert_eq!(extents.take(1), None);
    }

    #[test]
    fn large_tables_are_not_rounded() {
        let mut extents = Extents::new(131_074);
        assert_eq!(extents.take(65_537), Some(Extent { base: 0, len: 65_537 }));
        assert_eq!(extents.take(65_537), Some(Extent { base: 65_537, len: 65_537 }));
    }

    #[test]
    fn a_reserved_extent_is_not_given_out() {
        let mut extents = Extents::new(16);
        assert!(extents.reserve(Extent { base: 3, len: 5 }));
        assert!(!extents.reserve(Extent { base: 7, len: 2 }), "overlap");
        assert!(!extents.reserve(Extent { base: 15, len: 2 }), "beyond the end");
        assert!(!extents.reserve(Extent { base: u32::MAX, len: 2 }), "beyond all numbers");
        assert_eq!(extents.take(4), Some(Extent { base: 8, len: 4 }));
        assert_eq!(extents.take(2), Some(Extent { base: 0, len: 2 }));
    }

    #[test]
    fn an_array_without_slots_gives_nothing() {
        assert_eq!(Extents::new(0).take(1), None);
    }

    proptest! {
        #[test]
        fn extents_never_overlap_and_all_space_comes_back(steps in prop::collection::vec((any::<bool>(), 1u32..40), 1..200)) {
            let mut extents = Extents::new(256);
            let mut taken: Vec<Extent> = Vec::new();
            for (take, number) in steps {
                if take {
                    if let Some(extent) = extents.take(number) {
                        prop_assert!(extent.len >= number && extent.base + extent.len <= 256);
                        prop_assert!(taken.iter().all(|t| t.base + t.len <= extent.base || extent.base + extent.len <= t.base));
                        taken.push(extent);
                    }
                } else if !taken.is_empty() {
                    extents.give_back(taken.swap_remove(number as usize % taken.len()));
                }
            }
            for extent in taken {
                extents.give_back(extent);
            }
            prop_assert_eq!(extents.free, BTreeMap::from([(0, 256)]));
        }
    }
}
