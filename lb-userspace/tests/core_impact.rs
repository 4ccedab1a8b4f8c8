//! What a change would do, told before it is done.

mod core_support;

use std::{net::SocketAddr, sync::Arc};

use core_support::{A, B, C, World, backend, drain, full_nat, ok, service, tiers, web};
use lb_common::abi::{Mode, Scheduler};
use lb_userspace::{
    config::Config,
    core::{BackendImpact, FlowImpact, Impact, OperatorLayer, Presence},
};

fn impact(world: &World, config: Config) -> Impact {
    world.core.impact(Arc::new(config), world.core.operator_layer().clone(), world.now)
}

fn of<'a>(impact: &'a Impact, address: &str) -> &'a BackendImpact {
    let address: SocketAddr = address.parse().unwrap();
    impact.services[0].backends.iter().find(|backend| backend.address == address).unwrap()
}

/// Everything up, and flows of the first two backends.
fn busy(config: Config, flows: (u64, u64)) -> World {
    let mut world = World::new(config);
    world.route_all();
    world.all_up();
    let ids = (world.id("web", A), world.id("web", B));
    world.walk(&[(ids.0, flows.0), (ids.1, flows.1)], 1);
    world
}

#[test]
fn a_change_of_nothing_is_nothing() {
    let world = busy(web(&[A, B]), (7, 5));
    let impact = impact(&world, web(&[A, B]));
    assert!(impact.is_nothing());
    assert_eq!(impact.flows, FlowImpact { kept: 12, drained: 0, rehomed: 0, reset: 0 });
}

#[test]
fn a_backend_that_goes_drains_and_a_new_one_is_supposed_to_come_up() {
    let world = busy(web(&[A, B]), (7, 5));
    let generation = world.core.desired().generation;
    let told = impact(&world, web(&[A, C]));
    assert_eq!(told.flows, FlowImpact { kept: 7, drained: 5, rehomed: 0, reset: 0 });
    let web = &told.services[0];
    assert_eq!((web.presence, web.moved, web.flows.drained), (Presence::Same, 0.5, 5));
    assert_eq!((of(&told, B).presence, of(&told, B).share), (Presence::Removed, (0.5, 0.0)));
    assert_eq!((of(&told, C).presence, of(&told, C).share), (Presence::Added, (0.0, 0.5)));
    assert_eq!(web.backends.len(), 2, "nothing happens to the other one");
    assert_eq!(world.core.desired().generation, generation, "and nothing has happened at all");
}

#[test]
fn services_come_go_and_change() {
    let mut both = web(&[A, B]);
    both.services.push(service("api", "203.0.113.2:80", &[C]));
    let world = busy(both.clone(), (7, 5));
    let mut new = both;
    new.services.remove(1);
    new.services[0].scheduler = Scheduler::Maglev;
    new.services[0].mode = Mode::DsrL2;
    new.services.push(service("dns", "203.0.113.3:53", &[C]));
    let told = impact(&world, new);
    let seen: Vec<_> = told.services.iter().map(|s| (s.name.as_str(), s.presence)).collect();
    assert_eq!(seen, [("api", Presence::Removed), ("dns", Presence::Added), ("web", Presence::Changed)]);
    assert_eq!(told.services[2].changes, ["mode nat -> dsr-l2", "scheduler round-robin -> maglev"]);
    assert_eq!(
        told.flows,
        FlowImpact { kept: 0, drained: 12, rehomed: 0, reset: 0 },
        "flows keep the mode they began in"
    );
}

#[test]
fn backends_of_full_nat_are_supposed_to_have_a_route() {
    let world = busy(full_nat(&[A, B]), (7, 5));
    let told = impact(&world, full_nat(&[A, B, C]));
    assert!((of(&told, C).share.1 - 1.0 / 3.0).abs() < 1e-9);
    assert!((told.services[0].moved - 1.0 / 3.0).abs() < 1e-9);
}

#[test]
fn hardly_more_than_its_share_moves_when_a_backend_joins_a_maglev_table() {
    let mut config = web(&[A, B]);
    config.services[0].scheduler = Scheduler::Maglev;
    config.services[0].backends = (1..=20).map(|n| backend(&format!("10.0.0.{n}:80"), 1, 0)).collect();
    let world = busy(config.clone(), (7, 5));
    config.services[0].backends.push(backend("10.0.0.21:80", 1, 0));
    let moved = impact(&world, config).services[0].moved;
    assert!((0.04..0.12).contains(&moved), "{moved}");
}

#[test]
fn what_operators_decided_counts() {
    let mut world = busy(tiers(), (7, 5));
    world.command(&drain(A), false).unwrap();
    let told = impact(&world, tiers());
    assert!(told.is_nothing());
    assert_eq!(told.flows.drained, 0, "it drains already");
    let told = world.core.impact(Arc::new(tiers()), OperatorLayer::default(), world.now);
    assert_eq!(of(&told, A).changes, ["admin drain -> ready"]);
    assert_eq!(of(&told, A).share, (0.0, 0.5));
}

#[test]
fn flows_of_a_backend_that_is_down_are_not_blamed_on_the_change() {
    let mut world = busy(web(&[A, B]), (7, 5));
    world.probe(A, &core_support::refused(), 5);
    let told = impact(&world, web(&[B]));
    assert_eq!(told.flows.reset, 0);
    world.probe(A, &ok(), 5);
    assert_eq!(impact(&world, web(&[B])).flows.drained, 7);
}

#[test]
fn a_limit_of_connections_is_told_and_written_with_the_backend() {
    let with = |most| {
        let mut config = web(&[A, B]);
        config.services[0].backends[0].max_connections = most;
        config
    };
    let mut world = busy(with(None), (7, 5));
    let most = |world: &World, address| world.dataplane.backend(world.id("web", address)).unwrap().max_flows;
    assert_eq!(most(&world, A), 0);
    let told = impact(&world, with(Some(100)));
    assert_eq!(of(&told, A).changes, ["max connections no limit -> 100"]);
    assert_eq!(told.flows, FlowImpact { kept: 12, drained: 0, rehomed: 0, reset: 0 });
    let id = world.id("web", A);
    world.configure(with(Some(100)));
    assert_eq!((most(&world, A), most(&world, B), world.id("web", A)), (100, 0, id));
    world.restart(with(Some(200)), OperatorLayer::default());
    assert_eq!((most(&world, A), world.id("web", A)), (200, id));
    world.configure(with(None));
    assert_eq!(most(&world, A), 0);
}
