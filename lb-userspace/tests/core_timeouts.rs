//! Timeouts of a service reach the maps, and change there without touching its flows.

mod core_support;

use core_support::{A, B, World, config, full_nat, service, web};
use lb_common::flow::{State, Timeouts};
use lb_userspace::config::Config;
use lb_userspace::core::OperatorLayer;
use lb_userspace::dataplane::Dataplane;

const SHORT: Timeouts = [0, 75, 8, 9, 10, 11, 12, 13];

fn with(timeouts: Timeouts, mut config: Config) -> Config {
    config.services[0].timeouts = timeouts;
    config
}

fn published(world: &mut World) -> Timeouts {
    world.dataplane.read().unwrap().service_info[&0].timeouts
}

#[test]
fn a_reload_changes_the_timeouts_and_nothing_else() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    assert_eq!(published(&mut world), State::TIMEOUTS);
    let before = world.dataplane.read().unwrap();
    world.ops();
    world.configure(with(SHORT, web(&[A, B])));
    assert_eq!(world.ops(), ["SetGeneration", "SetServiceInfo"]);
    assert_eq!(published(&mut world), SHORT);
    let after = world.dataplane.read().unwrap();
    assert_eq!((after.services, after.backends, after.selection), (before.services, before.backends, before.selection));
    world.configure(web(&[A, B]));
    assert_eq!(published(&mut world), State::TIMEOUTS, "left out again, they are as always");
}

#[test]
fn a_restart_takes_over_the_timeouts_of_its_configuration() {
    let mut world = World::new(with(SHORT, full_nat(&[A])));
    world.route_all();
    world.all_up();
    world.ops();
    world.restart(with(SHORT, full_nat(&[A])), OperatorLayer::default());
    assert!(world.ops().is_empty());
    world.restart(full_nat(&[A]), OperatorLayer::default());
    assert_eq!(published(&mut world), State::TIMEOUTS);
}

#[test]
fn a_service_that_leaves_keeps_its_timeouts_until_its_flows_are_over() {
    let mut world = World::new(with(SHORT, web(&[A])));
    world.all_up();
    let a = world.id("web", A);
    world.configure(config(vec![service("other", "203.0.113.2:80", &[B])]));
    world.walk(&[(a, 1)], 2);
    assert_eq!(published(&mut world), SHORT);
    world.restart(config(vec![service("other", "203.0.113.2:80", &[B])]), OperatorLayer::default());
    assert_eq!(published(&mut world), SHORT, "also over a restart of the agent");
    world.walk(&[], 3);
    assert!(!world.dataplane.read().unwrap().service_info.contains_key(&0));
}
