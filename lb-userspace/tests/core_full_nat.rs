//! Source addresses and port pools.

mod core_support;

use std::net::IpAddr;

use core_support::{A, B, SOURCE, World, config, full_nat, service, state};
use lb_common::abi::{Address, AddressRoles, BackendState, Mode};
use lb_userspace::config::PortRange;
use lb_userspace::core::{Command, OperatorLayer};
use lb_userspace::dataplane::Dataplane;

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
    assert_eq!(world.dataplane.roles(SOURCE.parse::<IpAddr>().unwrap().into()), 2);
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
    let old: IpAddr = SOURCE.parse().unwrap();
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
fn backends_of_another_family_are_reached_from_the_hosts_address_of_theirs() {
    let mut world = World::new(full_nat(&[A, "[2001:db8::1]:80"]));
    world.all_up();
    world.route(A.parse::<std::net::SocketAddr>().unwrap().ip(), Some(SOURCE));
    world.route("2001:db8::1".parse().unwrap(), Some("2001:db8::ff"));
    assert_eq!(world.turns("web"), [A, "[2001:db8::1]:80"]);
    let other = world.id("web", "[2001:db8::1]:80");
    let source = world.dataplane.backend(other).unwrap().source;
    assert_eq!(source, Address::from("2001:db8::ff".parse::<IpAddr>().unwrap()));
    let roles = world.dataplane.read().unwrap().addresses[&source];
    assert!(roles.has(AddressRoles::SOURCE), "its answers are known");
    let (service, address) = ("web".to_owned(), "[2001:db8::2]:80".parse().unwrap());
    world.command(&Command::Add { service, address, weight: 1, tier: 0 }, false).unwrap();
}
