//! Health, failover and the selection tables that follow.

mod core_support;

use core_support::{A, B, C, World, backend, config, full_nat, ok, refused, service, state, tiers, web};
use lb_common::abi::{BackendState, Scheduler};
use lb_userspace::config::{Backend, Check, HttpCheck};
use lb_userspace::core::{Command, HealthState, Input, plan};

#[test]
fn nothing_is_used_before_its_first_result() {
    let mut world = World::new(web(&[A, B]));
    assert!(world.turns("web").is_empty());
    assert_eq!(world.backend("web", A).health, HealthState::Unknown);
    world.probe(A, &ok(), 1);
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.texts(), ["health unknown -> up (L4OK)", "tier 0 serves: 1 backend ready"]);
    world.probe(B, &refused(), 1);
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.backend("web", B).used_reason, "health down (L4CON: Connection refused)");
}

#[test]
fn a_backend_that_dies_is_declared_dead_by_the_first_write() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    world.ops();
    world.texts();
    world.probe(A, &refused(), 1);
    assert!(world.ops().is_empty());
    world.probe(A, &refused(), 1);
    assert_eq!(world.ops(), ["SetBackend", "SetGeneration", "WriteSelection", "SetService"]);
    assert_eq!(state(&world, world.id("web", A)), BackendState::Dead as u8);
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(world.texts(), ["health up -> down (L4CON: Connection refused, 2 of 2)"]);
    world.probe(A, &ok(), 2);
    assert_eq!(world.turns("web"), [A, B]);
    assert_eq!(state(&world, world.id("web", A)), BackendState::Live as u8);
}

#[test]
fn the_next_tier_serves_when_a_tier_is_dead_and_gives_back() {
    let mut world = World::new(tiers());
    world.all_up();
    assert_eq!(world.turns("web"), [A, B]);
    assert_eq!(world.backend("web", C).used_reason, "standby: tier 0 serves");
    world.texts();
    world.probe(A, &refused(), 2);
    assert_eq!(world.turns("web"), [B], "all in one tier: the other one goes on alone");
    world.probe(B, &refused(), 2);
    assert_eq!(world.turns("web"), [C]);
    world.probe(C, &refused(), 2);
    assert!(world.turns("web").is_empty());
    world.probe(C, &ok(), 2);
    world.probe(B, &ok(), 2);
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(state(&world, world.id("web", C)), BackendState::Live as u8, "its flows stay");
    let tiers: Vec<String> = world.texts().into_iter().filter(|text| !text.starts_with("health")).collect();
    assert_eq!(
        tiers,
        [
            "no backend of tier 0 is ready: tier 1 serves now, 1 backend ready",
            "no backend is ready: new flows are refused",
            "tier 1 serves: 1 backend ready",
            "tier 0 serves again: 1 backend ready"
        ]
    );
}

#[test]
fn no_check_means_up_at_once() {
    let mut config = web(&[A]);
    config.services[0].health.check = Check::None;
    let world = World::new(config);
    assert_eq!(world.turns("web"), [A]);
    assert!(world.core.probes().is_empty());
    assert_eq!(world.backend("web", A).health_reason, "not checked");
}

#[test]
fn a_probe_is_shared_and_counted_by_each_service_as_it_wants() {
    let mut patient = service("patient", "203.0.113.2:80", &[A]);
    patient.health.fall = 3;
    let mut world = World::new(config(vec![service("web", "203.0.113.1:80", &[A]), patient]));
    assert_eq!(world.core.probes().len(), 1);
    world.all_up();
    world.probe(A, &refused(), 2);
    assert!(world.turns("web").is_empty());
    assert_eq!(world.turns("patient"), [A]);
}

#[test]
fn weights_make_the_table_and_weight_zero_leaves_it() {
    let mut config = web(&[]);
    config.services[0].scheduler = Scheduler::WeightedRoundRobin;
    config.services[0].backends = vec![backend(A, 4, 0), backend(B, 2, 0)];
    let mut world = World::new(config);
    world.all_up();
    assert_eq!(world.turns("web"), [A, B, A]);
    let weight = |weight| Command::Weight { service: "web".to_owned(), address: A.parse().unwrap(), weight };
    world.command(&weight(2), false).unwrap();
    assert_eq!(world.turns("web"), [A, B]);
    world.command(&weight(0), false).unwrap();
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(world.backend("web", A).used_reason, "weight 0");
}

#[test]
fn nodes_with_the_same_backends_have_the_same_maglev_table_whatever_came_before() {
    let node = |backends: Vec<Backend>| {
        let mut config = web(&[]);
        config.services[0].scheduler = Scheduler::Maglev;
        config.services[0].backends = backends;
        World::new(config)
    };
    let mut one = node(vec![backend(A, 1, 0), backend(B, 2, 0), backend(C, 1, 0)]);
    one.all_up();
    let mut other = node(vec![backend(C, 1, 0), backend("10.0.0.77:80", 5, 0), backend(B, 2, 0), backend(A, 1, 0)]);
    other.all_up();
    other.probe(A, &refused(), 2);
    other.probe("10.0.0.77:80", &refused(), 2);
    other.probe(A, &ok(), 2);
    assert_ne!(one.id("web", A), other.id("web", A), "the test means nodes with different ids");
    let table = one.turns("web");
    assert_eq!(table.len(), 251);
    assert_eq!(table, other.turns("web"));
    one.probe(A, &refused(), 2);
    let without = one.turns("web");
    let moved = table.iter().zip(&without).filter(|(before, after)| before != after && *before != A).count();
    assert!(!without.contains(&A.to_owned()) && moved <= 12, "{moved} slots of living backends changed hands");
    one.probe(A, &ok(), 2);
    assert_eq!(one.turns("web"), table);
}

#[test]
fn the_size_of_maglev_tables_follows_the_file() {
    let mut config = web(&[A, B]);
    config.services[0].scheduler = Scheduler::SourceHash;
    let mut world = World::new(config.clone());
    world.all_up();
    assert_eq!(world.turns("web").len(), 251);
    config.maglev_table_size = 127;
    world.configure(config.clone());
    assert_eq!(world.turns("web").len(), 127);
    world.ops();
    config.services[0].health.fall = 5;
    world.configure(config);
    assert_eq!(world.ops(), Vec::<String>::new(), "nothing that concerns the table has changed");
}

#[test]
fn weights_reach_the_backends_themselves() {
    let mut config = web(&[]);
    config.services[0].scheduler = Scheduler::LeastConnections;
    config.services[0].backends = vec![backend(A, 4, 0), backend(B, 2, 0)];
    let mut world = World::new(config);
    world.all_up();
    assert_eq!(world.turns("web"), [A, B], "each once: the data path compares loads by weight");
    let weight = |world: &World, address| world.dataplane.backend(world.id("web", address)).unwrap().weight;
    assert_eq!((weight(&world, A), weight(&world, B)), (4, 2));
    let command = Command::Weight { service: "web".to_owned(), address: A.parse().unwrap(), weight: 7 };
    world.command(&command, false).unwrap();
    assert_eq!(weight(&world, A), 7);
}

#[test]
fn many_results_at_once_make_one_generation_and_one_table() {
    let backends: Vec<String> = (1..=50).map(|n| format!("10.0.0.{n}:80")).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut world = World::new(web(&names));
    world.all_up();
    world.walk(&[], 3);
    let generation = world.core.desired().generation;
    let failures = |world: &World| -> Vec<Input> {
        let probes = world.core.probes().into_iter().take(40);
        probes.map(|key| Input::Probe { key, outcome: refused() }).collect()
    };
    let inputs = [failures(&world), failures(&world)].concat();
    world.core.handle_all(inputs, world.now);
    assert_eq!(world.core.desired().generation, generation + 1);
    world.ops();
    world.publish();
    let ops = world.ops();
    assert_eq!(ops.iter().take_while(|op| *op == "SetBackend").count(), 40);
    assert_eq!(ops[40..], ["SetGeneration", "WriteSelection", "SetService"]);
}

#[test]
fn inputs_that_change_nothing_make_no_generation() {
    let mut world = World::new(full_nat(&[A, B]));
    world.route_all();
    world.all_up();
    let before = world.core.desired().clone();
    world.all_up();
    world.route_all();
    world.configure(full_nat(&[A, B]));
    world.walk(&[(0, 1)], 2);
    assert_eq!(world.core.desired(), &before);
    assert!(plan(&before, world.core.desired()).is_empty());
}

#[test]
fn one_result_touches_only_the_services_it_concerns() {
    let services = (0..200).map(|n| service(&format!("s{n}"), &format!("203.0.113.1:{}", 1000 + n), &[A, B]));
    let mut services: Vec<_> = services.collect();
    services[7].backends.push(backend(C, 1, 0));
    let mut world = World::new(config(services));
    world.all_up();
    let before = world.core.published_services();
    world.probe(C, &refused(), 2);
    assert_eq!(world.core.published_services() - before, 1);
}

#[test]
fn changing_a_service_keeps_the_health_of_its_backends() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let mut changed = web(&[A, B]);
    changed.services[0].health.check = Check::Http(HttpCheck::default());
    changed.services[0].name = "renamed".to_owned();
    world.configure(changed);
    assert_eq!(world.turns("renamed"), [A]);
}
