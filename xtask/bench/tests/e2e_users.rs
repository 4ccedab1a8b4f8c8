//! Live frames and users' load really go through what they are said to go through. Nothing here
//! asserts a time.

use std::collections::BTreeSet;

use lb_bench::{
    packets::{DRIVER_ROWS, DriverEffort, driver},
    users::{UserEffort, users},
};
use lb_common::abi::Mode;
use xtask::build::{self, Profile};

#[test]
fn live_frames_come_back_from_ours_the_textbook_and_the_floor() {
    for row in [DRIVER_ROWS[0], DRIVER_ROWS[3]] {
        let results = driver(&[row], DriverEffort::LEAST, &|_| {}).unwrap_or_else(|error| panic!("{error:#}"));
        assert_eq!(results.len(), 3, "{results:?}");
        for result in &results {
            assert!(result.delivered_percent > 99.0 && result.delivered_percent <= 100.0, "{result:?}");
            assert!(result.median_ns > 0.0, "{result:?}");
        }
    }
}

#[test]
fn every_balancer_answers_every_request_and_forwards_udp() {
    let program = build::lb(Profile::Dev).unwrap_or_else(|error| panic!("{error:#}"));
    let results = users(&program, UserEffort::LEAST, &|_| true).unwrap_or_else(|error| panic!("{error:#}"));
    let of = |load: &str| -> BTreeSet<String> {
        results.iter().filter(|result| result.load == load).map(|result| result.balancer.clone()).collect()
    };
    let modes: BTreeSet<String> = Mode::ALL.iter().map(|mode| mode.name().to_owned()).collect();
    let with = |others: &[&str]| -> BTreeSet<String> {
        modes.iter().cloned().chain(others.iter().map(|&name| name.to_owned())).collect()
    };
    for load in ["connections", "keep-alive", "large answers"] {
        assert_eq!(
            of(load),
            with(&["direct", "kernel routes", "xdp redirect", "nftables", "haproxy", "nginx"]),
            "{load}"
        );
    }
    for load in ["udp 1000", "udp 50000"] {
        assert_eq!(of(load), with(&["direct", "kernel routes", "xdp redirect", "nftables"]), "{load}");
    }
    for result in results.iter().filter(|result| !result.load.starts_with("udp")) {
        assert_eq!(result.failed, 0, "{result:?}");
        assert!(result.per_second > 0.0 && result.cpu_us > 0.0, "{result:?}");
    }
}
