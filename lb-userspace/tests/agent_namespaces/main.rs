//! The whole binary between network namespaces: it serves, fails over, dies, comes back, is refused,
//! and leaves nothing behind.

mod builds;
mod direct;
mod failover;
mod hotplug;
mod routes;
mod sctp;
mod service;
mod silent;
mod upgrade;
mod vlan;
mod world;

use std::{os::unix::process::CommandExt, path::Path};

use rustix::process::Signal;
use world::{ONE, Server, TWO, VIP, World, text};

const BOTH: [&str; 2] = ["lbc", "lbs"];

#[test]
fn traffic_outlives_the_agent_and_a_detach_leaves_nothing() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let forwarding = world.balancer.sysctl("net/ipv4/conf/lbc/forwarding");
    let reserved = world.balancer.sysctl("net/ipv4/ip_local_reserved_ports");

    let agent = world.run(1);
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"]);
    let stats = world.document(&["stats"]);
    assert_eq!((&stats["agentAlive"], &stats["services"][0]["name"]), (&true.into(), &"web80".into()));
    assert_eq!(stats["services"][0]["flows"], 4);
    let flows = world.document(&["flows", "--backend", "10.97.0.11"]);
    assert_eq!((&flows["matched"], &flows["flows"][0]["service"]), (&2.into(), &"web80".into()));

    let (code, log) = agent.end(Signal::KILL);
    assert_eq!(code, None, "killed");
    let (attached, placed) = (log.rfind("XDP program attached"), log.find(&format!("added {VIP} to")));
    assert!(attached.is_some() && attached < placed, "the address attracts traffic, so it comes last: {log}");
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"], "nobody is there to notice");
    assert_eq!(world.asks(&["status"]).status.code(), Some(3));
    let stats = world.document(&["stats"]);
    assert_eq!((&stats["agentAlive"], &stats["services"][0]["name"]), (&false.into(), &"10.98.0.100:80/tcp".into()));
    assert_eq!(stats["services"][0]["flows"], 8);

    let agent = world.run(1);
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"], "the next agent goes on where the last one was");
    assert_eq!(world.document(&["stats"])["services"][0]["flows"], 12);
    let (code, log) = agent.end(Signal::TERM);
    assert_eq!(code, Some(0));
    assert!(log.contains("XDP program replaced, without a gap"), "{log}");
    let last = log.lines().last().unwrap();
    assert!(last.contains("the data path stays attached") && last.contains("lb detach"), "{last}");
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"]);

    let detached = world.document(&["detach"]);
    assert_eq!(detached["interfaces"], serde_json::json!(["lbc", "lbs"]));
    assert!(!world.pins("lb").exists());
    let links = world.balancer.ip(&["-d", "addr"]);
    assert!(!links.contains(VIP) && !links.contains("prog/xdp"), "{links}");
    assert_eq!(world.balancer.sysctl("net/ipv4/conf/lbc/forwarding"), forwarding);
    assert_eq!(world.balancer.sysctl("net/ipv4/ip_local_reserved_ports"), reserved);
    assert_eq!(text(&world.asks(&["detach"]).stdout), "nothing was attached\n");
}

#[test]
fn a_dead_backend_gets_no_more_connections_and_the_time_is_told() {
    let world = World::new();
    let _one = Server::start(&world, ONE, "one");
    let two = Server::start(&world, TWO, "two");
    world.configure(&BOTH, &[80]);
    let _agent = world.run(1);
    drop(two);
    world.until("the failover", || world.document(&["status"])["services"][0]["used"] == 1);
    assert_eq!(world.get_each(6), ["one"; 6]);
    let change = &world.document(&["status"])["lastChange"];
    assert_eq!(change["backend"], TWO);
    let micros = change["detectToWrittenMicros"].as_u64().unwrap();
    assert!(micros < 10_000, "{micros} µs from the probe to the maps");
    let _two = Server::start(&world, TWO, "two");
    world.until("its return", || world.document(&["status"])["services"][0]["used"] == 2);
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"]);
}

#[test]
fn an_operator_drains_and_the_file_is_read_again_while_traffic_runs() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let agent = world.run(1);
    let done = world.document(&["backend", "drain", "web80", ONE]);
    assert_eq!((&done["published"], &done["backend"]["admin"]["state"]), (&true.into(), &"drain".into()));
    assert_eq!(world.get_each(4), ["two"; 4]);
    let refused = world.asks(&["backend", "drain", "web80", TWO]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("last ready backend"), "{}", text(&refused.stderr));
    world.document(&["backend", "ready", "web80", ONE]);
    assert_eq!(world.get_each(4), ["one", "one", "two", "two"]);

    world.configure(&BOTH, &[80, 81]);
    agent.signal(Signal::HUP);
    world.until("the second service", || {
        let status = world.document(&["status"]);
        status["services"].as_array().unwrap().iter().filter(|service| service["used"] == 2).count() == 2
    });
    world.get(81).unwrap();
    std::fs::write(world.configure(&BOTH, &[80]), "interfaces = 7").unwrap();
    agent.signal(Signal::HUP);
    world.until("the refusal", || world.document(&["status"])["reloadFailed"].is_object());
    assert_eq!(world.document(&["service", "list"])["services"].as_array().unwrap().len(), 2);
}

#[test]
fn a_change_is_told_applied_taken_back_and_confirmed_while_a_connection_lives() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let agent = world.run(1);
    let connection = world.connect(80);
    world.until("the flow to be counted", || world.document(&["status"])["dataPath"]["liveFlows"] == 1);
    // Without the server that the connection is on.
    let to = world.document(&["flows"])["flows"][0]["backend"].as_str().unwrap().to_owned();
    let other = if to == ONE { TWO } else { ONE };
    let without = world.write(
        "without.toml",
        &world.text(&BOTH, &[80]).replace(&format!("[[service.backend]]\naddress = \"{to}\"\n"), ""),
    );
    let told = world.document(&["config", "diff", &without]);
    assert_eq!(
        told["impact"]["flows"],
        serde_json::json!({ "kept": 0, "drained": 1, "rehomed": 0, "reset": 0 }),
        "{told}"
    );
    assert_eq!(told["impact"]["services"][0]["moved"], 0.5);
    assert_eq!(world.document(&["status"])["services"][0]["backends"], 2, "told, not done");

    let done = world.document(&["config", "apply", &without, "--max-reset", "0", "--confirm", "2s"]);
    assert!(done["confirmUntil"].is_string(), "{done}");
    assert_eq!(world.get_each(2).len(), 2);
    world.until("the change to be taken back", || {
        let status = world.document(&["status"]);
        status["config"]["unconfirmed"].is_null() && status["services"][0]["used"] == 2
    });
    world.document(&["config", "apply", &without, "--confirm", "60s"]);
    assert_eq!(world.document(&["config", "confirm"])["what"], "confirmed");
    let name = if other == ONE { "one" } else { "two" };
    assert_eq!(world.get_each(4), [name; 4]);
    assert!(!connection.finish().is_empty(), "the connection was not cut by any of it");
    let shown = text(&world.asks(&["config", "show"]).stdout);
    assert!(shown.contains(&without) && shown.contains(other) && !shown.contains(&to), "{shown}");
    agent.end(Signal::TERM);
}

#[test]
fn a_bad_file_at_start_gives_way_to_the_last_good_copy_and_a_watched_one_is_followed() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    let config = world.configure(&BOTH, &[80]);
    world.run(1).end(Signal::TERM);
    std::fs::write(&config, "interfaces = 7").unwrap();
    let agent = world.run_any(1);
    assert_eq!(world.get_each(2), ["one", "two"]);
    let status = world.asks(&["status"]);
    assert_eq!(status.status.code(), Some(1), "and the exit code says so");
    assert!(text(&status.stdout).contains("the last good copy runs"), "{}", text(&status.stdout));
    // Mended the way editors do it.
    let mended = world.write("mended", &format!("watch-config = true\n{}", world.text(&BOTH, &[80])));
    std::fs::rename(mended, &config).unwrap();
    world.document(&["config", "apply"]);
    assert_eq!(world.asks(&["status"]).status.code(), Some(0));
    let more = world.write("more", &format!("watch-config = true\n{}", world.text(&BOTH, &[80, 81])));
    std::fs::rename(more, &config).unwrap();
    world.until("the second service", || {
        world.document(&["status"])["services"].as_array().unwrap().iter().filter(|s| s["used"] == 2).count() == 2
    });
    let (_, log) = agent.end(Signal::TERM);
    assert!(log.contains("the last good copy") && log.contains("line 1, column 14"), "{log}");
}

#[test]
fn a_second_agent_leaves_no_folder_of_pins() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    let config = world.configure(&BOTH, &[80]);
    let _agent = world.run(1);
    // Its own pins, but the same state directory.
    let mut second = world.lb("lb", &["run", "--config", config.to_str().unwrap()]);
    let refused = second.env("LB_PIN_DIR", world.pins("second")).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("another agent"), "{}", text(&refused.stderr));
    assert!(!world.pins("second").exists());
    assert_eq!(world.get_each(2), ["one", "two"]);
}

#[test]
fn a_running_agent_is_neither_doubled_nor_undermined() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    let config = world.configure(&BOTH, &[80]);
    let agent = world.run(1);
    let pid = agent.pid().to_string();
    let second = world.asks(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains(&format!("another agent (pid {pid})")), "{}", text(&second.stderr));
    let refused = world.asks(&["detach"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains(&format!("kill {pid}, then lb detach")), "{}", text(&refused.stderr));
    assert_eq!(world.get_each(2), ["one", "two"]);
    let detached = world.document(&["detach", "--force"]);
    assert_eq!(detached["stoppedPid"], agent.pid());
    assert!(world.get(80).is_err());
}

#[test]
fn a_first_start_that_fails_leaves_nothing_behind() {
    let world = World::new();
    let forwarding = world.balancer.sysctl("net/ipv4/conf/lbc/forwarding");
    let config = world.configure(&["lbc", "nope"], &[80]);
    let failed = world.asks(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("there is no interface `nope`"), "{}", text(&failed.stderr));
    untouched(&world, "lb");
    assert_eq!(world.balancer.sysctl("net/ipv4/conf/lbc/forwarding"), forwarding);

    // Another balancer has the second interface: its program is not pushed aside, and the first
    // interface is given back.
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&["lbs"], &[80]);
    let _agent = world.run(1);
    let config = world.configure(&BOTH, &[81]);
    let failed = world.lb("other", &["run", "--config", config.to_str().unwrap()]).output().unwrap();
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("another XDP program is there already"), "{}", text(&failed.stderr));
    untouched(&world, "other");
    assert_eq!(world.balancer.sysctl("net/ipv4/conf/lbc/forwarding"), forwarding);
    assert_eq!(world.document(&["status"])["services"][0]["used"], 2, "the other one goes on");
}

/// Neither program nor service address on the client's side, and no pins.
fn untouched(world: &World, place: &str) {
    let shown = world.balancer.ip(&["-d", "addr", "show", "lbc"]);
    assert!(!shown.contains(VIP) && !shown.contains("prog/xdp"), "{shown}");
    assert!(!world.pins(place).exists());
}

#[test]
fn an_interface_that_is_configured_no_more_is_given_back_at_the_next_start() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    world.run(1).end(Signal::TERM);
    world.configure(&["lbc"], &[80]);
    let _agent = world.run(1);
    assert!(world.balancer.ip(&["-d", "link", "show", "lbc"]).contains("prog/xdp"));
    assert!(!world.balancer.ip(&["-d", "link", "show", "lbs"]).contains("prog/xdp"));
}

#[test]
fn without_rights_the_line_to_type_is_told() {
    let world = World::new();
    let config = world.configure(&BOTH, &[80]);
    let command = world.lb("lb", &["run", "--config", config.to_str().unwrap()]);
    // The program and its file where another user may read them.
    let readable = Path::new("/tmp").join(format!("lb-rights-{}", std::process::id()));
    std::fs::copy(env!("CARGO_BIN_EXE_lb"), &readable).unwrap();
    let mut as_nobody = std::process::Command::new(&readable);
    as_nobody.args(command.get_args()).uid(65534).gid(65534);
    let output = as_nobody.output();
    std::fs::remove_file(&readable).unwrap();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(shown.contains("CAP_BPF") && shown.contains("is missing") && shown.contains("sudo "), "{shown}");
    assert!(!world.pins("lb").exists());
}
