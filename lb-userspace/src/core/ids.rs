//! Ids: dense, smallest free first.

use std::collections::BTreeSet;

/// Numbers from 0 to a limit, each given to one owner at a time.
#[derive(Clone, Debug)]
pub(super) struct Ids {
    limit: u32,
    /// Every id from here on was never given out.
    unused: u32,
    /// Ids below `unused` that nobody has.
    free: BTreeSet<u32>,
}

impl Ids {
    /// Ids `0..limit`.
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, unused: 0, free: BTreeSet::new() }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether [`Ids::take`] would find one.
    pub(super) fn available(&self) -> bool {
        !self.free.is_empty() || self.unused < self.limit
    }

    /// The smallest free id; `None` when all are given out.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop_first() {
            return Some(id);
        }
        (self.unused < self.limit).then(|| {
            self.unused += 1;
            self.unused - 1
        })
    }

    /// Marks an id as given out that was found in use; false when somebody has it already. An id
    /// beyond the limit is accepted: the maps evidently have room for it.
    pub(super) fn reserve(&mut self, id: u32) -> bool {
        if id < self.unused {
            return self.free.remove(&id);
        }
        self.free.extend(self.unused..id);
        self.unused = id + 1;
        self.limit = self.limit.max(self.unused);
        true
    }

    /// The id is nobody's again.
    pub(super) fn give_back(&mut self, id: u32) {
        debug_assert!(id < self.unused && !self.free.contains(&id), "id {id} was given back twice");
        self.free.insert(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_free_id_comes_first() {
        let mut ids = Ids::new(4);
        assert_eq!([ids.take(), ids.take(), ids.take()], [Some(0), Some(1), Some(2)]);
        ids.give_back(1);
        ids.give_back(0);
        assert_eq!([ids.take(), ids.take(), ids.take(), ids.take()], [Some(0), Some(1), Some(3), None]);
        assert!(!ids.available());
    }

    #[test]
    fn reserved_ids_are_not_given_out() {
        let mut ids = Ids::new(4);
        assert!(ids.reserve(2));
        assert!(!ids.reserve(2));
        assert!(ids.reserve(0));
        assert_eq!([ids.take(), ids.take(), ids.take()], [Some(1), Some(3), None]);
    }

    #[test]
    fn an_id_found_beyond_the_limit_raises_it() {
        let mut ids = Ids::new(2);
        assert!(ids.reserve(5));
        assert_eq!(ids.limit(), 6);
        assert_eq!(ids.take(), Some(0));
    }
}
