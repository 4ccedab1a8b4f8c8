//! Direct server return through tunnels: the balancer puts packets in, `lb decap` on the backends
//! takes them out, and servers answer clients themselves.

mod stage;

use std::time::Duration;

use rustix::process::Signal;
use stage::{
    PATIENCE, Stage,
    clients::{Connection, assert_balanced, assert_in_turn, curl_names},
    dsr::{Decap, decap, decap_on_all, lb_on, pins, prepare_backends},
};
use xtask::{
    shell,
    world::{
        Balancer, Family, Process, Topology,
        config::{Health, Service},
        process,
        servers::WEB_PORT,
    },
};

const MODES: [&str; 3] = ["dsr-ipip", "dsr-gue", "dsr-gre"];
const IPERF_PORT: u16 = 5201;
/// Slow enough that no queue on the way overflows, so that every packet can be asked for.
const RATE: &str = "100M";
/// What `tunnel-source-entropy` chooses from.
const CHOSEN: &str = "10.77.0.0/16";
/// With the largest outer headers (48 bytes) packets fit the wires of 1500.
const CLIENT_MTU: u16 = 1400;

/// Clients reach backends that have the service's addresses and strip tunnels.
fn stage(test: &str, backends: u8) -> Stage {
    let stage = Stage::new(test, Topology::OneArm, backends);
    prepare_backends(&stage.world);
    stage.world.client.ip(&[format!("link set eth0 mtu {CLIENT_MTU}")]).unwrap();
    stage
}

/// The balancer's addresses towards the backends.
fn balancers() -> Vec<String> {
    Family::BOTH.map(|family| family.lb_backend_side().to_string()).into()
}

fn decaps(stage: &Stage) -> Vec<Decap<'_>> {
    let balancers = balancers();
    let mut from: Vec<&str> = balancers.iter().map(String::as_str).collect();
    from.push(CHOSEN);
    decap_on_all(&stage.world, &from)
}

/// A service of each family, both with backends of one.
fn services(mode: &'static str, outer: Family, port: u16, backends: Vec<u8>) -> [Service; 2] {
    // Packets that are stripped are compared with those of clients.
    let health = Health::OwnAddress;
    Family::BOTH.map(|family| Service {
        backend_family: outer,
        health: health.clone(),
        ..Service::tcp(family, mode, port, backends.clone(), port)
    })
}

/// Every packet that the balancer has sent has been stripped; none was refused on the way.
fn assert_all_stripped(lb: &Balancer<'_>, decaps: &[Decap<'_>], service: &Service, before: u64) {
    process::until("all packets are stripped", PATIENCE, || {
        let stats = lb.json(&["stats", &service.name])?;
        let sent = stats["services"][0]["forward"]["packets"].as_u64().unwrap();
        let stripped: u64 = decaps.iter().map(|decap| decap.stripped(service.family)).sum::<anyhow::Result<_>>()?;
        anyhow::ensure!(sent > 0 && stripped - before == sent, "{sent} sent, {stripped} stripped, {before} before");
        Ok(())
    })
    .unwrap();
    for decap in decaps {
        for outcome in ["wrong_source", "wrong_vip", "malformed", "bad_checksum", "congestion", "fragment", "internal"]
        {
            assert_eq!(decap.counted(outcome).unwrap(), 0, "{outcome}: {}", decap.status().unwrap());
        }
    }
}

#[test]
fn curl_is_answered_through_tunnels_of_every_kind_and_family() {
    let stage = stage("tunnels", 2);
    let _webs = stage.webs();
    let decaps = decaps(&stage);
    for mode in MODES {
        for outer in Family::BOTH {
            let services = services(mode, outer, WEB_PORT, vec![0, 1]);
            let before =
                Family::BOTH.map(|family| decaps.iter().map(|decap| decap.stripped(family).unwrap()).sum::<u64>());
            let mut lb = stage.lb(&services);
            for (service, before) in services.iter().zip(before) {
                assert_balanced(&stage.world.client, service.listen(), &service.hosts(), 200);
                assert_all_stripped(&lb, &decaps, service, before);
            }
            lb.stop().unwrap();
            lb.done(&["detach"]).unwrap();
        }
    }
    let kinds = ["ipip", "gue", "gre"];
    assert!(decaps.iter().all(|decap| kinds.iter().all(|kind| decap.counted(kind).unwrap() > 500)));
}

#[test]
fn iperf3_moves_data_both_ways_through_tunnels() {
    let stage = stage("tunnel_streams", 1);
    let decaps = decaps(&stage);
    let mut server = stage.world.backends[0].command("iperf3");
    server.args(["--server", "--port", &IPERF_PORT.to_string()]);
    let _server = Process::start("iperf3 server", &mut server, &stage.folder().join("iperf3.log")).unwrap();
    for (mode, outer) in
        [("dsr-ipip", Family::V4), ("dsr-ipip", Family::V6), ("dsr-gue", Family::V4), ("dsr-gre", Family::V6)]
    {
        let services = services(mode, outer, IPERF_PORT, vec![0]);
        // iperf3's server takes a probe's connection for a client.
        let services = services.map(|service| Service { health: Health::None, ..service });
        let mut lb = stage.lb(&services);
        for service in &services {
            let before = decaps[0].stripped(service.family).unwrap();
            for arguments in [&["-t", "2", "-b", RATE][..], &["-t", "2", "-R", "-b", RATE]] {
                let received = iperf3(&stage, service, arguments)["end"]["sum_received"]["bytes"].as_f64();
                assert!(received.is_some_and(|bytes| bytes > 4e6), "{mode} {outer:?} {arguments:?}: {received:?}");
            }
            assert_all_stripped(&lb, &decaps, service, before);
            let stats = lb.json(&["stats", &service.name]).unwrap();
            assert_eq!(stats["services"][0]["dropped"], 0, "{stats}");
        }
        lb.stop().unwrap();
        lb.done(&["detach"]).unwrap();
    }
}

#[test]
fn sources_chosen_from_a_prefix_and_another_gue_port_reach_the_backends() {
    let stage = stage("tunnel_sources", 2);
    let _webs = stage.webs();
    let decaps = decaps(&stage);
    for mode in MODES {
        let services = services(mode, Family::V4, WEB_PORT, vec![0, 1]).map(|service| Service {
            lines: vec![format!("tunnel-source-entropy = \"{CHOSEN}\""), "tunnel-df = \"clear\"".to_owned()],
            ..service
        });
        let before = Family::BOTH.map(|family| decaps.iter().map(|decap| decap.stripped(family).unwrap()).sum::<u64>());
        let mut lb = stage.lb(&services);
        for (service, before) in services.iter().zip(before) {
            assert_in_turn(&curl_names(&stage.world.client, service.listen(), 100), &service.hosts());
            assert_all_stripped(&lb, &decaps, service, before);
        }
        lb.stop().unwrap();
        lb.done(&["detach"]).unwrap();
    }
}

#[test]
fn only_balancers_that_were_told_are_let_in() {
    let stage = stage("tunnel_strangers", 1);
    let _webs = stage.webs();
    let strict = decap(&stage.world, 0, &["192.0.2.1"]);
    let services = services("dsr-ipip", Family::V4, WEB_PORT, vec![0]);
    let lb = stage.lb(&services);
    Connection::open(&stage.world.client, services[0].listen()).map(drop).unwrap_err();
    assert!(strict.counted("wrong_source").unwrap() > 0, "{}", strict.status().unwrap());
    assert_eq!(strict.counted("ipip").unwrap(), 0);
    // Told again, with the right one, while it runs.
    let again = decap(&stage.world, 0, &["10.71.2.0/24"]);
    Connection::open(&stage.world.client, services[0].listen()).unwrap().ask().unwrap();
    assert!(again.counted("ipip").unwrap() > 0, "{}", again.status().unwrap());
    drop(lb);
}

#[test]
fn decap_leaves_nothing_behind_and_stays_when_it_is_to_stay() {
    let stage = stage("decap", 1);
    let _webs = stage.webs();
    let world = &stage.world;
    let balancers = balancers();
    let from: Vec<&str> = balancers.iter().map(String::as_str).collect();
    let services = services("dsr-gue", Family::V6, WEB_PORT, vec![0]);
    let _lb = stage.lb(&services);
    let works = || Connection::open(&world.client, services[0].listen()).and_then(|mut connection| connection.ask());
    let gone = || {
        assert!(!pins(world, 0).exists(), "pins are left behind");
        let link = world.backends[0].output("ip", &["-details", "link", "show", "eth0"]).unwrap();
        assert!(!link.contains("xdp"), "{link}");
        works().unwrap_err();
    };
    gone();

    for signal in [Signal::TERM, Signal::INT] {
        let mut stripping = decap(world, 0, &from);
        works().unwrap();
        stripping.process.signal(signal).unwrap();
        assert!(stripping.process.wait(PATIENCE).unwrap().success(), "{}", stripping.process.log_tail());
        gone();
    }

    // Killed, it leaves the program at work.
    decap(world, 0, &from).process.kill().unwrap();
    works().unwrap();
    let off = shell::output(&mut lb_on(world, 0, &["decap", "off"])).unwrap();
    assert_eq!(off.trim(), "tunnels are no longer stripped on eth0");
    gone();

    let vip = Family::V4.service().to_string();
    let on = ["decap", "--background", "--iface", "eth0", "--vip", &vip, "--from", from[1]];
    shell::output(&mut lb_on(world, 0, &on)).unwrap();
    works().unwrap();
    shell::output(&mut lb_on(world, 0, &["decap", "off", "--iface", "eth0"])).unwrap();
    gone();
    // Nothing to do is no failure.
    shell::output(&mut lb_on(world, 0, &["decap", "off", "--iface", "eth0"])).unwrap();
    let status = shell::output(&mut lb_on(world, 0, &["decap", "status"])).unwrap();
    assert!(status.starts_with("no tunnels are stripped here"), "{status}");
}

#[test]
fn doctor_finds_what_a_backend_lacks_until_nothing_is_lacking() {
    let stage = Stage::new("doctor_backend", Topology::OneArm, 1);
    let world = &stage.world;
    let balancer = Family::V4.lb_backend_side().to_string();
    let vip = Family::V4.service().to_string();
    let diagnose = |from: &str| {
        let client = Family::V4.client().to_string();
        let words = ["doctor", "--backend", "--mode", "dsr-ipip", "--vip", &vip, "--from", from, "--client", &client];
        let output = lb_on(world, 0, &words).args(["-o", "json"]).output().unwrap();
        let diagnosis: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let failed: Vec<String> = diagnosis["checks"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|check| check["result"] == "fail")
            .map(|check| check["name"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(output.status.code(), Some(i32::from(!failed.is_empty())), "{diagnosis}");
        (failed, diagnosis)
    };
    let (failed, diagnosis) = diagnose(&balancer);
    let address = format!("address {vip}");
    let decapsulation = format!("decapsulation {vip}");
    assert_eq!(failed, [&address, "arp", &decapsulation, "way to IPv4 clients"], "{diagnosis}");
    // What it says to type is what mends it.
    let fix = |name: &str| {
        let checks = diagnosis["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == name).unwrap();
        check["fix"].as_str().unwrap().to_owned()
    };
    for name in [&address, "arp"] {
        world.backends[0].output("sh", &["-c", &fix(name)]).unwrap();
    }
    world.backends[0].ip(&["route add 10.71.1.0/24 dev eth0"]).unwrap();
    assert_eq!(diagnose(&balancer).0, [decapsulation.as_str()]);
    let fix = fix(&decapsulation);
    let words: Vec<&str> = fix.split(' ').skip(1).collect();
    shell::output(lb_on(world, 0, &words).arg("--background")).unwrap();
    let (failed, diagnosis) = diagnose(&balancer);
    assert!(failed.is_empty(), "{diagnosis}");
    let text = shell::output(&mut lb_on(world, 0, &["doctor", "--backend"])).unwrap();
    assert!(text.contains("lb decap on eth0") && text.contains("To mend:\n  mtu: ip link set eth0 mtu"), "{text}");
    shell::output(&mut lb_on(world, 0, &["decap", "off"])).unwrap();
}

/// Runs the client to its end; the server takes one test at a time and may be at the last one still.
fn iperf3(stage: &Stage, service: &Service, arguments: &[&str]) -> serde_json::Value {
    let listen = service.listen();
    let (address, port) = (listen.ip().to_string(), listen.port().to_string());
    let mut all = vec!["--client", &address, "--port", &port, "--json"];
    all.extend(arguments);
    let text = process::until("iperf3", PATIENCE, || {
        let text = stage.world.client.output("iperf3", &all);
        std::thread::sleep(Duration::from_millis(100));
        text
    });
    serde_json::from_str(&text.unwrap()).unwrap()
}
