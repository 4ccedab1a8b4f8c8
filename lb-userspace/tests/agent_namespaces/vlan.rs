//! Clients in a VLAN, servers in a VLAN of a VLAN, and the real agent between them.

use std::process::Command;

use rustix::process::Signal;

use crate::world::{Namespace, ONE, Server, TWO, World};

/// Set where the kernel must have VLAN devices: `cargo xtask vm` does, for Debian's kernels.
const REQUIRED: &str = "LB_TEST_VLAN_DEVICES";

/// Whether this kernel has VLAN devices; says so where it has none.
fn has_vlan_devices(namespace: &Namespace, below: &str) -> bool {
    let mut command = namespace.command("ip");
    let output =
        command.args(["link", "add", "link", below, "name", "try", "type", "vlan", "id", "1"]).output().unwrap();
    let answer = crate::world::text(&output.stderr);
    if output.status.success() {
        namespace.ip(&["link", "del", "try"]);
        return true;
    }
    let unknown = answer.contains("Unknown device type") || answer.contains("not supported");
    assert!(unknown && std::env::var_os(REQUIRED).is_none(), "no VLAN device: {answer}");
    println!("NOT TESTED: this kernel has no VLAN devices ({}); `cargo xtask vm` tests it", answer.trim());
    false
}

/// A VLAN device, with tags in its frames and not beside them.
fn vlan(namespace: &Namespace, below: &str, name: &str, kind: &[&str]) {
    if below != "outer" {
        let offloads = ["txvlan", "rxvlan", "tx-vlan-stag-hw-insert", "rx-vlan-stag-hw-parse"];
        let off: Vec<_> = offloads.iter().flat_map(|offload| [*offload, "off"]).collect();
        namespace.run("ethtool", &[&["-K", below], &off[..]].concat());
    }
    namespace.ip(&[&["link", "add", "link", below, "name", name, "type", "vlan"], kind].concat());
    namespace.ip(&["link", "set", name, "up"]);
}

fn move_addresses(namespace: &Namespace, from: &str, to: &str, addresses: &[&str]) {
    namespace.ip(&["addr", "flush", "dev", from]);
    for address in addresses {
        namespace.ip(&["addr", "add", address, "dev", to]);
    }
}

/// Elements of a pinned map.
fn elements(world: &World, map: &str) -> usize {
    let path = world.pins("lb").join("v1").join(map);
    let output = Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(path).output().unwrap();
    let dump: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    dump.as_array().unwrap().len()
}

#[test]
fn clients_and_servers_in_vlans_are_served_through_the_interfaces_below() {
    let world = World::new();
    if !has_vlan_devices(&world.client, "c0") {
        return;
    }
    let (single, outer, inner) = (["id", "7"], ["proto", "802.1ad", "id", "200"], ["id", "20"]);
    vlan(&world.client, "c0", "c0.7", &single);
    vlan(&world.balancer, "lbc", "lbc.7", &single);
    for (host, below) in [(&world.servers, "s0"), (&world.balancer, "lbs")] {
        // XDP sends no frame that is longer than the interface below takes, with one tag.
        host.ip(&["link", "set", below, "mtu", "1504"]);
        vlan(host, below, "outer", &outer);
        vlan(host, "outer", "inner", &inner);
        host.ip(&["link", "set", "inner", "mtu", "1500"]);
    }
    move_addresses(&world.client, "c0", "c0.7", &["10.98.0.2/24"]);
    move_addresses(&world.balancer, "lbc", "lbc.7", &["10.98.0.1/24"]);
    move_addresses(&world.balancer, "lbs", "inner", &["10.97.0.1/24"]);
    move_addresses(&world.servers, "s0", "inner", &["10.97.0.11/24", "10.97.0.12/24"]);

    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&["lbc.7", "inner"], &[80]);
    let agent = world.run(1);
    let interfaces = &world.document(&["status"])["dataPath"]["interfaces"];
    let names: Vec<_> = interfaces.as_array().unwrap().iter().map(|on| (&on["name"], &on["xdpMode"])).collect();
    assert_eq!(format!("{names:?}"), r#"[(String("lbc"), String("native")), (String("lbs"), String("native"))]"#);
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"]);
    let stats = world.document(&["stats"]);
    assert_eq!(stats["services"][0]["flows"], 4, "they went through the data path: {stats}");

    // VLANs come and go while packets flow.
    assert_eq!(elements(&world, "vlans_out"), 3);
    vlan(&world.balancer, "lbc", "lbc.9", &["id", "9"]);
    world.until("the new VLAN", || elements(&world, "vlans_out") == 4 && elements(&world, "vlans_in") == 4);
    world.balancer.ip(&["link", "del", "lbc.9"]);
    world.until("its end", || elements(&world, "vlans_out") == 3 && elements(&world, "vlans_in") == 3);

    let (code, log) = agent.end(Signal::KILL);
    assert_eq!(code, None, "killed: {log}");
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"], "nobody is there to notice");
}
