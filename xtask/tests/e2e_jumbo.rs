//! Interfaces with an MTU of 9,000: packets in several buffers, native all the way.

mod stage;

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use stage::{
    MODES, PATIENCE, Stage,
    echo::{ECHO_PORT, Echo, ask, udp_client},
};
use xtask::world::{
    Balancer, Family, Process, Topology, World,
    config::{Health, Service},
    process,
};

const IPERF_PORT: u16 = 5201;
const MTU: u16 = 9000;
/// What outer headers take is left free on the way of clients.
const CLIENT_MTU: u16 = MTU - 40;

/// Larger wires, before anything is attached to the balancer's.
fn widen(world: &World) {
    for port in world.backend_names().iter().map(String::as_str).chain(["lb"]) {
        world.switch.ip(&[format!("link set {port} mtu {MTU}")]).unwrap();
    }
    world.switch.ip(&[format!("link set br0 mtu {MTU}")]).unwrap();
    for interface in world.interfaces() {
        world.lb.ip(&[format!("link set {interface} mtu {MTU}")]).unwrap();
    }
    for backend in &world.backends {
        backend.ip(&[format!("link set eth0 mtu {MTU}")]).unwrap();
    }
    world.client.ip(&[format!("link set eth0 mtu {CLIENT_MTU}")]).unwrap();
}

/// A stage with one backend.
fn stage(test: &str) -> Stage {
    let stage = Stage::new(test, Topology::TwoArm, 1);
    widen(&stage.world);
    stage
}

fn assert_native_and_whole(lb: &Balancer) {
    let status = lb.json(&["status"]).unwrap();
    for interface in status["dataPath"]["interfaces"].as_array().unwrap() {
        assert_eq!(interface["xdpMode"], "native", "{status}");
    }
    for service in lb.json(&["stats"]).unwrap()["services"].as_array().unwrap() {
        assert_eq!(service["dropped"].as_u64(), Some(0), "the balancer dropped packets: {service}");
    }
}

#[test]
fn iperf3_fills_jumbo_frames_both_ways() {
    let stage = stage("jumbo_iperf3");
    let mut server = stage.world.backends[0].command("iperf3");
    server.args(["--server", "--port", &IPERF_PORT.to_string()]);
    let _server = Process::start("iperf3 server", &mut server, &stage.folder().join("iperf3.log")).unwrap();
    for (port, mode) in (IPERF_PORT..).zip(MODES) {
        for family in Family::BOTH {
            let service = Service { health: Health::None, ..Service::tcp(family, mode, port, vec![0], IPERF_PORT) };
            let mut lb = stage.lb(&[service]);
            for direction in [&[][..], &["-R"]] {
                let report = iperf3(&stage, family, port, direction);
                let mss = report["start"]["tcp_mss_default"].as_u64();
                assert!(mss.is_some_and(|mss| mss > 8_800), "segments are small: {report}");
                let received = report["end"]["sum_received"]["bytes"].as_f64();
                assert!(received.is_some_and(|bytes| bytes > 4e6), "{mode} {family:?} {direction:?}: {report}");
            }
            assert_native_and_whole(&lb);
            // Full segments came by as they were, not cut up.
            let stats = lb.json(&["stats"]).unwrap();
            let counted = &stats["services"][0]["forward"];
            let (packets, bytes) = (counted["packets"].as_f64().unwrap(), counted["bytes"].as_f64().unwrap());
            assert!(bytes / packets > 1_500.0, "{stats}");
            lb.stop().unwrap();
            lb.done(&["detach"]).unwrap();
        }
    }
}

/// The server takes one test at a time and may be at the last one still.
fn iperf3(stage: &Stage, family: Family, port: u16, more: &[&str]) -> serde_json::Value {
    let (address, port) = (family.service().to_string(), port.to_string());
    let mut all = vec!["--client", &address, "--port", &port, "--json", "-t", "1"];
    all.extend(more);
    let text = process::until("iperf3", PATIENCE, || {
        let text = stage.world.client.output("iperf3", &all);
        std::thread::sleep(Duration::from_millis(100));
        text
    });
    serde_json::from_str(&text.unwrap()).unwrap()
}

#[test]
fn datagrams_of_eight_thousand_bytes_arrive_in_one_piece() {
    let stage = stage("jumbo_udp");
    let _echo = Echo::on_all(&stage.world);
    let services: Vec<_> = (7001..)
        .zip(MODES)
        .flat_map(|(port, mode)| Family::BOTH.map(|family| Service::udp(family, mode, port, vec![0], ECHO_PORT)))
        .collect();
    let lb = stage.lb(&services);
    let word = "0123456789abcdef".repeat(500);
    for service in &services {
        let socket = udp_client(&stage.world.client, 0, service.listen()).unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&socket, &word).unwrap(), "web1", "{service:?}");
        }
        let stats = lb.json(&["stats", &service.name]).unwrap();
        let forward = &stats["services"][0]["forward"];
        let headers = if service.family == Family::V4 { 42 } else { 62 };
        assert_eq!(forward["packets"], 20, "{stats}");
        assert_eq!(forward["bytes"], 20 * (8_000 + headers), "{stats}");
    }
    assert_native_and_whole(&lb);
}

#[test]
fn jumbo_packets_travel_through_a_tunnel() {
    let stage = stage("jumbo_tunnel");
    let backend = &stage.world.backends[0];
    // Takes what comes in the tunnel as it is, outer header included.
    let mut tunnel = backend.enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_IPIP))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    });
    let service = Service::udp(Family::V4, "dsr-ipip", 7000, vec![0], 7000);
    let lb = stage.lb(std::slice::from_ref(&service));
    let word: Vec<u8> = (0..8_000u32).map(|i| (i * 7) as u8).collect();
    let client = udp_client(&stage.world.client, 0, service.listen()).unwrap();
    client.send(&word).unwrap();
    let mut packet = vec![0; 65_536];
    let length = tunnel.read(&mut packet).unwrap();
    assert_eq!(length, 20 + 20 + 8 + word.len());
    let (outer, inner) = packet[..length].split_at(20);
    let ends = |header: &[u8]| -> (Ipv4Addr, Ipv4Addr) {
        let at = |from: usize| -> [u8; 4] { header[from..from + 4].try_into().unwrap() };
        (at(12).into(), at(16).into())
    };
    assert_eq!(ends(outer).1, Family::V4.backend(0));
    let from: SocketAddr = client.local_addr().unwrap();
    assert_eq!((ends(inner).0, ends(inner).1), (v4(from), v4(service.listen())));
    assert_eq!(&inner[28..], word, "the datagram is whole");
    assert_native_and_whole(&lb);
}

fn v4(address: SocketAddr) -> Ipv4Addr {
    match address {
        SocketAddr::V4(address) => *address.ip(),
        SocketAddr::V6(address) => panic!("{address} is IPv6"),
    }
}
