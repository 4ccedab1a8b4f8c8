//! Upgrades from builds with other counters or another behaviour, and other `[limits]`, while a transfer runs;
//! and agents that are killed at any moment of theirs.

use std::{
    env,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use lb_common::abi::{BackendCounters, names};
use lb_userspace::{
    config::{Limits, XdpMode},
    dataplane::kernel::{LoadOptions, Pins, load_object},
};
use rand::Rng as _;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    BOTH,
    world::{ONE, Server, TWO, VIP, World, text},
};

/// A server whose every connection that asks gets bytes without end, each by its place.
fn stream_from(world: &World, address: &str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = world.servers.inside(move || TcpListener::bind(address).unwrap());
    // It ends with the test's process.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            thread::spawn(move || {
                if !matches!(stream.read(&mut [0; 1]), Ok(1)) {
                    return;
                }
                let mut sent = 0u64;
                loop {
                    let block: Vec<u8> = (sent..sent + 4096).map(byte_at).collect();
                    if stream.write_all(&block).is_err() {
                        return;
                    }
                    sent += 4096;
                    thread::sleep(Duration::from_millis(2));
                }
            });
        }
    });
}

/// A world, configured, whose servers stream.
fn streaming() -> World {
    let world = World::new();
    stream_from(&world, ONE);
    stream_from(&world, TWO);
    world.configure(&BOTH, &[80]);
    world
}

fn byte_at(place: u64) -> u8 {
    (place % 251) as u8
}

/// A connection that takes every byte until it is told to stop.
struct Transfer<'a> {
    stop: &'a AtomicBool,
    taken: &'a AtomicU64,
}

impl Transfer<'_> {
    fn run(&self, mut stream: TcpStream) {
        let mut block = [0; 8192];
        let mut taken = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let count = stream.read(&mut block).expect("the transfer goes on");
            assert!(count > 0, "the transfer was ended after {taken} bytes");
            for byte in &block[..count] {
                assert_eq!(*byte, byte_at(taken));
                taken += 1;
            }
            self.taken.store(taken, Ordering::SeqCst);
        }
    }
}

/// Does the work while a transfer runs; the work is given something that waits until it has gone on.
fn while_transferring(world: &World, work: impl FnOnce(&dyn Fn())) {
    let mut stream = world.client.inside(|| TcpStream::connect((VIP, 80)).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"!").unwrap();
    let (stop, taken) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let transfer = Transfer { stop: &stop, taken: &taken };
        let running = scope.spawn(move || transfer.run(stream));
        let goes_on = || {
            let before = taken.load(Ordering::SeqCst);
            world.until("the transfer", || taken.load(Ordering::SeqCst) > before + 100_000 || running.is_finished());
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            goes_on();
            work(&goes_on);
        }));
        stop.store(true, Ordering::SeqCst);
        running.join().unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Puts another build on the interfaces, where no agent runs.
fn put(world: &World, object: &'static [u8], without: Option<&str>) {
    let pin_dir = world.pins("lb");
    if let Some(map) = without {
        std::fs::remove_file(Pins::new(&pin_dir).map(map)).unwrap();
    }
    world.balancer.inside(|| {
        let options = LoadOptions { pin_dir: &pin_dir, limits: &Limits::default(), debug_log: false };
        let mut other = load_object(&options, object).unwrap();
        for interface in BOTH {
            assert!(other.attach(interface, XdpMode::Native).unwrap().replaced);
        }
    });
}

fn sent_to_backends(world: &World) -> u64 {
    let stats = world.document(&["stats"]);
    let verdicts = stats["verdicts"].as_array().unwrap();
    verdicts.iter().filter(|verdict| verdict["reason"] == "to_backend").filter_map(|v| v["packets"].as_u64()).sum()
}

fn checks<'a>(document: &'a Value, name: &str) -> Vec<&'a Value> {
    document["checks"].as_array().unwrap().iter().filter(|check| check["name"] == name).collect()
}

#[test]
fn a_transfer_runs_through_an_upgrade_from_shorter_counters_and_back() {
    let world = streaming();
    let agent = world.run(1);
    while_transferring(&world, |goes_on| {
        agent.end(Signal::TERM);
        put(&world, lb_fixtures::OLDER, Some(names::BACKEND_STATS));
        goes_on();
        let check = world.document(&["upgrade", "--check"]);
        assert_eq!(checks(&check, "packets")[0]["result"], "ok", "{check}");
        let told = checks(&check, "map backend_stats")[0]["evidence"].as_str().unwrap();
        let sizes = format!("from 64 to {} bytes", size_of::<BackendCounters>());
        assert!(told.contains(&sizes) && told.contains("its content is taken over"), "{told}");

        let agent = world.run(1);
        goes_on();
        let forwarded = sent_to_backends(&world);
        assert!(forwarded > 0);
        let back = world.document(&["upgrade", "--rollback", "--force"]);
        drop(agent);
        assert!(back["done"].to_string().contains("backend_stats"), "{back}");
        goes_on();
        let again = world.run(1);
        goes_on();
        assert!(sent_to_backends(&world) > forwarded, "counters go on");
        again.end(Signal::TERM);
    });
}

#[test]
fn limits_change_at_a_restart_and_a_transfer_runs_on() {
    let world = streaming();
    let agent = world.run(1);
    while_transferring(&world, |goes_on| {
        let forwarded = sent_to_backends(&world);
        agent.end(Signal::TERM);
        let limits = "[limits]\nflows = 65536\nbackends = 128\nservices = 64\n";
        world.write("lb.toml", &format!("{}{limits}", world.text(&BOTH, &[80])));
        let agent = world.run(1);
        goes_on();
        assert!(sent_to_backends(&world) > forwarded, "counters go on");
        let (_, log) = agent.end(Signal::TERM);
        assert!(log.contains("maps of another layout were taken over"), "{log}");
    });
}

#[test]
fn a_build_that_treats_packets_otherwise_is_refused_unless_it_is_forced() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    world.run(1).end(Signal::TERM);
    put(&world, lb_fixtures::TWIN, None);
    assert_eq!(world.asks(&["upgrade", "--check"]).status.code(), Some(0), "other instructions do the same");
    put(&world, lb_fixtures::CHANGED, None);
    let refused = world.asks(&["upgrade", "--check"]);
    let said = text(&refused.stdout);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("a packet of no connection to 10.98.0.100:80: drop before, transmit now"), "{said}");
    assert!(said.contains("--check --force"), "{said}");
    let forced = world.asks(&["upgrade", "--check", "--force"]);
    assert_eq!(forced.status.code(), Some(0), "{}", text(&forced.stderr));
    assert!(text(&forced.stdout).contains("a packet of no connection"));
    assert_eq!(world.get_each(2), ["one", "two"], "nothing was changed by any of it");
}

/// `LB_AGENT_KILLS` sets how often.
#[test]
fn an_agent_that_is_killed_at_any_moment_cuts_no_transfer_and_loses_no_count() {
    let kills = env::var("LB_AGENT_KILLS").map_or(12, |count| count.parse().expect("LB_AGENT_KILLS is a number"));
    let world = streaming();
    let config = world.configure(&BOTH, &[80]);
    world.run(1).end(Signal::KILL);
    while_transferring(&world, |goes_on| {
        let mut forwarded = sent_to_backends(&world);
        for kill in 0..kills {
            // Another size now and then: killed in the middle of taking maps over, too.
            let limits =
                if kill % 3 == 0 { format!("[limits]\nflows = {}\n", 4096 << (kill % 2 * 3)) } else { String::new() };
            world.write("lb.toml", &format!("{}{limits}", world.text(&BOTH, &[80])));
            let mut agent = world.lb("lb", &["run", "--config", config.to_str().unwrap()]).spawn().unwrap();
            thread::sleep(Duration::from_millis(rand::rng().random_range(0..5000)));
            agent.kill().unwrap();
            agent.wait().unwrap();
            goes_on();
            let now = sent_to_backends(&world);
            assert!(now > forwarded, "kill {kill}: {forwarded}, then {now}");
            forwarded = now;
        }
        world.configure(&BOTH, &[80]);
        let agent = world.run(1);
        goes_on();
        assert!(sent_to_backends(&world) > forwarded);
        agent.end(Signal::TERM);
    });
}
