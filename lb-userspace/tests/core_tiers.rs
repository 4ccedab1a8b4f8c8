//! Backups that step in one by one, backends that are held back after they have returned, and shares that
//! grow.

mod core_support;

use std::{collections::BTreeMap, time::Duration};

use core_support::{A, B, C, World, backend, ok, refused, tiers, web};
use lb_common::abi::Scheduler;
use lb_userspace::{
    config::Config,
    core::{Input, OperatorLayer},
};

const D: &str = "10.0.0.4:80";

/// A and B in tier 0, C in tier 1, D in tier 2, at least two of them ready.
fn two_of_four() -> Config {
    let mut config = tiers();
    config.services[0].backends.push(backend(D, 1, 2));
    config.services[0].failover.min_ready = 2;
    config
}

#[test]
fn as_many_backups_step_in_as_are_missing() {
    let mut world = World::new(two_of_four());
    world.all_up();
    assert_eq!(world.turns("web"), [A, B]);
    world.probe(A, &refused(), 2);
    assert_eq!(world.turns("web"), [B, C]);
    assert_eq!(world.core.service("web").unwrap().active_tier, Some(0));
    assert_eq!(world.backend("web", C).used_reason, "steps in for tier 0: `min-ready`");
    world.probe(B, &refused(), 2);
    assert_eq!(world.turns("web"), [C, D]);
    assert_eq!(world.core.service("web").unwrap().active_tier, Some(1));
    world.probe(C, &refused(), 2);
    assert_eq!(world.turns("web"), [D], "one is better than none");
    world.probe(A, &ok(), 2);
    assert_eq!(world.turns("web"), [A, D]);
    world.probe(B, &ok(), 2);
    assert_eq!(world.turns("web"), [A, B]);
}

#[test]
fn a_backend_that_returns_is_held_back_while_a_later_tier_serves() {
    let mut config = tiers();
    config.services[0].failover.failback_delay = Duration::from_secs(10);
    let mut world = World::new(config.clone());
    world.all_up();
    assert_eq!(world.turns("web"), [A, B], "at the start nobody waits");
    world.probe(A, &refused(), 2);
    world.probe(B, &refused(), 2);
    assert_eq!(world.turns("web"), [C]);
    world.now = Duration::from_secs(100);
    world.probe(A, &ok(), 2);
    assert_eq!(world.turns("web"), [C]);
    assert_eq!(world.backend("web", A).used_reason, "held back until it has been up for `failback-delay`");
    assert_eq!(world.core.wake_at(), Some(Duration::from_secs(110)));
    // It goes again: the time begins anew.
    world.now = Duration::from_secs(105);
    world.probe(A, &refused(), 2);
    world.probe(A, &ok(), 2);
    world.now = Duration::from_secs(112);
    world.input(Input::Tick);
    assert_eq!(world.turns("web"), [C]);
    world.now = Duration::from_secs(115);
    world.input(Input::Tick);
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.core.wake_at(), None);
    world.probe(B, &ok(), 2);
    assert_eq!(world.turns("web"), [A, B], "no later tier serves: at once");
}

#[test]
fn without_anybody_else_a_backend_that_returns_serves_at_once() {
    let mut config = tiers();
    config.services[0].failover.failback_delay = Duration::from_secs(10);
    let mut world = World::new(config.clone());
    world.all_up();
    for address in [A, B] {
        world.probe(address, &refused(), 2);
    }
    world.probe(A, &ok(), 2);
    assert_eq!(world.turns("web"), [C]);
    world.probe(C, &refused(), 2);
    assert_eq!(world.turns("web"), [A]);
    // Also after a restart, which finds B down and C down.
    world.restart(config, OperatorLayer::default());
    assert_eq!(world.turns("web"), [A]);
}

/// Slots by backend.
fn shares(world: &World) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    world.turns("web").into_iter().for_each(|address| *shares.entry(address).or_default() += 1);
    shares
}

fn slow(scheduler: Scheduler, weight: u16) -> Config {
    let mut config = web(&[]);
    config.services[0].backends = vec![backend(A, weight, 0), backend(B, weight, 0)];
    config.services[0].scheduler = scheduler;
    config.services[0].failover.slow_start = Duration::from_secs(30);
    config
}

#[test]
fn the_share_of_a_backend_that_has_come_back_grows_in_four_steps() {
    let mut world = World::new(slow(Scheduler::WeightedRoundRobin, 1));
    world.all_up();
    assert_eq!(shares(&world)[A], shares(&world)[B], "at the start all have theirs");
    world.now = Duration::from_secs(100);
    world.probe(A, &refused(), 2);
    world.probe(A, &ok(), 2);
    let mut seen = Vec::new();
    let mut writes = Vec::new();
    loop {
        let shares = shares(&world);
        seen.push((world.now.as_secs(), shares[A] * 4 / shares[B]));
        let Some(due) = world.core.wake_at() else { break };
        world.now = due;
        world.ops();
        world.input(Input::Tick);
        writes.push(world.ops().len());
    }
    assert_eq!(seen, [(100, 1), (110, 2), (120, 3), (130, 4)]);
    assert!(writes.iter().all(|writes| *writes <= 4), "a backend, a table, a service, a generation: {writes:?}");
}

#[test]
fn maglev_and_loads_follow_the_growing_share_too() {
    let mut world = World::new(slow(Scheduler::Maglev, 1));
    world.all_up();
    world.probe(A, &refused(), 2);
    world.probe(A, &ok(), 2);
    let share = shares(&world)[A] as f64 / 251.0;
    assert!((share - 0.2).abs() < 0.02, "{share}");

    let mut world = World::new(slow(Scheduler::LeastConnections, 100));
    world.all_up();
    world.probe(A, &refused(), 2);
    world.probe(A, &ok(), 2);
    let weight = |world: &World, address| world.dataplane.backend(world.id("web", address)).unwrap().weight;
    assert_eq!((weight(&world, A), weight(&world, B)), (25, 100));
    world.now = Duration::from_secs(30);
    world.input(Input::Tick);
    assert_eq!((weight(&world, A), weight(&world, B)), (100, 100));
}

#[test]
fn where_all_come_back_together_nobody_waits() {
    let mut world = World::new(slow(Scheduler::WeightedRoundRobin, 1));
    world.all_up();
    for outcome in [refused(), ok()] {
        world.probe(A, &outcome, 2);
        world.probe(B, &outcome, 2);
    }
    assert_eq!(shares(&world)[A], shares(&world)[B]);
}
