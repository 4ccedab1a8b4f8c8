//! When packets to one backend may take different ways.

use std::net::IpAddr;

use lb_userspace::host::Netlink;

use crate::world::{UP, World};

fn vary(world: &World) -> bool {
    let backends = ["10.99.0.11", "2001:db8:99::11"].map(|ip| ip.parse::<IpAddr>().unwrap());
    world.host.run(async || Netlink::open().unwrap().routes_vary(backends).await.unwrap())
}

#[test]
fn a_route_with_several_next_hops_or_a_rule_about_sources_makes_ways_vary() {
    let world = World::new();
    let ip = |line: &str| world.host.ip(&line.split(' ').collect::<Vec<_>>());
    assert!(!vary(&world), "no route at all");
    ip(&format!("addr add 172.31.7.1/24 dev {UP}"));
    ip(&format!("addr add 2001:db8:7::1/64 dev {UP} nodad"));
    for family in ["-4", "-6"] {
        let (to, hops) = match family {
            "-4" => ("10.99.0.0/24", ["172.31.7.2", "172.31.7.3"]),
            _ => ("2001:db8:99::/64", ["2001:db8:7::2", "2001:db8:7::3"]),
        };
        ip(&format!("{family} route add {to} via {}", hops[0]));
        assert!(!vary(&world), "one next hop");
        ip(&format!("{family} route replace {to} nexthop via {} nexthop via {}", hops[0], hops[1]));
        assert!(vary(&world), "two next hops");
        ip(&format!("{family} route del {to}"));
        ip(&format!("{family} route add {to} via {}", hops[0]));
        ip(&format!("{family} rule add to {to} lookup main"));
        ip(&format!("{family} rule add iif {UP} lookup main"));
        assert!(!vary(&world), "rules about destinations and interfaces");
        let from = if family == "-4" { "198.51.100.0/24" } else { "2001:db8:c::/48" };
        ip(&format!("{family} rule add from {from} lookup main"));
        assert!(vary(&world), "a rule about sources");
        ip(&format!("{family} rule del from {from} lookup main"));
        ip(&format!("{family} rule add ipproto 6 dport 443 lookup main"));
        assert!(vary(&world), "a rule about ports");
        ip(&format!("{family} rule del ipproto 6 dport 443 lookup main"));
        assert!(!vary(&world));
    }
}
