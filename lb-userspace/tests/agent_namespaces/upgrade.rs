//! An upgrade and its rollback while connections run.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use lb_common::{abi::names, verdict::Reason};
use lb_userspace::{
    config::{Limits, XdpMode},
    dataplane::kernel::{LoadOptions, Pins, load_as_if},
};
use rustix::process::Signal;

use crate::{
    BOTH,
    world::{ONE, Server, TWO, World, text},
};

#[test]
fn connections_run_through_an_upgrade_and_back() {
    let world = World::new();
    let _servers = [Server::start(&world, ONE, "one"), Server::start(&world, TWO, "two")];
    world.configure(&BOTH, &[80]);
    let agent = world.run(1);
    let held = world.connect(80);
    let (stop, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        // Also after a failure: the scope waits for its threads.
        let _end = Ends(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                world.get(80).expect("no connection fails meanwhile");
                answers.fetch_add(1, Ordering::SeqCst);
            }
        });
        agent.end(Signal::TERM);
        older_layout(&world);
        let check = world.document(&["upgrade", "--check"]);
        let find = |name: &str| check["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap();
        assert_eq!(find("packets")["result"], "ok", "{check}");
        let growing = find("map verdict_stats")["evidence"].as_str().unwrap();
        assert!(growing.contains("its content is taken over"), "{growing}");

        let agent = world.run(1);
        let taken = world.document(&["stats"])["verdicts"].as_array().unwrap().clone();
        let forwarded = taken.iter().find(|verdict| verdict["reason"] == "to_backend").unwrap();
        assert!(forwarded["packets"].as_u64().unwrap() > 0);
        let refused = world.asks(&["upgrade", "--rollback"]);
        assert!(text(&refused.stderr).contains("--rollback --force"), "{}", text(&refused.stderr));
        let back = world.document(&["upgrade", "--rollback", "--force"]);
        assert_eq!(back["interfaces"], serde_json::json!(["lbc", "lbs"]));
        drop(agent);
        assert!(back["done"].to_string().contains("verdict_stats"), "{back}");
        let before = answers.load(Ordering::SeqCst);
        world.until("more answers", || answers.load(Ordering::SeqCst) > before + 10);
        let again = world.run(1);
        let before = answers.load(Ordering::SeqCst);
        world.until("more answers", || answers.load(Ordering::SeqCst) > before + 10);
        again.end(Signal::TERM);
    });
    assert!(!held.finish().is_empty(), "and the one from before all of it lives");
}

/// Has the traffic served by a build that knew one reason less, over the same flows.
fn older_layout(world: &World) {
    let pin_dir = world.pins("lb");
    std::fs::remove_file(Pins::new(&pin_dir).map(names::VERDICT_STATS)).unwrap();
    world.balancer.inside(|| {
        let options = LoadOptions { pin_dir: &pin_dir, limits: &Limits::default(), debug_log: false };
        let mut older = load_as_if(&options, names::VERDICT_STATS, Reason::COUNT - 1).unwrap();
        for interface in BOTH {
            assert!(older.attach(interface, XdpMode::Native).unwrap().replaced);
        }
    });
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
