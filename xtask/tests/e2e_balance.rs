//! Clients are answered by every backend in turn: every mode, family and number of arms, with curl,
//! dig and plain UDP.

mod stage;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use stage::{
    MODES, Stage,
    clients::{assert_in_turn, curl_names},
    echo::{ECHO_PORT, Echo, ask, udp_client},
};
use xtask::{
    shell,
    world::{
        Family, Namespace, Topology,
        config::{Health, Service},
        servers::{DNS_PORT, WEB_PORT, dns},
    },
};

fn curl_in_turn(test: &str, topology: Topology) {
    let stage = Stage::new(test, topology, 3);
    let _webs = stage.webs();
    let mut services = Vec::new();
    for (port, mode) in (80..).zip(MODES) {
        for family in Family::BOTH {
            let http = Health::Http { path: "/healthz" };
            services.push(Service { health: http, ..Service::tcp(family, mode, port, vec![0, 1, 2], WEB_PORT) });
        }
    }
    let lb = stage.lb(&services);
    for service in &services {
        let names = curl_names(&stage.world.client, service.listen(), 300);
        assert_in_turn(&names, &service.hosts());
        let stats = lb.json(&["stats", &service.name]).unwrap();
        assert_eq!(stats["services"][0]["flows"], 300, "{} {}: {stats}", service.name, service.mode);
    }
}

#[test]
fn curl_is_answered_in_turn_with_one_arm() {
    curl_in_turn("curl_is_answered_in_turn_with_one_arm", Topology::OneArm);
}

#[test]
fn curl_is_answered_in_turn_with_two_arms() {
    curl_in_turn("curl_is_answered_in_turn_with_two_arms", Topology::TwoArm);
}

#[test]
fn backends_see_the_client_with_nat_and_the_balancer_with_full_nat() {
    let stage = Stage::new("backends_see_who_asks", Topology::TwoArm, 1);
    let echo = Echo::start(&stage.world, 0);
    let services: Vec<_> = (7001..)
        .zip(MODES)
        .flat_map(|(port, mode)| Family::BOTH.map(|family| Service::udp(family, mode, port, vec![0], ECHO_PORT)))
        .collect();
    let _lb = stage.lb(&services);
    for service in &services {
        let before = echo.peers();
        let socket = udp_client(&stage.world.client, 0, service.listen()).unwrap();
        assert_eq!(ask(&socket, "who").unwrap(), "web1");
        let new: Vec<_> = echo.peers().into_keys().filter(|peer| !before.contains_key(peer)).collect();
        let expected = match service.mode {
            "nat" => service.family.client(),
            _ => service.family.lb_backend_side(),
        };
        assert_eq!(new.iter().map(|peer| peer.ip()).collect::<Vec<_>>(), [expected], "{service:?}");
    }
}

#[test]
fn dig_is_answered_in_turn() {
    let stage = Stage::new("dig_is_answered_in_turn", Topology::TwoArm, 3);
    let _servers: Vec<_> = (0..3).map(|index| dns(&stage.world, index).unwrap()).collect();
    let services: Vec<_> = (53..)
        .zip(MODES)
        .flat_map(|(port, mode)| {
            Family::BOTH.map(|family| Service {
                health: Health::Tcp { port: Some(DNS_PORT) },
                ..Service::udp(family, mode, port, vec![0, 1, 2], DNS_PORT)
            })
        })
        .collect();
    let _lb = stage.lb(&services);
    for service in &services {
        let names = dig_names(&stage.world.client, service, 30, None);
        assert_in_turn(&names, &service.hosts());
    }
}

#[test]
fn a_udp_flow_keeps_its_backend_unless_every_packet_is_scheduled_anew() {
    let stage = Stage::new("udp_granularity", Topology::TwoArm, 3);
    let _servers: Vec<_> = (0..3).map(|index| dns(&stage.world, index).unwrap()).collect();
    let mut services = Vec::new();
    for (port, mode) in (5301..).zip(MODES) {
        for family in Family::BOTH {
            let flow = Service::udp(family, mode, port, vec![0, 1, 2], DNS_PORT);
            services.push(Service {
                granularity: "packet",
                ..Service::udp(family, mode, port + 10, vec![0, 1, 2], DNS_PORT)
            });
            services.push(flow);
        }
    }
    let _lb = stage.lb(&services);
    for (port, service) in (20_000..).zip(&services) {
        let names = dig_names(&stage.world.client, service, 30, Some(port));
        if service.granularity == "packet" {
            assert_in_turn(&names, &service.hosts());
        } else {
            assert_eq!(names.len(), 1, "one flow, several backends: {names:?} {service:?}");
        }
    }
}

#[test]
fn packets_of_one_socket_are_shared_out_evenly_when_each_is_scheduled_anew() {
    let stage = Stage::new("packets_of_one_socket", Topology::OneArm, 3);
    let _echoes = Echo::on_all(&stage.world);
    let services: Vec<_> = (7001..)
        .zip(MODES)
        .flat_map(|(port, mode)| {
            Family::BOTH.map(|family| Service {
                granularity: "packet",
                ..Service::udp(family, mode, port, vec![0, 1, 2], ECHO_PORT)
            })
        })
        .collect();
    let _lb = stage.lb(&services);
    for service in &services {
        let socket = udp_client(&stage.world.client, 0, service.listen()).unwrap();
        let mut names = BTreeMap::new();
        for number in 0..600 {
            *names.entry(ask(&socket, &format!("packet {number}")).unwrap()).or_default() += 1;
        }
        assert_in_turn(&names, &service.hosts());
    }
}

#[test]
fn what_is_not_for_a_service_reaches_the_balancers_own_host() {
    let stage = Stage::new("not_for_a_service", Topology::TwoArm, 1);
    let _webs = stage.webs();
    let services = Family::BOTH.map(|family| Service::tcp(family, "full-nat", 80, vec![0], WEB_PORT));
    let _lb = stage.lb(&services);
    let mut command = stage.world.lb.command(stage::XTASK);
    command.args(["serve", "--name", "the-host", "--port", "2222"]);
    let _host_server = xtask::world::Process::start("serve", &mut command, &stage.folder().join("host.log")).unwrap();
    wait_until_served(&stage.world.client, (Family::V4.lb_client_side(), 2222).into());
    for family in Family::BOTH {
        for address in [family.lb_client_side(), family.service()] {
            let names = curl_names(&stage.world.client, (address, 2222).into(), 1);
            assert_eq!(names.into_keys().collect::<Vec<_>>(), ["the-host"]);
            // Large enough to come in fragments.
            for size in ["56", "4000"] {
                stage
                    .world
                    .client
                    .output("ping", &["-c", "2", "-i", "0.2", "-W", "2", "-s", size, &address.to_string()])
                    .unwrap();
            }
        }
    }
}

/// Waits for a server that was just started.
fn wait_until_served(client: &Namespace, address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = client.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(1))) {
        assert!(Instant::now() < deadline, "{address}: {error}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Answers by backend to so many queries of dig, each from a new port or all from one.
fn dig_names(client: &Namespace, service: &Service, queries: u32, port: Option<u16>) -> BTreeMap<String, u32> {
    let any = if service.family == Family::V4 { "0.0.0.0" } else { "::" };
    let (server, service_port) = (format!("@{}", service.family.service()), service.port.to_string());
    let mut names = BTreeMap::new();
    for _ in 0..queries {
        let mut one = client.command("dig");
        one.args([&server, "-p", &service_port, "+short", "+tries=1", "+time=3", "+notcp"]);
        if let Some(port) = port {
            one.args(["-b", &format!("{any}#{port}")]);
        }
        let text = shell::output(one.args(["TXT", "whoami.test"])).unwrap();
        *names.entry(text.trim().trim_matches('"').to_owned()).or_default() += 1;
    }
    names
}
