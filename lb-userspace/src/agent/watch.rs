//! Watches the counters whose rise an operator should hear about, without shouting.

use std::{collections::BTreeMap, time::Duration};

use lb_common::verdict::Reason;

use crate::core::Now;

/// Between two warnings about the same thing.
const PAUSE: Duration = Duration::from_secs(30);

/// What is watched, and what to do about it.
const WATCHED: &[(Reason, &str)] = &[
    (Reason::TableFull, "packets found no place in the flow table: raise `limits.flows` and restart with `lb detach` before"),
    (Reason::Evicted, "live flows gave way in a full flow table: raise `limits.flows` and restart with `lb detach` before"),
    (Reason::PortsExhausted, "packets found no free source port towards any backend: add backends or widen `source-ports`"),
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

/// Lets one warning per key through in each pause.
#[derive(Clone, Debug, Default)]
pub struct Pauses<K> {
    last: BTreeMap<K, Now>,
}

impl<K: Ord> Pauses<K> {
    pub fn allow(&mut self, key: K, now: Now) -> bool {
        self.last.retain(|_, at| now.saturating_sub(*at) < PAUSE);
        if self.last.contains_key(&key) {
            return false;
        }
        self.last.insert(key, now);
        true
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
    fn each_key_has_its_own_pause() {
        let mut pauses = Pauses::default();
        let at = Duration::from_secs;
        assert!(pauses.allow("a", at(0)) && pauses.allow("b", at(1)));
        assert!(!pauses.allow("a", at(29)));
        assert!(pauses.allow("a", at(30)));
    }
}
