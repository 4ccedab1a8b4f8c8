//! Where the checks of backends with direct server return go, and who shares one.

mod core_support;

use core_support::{A, B, World, config, ok, service};
use lb_common::abi::{DontFragment, Mode, Protocol};
use lb_userspace::{
    config::{Check, Config, Service, Tunnel, TunnelSource, Via},
    core::{AskedAt, ProbeKey, ProbeOutcome, Way, WayTunnel},
};

/// A service that is checked at its own address.
fn direct(name: &str, listen: &str, mode: Mode, backends: &[&str]) -> Service {
    let mut service = service(name, listen, backends);
    service.mode = mode;
    service.health.via = Via::Service;
    service
}

fn probes(services: Vec<Service>) -> Vec<ProbeKey> {
    World::new(config(services)).core.probes()
}

fn asked(world: &World, service: &str) -> Vec<AskedAt> {
    let view = world.core.service(service).unwrap();
    view.backends.into_iter().map(|backend| backend.asked.unwrap()).collect()
}

#[test]
fn the_services_address_is_part_of_what_is_asked() {
    let one = direct("one", "203.0.113.1:80", Mode::DsrL2, &[A]);
    let other = direct("other", "203.0.113.2:80", Mode::DsrL2, &[A]);
    let keys = probes(vec![one.clone(), other.clone()]);
    let services: Vec<_> = keys.iter().map(|key| key.way.as_ref().unwrap().service.to_string()).collect();
    assert_eq!(services, ["203.0.113.1:80", "203.0.113.2:80"]);
    assert!(keys.iter().all(|key| key.target.to_string() == A && key.way.as_ref().unwrap().tunnel.is_none()));
    // At the backend's own address both ask the same, and so do two protocols at one service's address.
    let own = |service: &Service| {
        let mut service = service.clone();
        service.health.via = Via::Backend;
        service
    };
    assert_eq!(probes(vec![own(&one), own(&other)]).len(), 1);
    let mut datagrams = Service { name: "udp".to_owned(), protocol: Protocol::Udp, ..one.clone() };
    datagrams.failover = lb_userspace::config::Failover::of(Protocol::Udp, None);
    assert_eq!(probes(vec![one, datagrams]).len(), 1);
}

#[test]
fn a_tunnel_is_the_data_paths() {
    let tunnel = Tunnel {
        gue_port: 7000,
        sources: vec![TunnelSource { address: "10.77.0.0".parse().unwrap(), chosen_bits: 16 }],
        dont_fragment: DontFragment::Set,
    };
    let of = |mode| Service { tunnel: tunnel.clone(), ..direct("web", "203.0.113.1:80", mode, &[A]) };
    let way = |mode, gue_port| Way {
        service: "203.0.113.1:80".parse().unwrap(),
        tunnel: Some(WayTunnel {
            mode,
            gue_port,
            source: Some("10.77.0.0".parse().unwrap()),
            source_bits: 16,
            dont_fragment: DontFragment::Set as u8,
        }),
    };
    assert_eq!(probes(vec![of(Mode::DsrIpip)])[0].way, Some(way(Mode::DsrIpip, None)));
    assert_eq!(probes(vec![of(Mode::DsrGue)])[0].way, Some(way(Mode::DsrGue, Some(7000))));
    assert_eq!(probes(vec![of(Mode::DsrGre)])[0].way, Some(way(Mode::DsrGre, None)));
}

#[test]
fn another_port_is_asked_at_the_services_address_and_another_address_as_it_is() {
    let mut web = direct("web", "203.0.113.1:80", Mode::DsrL2, &[A, B]);
    web.health.port = Some(8080);
    web.backends[1].check_address = Some("192.0.2.9:0".parse().unwrap());
    let keys = probes(vec![web]);
    let shown: Vec<_> =
        keys.iter().map(|key| (key.target.to_string(), key.way.as_ref().map(|way| way.service.to_string()))).collect();
    let ip = A.split(':').next().unwrap();
    let expected = [(format!("{ip}:8080"), Some("203.0.113.1:8080".to_owned())), ("192.0.2.9:8080".to_owned(), None)];
    assert_eq!(shown, expected);
}

#[test]
fn a_backend_of_another_family_is_asked_at_its_own_address_and_that_is_shown() {
    let web = direct("web", "[2001:db8::1]:80", Mode::DsrIpip, &[A]);
    let world = World::new(config(vec![web.clone()]));
    assert_eq!(world.core.probes()[0].way, None);
    let why = "the service's address is of another family than the backend's".to_owned();
    assert_eq!(asked(&world, "web"), [AskedAt::Backend(Some(why))]);
    let mut meant = web;
    meant.health.via = Via::Backend;
    assert_eq!(asked(&World::new(config(vec![meant])), "web"), [AskedAt::Backend(None)]);
}

#[test]
fn that_a_check_went_elsewhere_is_told_once_and_when_it_is_over() {
    let config: Config = config(vec![direct("web", "203.0.113.1:80", Mode::DsrL2, &[A])]);
    let mut world = World::new(config);
    let elsewhere = |why: &str| ProbeOutcome { own_address: Some(why.to_owned()), ..ok() };
    let mut told = |outcome: &ProbeOutcome| {
        world.probe(A, outcome, 1);
        let notices = std::mem::take(&mut world.notices);
        let texts: Vec<String> =
            notices.into_iter().map(|notice| notice.text).filter(|text| text.contains("checks go")).collect();
        (texts, asked(&world, "web"))
    };
    assert_eq!(told(&ok()), (vec![], vec![AskedAt::Service]));
    let (texts, at) = told(&elsewhere("no program"));
    assert_eq!(texts, ["its checks go to its own address, not to the service's: no program"]);
    assert_eq!(at, [AskedAt::Backend(Some("no program".to_owned()))]);
    assert!(told(&elsewhere("no program")).0.is_empty());
    assert_eq!(told(&elsewhere("no route")).0.len(), 1);
    assert_eq!(told(&ok()), (vec!["its checks go to the service's address again".to_owned()], vec![AskedAt::Service]));
    assert!(told(&ok()).0.is_empty());
}

#[test]
fn programs_are_asked_nothing_of_the_way() {
    let mut web = direct("web", "203.0.113.1:80", Mode::DsrL2, &[A]);
    web.health.via = Via::Backend;
    web.health.check = Check::Exec(lb_userspace::config::ExecCheck { command: "/bin/true".into(), arguments: vec![] });
    assert_eq!(probes(vec![web])[0].way, None);
}
