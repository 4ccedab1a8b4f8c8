//! Changes are really seen in the maps, and told with what they cost. Nothing here asserts a time.

use std::collections::BTreeSet;

use lb_bench::control::{ControlEffort, control};
use xtask::build::{self, Profile};

#[test]
fn every_change_is_seen_in_the_maps_and_takes_system_calls() {
    let program = build::lb(Profile::Dev).unwrap_or_else(|error| panic!("{error:#}"));
    let results = control(ControlEffort::LEAST, &program, &|_| {}).unwrap_or_else(|error| panic!("{error:#}"));
    let names: BTreeSet<&str> = results.iter().map(|result| result.name.as_str()).collect();
    assert_eq!((names.len(), results.len()), (10, 10), "{results:?}");
    for result in &results {
        assert!(result.samples == 1 && result.median_ms >= 0.0 && result.memory_mib > 1.0, "{result:?}");
        assert!(result.syscalls > 0, "{result:?}");
    }
}
