//! How many open flows each backend has, as the data path's schedulers see it: counted there flow by
//! flow, and mended here by what a walk over the flow table finds.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicI64, Ordering},
};

use lb_common::abi::{Flow, names};

use super::{maps::open_shared, mmap::SharedArray, pins::Pins};
use crate::dataplane::DataplaneError;

/// The map `backend_load`, by backend id.
pub(super) struct Loads(SharedArray<i64>);

/// The loads at one moment, by backend id.
pub(super) struct Snapshot(Vec<i64>);

impl Loads {
    pub fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        open_shared(pins, names::BACKEND_LOAD).map(Self)
    }

    /// Open flows of a backend; `None` beyond the end.
    pub fn of(&self, id: u32) -> Option<i64> {
        self.load(id).map(|load| load.load(Ordering::Relaxed))
    }

    /// Takes away a flow that ended here, if its beginning was counted.
    pub fn ended(&self, flow: &Flow) {
        if flow.flags & Flow::COUNTED != 0
            && let Some(load) = self.load(flow.backend_id)
        {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The id goes to another backend, which has no flows yet.
    pub fn reset(&self, id: u32) {
        if let Some(load) = self.load(id) {
            load.store(0, Ordering::Relaxed);
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot((0..self.0.len()).filter_map(|id| self.of(id)).collect())
    }

    /// Brings every load to the open flows that a walk has found, by backend. `before` was taken when
    /// the walk began.
    ///
    /// Flows begin and end during the walk. A count between the load before and the load after it is
    /// as good as either, and nothing changes; otherwise the load is moved by what the count differs
    /// from the nearer of the two. By an addition: what the data path counts meanwhile is not lost.
    /// An error of one walk is gone after the next.
    pub fn mend(&self, before: &Snapshot, found: &BTreeMap<u32, i64>) {
        for (id, &before) in (0..).zip(&before.0) {
            let Some(load) = self.load(id) else { return };
            let counted = found.get(&id).copied().unwrap_or(0);
            let change = drift(before, load.load(Ordering::Relaxed), counted);
            if change != 0 {
                load.fetch_add(change, Ordering::Relaxed);
            }
        }
    }

    fn load(&self, id: u32) -> Option<&AtomicI64> {
        let word = self.0.words(id)?.first()?;
        // SAFETY: both types are eight aligned bytes that every thread reaches by atomic operations.
        Some(unsafe { &*std::ptr::from_ref(word).cast::<AtomicI64>() })
    }
}

/// What has to be added to a load that went from `before` to `after` while `counted` flows were found.
fn drift(before: i64, after: i64, counted: i64) -> i64 {
    let (low, high) = (before.min(after), before.max(after));
    counted - counted.clamp(low, high)
}

#[cfg(test)]
mod tests {
    use super::drift;

    #[test]
    fn a_count_between_both_ends_of_the_walk_changes_nothing() {
        assert_eq!(drift(5, 9, 7), 0);
        assert_eq!(drift(9, 5, 5), 0);
        assert_eq!(drift(3, 3, 3), 0);
    }

    #[test]
    fn a_count_outside_moves_the_load_to_the_nearer_end() {
        assert_eq!(drift(5, 9, 12), 3);
        assert_eq!(drift(5, 9, 0), -5);
        assert_eq!(drift(-2, -1, 0), 1);
        assert_eq!(drift(0, 0, 40), 40);
    }
}
