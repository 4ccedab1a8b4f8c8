//! A new agent takes over what is in the maps.

mod core_support;

use core_support::{A, B, C, World, config, key_of, refused, service, state, tiers, web};
use lb_common::abi::BackendState;
use lb_userspace::core::{HealthState, OperatorLayer};
use lb_userspace::dataplane::{Dataplane, Op};

#[test]
fn a_restart_changes_nothing_in_the_maps() {
    let mut world = World::new(tiers());
    world.all_up();
    world.probe(B, &refused(), 2);
    world.ops();
    world.restart(tiers(), OperatorLayer::default());
    assert!(world.ops().is_empty());
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.backend("web", A).health_reason, "inherited: was up before the restart");
    assert_eq!(world.backend("web", B).health, HealthState::Down);
    assert_eq!(world.backend("web", C).health, HealthState::Unknown);
}

#[test]
fn a_restart_with_another_configuration_lets_flows_finish() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let a = world.id("web", A);
    world.restart(web(&[B, C]), OperatorLayer::default());
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(state(&world, a), BackendState::Live as u8);
    assert_ne!(world.id("web", C), a);
    world.walk(&[(a, 1)], 3);
    assert_eq!(state(&world, a), BackendState::Live as u8);
    world.walk(&[], 2);
    assert_eq!(state(&world, a), BackendState::Empty as u8);
}

#[test]
fn a_restart_without_a_service_takes_it_off_when_its_flows_are_over() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    world.restart(config(Vec::new()), OperatorLayer::default());
    assert_eq!(world.dataplane.service_keys().len(), 1);
    world.walk(&[], 3);
    let tables = world.dataplane.read().unwrap();
    assert!(tables.services.is_empty() && tables.addresses.is_empty() && tables.service_info.is_empty());
    assert!(tables.backends.values().all(|backend| backend.state == BackendState::Empty as u8));
}

#[test]
fn leftovers_that_nothing_describes_are_cleared() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let mut stray = *world.dataplane.backend(0).unwrap();
    stray.service_id = 77;
    world.dataplane.apply(&Op::SetBackend { id: 9, backend: stray }).unwrap();
    world.restart(web(&[A]), OperatorLayer::default());
    assert_eq!(world.turns("web"), [A]);
    world.walk(&[(9, 1)], 3);
    assert_eq!(state(&world, 9), BackendState::Live as u8, "it has flows");
    world.walk(&[], 3);
    assert_eq!(state(&world, 9), BackendState::Empty as u8);
}

#[test]
fn tables_that_claim_the_same_slots_are_parted() {
    let two = config(vec![service("a", "203.0.113.1:80", &[A]), service("b", "203.0.113.2:80", &[B])]);
    let mut world = World::new(two.clone());
    world.all_up();
    let mut inherited = world.dataplane.read().unwrap();
    let (a, b) = (key_of(&two.services[0]), key_of(&two.services[1]));
    let base = inherited.services[&a].selection_base;
    inherited.services.get_mut(&b).unwrap().selection_base = base;
    world.dataplane.apply(&Op::SetService { key: b, value: inherited.services[&b] }).unwrap();
    assert!(world.dataplane.check().is_err());
    world.restart(two, OperatorLayer::default());
    world.all_up();
    assert_eq!((world.turns("a"), world.turns("b")), (vec![A.to_owned()], vec![B.to_owned()]));
}
