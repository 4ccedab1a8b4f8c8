//! An agent that hangs, or is gone, and what was declared for that case.

use rustix::process::Signal;

use crate::{
    BOTH,
    world::{ONE, Server, TWO, World, text},
};

fn configure(world: &World, policy: &str) {
    let text = format!("dead-man = \"{policy}\"\ndead-man-after = \"2s\"\n{}", world.text(&BOTH, &[80]));
    world.write("lb.toml", &text);
}

#[test]
fn a_stopped_agent_is_silent_until_it_goes_on() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    configure(&world, "drop");
    let agent = world.run(1);
    let told = &world.document(&["status"])["dataPath"]["deadMan"];
    assert_eq!(told, &serde_json::json!({ "policy": "drop", "afterSeconds": 2.0 }));
    let known = world.connect(80);

    agent.signal(Signal::STOP);
    world.until("new flows to be dropped", || world.get(80).is_err());
    assert!(!known.finish().is_empty(), "a known flow goes on");
    let status = world.asks(&["status"]);
    assert_eq!(status.status.code(), Some(3));
    let shown = text(&status.stderr);
    assert!(shown.contains("drop: new flows are dropped, for ") && shown.contains("lbc native"), "{shown}");
    let verdicts = world.document(&["stats"])["verdicts"].as_array().unwrap().clone();
    let dropped = verdicts.iter().find(|verdict| verdict["reason"] == "agent_silent_dropped").unwrap();
    assert!(dropped["packets"].as_u64().unwrap() > 0);

    agent.signal(Signal::CONT);
    world.until("new flows to be served", || world.get(80).is_ok());
    assert_eq!(world.asks(&["status"]).status.code(), Some(0));
}

#[test]
fn the_host_gets_what_a_dead_agent_was_to_let_pass_and_the_next_agent_takes_it_back() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    configure(&world, "pass");
    world.run(1).end(Signal::KILL);
    // The host has no such port: its stack refuses.
    let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    world.until("the host to answer", || world.get(80).err().is_some_and(refused));
    let agent = world.run(1);
    world.get(80).unwrap();
    // Another policy takes effect at once.
    configure(&world, "freeze");
    world.document(&["config", "apply"]);
    agent.end(Signal::KILL);
    std::thread::sleep(std::time::Duration::from_secs(3));
    world.get(80).unwrap();
}
