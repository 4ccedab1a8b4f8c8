//! QUIC server ids reach the maps with their backends, and leave after them.

mod core_support;

use std::collections::BTreeMap;

use core_support::{A, B, C, World, key_of, web};
use lb_common::{
    abi::{Protocol, QuicKey},
    quic::ServerId,
};
use lb_userspace::config::{Check, Config, Quic};
use lb_userspace::core::OperatorLayer;
use lb_userspace::dataplane::Dataplane;

const fn server_id(n: u8) -> ServerId {
    [n, n, n, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// A UDP service whose backends are always up, with these server ids.
fn quic(backends: &[&str], ids: &[(&str, u8)]) -> Config {
    let mut config = web(backends);
    config.services[0].protocol = Protocol::Udp;
    config.services[0].health.check = Check::None;
    let server_ids = ids.iter().map(|&(address, n)| (address.parse().unwrap(), server_id(n))).collect();
    config.services[0].quic = Quic { server_id_length: 4, server_ids };
    config
}

/// Addresses by server id, as packets find them.
fn published(world: &mut World) -> BTreeMap<u8, String> {
    let tables = world.dataplane.read().unwrap();
    let address = |id: &u32| std::net::IpAddr::from(tables.backends[id].address).to_string() + ":80";
    tables.quic_ids.iter().map(|(key, id)| (key.server_id[0], address(id))).collect()
}

fn of(pairs: &[(u8, &str)]) -> BTreeMap<u8, String> {
    pairs.iter().map(|&(n, address)| (n, address.to_owned())).collect()
}

#[test]
fn server_ids_are_published_with_their_service() {
    let mut world = World::new(quic(&[A, B, C], &[(A, 1), (B, 2)]));
    assert_eq!(published(&mut world), of(&[(1, A), (2, B)]));
    let config = quic(&[A, B, C], &[(A, 1), (B, 2)]);
    let value = world.dataplane.read().unwrap().services[&key_of(&config.services[0])];
    assert_eq!(value.quic_server_id, 4);
    world.ops();
    world.configure(quic(&[A, B, C], &[(A, 2), (C, 3)]));
    assert_eq!(published(&mut world), of(&[(2, A), (3, C)]));
    assert_eq!(world.ops(), ["SetGeneration", "SetQuicId", "SetQuicId", "DeleteQuicId"]);
    world.configure({
        let mut without = quic(&[A, B, C], &[]);
        without.services[0].quic = Quic::default();
        without
    });
    assert!(published(&mut world).is_empty());
}

#[test]
fn a_backend_that_leaves_keeps_its_server_id_until_its_flows_are_over() {
    let mut world = World::new(quic(&[A, B], &[(A, 1), (B, 2)]));
    let a = world.id("web", A);
    world.configure(quic(&[B], &[(B, 2)]));
    world.walk(&[(a, 1)], 2);
    assert_eq!(published(&mut world), of(&[(1, A), (2, B)]));
    world.restart(quic(&[B], &[(B, 2)]), OperatorLayer::default());
    assert_eq!(published(&mut world), of(&[(1, A), (2, B)]), "also over a restart of the agent");
    world.walk(&[], 3);
    assert_eq!(published(&mut world), of(&[(2, B)]));
}

#[test]
fn a_server_id_that_moves_to_another_backend_leads_there_at_once() {
    let mut world = World::new(quic(&[A, B], &[(A, 1), (B, 2)]));
    let a = world.id("web", A);
    world.configure(quic(&[B, C], &[(C, 1), (B, 2)]));
    world.walk(&[(a, 1)], 2);
    assert_eq!(published(&mut world), of(&[(1, C), (2, B)]));
    world.walk(&[], 3);
    assert_eq!(published(&mut world), of(&[(1, C), (2, B)]));
}

#[test]
fn a_restart_changes_nothing_and_strays_are_swept_away() {
    let mut world = World::new(quic(&[A, B], &[(A, 1), (B, 2)]));
    world.ops();
    world.restart(quic(&[A, B], &[(A, 1), (B, 2)]), OperatorLayer::default());
    assert!(world.ops().is_empty());
    let stray = lb_userspace::dataplane::Op::SetQuicId { key: QuicKey::new(7, server_id(9)), backend: 55 };
    world.dataplane.apply(&stray).unwrap();
    world.restart(quic(&[A, B], &[(A, 1), (B, 2)]), OperatorLayer::default());
    assert_eq!(published(&mut world), of(&[(1, A), (2, B)]));
}
