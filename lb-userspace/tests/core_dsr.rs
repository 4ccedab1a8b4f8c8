//! Direct server return: no pool, no role for the backend's address; a source in tunnels only.

mod core_support;

use core_support::{A, B, SOURCE, World, key_of, state, web};
use lb_common::abi::{AddressRoles, BackendState, DontFragment, Mode, Port};
use lb_userspace::{
    config::{Config, Tunnel, TunnelSource},
    core::{Command, OperatorLayer},
};

fn dsr_l2(backends: &[&str]) -> Config {
    let mut config = web(backends);
    config.services[0].mode = Mode::DsrL2;
    config
}

#[test]
fn dsr_l2_publishes_backends_that_only_clients_packets_go_to() {
    let mut world = World::new(dsr_l2(&[A, B]));
    world.all_up();
    assert_eq!(world.turns("web"), [A, B]);
    assert!(world.core.wanted_sources().is_empty(), "no address of ours is on any packet");
    let entry = *world.dataplane.backend(world.id("web", A)).unwrap();
    assert!(!world.dataplane.pool_ready(entry.port_pool));
    assert_eq!(world.dataplane.roles(entry.address), 0, "replies do not come by");
    let config = dsr_l2(&[]);
    let key = key_of(&config.services[0]);
    assert_eq!(world.dataplane.roles(key.address), AddressRoles::SERVICE);
    assert_eq!(world.dataplane.service(&key).unwrap().mode, Mode::DsrL2 as u8);
}

#[test]
fn a_dsr_backend_dies_comes_back_leaves_and_survives_a_restart() {
    let mut world = World::new(dsr_l2(&[A, B]));
    world.all_up();
    let (a, b) = (world.id("web", A), world.id("web", B));
    world.probe(A, &core_support::refused(), 2);
    assert_eq!((world.turns("web"), state(&world, a)), (vec![B.to_owned()], BackendState::Dead as u8));
    world.probe(A, &core_support::ok(), 2);
    assert_eq!(world.turns("web"), [A, B]);

    world.restart(dsr_l2(&[A, B]), OperatorLayer::default());
    assert_eq!(world.turns("web"), [A, B]);
    assert_eq!((world.id("web", A), world.id("web", B)), (a, b));

    world.configure(dsr_l2(&[B]));
    world.walk(&[(a, 3)], 4);
    assert_eq!(state(&world, a), BackendState::Live as u8, "its flows go on");
    world.walk(&[], 3);
    assert_eq!(state(&world, a), BackendState::Empty as u8);
}

#[test]
fn the_operator_cannot_add_a_backend_on_another_port() {
    let mut world = World::new(dsr_l2(&[A]));
    world.all_up();
    let add = |address: &str| Command::Add {
        service: "web".to_owned(),
        address: address.parse().unwrap(),
        weight: 1,
        tier: 0,
    };
    let refused = world.command(&add("10.0.0.2:8080"), false).unwrap_err();
    assert_eq!(
        refused,
        "service `web` is in mode dsr-l2, which cannot translate ports: the backend must have the port of \
         203.0.113.1:80, not that of 10.0.0.2:8080"
    );
    world.command(&add(B), false).unwrap();
    world.all_up();
    assert_eq!(world.turns("web"), [A, B]);
}

fn dsr_ipip(backends: &[&str]) -> Config {
    let mut config = web(backends);
    config.services[0].mode = Mode::DsrIpip;
    config
}

#[test]
fn a_tunnel_waits_for_its_source_address_and_follows_it() {
    let mut world = World::new(dsr_ipip(&[A, B]));
    world.all_up();
    assert!(world.turns("web").is_empty());
    world.route_all();
    assert_eq!(world.turns("web"), [A, B]);
    let source = |world: &World| world.dataplane.backend(world.id("web", A)).unwrap().source;
    let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
    assert_eq!(source(&world), address(SOURCE));
    assert_eq!(world.dataplane.roles(address(SOURCE)), 0, "nothing is answered to it");
    world.route("10.0.0.1".parse().unwrap(), Some("10.255.0.2"));
    assert_eq!(source(&world), address("10.255.0.2"));
    world.route("10.0.0.1".parse().unwrap(), None);
    assert_eq!(world.turns("web"), [B], "without a route it is out of turn");

    world.restart(dsr_ipip(&[A, B]), OperatorLayer::default());
    world.route_all();
    world.all_up();
    assert_eq!(world.turns("web"), [A, B]);
    world.configure(dsr_ipip(&[]));
    world.walk(&[], 4);
    assert!(world.core.wanted_sources().is_empty());
}

#[test]
fn a_tunnel_leads_to_backends_of_another_family() {
    let mut world = World::new(dsr_ipip(&["[2001:db8::1]:80"]));
    world.all_up();
    world.route("2001:db8::1".parse().unwrap(), Some("2001:db8::ff"));
    assert_eq!(world.turns("web"), ["[2001:db8::1]:80"]);
    let (service, address) = ("web".to_owned(), "10.0.0.9:80".parse().unwrap());
    world.command(&Command::Add { service, address, weight: 1, tier: 0 }, false).unwrap();
}

/// What a tunnel is like, as the data path reads it: source, chosen bits of it, port, DF.
fn tunnel(world: &World, id: u32) -> (String, u8, u16, u8) {
    let entry = world.dataplane.backend(id).unwrap();
    (format!("{:?}", entry.source), entry.source_bits, entry.tunnel_port.get(), entry.dont_fragment)
}

fn dsr_gue(backends: &[&str], tunnel: Tunnel) -> Config {
    let mut config = web(backends);
    config.services[0].mode = Mode::DsrGue;
    config.services[0].tunnel = tunnel;
    config
}

#[test]
fn a_tunnel_is_as_configured_and_follows_a_change_with_its_next_packet() {
    let mut world = World::new(dsr_gue(&[A], Tunnel::default()));
    world.all_up();
    world.route_all();
    let id = world.id("web", A);
    assert_eq!(tunnel(&world, id), (SOURCE.to_owned(), 0, 6080, DontFragment::Copy as u8));

    let source = |address: &str, chosen_bits| TunnelSource { address: address.parse().unwrap(), chosen_bits };
    let sources = vec![source("2001:db8::", 32), source("10.77.0.0", 16)];
    let chosen = Tunnel { gue_port: 9886, sources, dont_fragment: DontFragment::Clear };
    world.configure(dsr_gue(&[A], chosen.clone()));
    assert_eq!(world.id("web", A), id, "flows go on");
    let expected = ("10.77.0.0".to_owned(), 16, 9886, DontFragment::Clear as u8);
    assert_eq!(tunnel(&world, id), expected);
    world.route("10.0.0.1".parse().unwrap(), Some("10.255.0.2"));
    assert_eq!(tunnel(&world, id), expected, "the host's own address does not matter");
    world.route("10.0.0.1".parse().unwrap(), None);
    assert!(world.turns("web").is_empty(), "without a route it is out of turn all the same");
}

#[test]
fn flows_of_a_service_that_is_gone_keep_their_tunnel_over_a_restart() {
    let chosen = Tunnel {
        gue_port: 9886,
        sources: vec![TunnelSource { address: "10.77.0.0".parse().unwrap(), chosen_bits: 16 }],
        dont_fragment: DontFragment::Set,
    };
    let mut world = World::new(dsr_gue(&[A], chosen));
    world.all_up();
    world.route_all();
    let id = world.id("web", A);
    let before = tunnel(&world, id);
    let mut empty = web(&[]);
    empty.services.clear();
    world.restart(empty, OperatorLayer::default());
    world.walk(&[(id, 1)], 4);
    assert_eq!(tunnel(&world, id), before);
    assert_eq!(world.dataplane.backend(id).unwrap().state, BackendState::Live as u8);
    world.walk(&[], 4);
    let entry = world.dataplane.backend(id).unwrap();
    assert_eq!((entry.state, entry.tunnel_port, entry.source_bits), (BackendState::Empty as u8, Port::ANY, 0));
}
