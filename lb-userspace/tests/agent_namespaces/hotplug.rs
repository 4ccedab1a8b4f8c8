//! Interfaces that go, come back and change their names while the agent runs.

use serde_json::Value;

use crate::{
    BOTH,
    world::{ONE, Server, TWO, VIP, World, text},
};

/// What the status says of an interface.
fn interface(world: &World, name: &str) -> Value {
    let status = world.document(&["status"]);
    let all = status["dataPath"]["interfaces"].as_array().unwrap();
    all.iter().find(|interface| interface["name"] == name).cloned().unwrap_or_default()
}

#[test]
fn an_interface_that_is_unplugged_and_plugged_in_again_serves_again() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let agent = world.run(1);
    for _ in 0..2 {
        world.get(80).unwrap();
        world.balancer.ip(&["link", "del", "lbc"]);
        world.until("its absence to be told", || interface(&world, "lbc")["xdpMode"] == "none");
        let check = world.asks(&["status", "--check"]);
        assert_eq!(check.status.code(), Some(1), "{}", text(&check.stdout));
        assert_eq!(interface(&world, "lbs")["xdpMode"], "native", "the other one is as it was");
        world.plug_in_again();
        world.until("the program to be back", || interface(&world, "lbc")["xdpMode"] == "native");
        world.until("the address to be back", || world.balancer.ip(&["addr", "show", "lbc"]).contains(VIP));
        world.until("an answer", || world.get(80).is_ok());
    }
    assert_eq!(world.balancer.sysctl("net/ipv4/conf/lbc/forwarding"), "1");
    assert_eq!(world.asks(&["status", "--check"]).status.code(), Some(0));
    drop(agent);
    assert_eq!(world.document(&["detach"])["interfaces"], serde_json::json!(["lbc", "lbs"]));
}

#[test]
fn a_renamed_interface_keeps_the_program_and_is_named() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let _agent = world.run(1);
    let rename = |from: &str, to: &str| {
        world.balancer.ip(&["link", "set", from, "down"]);
        world.balancer.ip(&["link", "set", from, "name", to]);
        world.balancer.ip(&["link", "set", to, "up"]);
    };
    rename("lbc", "lan0");
    world.until("the new name to be told", || {
        let told = interface(&world, "lbc");
        told["note"].as_str().is_some_and(|note| note.contains("it is called lan0 now"))
    });
    assert!(world.balancer.ip(&["-d", "link", "show", "lan0"]).contains("prog/xdp"));
    world.until("traffic to go on", || world.get(80).is_ok());
    rename("lan0", "lbc");
    world.until("the old name", || interface(&world, "lbc")["xdpMode"] == "native");
    world.until("an answer", || world.get(80).is_ok());
}

#[test]
fn another_interface_that_takes_the_name_gets_the_program_and_the_old_one_is_left() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let _agent = world.run(1);
    world.balancer.ip(&["link", "set", "lbc", "down"]);
    world.balancer.ip(&["link", "set", "lbc", "name", "old0"]);
    world.balancer.ip(&["link", "add", "lbc", "type", "veth", "peer", "name", "lbc-peer"]);
    world.balancer.ip(&["link", "set", "lbc", "up"]);
    world.until("the program on the new one", || {
        world.balancer.ip(&["-d", "link", "show", "lbc"]).contains("prog/xdp")
            && !world.balancer.ip(&["-d", "link", "show", "old0"]).contains("prog/xdp")
    });
    world.until("the status to say so", || interface(&world, "lbc")["xdpMode"] == "native");
}

#[test]
fn a_program_of_somebody_else_gives_way_only_where_that_is_said() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    // Another balancer's.
    world.configure(&["lbs"], &[80]);
    let other = world.run(1);
    other.end(rustix::process::Signal::KILL);
    let config = world.configure(&BOTH, &[80]);
    let config = config.to_str().unwrap();
    let refused = world.lb("other", &["run", "--config", config]).output().unwrap();
    let shown = text(&refused.stderr);
    assert!(shown.contains("another XDP program is there already") && shown.contains("--replace"), "{shown}");
    let log = world.write("log", "");
    let mut taking = world.lb("other", &["run", "--replace", "--config", config]);
    let mut child = taking.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    world.until("an answer", || world.get(80).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("another XDP program was thrown off"), "{log}");
}
