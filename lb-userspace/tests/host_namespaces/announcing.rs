//! What the network hears of service addresses.

use std::time::Duration;

use lb_userspace::host::Host;
use tokio::time::sleep;

use crate::{
    preparing::{config, service},
    wire::Wire,
    world::{PEER, UP, World},
};

/// Longer than it takes to announce an address with all repetitions.
const ALL: Duration = Duration::from_millis(2600);

fn is_arp(frame: &[u8], operation: u8, mac: [u8; 6], address: [u8; 4]) -> bool {
    frame.len() >= 42
        && frame[..6] == [0xff; 6]
        && frame[12..14] == [0x08, 0x06]
        && frame[21] == operation
        && frame[22..28] == mac
        && frame[28..32] == address
        && frame[38..42] == address
}

fn is_advertisement(frame: &[u8], mac: [u8; 6], target: [u8; 16]) -> bool {
    const ROUTER_OVERRIDE: u8 = 0xa0;
    frame.len() == 86
        && frame[..6] == [0x33, 0x33, 0, 0, 0, 1]
        && frame[20] == 58
        && frame[54] == 136
        && frame[58] == ROUTER_OVERRIDE
        && frame[62..78] == target
        && frame[80..86] == mac
}

#[test]
fn service_addresses_are_announced_three_times_each_new_or_not() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    // Already there, as after a failover or a restart of the agent.
    world.host.ip(&["addr", "add", "192.0.2.20/32", "dev", UP]);
    let config = config(&[UP], &[service("192.0.2.10:80"), service("192.0.2.20:80"), service("[fd77::10]:80")]);
    let wire = world.peer.run(async || Wire::open(PEER));
    let mac = world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        let prepared = host.prepare(&config).await.unwrap();
        sleep(ALL).await;
        prepared.links[0].mac.unwrap()
    });
    let frames = wire.frames(Duration::from_millis(100));
    let count = |matches: &dyn Fn(&[u8]) -> bool| frames.iter().filter(|frame| matches(frame)).count();
    for address in [[192, 0, 2, 10], [192, 0, 2, 20]] {
        assert_eq!(count(&|frame| is_arp(frame, 1, mac, address)), 3, "announcements of {address:?}");
        assert_eq!(count(&|frame| is_arp(frame, 2, mac, address)), 3, "the reply form for {address:?}");
    }
    let target = "fd77::10".parse::<std::net::Ipv6Addr>().unwrap().octets();
    assert_eq!(count(&|frame| is_advertisement(frame, mac, target)), 3);
}

#[test]
fn preparing_again_announces_only_what_is_new_and_a_link_that_came_back_is_told_all() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    let one = config(&[UP], &[service("192.0.2.10:80")]);
    let two = config(&[UP], &[service("192.0.2.10:80"), service("192.0.2.11:80")]);
    let wire = world.peer.run(async || Wire::open(PEER));
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        let link = host.prepare(&one).await.unwrap().links[0].clone();
        let mac = link.mac.unwrap();
        let heard = |address| {
            let frames = wire.frames(Duration::from_millis(50));
            frames.iter().filter(|frame| is_arp(frame, 1, mac, address)).count()
        };
        sleep(ALL).await;
        assert_eq!(heard([192, 0, 2, 10]), 3);

        host.prepare(&two).await.unwrap();
        let frames = wire.frames(Duration::from_millis(50));
        assert!(frames.iter().any(|frame| is_arp(frame, 1, mac, [192, 0, 2, 11])));
        assert!(!frames.iter().any(|frame| is_arp(frame, 1, mac, [192, 0, 2, 10])), "known already");

        sleep(ALL).await;
        heard([0; 4]);
        host.announce_again(&link);
        assert_eq!(heard([192, 0, 2, 10]), 1);
    });
}

#[test]
fn nothing_is_announced_where_addresses_are_not_ours_to_manage() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    let mut config = config(&[UP], &[service("192.0.2.10:80")]);
    config.manage_addresses = false;
    let wire = world.peer.run(async || Wire::open(PEER));
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        let prepared = host.prepare(&config).await.unwrap();
        assert_eq!(prepared.addresses, []);
        sleep(Duration::from_millis(200)).await;
    });
    assert_eq!(world.host.address("192.0.2.10"), None);
    let frames = wire.frames(Duration::from_millis(50));
    assert!(!frames.iter().any(|frame| frame[12..14] == [0x08, 0x06]), "{frames:?}");
}
