//! What has changed since an earlier run. Machines and moments differ: rows are compared by their
//! ratio to the floor that was measured in the same rounds.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::{
    packets::ProgramSize,
    result::{Results, RowResult},
};

/// Less than this is noise, whatever it is in percent.
const NOISE_NS: f64 = 3.0;

/// One row then and now.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub name: String,
    /// Cost over the floor's, both with the harness.
    pub before: f64,
    pub now: f64,
    /// By which the ratio has grown.
    pub percent: f64,
    pub worse: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    pub changes: Vec<Change>,
    /// Rows of the earlier run that were not measured now.
    pub missing: Vec<String>,
    pub program: Option<(ProgramSize, ProgramSize)>,
}

/// Compares rows by name; worse is what has grown by more than `threshold` percent.
pub fn compare(before: &Results, now: &Results, threshold: f64) -> Comparison {
    let earlier: BTreeMap<_, _> = before.rows.iter().map(|row| (row.name.as_str(), row)).collect();
    let measured: BTreeMap<_, _> = now.rows.iter().map(|row| (row.name.as_str(), row)).collect();
    Comparison {
        changes: now.rows.iter().filter_map(|row| change(earlier.get(row.name.as_str())?, row, threshold)).collect(),
        missing: earlier.keys().filter(|name| !measured.contains_key(*name)).map(|&name| name.to_owned()).collect(),
        program: before.program.zip(now.program),
    }
}

fn change(before: &RowResult, now: &RowResult, threshold: f64) -> Option<Change> {
    let ratio = |row: &RowResult| (row.floor_ns > 0.0).then_some(row.median_ns / row.floor_ns);
    let (was, is) = (ratio(before)?, ratio(now)?);
    let percent = (is / was - 1.0) * 100.0;
    // In nanoseconds of this run's floor, since the other's may have been another machine's.
    let grown = (is - was) * now.floor_ns;
    Some(Change {
        name: now.name.clone(),
        before: was,
        now: is,
        percent,
        worse: percent > threshold && grown > NOISE_NS,
    })
}

impl Comparison {
    pub fn is_worse(&self) -> bool {
        self.changes.iter().any(|change| change.worse)
    }

    /// In words, the greatest growth first.
    pub fn report(&self) -> String {
        let mut changes: Vec<_> = self.changes.iter().collect();
        changes.sort_by(|a, b| b.percent.total_cmp(&a.percent));
        let mut text = format!("{:<44} {:>8} {:>8} {:>8}\n", "RATIO TO THE FLOOR", "BEFORE", "NOW", "CHANGE");
        for change in changes {
            let Change { name, before, now, percent, worse } = change;
            let mark = if *worse { "  WORSE" } else { "" };
            let _ = writeln!(text, "{name:<44} {before:>8.2} {now:>8.2} {percent:>+7.1}%{mark}");
        }
        if let Some((before, now)) = self.program {
            for (what, before, now) in [
                ("instructions", before.xlated_bytes / 8, now.xlated_bytes / 8),
                ("bytes of machine code", before.jited_bytes, now.jited_bytes),
                ("instructions that the verifier walks", before.verified, now.verified),
            ] {
                let _ = writeln!(text, "{what:<44} {before:>8} {now:>8}");
            }
        }
        if !self.missing.is_empty() {
            let _ = writeln!(text, "not measured now: {} rows of the earlier run", self.missing.len());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(rows: &[(&str, f64, f64)]) -> Results {
        let row = |&(name, median_ns, floor_ns): &(&str, f64, f64)| RowResult {
            name: name.to_owned(),
            median_ns,
            floor_ns,
            ..RowResult::default()
        };
        Results { rows: rows.iter().map(row).collect(), ..Results::default() }
    }

    #[test]
    fn a_slower_machine_is_no_regression() {
        let comparison = compare(&results(&[("a", 100.0, 10.0)]), &results(&[("a", 200.0, 20.0)]), 5.0);
        assert!(!comparison.is_worse());
        assert_eq!(comparison.changes[0].percent, 0.0);
    }

    #[test]
    fn growth_beyond_the_threshold_is_worse_and_named() {
        let (before, now) = (results(&[("a", 100.0, 10.0)]), results(&[("a", 112.0, 10.0)]));
        let comparison = compare(&before, &now, 10.0);
        assert!(comparison.is_worse());
        assert!(comparison.report().contains("+12.0%  WORSE"), "{}", comparison.report());
        assert!(!compare(&before, &now, 15.0).is_worse());
    }

    #[test]
    fn a_nanosecond_is_noise_whatever_it_is_in_percent() {
        assert!(!compare(&results(&[("arp", 10.0, 10.0)]), &results(&[("arp", 12.5, 10.0)]), 10.0).is_worse());
    }

    #[test]
    fn rows_without_a_counterpart_are_told_and_not_compared() {
        let comparison = compare(&results(&[("a", 1.0, 1.0), ("b", 1.0, 1.0)]), &results(&[("b", 1.0, 1.0)]), 10.0);
        assert_eq!((comparison.changes.len(), comparison.missing), (1, vec!["a".to_owned()]));
    }
}
