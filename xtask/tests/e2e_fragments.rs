//! Datagrams that are larger than the network's packets arrive whole, there and back.

mod stage;

use std::io::Read as _;

use socket2::{Domain, Protocol, Socket, Type};
use stage::{
    MODES, Stage,
    echo::{ECHO_PORT, Echo, ask, udp_client},
};
use xtask::world::{
    Family, Topology,
    config::Service,
    servers::{DNS_PORT, LARGE_RECORD, dns},
};

const LENGTH: usize = 4_000;

#[test]
fn datagrams_of_four_thousand_bytes_are_answered_whole() {
    let stage = Stage::new("fragments_udp", Topology::TwoArm, 3);
    let _echoes = Echo::on_all(&stage.world);
    let services: Vec<_> = (7001..)
        .zip(MODES)
        .flat_map(|(port, mode)| Family::BOTH.map(|family| Service::udp(family, mode, port, vec![0, 1, 2], ECHO_PORT)))
        .collect();
    let lb = stage.lb(&services);
    let word = "0123456789abcdef".repeat(LENGTH / 16);
    for service in &services {
        for _ in 0..10 {
            // The first packet of the flow is a fragment already.
            let socket = udp_client(&stage.world.client, 0, service.listen()).unwrap();
            let name = ask(&socket, &word).unwrap();
            for _ in 0..5 {
                assert_eq!(ask(&socket, &word).unwrap(), name, "{service:?}");
            }
        }
        let stats = lb.json(&["stats", &service.name]).unwrap();
        let counted = &stats["services"][0];
        // Three fragments each way.
        assert_eq!(counted["forward"]["packets"], 60 * 3, "{stats}");
        assert_eq!(counted["reply"]["packets"], 60 * 3, "{stats}");
        assert_eq!((&counted["flows"], &counted["dropped"]), (&10.into(), &0.into()), "{stats}");
    }
}

#[test]
fn dig_gets_an_answer_that_comes_in_fragments() {
    let stage = Stage::new("fragments_dig", Topology::TwoArm, 1);
    let _server = dns(&stage.world, 0).unwrap();
    let services: Vec<_> = (53..)
        .zip(MODES)
        .flat_map(|(port, mode)| Family::BOTH.map(|family| Service::udp(family, mode, port, vec![0], DNS_PORT)))
        .collect();
    let lb = stage.lb(&services);
    for service in &services {
        let server = format!("@{}", service.listen().ip());
        let port = service.port.to_string();
        let arguments = ["+notcp", "+ignore", "+bufsize=4096", "+tries=1", "+time=5", "+short", &server, "-p", &port];
        let answer = stage.world.client.output("dig", &[&arguments[..], &["large.test", "TXT"]].concat()).unwrap();
        assert_eq!(answer.matches('x').count(), LARGE_RECORD, "{service:?}: {answer}");
        let stats = lb.json(&["stats", &service.name]).unwrap();
        let reply = &stats["services"][0]["reply"];
        assert!(reply["packets"].as_u64().unwrap() >= 3, "it came in fragments: {stats}");
    }
}

#[test]
fn a_fragmented_datagram_comes_out_of_the_tunnel_piece_by_piece() {
    let stage = Stage::new("fragments_tunnel", Topology::TwoArm, 1);
    let mut tunnel = stage.world.backends[0].enter(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_IPIP))).unwrap();
        socket.set_read_timeout(Some(stage::PATIENCE)).unwrap();
        socket
    });
    // Room for the outer header.
    stage.world.client.ip(&["link set eth0 mtu 1480"]).unwrap();
    let service = Service::udp(Family::V4, "dsr-ipip", 7000, vec![0], 7000);
    let _lb = stage.lb(std::slice::from_ref(&service));
    let word: Vec<u8> = (0..LENGTH as u32).map(|i| (i * 7) as u8).collect();
    let client = udp_client(&stage.world.client, 0, service.listen()).unwrap();
    client.send(&word).unwrap();
    // UDP header and data, as a receiver behind the tunnel puts them together.
    let mut datagram: Vec<u8> = Vec::new();
    let mut packet = vec![0; 65_536];
    while datagram.len() < 8 + word.len() {
        let length = tunnel.read(&mut packet).unwrap();
        let inner = &packet[20..length];
        let offset = usize::from(u16::from_be_bytes([inner[6], inner[7]]) & 0x1fff) * 8;
        assert_eq!(offset, datagram.len(), "in order");
        datagram.extend(&inner[20..]);
    }
    assert!(datagram[8..] == word, "the datagram is not what was sent");
}
