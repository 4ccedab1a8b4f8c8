//! The data path does not wait for the agent, and changes do not disturb flows.

mod stage;

use std::{sync::atomic::AtomicBool, thread, time::Duration};

use stage::{
    PATIENCE, Stage,
    clients::{Attempt, Connection, Load, curl_into, curl_names},
    random_file, sha256,
};
use xtask::world::{
    Family, Process, Topology,
    config::Service,
    process,
    servers::{WEB_PORT, Web},
};

/// At 20 MB/s: three seconds.
const SLOW: u64 = 60_000_000;

/// Downloads that run beside the test, one per backend and more.
struct Downloads {
    running: Vec<(Process, std::path::PathBuf)>,
    sum: String,
}

impl Downloads {
    fn start(stage: &Stage, webs: &[Web], service: &Service, count: usize) -> Self {
        let sum = random_file(&webs[0].files().join("slow"), SLOW);
        for web in &webs[1..] {
            std::fs::hard_link(webs[0].files().join("slow"), web.files().join("slow")).unwrap();
        }
        let url = format!("http://{}/slow/slow", service.listen());
        let start = |number| {
            let file = stage.folder().join(format!("download{number}"));
            (curl_into(&stage.world.client, &url, &file), file)
        };
        let running = (0..count).map(start).collect();
        Self { running, sum }
    }

    fn assert_running(&mut self) {
        for (curl, _) in &mut self.running {
            assert_eq!(curl.ended().unwrap(), None, "too early to have ended:\n{}", curl.log_tail());
        }
    }

    fn assert_whole(mut self) {
        for (curl, file) in &mut self.running {
            curl.finish(Duration::from_secs(60)).unwrap();
            assert_eq!(sha256(file), self.sum);
        }
    }
}

fn assert_none_failed(attempts: &[Attempt]) {
    assert!(attempts.len() > 20, "only {} requests", attempts.len());
    for attempt in attempts {
        assert!(attempt.outcome.is_ok(), "{attempt:?}");
    }
}

#[test]
fn transfers_and_new_requests_go_on_without_the_agent_and_a_new_one_takes_over() {
    for (mode, family) in [("full-nat", Family::V4), ("nat", Family::V6)] {
        let stage = Stage::new("agent_killed", Topology::TwoArm, 2);
        let webs: Vec<_> = (0..2).map(|index| stage.web_on_disk(index)).collect();
        let service = Service::tcp(family, mode, 80, vec![0, 1], WEB_PORT);
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let mut open = Connection::open(&stage.world.client, service.listen()).unwrap();
        let owner = open.ask().unwrap();

        let stop = AtomicBool::new(false);
        let attempts = thread::scope(|scope| {
            let load = Load::start(scope, &stop, &stage.world.client, service.listen());
            let mut downloads = Downloads::start(&stage, &webs, &service, 4);
            thread::sleep(Duration::from_millis(500));
            downloads.assert_running();
            lb.agent().kill().unwrap();

            assert_eq!(open.ask().unwrap(), owner);
            assert_eq!(curl_names(&stage.world.client, service.listen(), 20).len(), 2);
            let stats = lb.json(&["stats"]).unwrap();
            assert_eq!(stats["agentAlive"], false);
            assert!(stats["services"][0]["flows"].as_u64().unwrap() >= 25, "{stats}");
            let status = lb.answer(&["status"]).unwrap();
            assert_eq!(status.status.code(), Some(3), "without an agent: {status:?}");
            downloads.assert_running();

            lb.restart().unwrap();
            lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
            downloads.assert_running();
            downloads.assert_whole();
            load.finish()
        });
        assert_none_failed(&attempts);
        assert_eq!(open.ask().unwrap(), owner, "a flow left its backend over the restart");
        let after = lb.json(&["stats"]).unwrap();
        assert!(
            after["services"][0]["flows"].as_u64().unwrap() >= attempts.len() as u64,
            "counters restarted: {after}"
        );
    }
}

#[test]
fn a_clean_stop_and_start_loses_nothing_either() {
    let stage = Stage::new("agent_stopped", Topology::OneArm, 2);
    let _webs = stage.webs();
    let service = Service::tcp(Family::V4, "full-nat", 80, vec![0, 1], WEB_PORT);
    let mut lb = stage.lb(std::slice::from_ref(&service));
    let stop = AtomicBool::new(false);
    let attempts = thread::scope(|scope| {
        let load = Load::start(scope, &stop, &stage.world.client, service.listen());
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(200));
            assert_eq!(lb.stop().unwrap().code(), Some(0));
            thread::sleep(Duration::from_millis(200));
            lb.restart().unwrap();
            lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
        }
        load.finish()
    });
    assert_none_failed(&attempts);
}

#[test]
fn backends_come_and_go_while_transfers_run() {
    for (mode, family) in [("nat", Family::V4), ("full-nat", Family::V6)] {
        let stage = Stage::new("backends_come_and_go", Topology::TwoArm, 3);
        let webs: Vec<_> = (0..3).map(|index| stage.web_on_disk(index)).collect();
        let service = Service::tcp(family, mode, 80, vec![0, 1], WEB_PORT);
        let mut lb = stage.lb(std::slice::from_ref(&service));
        let [first, second, third] = [0, 1, 2].map(|index| service.backend_address(index));
        let mut open: Vec<_> =
            (0..6).map(|_| Connection::open(&stage.world.client, service.listen()).unwrap()).collect();
        let owners: Vec<_> = open.iter_mut().map(|connection| connection.ask().unwrap()).collect();

        let stop = AtomicBool::new(false);
        let attempts = thread::scope(|scope| {
            let load = Load::start(scope, &stop, &stage.world.client, service.listen());
            let mut downloads = Downloads::start(&stage, &webs, &service, 4);
            thread::sleep(Duration::from_millis(300));
            lb.done(&["backend", "add", &service.name, &third]).unwrap();
            lb.wait_for_backends(&service.name, &[first.clone(), second.clone(), third.clone()], PATIENCE).unwrap();
            lb.done(&["backend", "remove", &service.name, &first]).unwrap();
            lb.wait_for_backends(&service.name, &[second.clone(), third.clone()], PATIENCE).unwrap();
            downloads.assert_running();
            let names = curl_names(&stage.world.client, service.listen(), 30);
            assert_eq!(names.keys().collect::<Vec<_>>(), ["web2", "web3"]);
            for (connection, owner) in open.iter_mut().zip(&owners) {
                assert_eq!(&connection.ask().unwrap(), owner, "a flow left its backend");
            }
            downloads.assert_running();
            downloads.assert_whole();
            load.finish()
        });
        assert_none_failed(&attempts);

        // What an operator decided outlives the agent.
        lb.stop().unwrap();
        lb.restart().unwrap();
        lb.wait_for_backends(&service.name, &[second, third], PATIENCE).unwrap();
        drop(open);
        process::until("the removed backend is forgotten once its flows are over", PATIENCE, || {
            let list = lb.json(&["backend", "list", &service.name])?;
            anyhow::ensure!(!list.to_string().contains(&first), "{list}");
            Ok(())
        })
        .unwrap();
    }
}

#[test]
fn a_drained_backend_keeps_its_flows_and_gets_no_new_ones() {
    let stage = Stage::new("drained", Topology::TwoArm, 2);
    let _webs = stage.webs();
    let service = Service::tcp(Family::V4, "full-nat", 80, vec![0, 1], WEB_PORT);
    let mut lb = stage.lb(std::slice::from_ref(&service));
    let mut open: Vec<_> = (0..4).map(|_| Connection::open(&stage.world.client, service.listen()).unwrap()).collect();
    let owners: Vec<_> = open.iter_mut().map(|connection| connection.ask().unwrap()).collect();
    lb.done(&["backend", "drain", &service.name, &service.backend_address(0)]).unwrap();
    lb.wait_for_backends(&service.name, &[service.backend_address(1)], PATIENCE).unwrap();
    assert_eq!(curl_names(&stage.world.client, service.listen(), 10).into_keys().collect::<Vec<_>>(), ["web2"]);
    for (connection, owner) in open.iter_mut().zip(&owners) {
        assert_eq!(&connection.ask().unwrap(), owner);
    }
    lb.done(&["backend", "ready", &service.name, &service.backend_address(0)]).unwrap();
    lb.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
    assert_eq!(curl_names(&stage.world.client, service.listen(), 10).len(), 2);
}
