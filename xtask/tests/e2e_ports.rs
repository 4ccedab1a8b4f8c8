//! `full-nat` source ports under full load: one 5-tuple is never two flows, and the host's own
//! sockets to the same backend keep working.

mod stage;

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use stage::{
    PATIENCE, Stage,
    clients::curl_names,
    echo::{ECHO_PORT, Echo, ask, udp_client},
};
use xtask::world::{
    Balancer, Family, Topology,
    config::{Health, Service},
    servers::WEB_PORT,
};

const FLOWS: usize = 60_000;
/// Ports of the client: 2000 and up.
const FIRST_PORT: u16 = 2000;
/// Sockets that are open, and packets that are on the way, at a time: none is lost in a queue.
const BURST: usize = 100;
const HOST_SOCKETS: usize = 200;
/// The fewest source ports that a configuration may have.
const PORTS: u32 = 1024;

#[test]
fn sixty_thousand_flows_reach_one_backend_from_sixty_thousand_ports() {
    let stage = Stage::new("sixty_thousand_flows", Topology::TwoArm, 1);
    let _web = stage.web(0);
    let echo = Echo::start(&stage.world, 0);
    let udp = Service {
        health: Health::Tcp { port: Some(WEB_PORT) },
        ..Service::udp(Family::V4, "full-nat", 7001, vec![0], ECHO_PORT)
    };
    let web = Service::tcp(Family::V4, "full-nat", 80, vec![0], WEB_PORT);
    let lb = stage.lb(&[udp.clone(), web.clone()]);

    exchange(&stage, udp.listen(), "first");
    let peers = echo.peers();
    assert_eq!(peers.len(), FLOWS, "two flows shared a port, or one changed it");
    let source = Family::V4.lb_backend_side();
    assert!(peers.keys().all(|peer| peer.ip() == source), "sources other than {source}");

    // The same flows again: from the same ports, each answer at the socket that asked.
    exchange(&stage, udp.listen(), "again");
    assert_eq!(echo.peers().keys().collect::<BTreeSet<_>>(), peers.keys().collect::<BTreeSet<_>>());
    assert_flows(&lb, &udp.name);

    // The host's own sockets, to the same backend and port.
    let backend = Family::V4.backend_port(0, ECHO_PORT);
    let own: Vec<_> = (0..HOST_SOCKETS).map(|_| udp_client(&stage.world.lb, 0, backend).unwrap()).collect();
    for socket in &own {
        assert_eq!(ask(socket, "host").unwrap(), "web1");
        let address = socket.local_addr().unwrap();
        assert!(!peers.contains_key(&address), "the host and a flow share {address}");
    }
    // Other connections of the host and of clients to that backend are no worse off.
    let direct = Family::V4.backend_port(0, WEB_PORT);
    assert_eq!(curl_names(&stage.world.lb, direct, 50)["web1"], 50);
    assert_eq!(curl_names(&stage.world.client, web.listen(), 50)["web1"], 50);
    assert_eq!(lb.backends_in_use(&udp.name).unwrap(), udp.backend_addresses());
    assert_eq!(verdict(&lb, "ports_exhausted"), 0);
}

#[test]
fn when_ports_run_out_it_is_counted_and_other_flows_go_on() {
    let stage = Stage::new("ports_exhausted", Topology::OneArm, 1);
    let echo = Echo::start(&stage.world, 0);
    let udp = Service::udp(Family::V4, "full-nat", 7001, vec![0], ECHO_PORT);
    let mut config = xtask::world::config::Config::new(stage.world.topology, vec![udp.clone()]);
    config.lines.push("source-ports = \"40000-41023\"".to_owned());
    let mut lb = stage.lb_at_once(&config);
    lb.wait_for_backends(&udp.name, &udp.backend_addresses(), PATIENCE).unwrap();
    let sockets: Vec<_> = (0..PORTS).map(|_| udp_client(&stage.world.client, 0, udp.listen()).unwrap()).collect();
    for socket in &sockets {
        assert_eq!(ask(socket, "one of many").unwrap(), "web1");
    }
    let one_more = udp_client(&stage.world.client, 0, udp.listen()).unwrap();
    one_more.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    ask(&one_more, "one too many").expect_err("there is no port for it");
    assert!(verdict(&lb, "ports_exhausted") >= 1);
    assert!(echo.peers().keys().all(|peer| (40_000..=41_023).contains(&peer.port())));
    for socket in &sockets {
        assert_eq!(ask(socket, "still here").unwrap(), "web1");
    }
}

#[test]
fn ports_of_closed_connections_are_used_again() {
    let stage = Stage::new("ports_again", Topology::OneArm, 1);
    let _web = stage.web(0);
    let web = Service::tcp(Family::V4, "full-nat", 80, vec![0], WEB_PORT);
    let mut config = xtask::world::config::Config::new(stage.world.topology, vec![web.clone()]);
    config.lines.push("source-ports = \"40000-41023\"".to_owned());
    let mut lb = stage.lb_at_once(&config);
    lb.wait_for_backends(&web.name, &web.backend_addresses(), PATIENCE).unwrap();
    // Three times as many connections as ports, one after the other.
    let requests = 3 * PORTS;
    assert_eq!(curl_names(&stage.world.client, web.listen(), requests)["web1"], requests);
}

/// A socket on every port asks and gets its own answer. Flows outlive their client's sockets.
fn exchange(stage: &Stage, service: SocketAddr, word: &str) {
    let ports: Vec<_> = (FIRST_PORT..=u16::MAX).take(FLOWS).collect();
    assert_eq!(ports.len(), FLOWS);
    stage.world.client.enter(|| {
        for ports in ports.chunks(BURST) {
            let sockets: Vec<_> = ports.iter().map(|port| open(*port, service)).collect();
            for (port, socket) in ports.iter().zip(&sockets) {
                socket.send(format!("{word} {port}").as_bytes()).unwrap();
            }
            for (port, socket) in ports.iter().zip(&sockets) {
                let mut answer = [0; 64];
                let length = socket.recv(&mut answer).unwrap_or_else(|e| panic!("{word}: no answer to {port}: {e}"));
                assert_eq!(String::from_utf8_lossy(&answer[..length]), format!("web1:{word} {port}"));
            }
        }
    });
}

fn open(port: u16, service: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Family::V4.client(), port)).unwrap();
    socket.connect(service).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

fn assert_flows(lb: &Balancer, service: &str) {
    let listed = lb.json(&["flows", "--service", service, "--limit", "10"]).unwrap();
    assert_eq!(listed["matched"].as_u64(), Some(FLOWS as u64), "{listed}");
    let stats = lb.json(&["stats", service]).unwrap();
    assert_eq!(stats["services"][0]["flows"].as_u64(), Some(FLOWS as u64), "{stats}");
}

fn verdict(lb: &Balancer, reason: &str) -> u64 {
    let stats = lb.json(&["stats"]).unwrap();
    let verdicts = stats["verdicts"].as_array().unwrap();
    let verdict = verdicts.iter().find(|verdict| verdict["reason"] == reason);
    verdict.and_then(|verdict| verdict["packets"].as_u64()).unwrap_or_else(|| panic!("no verdict {reason}: {stats}"))
}
