//! Preparing a host for a configuration, and undoing it, also after crashes.

use std::{net::SocketAddr, path::Path, time::Duration};

use lb_common::{
    abi::{Address, Granularity, Mode, Protocol, Scheduler},
    checksum::Sum,
};
use lb_userspace::{
    config::{Backend, Check, Clients, Config, Health, Limits, MssClamp, PortRange, Service, Tunnel, XdpMode},
    host::{Added, AddedAddress, Host, HostError, HostRecord, PortSet},
};
use tokio::time::sleep;

use crate::{
    wire::Wire,
    world::{UP, WAN, WAN_PEER, World},
};

const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
const EPHEMERAL: &str = "net/ipv4/ip_local_port_range";
const V4_FORWARDING: &str = "net/ipv4/conf/up.0/forwarding";
const V6_FORWARDING: &str = "net/ipv6/conf/up.0/forwarding";

pub fn config(interfaces: &[&str], services: &[Service]) -> Config {
    Config {
        interfaces: interfaces.iter().map(|&name| name.to_owned()).collect(),
        xdp_mode: XdpMode::Auto,
        manage_addresses: true,
        watch_config: false,
        dead_man: lb_userspace::config::DeadMan::default(),
        source_ports: vec![PortRange { first: 20_000, last: 29_999 }],
        limits: Limits::default(),
        maglev_table_size: 65_537,
        services: services.to_vec(),
    }
}

pub fn service(listen: &str) -> Service {
    let listen: SocketAddr = listen.parse().unwrap();
    Service {
        name: listen.to_string(),
        listen,
        protocol: Protocol::Tcp,
        mode: Mode::FullNat,
        scheduler: Scheduler::RoundRobin,
        granularity: Granularity::Flow,
        tunnel: Tunnel::default(),
        mss_clamp: MssClamp::Off,
        clients: Clients::default(),
        timeouts: lb_common::flow::State::TIMEOUTS,
        passive: lb_userspace::config::Passive::default(),
        quic: lb_userspace::config::Quic::default(),
        health: Health { check: Check::Tcp, ..Health::default() },
        role: None,
        failover: lb_userspace::config::Failover::of(lb_common::abi::Protocol::Tcp, None),
        backends: vec![Backend {
            address: "10.77.0.2:80".parse().unwrap(),
            weight: 1,
            tier: 0,
            check_address: None,
            max_connections: None,
        }],
    }
}

/// Everything the agent may change, as text.
fn state_of(world: &World) -> String {
    let mut state: Vec<String> = [RESERVED, V4_FORWARDING, V6_FORWARDING]
        .into_iter()
        .chain(["net/ipv6/conf/up.0/accept_ra", "net/ipv6/conf/wan0/accept_ra", "net/ipv6/conf/wan0/forwarding"])
        .map(|setting| format!("{setting} = {}", world.host.sysctl(setting)))
        .collect();
    for link in world.host.ip_json(&["addr", "show"]).as_array().unwrap() {
        for info in link["addr_info"].as_array().unwrap() {
            state.push(format!("{} has {}/{}", link["ifname"], info["local"], info["prefixlen"]));
        }
    }
    state.sort();
    state.join("\n")
}

fn both_families() -> Config {
    config(&[UP], &[service("192.0.2.10:80"), service("[fd77::10]:443")])
}

#[test]
fn preparing_makes_the_host_ready_and_releasing_leaves_no_trace() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.set_sysctl(RESERVED, "8080,20005-20010");
    let before = state_of(&world);
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        let prepared = host.prepare(&both_families()).await.unwrap();
        assert_eq!(prepared.warnings, [""; 0]);
        assert!(prepared.addresses.iter().all(|placed| placed.added == Added::Now && placed.interface == UP));
        assert_eq!(host.managed_addresses().len(), 2);
    });
    assert_eq!(world.host.sysctl(V4_FORWARDING), "1");
    assert_eq!(world.host.sysctl(V6_FORWARDING), "1");
    assert_eq!(world.host.sysctl("net/ipv6/conf/up.0/accept_ra"), "2");
    assert_eq!(world.host.sysctl(RESERVED), "8080,20000-29999");
    assert!(world.host.address("192.0.2.10").is_some() && world.host.address("fd77::10").is_some());

    // The agent is dead; `lb detach` runs in another process, with the record alone.
    world.host.run(async || {
        let undone = Host::open(state.path()).unwrap().release().await;
        assert!(undone.failed.is_empty() && undone.left.is_empty(), "{undone:?}");
    });
    assert_eq!(state_of(&world), before);
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "nothing is left on record");
}

#[test]
fn preparing_twice_changes_nothing_and_forgets_nothing() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    let before = state_of(&world);
    for run in 0..3 {
        world.host.run(async || {
            let mut host = Host::open(state.path()).unwrap();
            let prepared = host.prepare(&both_families()).await.unwrap();
            assert_eq!(prepared.changes.is_empty(), run > 0, "{:?}", prepared.changes);
            assert_eq!(host.managed_addresses().len(), 2, "still ours after a restart");
        });
    }
    world.host.run(async || Host::open(state.path()).unwrap().release().await);
    assert_eq!(state_of(&world), before);
}

#[test]
fn what_others_put_there_stays_when_we_go() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.ip(&["addr", "add", "192.0.2.10/24", "dev", UP]);
    world.host.set_sysctl(V4_FORWARDING, "1");
    world.host.set_sysctl(RESERVED, "20000-29999");
    let before = state_of(&world);
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        let prepared = host.prepare(&config(&[UP], &[service("192.0.2.10:80")])).await.unwrap();
        assert_eq!(prepared.changes, [""; 0], "everything was as it should be");
        assert_eq!(prepared.addresses[0].added, Added::Before);
        assert!(host.managed_addresses().is_empty());
        host.release().await;
    });
    assert_eq!(state_of(&world), before);
}

#[test]
fn what_somebody_changed_after_us_is_left_as_they_want_it() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        host.prepare(&both_families()).await.unwrap();
        world.host.set_sysctl("net/ipv6/conf/up.0/accept_ra", "0");
        world.host.set_sysctl(RESERVED, "4000,20000-29999");
        world.host.ip(&["addr", "del", "192.0.2.10/32", "dev", UP]);
        world.host.ip(&["addr", "add", "192.0.2.10/24", "dev", UP]);
        let undone = host.release().await;
        assert!(undone.failed.is_empty(), "{undone:?}");
        assert_eq!(undone.left.len(), 2, "{undone:?}");
    });
    assert_eq!(world.host.sysctl("net/ipv6/conf/up.0/accept_ra"), "0");
    assert_eq!(world.host.sysctl(RESERVED), "4000");
    assert!(world.host.address("192.0.2.10").is_some());
    assert_eq!(world.host.address("fd77::10"), None);
}

#[test]
fn a_crash_between_record_and_change_leaves_nothing_to_undo_wrongly() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    let before = state_of(&world);
    world.host.run(async || {
        let mut record = HostRecord::load(state.path()).unwrap();
        let address = |text: &str| AddedAddress { interface: UP.to_owned(), address: text.parse().unwrap() };
        let gone = AddedAddress { interface: "gone7".to_owned(), address: "192.0.2.77".parse().unwrap() };
        record.note_addresses([address("192.0.2.10"), address("fd77::10"), address("10.77.0.1"), gone]).unwrap();
        record.note_sysctl(Path::new(V4_FORWARDING), "0", "1").unwrap();
        record.note_sysctl(Path::new("net/ipv4/conf/gone7/forwarding"), "0", "1").unwrap();
        record.note_reserved_ports(&PortSet::parse("20000-29999").unwrap()).unwrap();
    });
    world.host.run(async || {
        let undone = Host::open(state.path()).unwrap().release().await;
        assert!(undone.failed.is_empty() && undone.done.is_empty(), "{undone:?}");
    });
    assert_eq!(state_of(&world), before, "the host's own 10.77.0.1 too");
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0);
}

#[test]
fn pruning_takes_off_the_addresses_of_services_that_are_gone() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        host.prepare(&both_families()).await.unwrap();
        host.prepare(&config(&[UP], &[service("[fd77::10]:443")])).await.unwrap();
        assert!(world.host.address("192.0.2.10").is_some(), "until the maps follow, packets need it");
        let undone = host.prune().await;
        assert_eq!(undone.done, ["took 192.0.2.10 off up.0"]);
        assert_eq!(host.managed_addresses().len(), 1);
    });
    assert_eq!(world.host.address("192.0.2.10"), None);
    assert!(world.host.address("fd77::10").is_some());
}

#[test]
fn attached_interfaces_stay_on_record_until_the_data_plane_lets_go() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        host.record().note_attached(UP).unwrap();
        host.release().await;
        let mut later = Host::open(state.path()).unwrap();
        assert_eq!(later.record().changes().attached.iter().collect::<Vec<_>>(), [UP]);
    });
}

#[test]
fn too_few_ephemeral_ports_are_refused_before_anything_is_reserved() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.set_sysctl(EPHEMERAL, "20000 30000");
    let error = world.host.run(async || Host::open(state.path()).unwrap().prepare(&both_families()).await.unwrap_err());
    assert!(matches!(error, HostError::Ports(_)), "{error}");
    assert_eq!(world.host.sysctl(RESERVED), "");
}

#[test]
fn reserved_ports_are_given_to_no_socket_that_did_not_ask() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.set_sysctl(EPHEMERAL, "28900 31200");
    world.host.run(async || {
        Host::open(state.path()).unwrap().prepare(&both_families()).await.unwrap();
        for _ in 0..500 {
            let socket = std::net::UdpSocket::bind("10.77.0.1:0").unwrap();
            let port = socket.local_addr().unwrap().port();
            assert!((30_000..=31_200).contains(&port), "{port}");
        }
    });
}

#[test]
fn ipv6_that_is_switched_off_is_named_with_the_line_to_type() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.host.set_sysctl("net/ipv6/conf/up.0/disable_ipv6", "1");
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        let error = host.prepare(&both_families()).await.unwrap_err().to_string();
        assert!(error.ends_with("sysctl -w net/ipv6/conf/up.0/disable_ipv6=0"), "{error}");
        host.prepare(&config(&[UP], &[service("192.0.2.10:80")])).await.expect("IPv4 needs none of it");
    });
}

#[test]
fn a_missing_interface_and_a_link_without_carrier_are_told() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    world.peer.ip(&["link", "set", WAN_PEER, "down"]);
    world.host.run(async || {
        let mut host = Host::open(state.path()).unwrap();
        let services = [service("192.0.2.10:80")];
        let error = host.prepare(&config(&["up0"], &services)).await.unwrap_err().to_string();
        assert!(error.contains("did you mean `up.0`"), "{error}");
        let prepared = host.prepare(&config(&[WAN], &services)).await.unwrap();
        assert_eq!(prepared.warnings, ["interface wan0 is down or has no carrier"]);
    });
}

#[test]
fn the_host_keeps_the_default_route_that_a_router_advertised() {
    let world = World::new();
    let state = tempfile::tempdir().unwrap();
    let default_route = || world.host.ip_json(&["-6", "route", "show", "default"]);
    let wire = world.peer.run(async || Wire::open(WAN_PEER));
    world.host.run(async || {
        // Until the interface has a link-local address, the kernel ignores advertisements.
        for _ in 0..100 {
            wire.send(&router_advertisement());
            sleep(Duration::from_millis(100)).await;
            if default_route()[0]["protocol"] == "ra" {
                break;
            }
        }
        assert_eq!(default_route()[0]["dev"], WAN, "the advertisement was taken");

        let mut host = Host::open(state.path()).unwrap();
        host.prepare(&both_families()).await.unwrap();
        assert_eq!(default_route()[0]["dev"], WAN, "forwarding on another interface does not cost it");
        let undone = host.release().await;
        assert!(undone.failed.is_empty(), "{undone:?}");
        assert_eq!(default_route()[0]["dev"], WAN);
    });
    assert_eq!(world.host.sysctl("net/ipv6/conf/wan0/accept_ra"), "1");
}

/// A router at fe80::1 that offers itself as default for half an hour (RFC 4861, 4.2).
fn router_advertisement() -> Vec<u8> {
    let source: std::net::Ipv6Addr = "fe80::1".parse().unwrap();
    let all_nodes: std::net::Ipv6Addr = "ff02::1".parse().unwrap();
    let mut message = [0_u8; 16];
    message[0] = 134;
    message[6..8].copy_from_slice(&1800_u16.to_be_bytes());
    let pseudo = Sum::ZERO.pseudo_header(&Address::v6(source.octets()), &Address::v6(all_nodes.octets()), 58, 16);
    let checksum = pseudo.bytes(&message).finish();
    message[2..4].copy_from_slice(&checksum);
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 16, 58, 255]);
    frame.extend(source.octets());
    frame.extend(all_nodes.octets());
    frame.extend(message);
    frame
}

#[test]
fn changes_of_another_namespace_are_refused_while_it_exists_and_forgotten_when_it_is_gone() {
    let state = tempfile::tempdir().unwrap();
    let first = World::new();
    first.host.run(async || HostRecord::load(state.path()).unwrap().note_attached(UP).unwrap());
    let other = World::new();
    let error = other.host.run(async || HostRecord::load(state.path()).unwrap_err().to_string());
    assert!(error.contains("nsenter --net=/") && error.contains("host.json"), "{error}");
    first.host.run(async || assert!(HostRecord::load(state.path()).unwrap().changes().attached.contains(UP)));
    drop(first);
    let left = other.host.run(async || HostRecord::load(state.path()).unwrap().changes().attached.clone());
    assert!(left.is_empty(), "{left:?}");
}
