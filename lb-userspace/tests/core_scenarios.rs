//! The core's decisions, one story each, in virtual time over the in-memory data plane.

mod core_support;

use core_support::{World, backend, config, key_of, ok, refused, service};
use lb_common::abi::{AddressRoles, BackendState, Mode, Scheduler};
use lb_userspace::{
    config::{Check, Config, Limits, PortRange},
    core::{Admin, Command, HealthState, Input, OperatorLayer, plan},
    dataplane::Dataplane,
};

const A: &str = "10.0.0.1:80";
const B: &str = "10.0.0.2:80";
const C: &str = "10.0.0.3:80";

fn web(backends: &[&str]) -> Config {
    config(vec![service("web", "203.0.113.1:80", backends)])
}

fn tiers() -> Config {
    let mut config = web(&[]);
    config.services[0].backends = vec![backend(A, 1, 0), backend(B, 1, 0), backend(C, 1, 1)];
    config
}

fn full_nat(backends: &[&str]) -> Config {
    let mut config = web(backends);
    config.services[0].mode = Mode::FullNat;
    config
}

fn drain(address: &str) -> Command {
    Command::Drain { service: "web".to_owned(), address: address.parse().unwrap() }
}

fn state(world: &World, id: u32) -> u8 {
    world.dataplane.backend(id).unwrap().state
}

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
fn draining_keeps_the_backend_live_and_out_of_the_table() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    world.texts();
    world.command(&drain(A), false).unwrap();
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(state(&world, world.id("web", A)), BackendState::Live as u8);
    assert_eq!(world.backend("web", A).used_reason, "drain by alice");
    assert_eq!(world.texts(), ["admin ready -> drain (by alice)"]);
    world.command(&Command::Ready { service: "web".to_owned(), address: A.parse().unwrap() }, false).unwrap();
    assert_eq!(world.turns("web"), [A, B]);
    assert_eq!(world.core.operator_layer(), &OperatorLayer::default());
}

#[test]
fn maintenance_stops_the_probes_and_the_first_result_after_it_decides() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    world.command(&Command::Maintenance { service: "web".to_owned(), address: A.parse().unwrap() }, false).unwrap();
    assert_eq!(world.core.probes().len(), 1);
    assert_eq!(world.backend("web", A).health, HealthState::Unknown);
    assert_eq!(state(&world, world.id("web", A)), BackendState::Live as u8);
    world.command(&Command::Ready { service: "web".to_owned(), address: A.parse().unwrap() }, false).unwrap();
    assert_eq!(world.turns("web"), [B]);
    world.probe(A, &ok(), 1);
    assert_eq!(world.turns("web"), [A, B]);
}

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
    let empty = Input::Flows(lb_userspace::dataplane::FlowCensus::default());
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
    world.dataplane.apply(&lb_userspace::dataplane::Op::SetBackend { id: 9, backend: stray }).unwrap();
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
    world.dataplane.apply(&lb_userspace::dataplane::Op::SetService { key: b, value: inherited.services[&b] }).unwrap();
    assert!(world.dataplane.check().is_err());
    world.restart(two, OperatorLayer::default());
    world.all_up();
    assert_eq!((world.turns("a"), world.turns("b")), (vec![A.to_owned()], vec![B.to_owned()]));
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
fn changing_a_service_keeps_the_health_of_its_backends() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let mut changed = web(&[A, B]);
    changed.services[0].health.check = Check::Http { path: "/".to_owned(), host: None, expect: Vec::new() };
    changed.services[0].name = "renamed".to_owned();
    world.configure(changed);
    assert_eq!(world.turns("renamed"), [A]);
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
fn full_nat_waits_for_a_source_address_and_publishes_the_pool_first() {
    let mut world = World::new(full_nat(&[A]));
    world.all_up();
    assert!(world.turns("web").is_empty());
    assert_eq!(world.backend("web", A).used_reason, "the host's source address towards it is not known yet");
    world.ops();
    world.route_all();
    assert_eq!(world.turns("web"), [A]);
    let ops = world.ops();
    let place = |name: &str| ops.iter().position(|op| op == name).unwrap();
    assert!(place("SetPortPool") < place("SetBackend") && place("SetBackend") < place("WriteSelection"));
    assert_eq!(world.dataplane.roles(core_support::SOURCE.parse::<std::net::IpAddr>().unwrap().into()), 2);
}

#[test]
fn a_lost_route_takes_the_backend_out_of_turn() {
    let mut world = World::new(full_nat(&[A, B]));
    world.route_all();
    world.all_up();
    world.texts();
    world.route("10.0.0.1".parse().unwrap(), None);
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(world.texts(), ["no route to it: new flows go elsewhere"]);
    world.route_all();
    assert_eq!(world.turns("web"), [A, B]);
}

#[test]
fn an_old_source_keeps_its_role_while_flows_may_use_it() {
    let mut world = World::new(full_nat(&[A]));
    world.route_all();
    world.all_up();
    let a = world.id("web", A);
    let old: std::net::IpAddr = core_support::SOURCE.parse().unwrap();
    world.walk(&[(a, 2)], 1);
    world.route("10.0.0.1".parse().unwrap(), Some("10.255.0.2"));
    assert_eq!(world.turns("web"), [A]);
    world.walk(&[(a, 2)], 3);
    assert_eq!(world.dataplane.roles(old.into()), AddressRoles::SOURCE);
    world.restart(full_nat(&[A]), OperatorLayer::default());
    world.walk(&[(a, 2)], 3);
    assert_eq!(world.dataplane.roles(old.into()), AddressRoles::SOURCE, "also over a restart");
    world.walk(&[], 3);
    assert_eq!(world.dataplane.roles(old.into()), 0);
    assert_eq!(world.turns("web"), [A]);
}

#[test]
fn services_on_one_endpoint_share_its_port_pool() {
    let mut config = config(vec![
        service("a", "203.0.113.1:80", &[A]),
        service("b", "203.0.113.2:80", &[A]),
        service("c", "203.0.113.3:80", &[B]),
    ]);
    config.services.iter_mut().for_each(|service| service.mode = Mode::FullNat);
    let mut world = World::new(config);
    world.route_all();
    let pool = |world: &World, service: &str, address: &str| {
        world.dataplane.backend(world.id(service, address)).unwrap().port_pool
    };
    assert_eq!(pool(&world, "a", A), pool(&world, "b", A));
    assert_ne!(pool(&world, "a", A), pool(&world, "c", B));
    assert_eq!(world.dataplane.read().unwrap().port_pools.len(), 2);
}

#[test]
fn an_any_port_service_brings_all_endpoints_of_its_backends_on_one_pool() {
    let exact = |name: &str, listen: &str, backend: &str| {
        let mut service = service(name, listen, &[backend]);
        service.mode = Mode::FullNat;
        service
    };
    let before = vec![exact("a", "203.0.113.1:80", A), exact("b", "203.0.113.1:81", "10.0.0.1:81")];
    let mut after = before.clone();
    after.push(exact("all", "203.0.113.2:0", "10.0.0.1:0"));
    after[2].health.port = Some(80);
    let mut world = World::new(config(before));
    world.route_all();
    world.all_up();
    let old = world.id("b", "10.0.0.1:81");
    world.configure(config(after));
    world.all_up();
    let pools: Vec<u32> = [("a", A), ("b", "10.0.0.1:81"), ("all", "10.0.0.1:0")]
        .iter()
        .map(|(service, address)| world.dataplane.backend(world.id(service, address)).unwrap().port_pool)
        .collect();
    assert!(pools.iter().all(|pool| *pool == pools[0]), "{pools:?}");
    assert_eq!(state(&world, old), BackendState::Live as u8, "flows on the old pool go on");
    assert_eq!((world.turns("a").len(), world.turns("b").len(), world.turns("all").len()), (1, 1, 1));
    world.walk(&[], 3);
    assert_eq!(state(&world, old), BackendState::Empty as u8);
    assert_eq!(world.dataplane.read().unwrap().port_pools.len(), 1);
}

#[test]
fn new_source_ports_reach_every_pool() {
    let mut world = World::new(full_nat(&[A]));
    world.route_all();
    let mut changed = full_nat(&[A]);
    changed.source_ports = vec![PortRange { first: 40000, last: 50000 }];
    world.configure(changed.clone());
    assert_eq!(world.dataplane.read().unwrap().port_pools[&0], changed.source_ports);
}

#[test]
fn what_does_not_fit_is_told_and_the_rest_works() {
    let mut crowded = config(vec![service("a", "203.0.113.1:80", &[A, B]), service("b", "203.0.113.2:80", &[C])]);
    crowded.limits = Limits { backends: 2, ..crowded.limits };
    let mut world = World::new(crowded.clone());
    world.all_up();
    assert_eq!(world.turns("a"), [A, B]);
    assert!(world.turns("b").is_empty());
    let text = "not published as configured: all 2 backends are taken; raise `limits.backends` and restart";
    assert_eq!(world.texts().iter().filter(|told| *told == text).count(), 1);
    assert_eq!(world.backend("b", C).used_reason, text);
    crowded.services.remove(0);
    world.configure(crowded);
    world.walk(&[], 5);
    assert_eq!(world.turns("b"), [C], "it comes in as soon as there is room");
    assert!(world.texts().contains(&format!("no longer: {text}")));
}

#[test]
fn without_room_for_a_new_table_the_ready_part_of_the_old_one_serves() {
    let mut tight = web(&[A, B, C]);
    tight.limits = Limits { selection_slots: 3, ..tight.limits };
    let mut world = World::new(tight);
    // The three results are one change: the table goes in once.
    let probes: Vec<Input> = world.core.probes().into_iter().map(|key| Input::Probe { key, outcome: ok() }).collect();
    world.core.handle_all(probes, world.now);
    world.publish();
    assert_eq!(world.turns("web"), [A, B, C]);
    world.probe(A, &refused(), 2);
    assert_eq!(world.turns("web"), [B, C]);
    world.probe(C, &refused(), 2);
    assert_eq!(world.turns("web"), [B]);
    world.probe(A, &ok(), 2);
    assert_eq!(world.turns("web"), [B], "no room for two");
    assert!(world.backend("web", A).used_reason.contains("selection slots"));
}

#[test]
fn too_many_services_or_addresses_are_told() {
    let mut crowded = config(vec![service("a", "203.0.113.1:80", &[A]), service("b", "203.0.113.2:80", &[A])]);
    crowded.limits = Limits { services: 1, ..crowded.limits };
    let mut world = World::new(crowded.clone());
    world.all_up();
    assert_eq!((world.turns("a").len(), world.dataplane.service_keys().len()), (1, 1));
    assert!(world.texts().iter().any(|text| text.contains("limits.services")));
    crowded.limits = Limits { services: 9, addresses: 2, ..crowded.limits };
    let mut world = World::new(crowded);
    world.all_up();
    assert_eq!((world.turns("a").len(), world.dataplane.service_keys().len()), (1, 1));
    assert!(world.texts().iter().any(|text| text.contains("limits.addresses")));
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
fn the_last_ready_backend_is_not_taken_out_without_force() {
    let mut world = World::new(web(&[A, B]));
    world.probe(A, &ok(), 1);
    world.probe(B, &refused(), 1);
    let address = A.parse().unwrap();
    let service = || "web".to_owned();
    for command in [
        drain(A),
        Command::Maintenance { service: service(), address },
        Command::Remove { service: service(), address },
        Command::Weight { service: service(), address, weight: 0 },
    ] {
        let error = world.command(&command, false).unwrap_err();
        assert!(error.contains("last ready backend") && error.contains("--force"), "{error}");
    }
    world.command(&drain(B), false).unwrap();
    world.command(&drain(A), true).unwrap();
    assert!(world.turns("web").is_empty());
    let layer = world.core.operator_layer().clone();
    assert!(world.core.check_layer(&layer).is_ok());
}

#[test]
fn a_whole_layer_is_checked_before_it_is_taken() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let empty = OperatorLayer::default();
    let drained = world.core.apply_command(&empty, &drain(A), "bob", "t", true).unwrap();
    assert!(world.core.check_layer(&drained).unwrap_err().to_string().contains("last ready backend"));
}

#[test]
fn commands_that_make_no_sense_say_what_would() {
    let mut world = World::new(web(&[A, B]));
    let add = |address: &str, tier| Command::Add {
        service: "web".to_owned(),
        address: address.parse().unwrap(),
        weight: 1,
        tier,
    };
    let unknown = Command::Drain { service: "wbe".to_owned(), address: A.parse().unwrap() };
    for (command, words) in [
        (unknown, "there is no service `wbe`; did you mean `web`?"),
        (drain("10.0.0.1:8"), "has no backend 10.0.0.1:8; did you mean `10.0.0.1:80`?"),
        (add(A, 0), "has a backend 10.0.0.1:80 already"),
        (add("[2001:db8::1]:80", 0), "is an IPv6 address, but service `web` listens on 203.0.113.1:80"),
        (add("10.0.0.9:0", 0), "has no port"),
    ] {
        let error = world.command(&command, false).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    world.command(&Command::Remove { service: "web".to_owned(), address: B.parse().unwrap() }, false).unwrap();
    let error = world.command(&add(B, 3), false).unwrap_err();
    assert!(error.contains("the file has 10.0.0.2:80 in tier 0"), "{error}");
    world.command(&add(B, 0), false).unwrap();
    assert_eq!(world.core.operator_layer(), &OperatorLayer::default(), "back to what the file says");
}

#[test]
fn an_operator_adds_changes_and_removes_a_backend() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let address = C.parse().unwrap();
    let service = || "web".to_owned();
    world.command(&Command::Add { service: service(), address, weight: 7, tier: 0 }, false).unwrap();
    world.probe(C, &ok(), 1);
    assert_eq!(world.turns("web"), [A, C]);
    let shown = world.backend("web", C);
    assert_eq!((shown.weight, shown.tier, shown.admin), (7, 0, Admin::Ready));
    assert_eq!(shown.overridden.map(|decided| (decided.by, decided.at)).unwrap().0, "alice");
    let layer = world.core.operator_layer().clone();
    world.restart(web(&[A]), layer);
    assert_eq!(world.turns("web"), [A, C], "the layer survives a restart");
    world.command(&Command::Remove { service: service(), address }, false).unwrap();
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.core.operator_layer(), &OperatorLayer::default());
}

#[test]
fn decisions_about_what_is_not_configured_are_told_once() {
    let mut world = World::new(web(&[A]));
    let mut layer = OperatorLayer::default();
    layer.services.insert("gone".to_owned(), Default::default());
    world.input(Input::Operator(layer.clone()));
    world.input(Input::Operator(layer));
    assert_eq!(world.texts().iter().filter(|text| text.contains("not configured")).count(), 1);
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
