//! What leaves goes when its flows are over, and not before.

mod core_support;

use core_support::{A, B, C, World, config, full_nat, key_of, refused, service, state, web};
use lb_common::abi::{AddressRoles, BackendState, Mode};
use lb_userspace::config::Limits;
use lb_userspace::core::Input;
use lb_userspace::dataplane::{Dataplane, FlowCensus};

#[test]
fn a_removed_backend_leaves_when_two_walks_find_no_flow_of_it() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let (a, b) = (world.id("web", A), world.id("web", B));
    world.walk(&[(a, 3), (b, 3)], 1);
    world.configure(web(&[B]));
    assert_eq!(world.turns("web"), [B]);
    assert!(world.backend("web", A).leaving);
    assert_eq!(world.core.probes().len(), 2, "it is still probed");
    world.walk(&[(a, 1)], 3);
    world.walk(&[], 1);
    world.walk(&[(a, 1)], 1);
    world.walk(&[], 1);
    assert_eq!(state(&world, a), BackendState::Live as u8, "the two must be in a row");
    world.walk(&[], 1);
    assert_eq!(state(&world, a), BackendState::Empty as u8);
    assert_eq!(world.core.probes().len(), 1);
    assert_eq!(world.core.service("web").unwrap().backends.len(), 1);
}

#[test]
fn a_walk_that_began_before_the_removal_was_published_does_not_count() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let a = world.id("web", A);
    let empty = Input::Flows(FlowCensus::default());
    world.configure(web(&[B]));
    for _ in 0..5 {
        world.input(empty.clone());
    }
    assert_eq!(state(&world, a), BackendState::Live as u8, "no time has passed");
    world.walk(&[], 2);
    assert_eq!(state(&world, a), BackendState::Empty as u8);
}

#[test]
fn a_leaving_backend_that_dies_resets_its_flows() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let a = world.id("web", A);
    world.configure(web(&[B]));
    world.walk(&[(a, 5)], 2);
    world.probe(A, &refused(), 2);
    assert_eq!(state(&world, a), BackendState::Dead as u8);
}

#[test]
fn a_backend_that_comes_back_while_leaving_keeps_its_id_and_health() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let a = world.id("web", A);
    world.configure(web(&[B]));
    world.walk(&[(a, 1)], 2);
    world.configure(web(&[A, B]));
    assert_eq!(world.id("web", A), a);
    assert_eq!(world.turns("web"), [A, B]);
}

#[test]
fn an_id_is_used_again_a_second_after_it_was_emptied_with_a_higher_generation() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let a = world.id("web", A);
    world.configure(web(&[B]));
    world.walk(&[], 2);
    assert_eq!(state(&world, a), BackendState::Empty as u8);
    world.configure(web(&[B, C]));
    assert_ne!(world.id("web", C), a, "too early");
    world.walk(&[], 1);
    world.configure(web(&[B, C, "10.0.0.4:80"]));
    assert_eq!(world.id("web", "10.0.0.4:80"), a);
    assert_eq!(world.dataplane.backend(a).unwrap().generation, 2);
}

#[test]
fn a_removed_service_refuses_new_flows_until_its_flows_are_over() {
    let other = service("other", "203.0.113.2:80", &[B]);
    let web = service("web", "203.0.113.1:80", &[A]);
    let mut world = World::new(config(vec![web.clone(), other.clone()]));
    world.all_up();
    let a = world.id("web", A);
    world.configure(config(vec![other]));
    world.walk(&[(a, 1)], 3);
    let choices = world.dataplane.choices(&key_of(&web)).unwrap();
    assert_eq!(choices, Some(Default::default()));
    assert_ne!(world.dataplane.roles(web.listen.ip().into()) & AddressRoles::SERVICE, 0);
    world.walk(&[], 3);
    assert_eq!(world.dataplane.choices(&key_of(&web)).unwrap(), None);
    assert_eq!(world.dataplane.roles(web.listen.ip().into()), 0);
    assert_eq!(state(&world, a), BackendState::Empty as u8);
}

#[test]
fn a_removed_service_makes_way_for_one_that_takes_any_port() {
    let web = service("web", "203.0.113.1:80", &[A]);
    let mut world = World::new(config(vec![web.clone()]));
    world.all_up();
    let a = world.id("web", A);
    world.configure(config(vec![service("all", "203.0.113.1:0", &[B])]));
    world.walk(&[(a, 1)], 2);
    assert_eq!(world.dataplane.choices(&key_of(&web)).unwrap(), None);
    assert_eq!(state(&world, a), BackendState::Live as u8);
    assert_ne!(world.dataplane.roles(web.listen.ip().into()) & AddressRoles::ANY_PORT, 0);
}

#[test]
fn another_mode_is_another_service_and_old_flows_keep_theirs() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let (old_service, old_backend) = (world.core.service("web").unwrap().id, world.id("web", A));
    world.walk(&[(old_backend, 1)], 1);
    world.configure(full_nat(&[A]));
    world.route_all();
    world.all_up();
    assert_ne!(world.core.service("web").unwrap().id, old_service);
    assert_ne!(world.id("web", A), old_backend);
    assert_eq!(state(&world, old_backend), BackendState::Live as u8);
    assert_eq!(world.turns("web"), [A]);
    world.walk(&[], 3);
    assert_eq!(state(&world, old_backend), BackendState::Empty as u8);
    assert_eq!(world.dataplane.read().unwrap().service_info.len(), 1);
}

#[test]
fn everything_handed_out_comes_back() {
    let full = || {
        let mut b = service("b", "203.0.113.2:80", &[A, B, C]);
        b.mode = Mode::FullNat;
        let mut config = config(vec![service("a", "203.0.113.1:80", &[A, B]), b]);
        config.limits =
            Limits { services: 2, backends: 5, addresses: 5, selection_slots: 16, port_pools: 3, ..config.limits };
        config
    };
    let mut empty = full();
    empty.services.clear();
    let mut world = World::new(full());
    for round in 1..=4 {
        world.route_all();
        world.all_up();
        world.walk(&[], 2);
        world.all_up();
        assert_eq!((world.turns("a").len(), world.turns("b").len()), (2, 3), "round {round}");
        let ids: Vec<u32> = world.core.service("b").unwrap().backends.iter().filter_map(|backend| backend.id).collect();
        assert_eq!(ids.iter().max(), Some(&4), "dense");
        world.configure(empty.clone());
        world.walk(&[], 6);
        let tables = world.dataplane.read().unwrap();
        assert!(tables.services.is_empty() && tables.addresses.is_empty() && tables.port_pools.is_empty());
        world.configure(full());
    }
}
