//! Long streams arrive whole and in both directions: 100 MB by curl, iperf3 by TCP and UDP, a
//! thousand connections at a time.

mod stage;

use std::time::Duration;

use stage::{MODES, PATIENCE, Stage, clients::Connection, random_file, sha256};
use xtask::world::{
    Family, Process, Topology,
    config::{Health, Service},
    process,
    servers::WEB_PORT,
};

const LARGE: u64 = 100_000_000;
const IPERF_PORT: u16 = 5201;

fn transfers(test: &str, topology: Topology, family: Family) {
    let stage = Stage::new(test, topology, 1);
    let web = stage.web_on_disk(0);
    let services: Vec<_> =
        (80..).zip(MODES).map(|(port, mode)| Service::tcp(family, mode, port, vec![0], WEB_PORT)).collect();
    let _lb = stage.lb(&services);
    let sum = random_file(&web.files().join("large"), LARGE);
    for service in &services {
        let url = format!("http://{}/files", service.listen());
        let (local, remote) = (stage.folder().join("downloaded"), format!("uploaded-{}", service.mode));
        let curl = |arguments: &[&str]| {
            let mut all = vec!["-sS", "--fail", "--max-time", "100"];
            all.extend(arguments);
            stage.world.client.output("curl", &all).unwrap()
        };
        curl(&["-o", local.to_str().unwrap(), &format!("{url}/large")]);
        assert_eq!(sha256(&local), sum, "download, {}", service.mode);
        curl(&["-T", local.to_str().unwrap(), &format!("{url}/{remote}")]);
        assert_eq!(sha256(&web.files().join(&remote)), sum, "upload, {}", service.mode);
    }
}

#[test]
fn a_hundred_megabytes_arrive_whole_both_ways_over_ipv4() {
    transfers("large_ipv4", Topology::TwoArm, Family::V4);
}

#[test]
fn a_hundred_megabytes_arrive_whole_both_ways_over_ipv6() {
    transfers("large_ipv6", Topology::TwoArm, Family::V6);
}

#[test]
fn a_hundred_megabytes_arrive_whole_both_ways_with_one_arm() {
    transfers("large_one_arm", Topology::OneArm, Family::V4);
}

#[test]
fn iperf3_runs_both_ways_by_tcp_and_udp() {
    let stage = Stage::new("iperf3", Topology::TwoArm, 1);
    let mut server = stage.world.backends[0].command("iperf3");
    server.args(["--server", "--port", &IPERF_PORT.to_string()]);
    let _server = Process::start("iperf3 server", &mut server, &stage.folder().join("iperf3.log")).unwrap();
    for (port, mode) in (IPERF_PORT..).zip(MODES) {
        for family in Family::BOTH {
            // iperf3 steers by TCP what it sends by UDP, on one port: two services, one backend. Its
            // server takes a probe's connection for a client, and is then busy for the real one.
            let services = [
                Service { health: Health::None, ..Service::tcp(family, mode, port, vec![0], IPERF_PORT) },
                Service::udp(family, mode, port, vec![0], IPERF_PORT),
            ];
            let mut lb = stage.lb(&services);
            for arguments in [&["-t", "2"][..], &["-t", "2", "-R"]] {
                let report = iperf3(&stage, family, port, arguments);
                let received = report["end"]["sum_received"]["bytes"].as_f64();
                assert!(received.is_some_and(|bytes| bytes > 4e6), "{mode} {family:?} {arguments:?}: {report}");
            }
            // A receiver that gets no CPU for a moment loses packets by itself: one of three is whole.
            let udp = ["-t", "2", "-u", "-b", "10M", "-l", "1200"];
            let lost = || iperf3(&stage, family, port, &udp)["end"]["sum"]["lost_percent"].as_f64();
            let whole = (0..3).any(|_| lost().expect("iperf3 tells what was lost") < 1.0);
            assert!(whole, "{mode} {family:?}: three times more than 1 % of 10 Mbit/s was lost");
            let stats = lb.json(&["stats"]).unwrap();
            for service in stats["services"].as_array().unwrap() {
                assert_eq!(service["dropped"].as_u64(), Some(0), "the balancer dropped packets: {service}");
            }
            lb.stop().unwrap();
            lb.done(&["detach"]).unwrap();
        }
    }
}

#[test]
fn a_thousand_connections_are_open_at_a_time_and_all_are_answered() {
    let stage = Stage::new("thousand_connections", Topology::TwoArm, 3);
    let _webs = stage.webs();
    let services: Vec<_> = (80..)
        .zip(MODES)
        .flat_map(|(port, mode)| Family::BOTH.map(|family| Service::tcp(family, mode, port, vec![0, 1, 2], WEB_PORT)))
        .collect();
    let lb = stage.lb(&services);
    for service in &services {
        let mut open: Vec<_> =
            (0..1000).map(|_| Connection::open(&stage.world.client, service.listen()).unwrap()).collect();
        for connection in &mut open {
            connection.send().unwrap();
        }
        let first: Vec<_> = open.iter_mut().map(|connection| connection.receive().unwrap()).collect();
        let again: Vec<_> = open.iter_mut().map(|connection| connection.ask().unwrap()).collect();
        assert_eq!(first, again, "a flow left its backend");
        for name in service.hosts() {
            let count = first.iter().filter(|first| **first == name).count();
            assert!(count.abs_diff(333) <= 4, "{name} has {count} of 1000, {service:?}");
        }
        let listed = lb.json(&["flows", "--service", &service.name, "--state", "established"]).unwrap();
        assert!(listed["matched"].as_u64().unwrap() >= 1000, "{listed}");
    }
}

/// Runs the client to its end; the server takes one test at a time and may be at the last one still.
fn iperf3(stage: &Stage, family: Family, port: u16, arguments: &[&str]) -> serde_json::Value {
    let (address, port) = (family.service().to_string(), port.to_string());
    let mut all = vec!["--client", &address, "--port", &port, "--json"];
    all.extend(arguments);
    let text = process::until("iperf3", PATIENCE, || {
        let text = stage.world.client.output("iperf3", &all);
        std::thread::sleep(Duration::from_millis(100));
        text
    });
    serde_json::from_str(&text.unwrap()).unwrap()
}
