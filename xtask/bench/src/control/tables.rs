//! Maglev tables by themselves: how long one takes to make, and how much of it changes when a backend leaves.

use std::{collections::BTreeMap, hint::black_box, net::SocketAddr, time::Instant};

use lb_userspace::core::maglev::{Turn, table};

use crate::{result::TableResult, statistics::Spread};

/// The default of `maglev-table-size`.
const SLOTS: u32 = 65_537;
/// Backends, and the largest weight; the others have weights from 1 to it.
const TABLES: [(u32, u16); 5] = [(3, 1), (10, 1), (100, 1), (1000, 1), (1000, 1000)];
/// How many leave, each alone.
const LEAVERS: usize = 20;

/// Makes each table so many times, at least once.
pub fn tables(rounds: usize) -> Vec<TableResult> {
    TABLES.iter().filter_map(|&(backends, heaviest)| measure(backends, heaviest, rounds)).collect()
}

fn measure(backends: u32, heaviest: u16, rounds: usize) -> Option<TableResult> {
    let turns: Vec<Turn> = (0..backends).map(|n| turn(n, (n * 37 % u32::from(heaviest)) as u16 + 1)).collect();
    let mut millis = Vec::new();
    for _ in 0..rounds.max(1) {
        let began = Instant::now();
        black_box(table(black_box(&turns), SLOTS));
        millis.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let Spread { median, min, max } = Spread::of(&millis)?;
    let before = table(&turns, SLOTS);
    let leavers = (0..turns.len()).step_by((turns.len() / LEAVERS).max(1));
    let changes: Vec<Change> = leavers.map(|leaver| change(&turns, &before, leaver)).collect();
    let mean = |share: fn(&Change) -> f64| changes.iter().map(share).sum::<f64>() / changes.len() as f64 * 100.0;
    Some(TableResult {
        backends,
        heaviest,
        slots: before.len() as u32,
        build_ms: median,
        build_min_ms: min,
        build_max_ms: max,
        changed_percent: mean(|change| change.changed),
        least_percent: mean(|change| change.owned),
        off_percent: furthest(&before, &turns),
    })
}

/// Shares of the slots (0 to 1) when a backend leaves: that change, and that were its own.
struct Change {
    changed: f64,
    owned: f64,
}

fn change(turns: &[Turn], before: &[u32], leaver: usize) -> Change {
    let mut others = turns.to_vec();
    let gone = others.remove(leaver).id;
    let after = table(&others, SLOTS);
    let changed = before.iter().zip(&after).filter(|(old, new)| old != new).count();
    let owned = before.iter().filter(|id| **id == gone).count();
    let share = |slots: usize| slots as f64 / before.len() as f64;
    Change { changed: share(changed), owned: share(owned) }
}

/// How far the number of slots of a backend is from what its weight says, at most: in percent of that.
fn furthest(table: &[u32], turns: &[Turn]) -> f64 {
    let mut slots: BTreeMap<u32, u32> = BTreeMap::new();
    table.iter().for_each(|id| *slots.entry(*id).or_default() += 1);
    let sum: f64 = turns.iter().map(|turn| f64::from(turn.weight)).sum();
    let off = |turn: &Turn| {
        let fair = table.len() as f64 * f64::from(turn.weight) / sum;
        let has = f64::from(slots.get(&turn.id).copied().unwrap_or(0));
        // One slot more or less is what whole slots cannot avoid.
        ((has - fair).abs() - 1.0).max(0.0) / fair * 100.0
    };
    turns.iter().map(off).fold(0.0, f64::max)
}

fn turn(n: u32, weight: u16) -> Turn {
    let [_, _, c, d] = n.to_be_bytes();
    Turn { address: SocketAddr::from(([10, 0, c, d], 8080)), id: n, weight }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_changes_its_own_slots_and_few_others() {
        let results = tables(5);
        println!("{}", crate::table::tables(&results));
        for result in &results {
            assert!(result.slots == SLOTS && result.build_ms > 0.0, "{result:?}");
            assert!(result.changed_percent >= result.least_percent, "{result:?}");
            assert!(result.changed_percent < result.least_percent * 1.5 + 1.0, "{result:?}");
        }
        let equal = results.iter().find(|result| result.backends == 10).unwrap();
        assert!((equal.least_percent - 10.0).abs() < 0.01 && equal.off_percent == 0.0, "{equal:?}");
    }
}
