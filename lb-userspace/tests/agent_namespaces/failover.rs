//! What clients and servers notice when a backend goes: idle connections end, new ones wait or go
//! elsewhere, and a receipt tells of it.

use std::{
    io::ErrorKind,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    BOTH,
    world::{Connection, ONE, Server, TWO, World, text},
};

fn newest(world: &World) -> Value {
    let events = world.document(&["events"]);
    events["events"].as_array().unwrap().last().cloned().unwrap_or_default()
}

#[test]
fn idle_connections_end_on_both_sides_when_the_time_of_a_drain_is_over() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let agent = world.run(1);
    let idle: Vec<Connection> = (0..4).map(|_| world.connect(80)).collect();
    world.until("the count", || world.document(&["status"])["dataPath"]["liveFlows"] == 4);
    let began = Instant::now();
    let drained = world.document(&["backend", "drain", "web80", ONE, "--timeout", "2s", "--wait"]);
    assert_eq!(drained["text"], "is drained: no flows left");
    assert!(began.elapsed() >= Duration::from_secs(2), "nobody was cut before");
    let established = ["-Htn", "state", "established", "src", "10.97.0.11", "and", "sport", "=", ":8080"];
    world.until("the server's side", || world.servers.run("ss", &established).is_empty());
    let states: Vec<ErrorKind> = idle.iter().map(Connection::state).collect();
    let count = |wanted| states.iter().filter(|state| **state == wanted).count();
    assert_eq!((count(ErrorKind::ConnectionReset), count(ErrorKind::WouldBlock)), (2, 2), "{states:?}");
    let alive = idle.into_iter().zip(&states).filter(|(_, state)| **state == ErrorKind::WouldBlock);
    assert!(alive.map(|(connection, _)| connection.finish()).all(|answer| answer == "two"));

    world.get(80).unwrap();
    world.until("the first good one", || newest(&world)["firstGood"].is_string());
    let event = newest(&world);
    assert_eq!((&event["cause"], &event["backend"], &event["id"]), (&"drain".into(), &ONE.into(), &1.into()));
    assert_eq!((&event["flows"]["before"], &event["flows"]["reset"]), (&2.into(), &2.into()), "{event}");
    assert_eq!((&event["flows"]["clients"], &event["flows"]["left"]), (&1.into(), &0.into()), "{event}");
    assert_eq!(event["serving"], serde_json::json!([TWO]));

    let (code, _) = agent.end(Signal::TERM);
    assert_eq!(code, Some(0));
    let _agent = world.run_used(1, 1);
    assert_eq!(newest(&world)["detected"], event["detected"], "it outlives the agent");
}

#[test]
fn a_backend_that_dies_leaves_a_receipt_with_all_its_times() {
    let world = World::new();
    let _one = Server::start(&world, ONE, "one");
    let two = Server::start(&world, TWO, "two");
    world.configure(&BOTH, &[80]);
    let _agent = world.run(1);
    drop(two);
    world.until("the failover", || newest(&world)["switched"].is_string());
    world.until("somebody served", || {
        world.get(80).unwrap();
        newest(&world)["firstGood"].is_string()
    });
    let _two = Server::start(&world, TWO, "two");
    world.until("its return", || newest(&world)["back"].is_string());
    let event = newest(&world);
    assert_eq!((&event["cause"], &event["backend"], &event["policy"]), (&"down".into(), &TWO.into(), &"reset".into()));
    let order = ["lastGood", "detected", "switched", "firstGood", "back"].map(|key| event[key].as_str().unwrap());
    assert!(order.is_sorted(), "{order:?}");
    let shown = text(&world.asks(&["events", "show", "1"]).stdout);
    assert!(shown.contains(&format!("1 of web80 {TWO}")), "{shown}");
}

#[test]
fn new_connections_to_a_frozen_service_wait_and_none_fails() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let agent = world.run(1);
    let open = world.connect(80);
    let freeze = |max: &str| {
        let done = world.document(&["service", "freeze", "web80", "--max", max]);
        assert_eq!((&done["published"], &done["service"]), (&true.into(), &"web80".into()));
        Instant::now()
    };
    let began = freeze("800ms");
    assert!(world.document(&["status"])["services"][0]["frozenMillis"].is_u64());
    assert!(["one", "two"].contains(&open.finish().as_str()), "what is open goes on");
    world.get(80).unwrap();
    // The client's kernel tries again after a second.
    assert!(began.elapsed() >= Duration::from_millis(800), "{:?}", began.elapsed());
    let parked = |world: &World| {
        let stats = world.document(&["stats"]);
        let all = stats["verdicts"].as_array().unwrap().clone();
        all.iter().find(|verdict| verdict["reason"] == "parked").unwrap()["packets"].as_u64().unwrap()
    };
    assert!(parked(&world) >= 1);
    world.until("the thaw", || world.document(&["status"])["services"][0]["frozenMillis"].is_null());

    freeze("30s");
    world.document(&["service", "thaw", "web80"]);
    let began = Instant::now();
    world.get(80).unwrap();
    assert!(began.elapsed() < Duration::from_millis(900), "a thaw lets them through");

    // Without an agent it ends all the same.
    freeze("800ms");
    agent.end(Signal::KILL);
    let before = parked(&world);
    world.get(80).unwrap();
    assert!(parked(&world) >= before);
    let too_long = world.asks(&["service", "freeze", "web80", "--max", "2m"]);
    assert_eq!(too_long.status.code(), Some(3), "nobody is there");
}
