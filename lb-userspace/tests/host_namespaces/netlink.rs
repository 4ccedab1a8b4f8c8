//! Questions to the kernel, and single changes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use lb_userspace::host::{Added, HostError, LinkEvents, Netlink};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};

use crate::world::{PEER, UP, World};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_link_is_found_by_name_and_a_wrong_name_is_answered_with_the_right_one() {
    let world = World::new();
    let shown = &world.host.ip_json(&["link", "show", UP])[0];
    let (link, error) = world.host.run(async || {
        let netlink = Netlink::open().unwrap();
        (netlink.link(UP).await.unwrap(), netlink.link("up.00").await.unwrap_err())
    });
    assert_eq!(u64::from(link.ifindex), shown["ifindex"].as_u64().unwrap());
    let mac = link.mac.unwrap().map(|octet| format!("{octet:02x}")).join(":");
    assert_eq!(mac, shown["address"].as_str().unwrap());
    assert_eq!((link.name.as_str(), link.mtu, link.up, link.kind.as_str()), (UP, 1500, true, "veth"));
    assert!(matches!(error, HostError::NoInterface { .. }));
    let words = error.to_string();
    assert!(words.contains("no interface `up.00`: did you mean `up.0`?") && words.contains("wan0"), "{words}");
}

#[test]
fn a_name_no_interface_can_have_is_answered_like_any_wrong_name() {
    let world = World::new();
    for name in ["", "a-name-far-beyond-fifteen-bytes"] {
        let error = world.host.run(async || Netlink::open().unwrap().link(name).await.unwrap_err());
        assert!(matches!(error, HostError::NoInterface { .. }), "{error}");
    }
}

#[test]
fn the_loopback_interface_has_no_neighbours_to_announce_to() {
    let world = World::new();
    let link = world.host.run(async || Netlink::open().unwrap().link("lo").await.unwrap());
    assert_eq!((link.mac, link.kind.as_str()), (None, "loopback"));
}

#[test]
fn a_link_that_goes_down_and_up_is_reported() {
    let world = World::new();
    world.host.run(async || {
        let mut events = LinkEvents::subscribe().unwrap();
        for (state, up) in [("down", false), ("up", true)] {
            world.peer.ip(&["link", "set", PEER, state]);
            timeout(Duration::from_secs(5), async {
                while events.next().await.is_none_or(|link| link.name != UP || link.up != up) {}
            })
            .await
            .unwrap_or_else(|_| panic!("nobody said that {UP} is {state}"));
        }
    });
}

/// Adds a service address, connects to it from the peer, and checks that the host does not use it
/// as source, also where a route leaves the choice of the source to the kernel.
fn service_address_serves_but_is_no_source(address: &str, length: u64, route: &str, beyond: &str) {
    let world = World::new();
    let listen = SocketAddr::new(ip(address), 8080);
    let own = if ip(address).is_ipv4() { "10.77.0.1/24" } else { "fd77::1/64" };
    world.host.run(async || {
        let netlink = Netlink::open().unwrap();
        let link = netlink.link(UP).await.unwrap();
        // First in the interface's list, where the kernel would prefer it to the host's own.
        world.host.ip(&["addr", "del", own, "dev", UP]);
        assert_eq!(netlink.add_service_address(&link, ip(address)).await.unwrap(), Added::Now);
        world
            .host
            .ip(&[&["addr", "add", own, "dev", UP][..], if ip(address).is_ipv4() { &[] } else { &["nodad"] }].concat());
        assert_eq!(netlink.add_service_address(&link, ip(address)).await.unwrap(), Added::Before, "idempotent");

        let listener = TcpListener::bind(listen).await.expect("the address is usable at once");
        world.peer.ip(&["route", "add", address, "dev", PEER]);
        let client = world.peer.run(async || {
            let connection = timeout(Duration::from_secs(5), TcpStream::connect(listen)).await;
            connection.expect("neighbours resolve the address").unwrap().local_addr().unwrap()
        });
        assert_eq!(listener.accept().await.unwrap().1, client);

        world.host.ip(&["route", "add", route, "dev", UP]);
        for destination in [world_peer(address), beyond] {
            let chosen = netlink.source_for(ip(destination), &BTreeSet::new()).await.unwrap();
            assert_ne!(chosen, Some(ip(address)), "towards {destination}");
            assert!(chosen.is_some());
        }
    });
    let shown = world.host.address(address).unwrap();
    assert_eq!(shown["prefixlen"], length, "{shown}");
    let removed = world.host.run(async || {
        let netlink = Netlink::open().unwrap();
        let ifindex = netlink.link(UP).await.unwrap().ifindex;
        let first = netlink.remove_service_address(ifindex, ip(address)).await.unwrap();
        (first, netlink.remove_service_address(ifindex, ip(address)).await.unwrap())
    });
    assert_eq!(removed, (true, false), "removed once; the second time there is nothing to remove");
    assert_eq!(world.host.address(address), None);
}

fn world_peer(address: &str) -> &'static str {
    if ip(address).is_ipv4() { "10.77.0.2" } else { "fd77::2" }
}

#[test]
fn an_ipv4_service_address_is_reachable_and_never_a_source() {
    service_address_serves_but_is_no_source("192.0.2.10", 32, "198.51.100.0/24", "198.51.100.1");
}

#[test]
fn an_ipv6_service_address_is_reachable_at_once_and_never_a_source() {
    service_address_serves_but_is_no_source("fd77::10", 128, "fd99::/64", "fd99::1");
}

#[test]
fn an_address_that_was_there_is_neither_added_nor_removed() {
    let world = World::new();
    for address in ["10.77.0.1", "fd77::1"] {
        world.host.run(async || {
            let netlink = Netlink::open().unwrap();
            let link = netlink.link(UP).await.unwrap();
            assert_eq!(netlink.add_service_address(&link, ip(address)).await.unwrap(), Added::Before);
            assert!(!netlink.remove_service_address(link.ifindex, ip(address)).await.unwrap());
        });
        assert!(world.host.address(address).is_some(), "{address} is still there");
    }
}

#[test]
fn a_route_names_source_interface_and_next_hop() {
    let world = World::new();
    world.host.ip(&["route", "add", "198.51.100.0/24", "via", "10.77.0.254"]);
    world.host.ip(&["route", "add", "fd99::/64", "via", "fd77::fe"]);
    world.host.ip(&["route", "add", "unreachable", "203.0.113.0/24"]);
    world.host.ip(&["route", "add", "blackhole", "203.0.114.0/24"]);
    world.host.ip(&["route", "add", "unreachable", "fd98::/64"]);
    world.host.run(async || {
        let netlink = Netlink::open().unwrap();
        let ifindex = netlink.link(UP).await.unwrap().ifindex;
        let none = BTreeSet::new();
        for (destination, source, gateway) in [
            ("10.77.0.2", "10.77.0.1", None),
            ("198.51.100.7", "10.77.0.1", Some("10.77.0.254")),
            ("fd77::2", "fd77::1", None),
            ("fd99::7", "fd77::1", Some("fd77::fe")),
        ] {
            let route = netlink.route_to(ip(destination), &none).await.unwrap().unwrap();
            assert_eq!(route.source, Some(ip(source)), "towards {destination}");
            assert_eq!((route.ifindex, route.local), (ifindex, false));
            assert_eq!(route.gateway, gateway.map(ip));
            assert_eq!(route.next_hop, ip(gateway.unwrap_or(destination)));
        }
        for destination in ["192.0.2.1", "203.0.113.1", "203.0.114.1", "fd98::1", "2001:db8::1"] {
            assert_eq!(netlink.route_to(ip(destination), &none).await.unwrap(), None, "towards {destination}");
        }
        assert!(netlink.route_to(ip("10.77.0.1"), &none).await.unwrap().unwrap().local);
    });
}

#[test]
fn an_excluded_source_is_replaced_by_another_address_of_the_interface() {
    let world = World::new();
    world.host.ip(&["addr", "add", "10.77.0.3/24", "dev", UP]);
    world.host.run(async || {
        let netlink = Netlink::open().unwrap();
        for (excluded, source) in [
            (vec!["10.77.0.1"], Some("10.77.0.3")),
            (vec!["10.77.0.1", "10.77.0.3"], None),
            (vec![], Some("10.77.0.1")),
        ] {
            let excluded = excluded.into_iter().map(ip).collect();
            assert_eq!(netlink.source_for(ip("10.77.0.2"), &excluded).await.unwrap(), source.map(ip));
        }
        let excluded = BTreeSet::from([ip("fd77::1")]);
        assert_eq!(netlink.source_for(ip("fd77::2"), &excluded).await.unwrap(), None);
    });
}

#[test]
fn a_neighbour_is_resolved_without_a_packet_to_send() {
    let world = World::new();
    let mac = world.peer.ip_json(&["link", "show", PEER])[0]["address"].clone();
    for neighbour in ["10.77.0.2", "fd77::2"] {
        world.host.run(async || {
            let netlink = Netlink::open().unwrap();
            let ifindex = netlink.link(UP).await.unwrap().ifindex;
            let end = Instant::now() + Duration::from_secs(5);
            loop {
                netlink.resolve(ifindex, ip(neighbour)).await.expect("asking again is no error");
                let entries = world.host.ip_json(&["neigh", "show", neighbour, "dev", UP]);
                if entries[0]["lladdr"] == mac {
                    break;
                }
                assert!(Instant::now() < end, "{neighbour} was not resolved: {entries}");
                sleep(Duration::from_millis(20)).await;
            }
        });
    }
}

#[test]
fn asking_for_a_neighbour_that_does_not_answer_is_no_error_but_a_missing_interface_is() {
    let world = World::new();
    world.host.run(async || {
        let netlink = Netlink::open().unwrap();
        let ifindex = netlink.link(UP).await.unwrap().ifindex;
        for _ in 0..3 {
            netlink.resolve(ifindex, ip("10.77.0.99")).await.unwrap();
        }
        let error = netlink.resolve(9999, ip("10.77.0.2")).await.unwrap_err().to_string();
        assert!(error.contains("10.77.0.2") && error.contains("No such device"), "{error}");
    });
}
