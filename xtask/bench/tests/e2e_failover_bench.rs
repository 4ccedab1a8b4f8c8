//! Balancers really lose a backend and get it back. Nothing here asserts how fast.

use lb_bench::failover::{FailoverEffort, failover, probes};

#[test]
fn every_balancer_meets_every_fault_and_only_ours_writes_receipts() {
    let rows = failover(FailoverEffort::LEAST, None, &|line| println!("{line}")).unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(rows.len(), FailoverEffort::LEAST.peers.len() * FailoverEffort::LEAST.faults.len());
    for row in &rows {
        // 200 a second, most of them while the fault lasts: a machine that stands still makes them fewer.
        assert!(row.attempts > 100, "{row:?}");
        assert_eq!(row.receipt.is_some(), row.peer == "full-nat", "{row:?}");
        if row.peer == "full-nat" {
            assert!(row.receipt == Some(true) && row.rescued > Some(0), "{row:?}");
        }
        if row.peer == "nftables" {
            assert!(row.failed * 8 > row.attempts, "without checks every fourth fails while it lasts: {row:?}");
        }
    }
}

#[test]
fn every_target_is_probed_in_both_halves() {
    let rows = probes(FailoverEffort::LEAST.probes).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(rows.iter().map(|row| row.hanging).collect::<Vec<_>>(), [0, 500]);
    for row in &rows {
        assert!(row.cpu_percent > 0.0 && row.per_second > 0.0, "{row:?}");
        assert!(row.error_p50_ms <= row.error_p99_ms && row.error_p99_ms <= row.error_worst_ms, "{row:?}");
    }
}
