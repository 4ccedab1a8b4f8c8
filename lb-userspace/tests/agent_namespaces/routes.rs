//! Routes and rules that come and go under a running agent.

use std::process::Command;

use lb_common::abi::Settings;

use crate::world::{ONE, Server, TWO, World};

/// Whether the data path asks for the way of every packet, and the generation of what it holds.
fn settings(world: &World) -> (bool, u64) {
    let path = world.pins("lb").join("v1").join("settings");
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(path).output().unwrap();
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let value = &dump[0]["formatted"]["value"];
    let number = |name: &str| value[name].as_u64().unwrap_or_else(|| panic!("no {name} in {dump}"));
    (number("flags") & u64::from(Settings::ROUTES_VARY) != 0, number("generation"))
}

#[test]
fn ways_that_begin_and_end_to_vary_are_followed_at_run_time() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&["lbc", "lbs"], &[80]);
    let _agent = world.run(1);
    let ip = |line: &str| world.balancer.ip(&line.split(' ').collect::<Vec<_>>());
    let until = |vary| world.until("the data path to follow", || settings(&world).0 == vary);
    assert!(!settings(&world).0, "one way to each backend");

    let hops = "nexthop via 10.97.0.12 dev lbs nexthop dev lbs";
    ip(&format!("route add 10.97.0.11/32 {hops}"));
    until(true);
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"], "connections go on");
    ip("route del 10.97.0.11/32");
    until(false);

    for rule in ["from 10.98.0.0/24", "ipproto 17"] {
        ip(&format!("rule add {rule} lookup main"));
        until(true);
        ip(&format!("rule del {rule} lookup main"));
        until(false);
    }
    // A route by a next hop object, which becomes a group under it.
    ip("nexthop add id 1 via 10.97.0.12 dev lbs");
    ip("nexthop add id 2 dev lbs");
    ip("nexthop add id 9 group 2");
    ip("route add 10.97.0.11/32 nhid 9");
    let (vary, generation) = settings(&world);
    assert!(!vary, "a group of one");
    ip("nexthop replace id 9 group 1/2");
    until(true);
    ip("nexthop del id 9");
    until(false);

    // What changes nothing for the backends is looked at and written nowhere.
    let before = settings(&world);
    assert!(before.1 > generation);
    for _ in 0..3 {
        ip("route add 192.0.2.0/24 dev lbs");
        ip("route del 192.0.2.0/24 dev lbs");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    assert_eq!(settings(&world), before);
}
