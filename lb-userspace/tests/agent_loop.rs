//! The agent's loop in virtual time, over a data plane in memory: what a probe, an operator, a file
//! and a failing kernel make of the maps.

mod agent_support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use agent_support::{A, Agent, B, Maps, config, key, service, web};
use axum::http::StatusCode;
use lb_common::verdict::Reason;
use lb_userspace::{
    agent::{
        changes::Author,
        run_loop::{Finding, Swept},
    },
    api::model::Change,
    config::{Config, DeadMan, DeadManPolicy},
    dataplane::{Dataplane, FlowCensus, Op},
};
use tokio::time::sleep;

const WEB: &str = "203.0.113.10:80";

fn addresses(backends: &[&str]) -> Vec<SocketAddr> {
    backends.iter().map(|backend| backend.parse().unwrap()).collect()
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_backend_leaves_when_its_probe_failed_as_often_as_configured() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
    agent.probe(A, false).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, B]), "once is not yet enough");
    agent.probe(A, false).await;
    assert_eq!(maps.choices(WEB), addresses(&[B]));
    let change = agent.status().await.last_change.unwrap();
    assert_eq!((change.service.as_str(), change.backend), ("web", Some(A.parse().unwrap())));
    agent.probe(A, true).await;
    agent.probe(A, true).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, B]), "and back");
}

/// In real time: the whole way from the end of the deciding probe to the last map write, in a
/// configuration of a thousand backends.
#[tokio::test(flavor = "multi_thread")]
async fn the_maps_follow_a_failed_probe_within_ten_milliseconds() {
    let (maps, dir) = (Maps::new(), dir());
    let backends: Vec<Vec<String>> =
        (0..50).map(|s| (0..20).map(|b| format!("10.1.{s}.{}:80", b + 1)).collect()).collect();
    let services = backends.iter().enumerate().map(|(s, backends)| {
        let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
        service(&format!("s{s}"), &format!("203.0.113.10:{}", 1000 + s), &backends)
    });
    let agent = Agent::start(config(services.collect()), &maps, dir.path());
    agent.status().await;
    for backend in backends.iter().flatten() {
        agent.probe_later(backend, true).await;
    }
    let mut times = Vec::new();
    for service in &backends {
        agent.probe(&service[0], false).await;
        agent.probe(&service[0], false).await;
        times.push(agent.status().await.last_change.unwrap().detect_to_written_micros);
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    assert!(median < 10_000, "median {median} µs of {times:?}");
    assert_eq!(maps.choices("203.0.113.10:1049").len(), 19);
}

#[tokio::test(start_paused = true)]
async fn results_that_arrive_together_are_one_change() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    let before = agent.status().await.data_path.generation;
    for _ in 0..2 {
        for backend in [A, B] {
            agent.probe_later(backend, false).await;
        }
    }
    let status = agent.status().await;
    assert_eq!(status.data_path.generation, before + 1);
    assert!(maps.choices(WEB).is_empty());
    assert_eq!((status.services[0].used, status.services[0].active_tier), (0, None));
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_drained_stays_drained_in_the_next_agent() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    let done = agent.command(A, Change::Drain).await.unwrap();
    assert_eq!(done.text, "drains: no flows left");
    assert!(done.published);
    assert_eq!(maps.choices(WEB), addresses(&[B]));
    agent.end().await;
    assert_eq!(maps.choices(WEB), addresses(&[B]), "nothing happens to the maps when the agent ends");

    let next = Agent::start(web(), &maps, dir.path());
    assert_eq!(maps.choices(WEB), addresses(&[B]), "nor when the next one begins, before any probe");
    let services = next.services().await;
    let admin = &services[0].backends[0].admin;
    assert_eq!((admin.state.as_str(), admin.by.as_deref()), ("drain", Some("root")));
    next.command(A, Change::Ready).await.unwrap();
    next.all_up(&[A, B]).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_cannot_be_stored_is_refused_and_changes_nothing() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    std::fs::create_dir(dir.path().join("operator.json.new")).unwrap();
    let refused = agent.command(A, Change::Drain).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(refused.why.contains("operator.json"), "{}", refused.why);
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
    std::fs::remove_dir(dir.path().join("operator.json.new")).unwrap();
    agent.command(A, Change::Drain).await.unwrap();
    assert_eq!(maps.choices(WEB), addresses(&[B]));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_the_disk_loses_at_last_is_taken_back() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    // There is room for the new file, and then something stands where it is to go.
    let in_the_way = dir.path().join("operator.json");
    std::fs::create_dir(&in_the_way).unwrap();
    let refused = agent.command(A, Change::Drain).await.unwrap_err();
    assert_eq!(refused.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(refused.why.contains("operator.json") && refused.why.contains("taken back"), "{}", refused.why);
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
    std::fs::remove_dir(in_the_way).unwrap();
    agent.command(A, Change::Drain).await.unwrap();
    assert_eq!(maps.choices(WEB), addresses(&[B]));
}

#[tokio::test(start_paused = true)]
async fn commands_that_come_together_are_decided_one_after_the_other() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    let first = agent.begin_command(A, Change::Drain).await;
    let second = agent.begin_command(B, Change::Drain).await;
    first.await.unwrap().unwrap();
    let refused = second.await.unwrap().unwrap_err();
    assert_eq!(refused.status, StatusCode::CONFLICT);
    assert!(refused.why.contains("last ready backend"), "{}", refused.why);
    assert_eq!(maps.choices(WEB), addresses(&[B]));
    let unknown = agent.command("10.0.0.99:80", Change::Drain).await.unwrap_err();
    assert_eq!((unknown.status, unknown.next.as_str()), (StatusCode::NOT_FOUND, "lb backend list web"));
}

#[tokio::test(start_paused = true)]
async fn a_failing_kernel_is_tried_again_with_growing_pauses_until_it_works() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    maps.lock().chance = 1.0;
    agent.probe(A, false).await;
    agent.probe(A, false).await;
    let status = agent.status().await;
    assert!(!status.data_path.in_step);
    assert!(status.data_path.last_error.unwrap().error.contains("a fault made by the test"));
    sleep(Duration::from_secs(10)).await;
    let faults = maps.lock().faults;
    // 50, 100, 200, 400, 800, 1600, 3200, 5000 ms.
    assert!((8..=10).contains(&faults), "{faults} attempts in 10 s");
    maps.lock().chance = 0.0;
    sleep(Duration::from_secs(6)).await;
    let status = agent.status().await;
    assert!(status.data_path.in_step && status.data_path.last_error.is_none());
    assert_eq!(maps.choices(WEB), addresses(&[B]));
    assert!(status.last_change.unwrap().detect_to_written_micros >= 10_000_000, "the time includes the retries");
}

#[tokio::test(start_paused = true)]
async fn a_flaky_kernel_never_leaves_a_service_in_pieces() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    maps.lock().chance = 0.3;
    for round in 0..40 {
        let up = round % 2 == 1;
        agent.probe(A, up).await;
        agent.probe(A, up).await;
        maps.lock().inner().check().unwrap();
    }
    maps.lock().chance = 0.0;
    sleep(Duration::from_secs(6)).await;
    assert!(agent.status().await.data_path.in_step);
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_broke_in_the_maps_is_mended_by_the_full_sync() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    maps.lock().apply(&Op::DeleteService { key: key(WEB) }).unwrap();
    assert!(maps.choices(WEB).is_empty());
    sleep(Duration::from_secs(31)).await;
    assert_eq!(maps.choices(WEB), addresses(&[A, B]));
    assert_eq!(agent.asked.lock().audits, 1);
}

#[tokio::test(start_paused = true)]
async fn sweeps_come_each_second_and_never_two_at_a_time() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    sleep(Duration::from_millis(3500)).await;
    assert_eq!(agent.asked.lock().sweeps, 1, "the first one has not come back");
    let census = FlowCensus { live: 7, ..FlowCensus::default() };
    let swept = Swept { census, took: Duration::from_millis(2), verdicts: [(Reason::TableFull, 0)].into() };
    agent.find(Finding::Swept(Ok(swept))).await;
    sleep(Duration::from_millis(1100)).await;
    assert_eq!(agent.asked.lock().sweeps, 2);
    let status = agent.status().await;
    assert_eq!((status.data_path.live_flows, status.data_path.sweep_micros), (7, 2000));
}

#[tokio::test(start_paused = true)]
async fn rising_counters_and_exhausted_ports_are_told_once() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    for full in [0, 5, 9] {
        let verdicts = [(Reason::TableFull, full)].into();
        let swept = Swept { census: FlowCensus::default(), took: Duration::ZERO, verdicts };
        agent.find(Finding::Swept(Ok(swept))).await;
        agent.find(Finding::PortsExhausted { backend_id: 0 }).await;
    }
    let notices = agent.status().await.notices;
    let warnings: Vec<&str> = notices.iter().filter(|n| n.level == "warning").map(|n| n.text.as_str()).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("web 10.0.0.11:8080: no source port is left"), "{warnings:?}");
    assert!(warnings[1].starts_with("table_full: 5 packets"), "{warnings:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_neighbour_is_asked_for_at_once_but_not_for_every_packet() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    let missing = || Finding::NeighbourMissing { ifindex: 3, next_hop: [10, 0, 0, 11].into() };
    for _ in 0..100 {
        agent.find(missing()).await;
    }
    assert_eq!(agent.asked.lock().resolved.len(), 1);
    sleep(Duration::from_millis(250)).await;
    agent.find(missing()).await;
    assert_eq!(agent.asked.lock().resolved.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_new_file_is_taken_over_as_one_transaction() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.all_up(&[A, B]).await;
    let new = Arc::new(config(vec![service("api", "203.0.113.20:80", &[A])]));
    agent_support::write_config(dir.path(), &new);
    agent.findings.send(Finding::Reload(Author::Signal)).await.unwrap();
    let prepared = agent.prepared(1).await;
    assert_eq!(prepared, new, "first the host");
    assert_eq!(agent.services().await[0].name, "web");

    agent.find(Finding::Prepared { config: prepared, result: Err("no such interface".to_owned()) }).await;
    let status = agent.status().await;
    assert_eq!(status.reload_failed.unwrap().error, "no such interface");
    assert_eq!(maps.choices(WEB), addresses(&[A, B]), "the old one goes on");
    assert!(agent.asked.lock().placed.is_empty(), "no address attracts traffic that nobody takes");

    agent.findings.send(Finding::Reload(Author::Signal)).await.unwrap();
    let prepared = agent.prepared(2).await;
    agent.findings.send(Finding::Prepared { config: prepared, result: Ok(()) }).await.unwrap();
    while agent.asked.lock().placed.is_empty() {
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(agent.asked.lock().placed, [new], "the maps know the service: now its address");
    let status = agent.status().await;
    assert_eq!((status.services[0].name.as_str(), status.reload_failed), ("api", None));
    assert_eq!(agent.asked.lock().pruned, 0, "packets of old flows still come to the old address");
    for _ in 0..6 {
        let swept = Swept { census: FlowCensus::default(), took: Duration::ZERO, verdicts: [].into() };
        agent.find(Finding::Swept(Ok(swept))).await;
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(agent.asked.lock().pruned, 1, "then nothing is left of it");
    assert!(maps.choices(WEB).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_running_agent_cannot_change_is_refused_before_anything_is_done() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    let mut new = web();
    new.interfaces = vec!["eth1".to_owned()];
    new.services.clear();
    let status = agent.reload(dir.path(), &new).await;
    assert!(status.reload_failed.unwrap().error.starts_with("`interfaces` cannot change while the agent runs"));
    assert!(agent.asked.lock().prepared.is_empty());
    assert_eq!(status.services.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn next_hops_of_all_backends_are_kept_warm() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    agent.status().await;
    assert_eq!(agent.asked.lock().warmed, [[10, 0, 0, 11].into(), [10, 0, 0, 12].into()].into());
    agent.asked.lock().warmed.clear();
    sleep(Duration::from_secs(31)).await;
    assert_eq!(agent.asked.lock().warmed.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_data_path_gets_signs_of_life_with_the_rule_of_the_configuration() {
    let (maps, dir) = (Maps::new(), dir());
    let agent = Agent::start(web(), &maps, dir.path());
    sleep(Duration::from_secs(10)).await;
    agent.status().await;
    let beats = maps.lock().inner().beats.clone();
    assert!((20..=22).contains(&beats.len()), "every 500 ms: {}", beats.len());
    assert!(beats.iter().all(|rule| *rule == DeadMan::default()));
    let rule = DeadMan { policy: DeadManPolicy::Drop, after: Duration::from_secs(5) };
    agent.reload(dir.path(), &Config { dead_man: rule, ..web() }).await;
    assert_eq!(maps.lock().inner().beats.last(), Some(&rule), "another rule is told at once");
    let before = maps.lock().inner().beats.len();
    agent.end().await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(maps.lock().inner().beats.len(), before);
}
