//! Watches the counters whose rise an operator should hear about, without shouting.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::verdict::Reason;

use crate::core::Now;

/// Between two warnings about the same thing.
pub const PAUSE: Duration = Duration::from_secs(30);

/// What is watched, and what to do about it.
const WATCHED: &[(Reason, &str)] = &[
    (
        Reason::TableFull,
        "packets found no place in the flow table: raise `limits.flows` and restart with `lb detach` before",
    ),
    (
        Reason::Evicted,
        "live flows gave way in a full flow table: raise `limits.flows` and restart with `lb detach` before",
    ),
    (
        Reason::PortsExhausted,
        "packets found no free source port towards any backend: add backends or widen `source-ports`",
    ),
    (Reason::NeighbourMissing, "packets had a next hop without link-layer address: it does not answer ARP or ND yet"),
];

#[derive(Clone, Debug, Default)]
pub struct CounterWatch {
    told: BTreeMap<Reason, Told>,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    count: u64,
    at: Option<Now>,
}

impl CounterWatch {
    /// Warnings that the packet counts of `verdicts` call for. The first look only takes note.
    pub fn look(&mut self, verdicts: &BTreeMap<Reason, u64>, now: Now) -> Vec<String> {
        let mut warnings = Vec::new();
        for (reason, advice) in WATCHED {
            let Some(&count) = verdicts.get(reason) else { continue };
            let told = self.told.entry(*reason).or_insert(Told { count, at: None });
            // Counters that fell belong to new maps.
            told.count = told.count.min(count);
            let quiet = told.at.is_some_and(|at| now.saturating_sub(at) < PAUSE);
            if count > told.count && !quiet {
                warnings.push(format!("{}: {} {advice}", reason.name(), count - told.count));
                *told = Told { count, at: Some(now) };
            }
        }
        warnings
    }
}

/// Lets each key through once in a period, and no more keys than it can remember.
#[derive(Clone, Debug)]
pub struct Once<K> {
    period: Duration,
    began: Now,
    seen: BTreeSet<K>,
}

impl<K: Ord> Once<K> {
    const REMEMBERED: usize = 4096;

    pub fn in_each(period: Duration) -> Self {
        Self { period, began: Duration::ZERO, seen: BTreeSet::new() }
    }

    pub fn allow(&mut self, key: K, now: Now) -> bool {
        if now.saturating_sub(self.began) >= self.period {
            self.began = now;
            self.seen.clear();
        }
        self.seen.len() < Self::REMEMBERED && self.seen.insert(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(watch: &mut CounterWatch, full: u64, at: u64) -> Vec<String> {
        watch.look(&[(Reason::TableFull, full), (Reason::ToBackend, at)].into(), Duration::from_secs(at))
    }

    #[test]
    fn a_rise_is_told_once_and_then_summed_up_after_a_pause() {
        let mut watch = CounterWatch::default();
        assert!(look(&mut watch, 5, 0).is_empty(), "what was there before is no news");
        assert!(look(&mut watch, 5, 1).is_empty());
        assert!(look(&mut watch, 7, 2)[0].starts_with("table_full: 2 packets"));
        assert!(look(&mut watch, 9, 3).is_empty());
        assert!(look(&mut watch, 19, 40)[0].starts_with("table_full: 12 packets"));
    }

    #[test]
    fn counters_of_new_maps_start_over() {
        let mut watch = CounterWatch::default();
        look(&mut watch, 100, 0);
        assert!(look(&mut watch, 3, 1).is_empty());
        assert!(look(&mut watch, 4, 2)[0].starts_with("table_full: 1 "));
    }

    #[test]
    fn each_key_passes_once_in_a_period() {
        let mut once = Once::in_each(Duration::from_secs(30));
        let at = Duration::from_secs;
        assert!(once.allow(1, at(1)) && once.allow(2, at(2)));
        assert!(!once.allow(1, at(29)));
        assert!(once.allow(1, at(30)));
    }

    #[test]
    fn a_flood_of_keys_is_bounded() {
        let mut once = Once::in_each(Duration::from_secs(1));
        let passed = (0..10_000).filter(|key| once.allow(*key, Duration::ZERO)).count();
        assert_eq!(passed, Once::<i32>::REMEMBERED);
    }
}
