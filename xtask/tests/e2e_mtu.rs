//! Packets that do not fit on some part of their way, and other errors of the network: real routers and
//! real stacks tell each other through the balancer.

mod stage;

use stage::{
    MODES, Stage,
    narrow::{NARROW, assert_refused, behind_a_narrow_router, download, learned, verdicts},
    random_file, sha256,
    tunnel_end::TunnelEnd,
};
use xtask::world::{Family, Topology, World, config::Service, servers::WEB_PORT};

/// Enough for many segments of full size.
const LARGE: u64 = 3_000_000;
const NOBODY_PORT: u16 = 7009;

fn backends_hear_of_a_narrow_way(test: &str, family: Family) {
    let stage = Stage::new(test, Topology::TwoArm, 1);
    let far = behind_a_narrow_router(&stage.world);
    let web = stage.web_on_disk(0);
    let services: Vec<_> =
        (80..).zip(MODES).map(|(port, mode)| Service::tcp(family, mode, port, vec![0], WEB_PORT)).collect();
    let lb = stage.lb(&services);
    let sum = random_file(&web.files().join("large"), LARGE);
    let backend = &stage.world.backends[0];
    for service in &services {
        let before = verdicts(&lb, "error_to_backend");
        let local = stage.folder().join("downloaded");
        download(&far, service, &local);
        assert_eq!(sha256(&local), sum, "{}", service.mode);
        assert!(verdicts(&lb, "error_to_backend") > before, "{}: the router was heard", service.mode);
        // Whom the backend answers.
        let seen_as = match (service.mode, family) {
            ("full-nat", _) => family.lb_backend_side(),
            (_, Family::V4) => "10.71.9.2".parse().unwrap(),
            (_, Family::V6) => "fd71:9::2".parse().unwrap(),
        };
        let route = learned(backend, seen_as);
        assert!(route.contains(&format!("mtu {NARROW}")), "{}: {route}", service.mode);
    }
    // An answer in the service's name that is as large as fits, and may not be fragmented.
    let size = (NARROW - if family == Family::V4 { 28 } else { 48 }).to_string();
    let service = family.service().to_string();
    far.output("ping", &["-c", "1", "-W", "5", "-M", "do", "-s", &size, &service]).unwrap();
}

#[test]
fn a_backend_hears_of_a_narrow_way_to_an_ipv4_client() {
    backends_hear_of_a_narrow_way("mtu_narrow_ipv4", Family::V4);
}

#[test]
fn a_backend_hears_of_a_narrow_way_to_an_ipv6_client() {
    backends_hear_of_a_narrow_way("mtu_narrow_ipv6", Family::V6);
}

#[test]
fn senders_on_both_sides_learn_what_the_balancers_interfaces_take() {
    for (narrow, up) in [("eth1", true), ("eth0", false)] {
        let stage = Stage::new(&format!("mtu_{narrow}"), Topology::TwoArm, 1);
        let web = stage.web_on_disk(0);
        let services: Vec<_> = Family::BOTH
            .into_iter()
            .flat_map(|family| {
                (80..).zip(MODES).map(move |(port, mode)| Service::tcp(family, mode, port, vec![0], WEB_PORT))
            })
            .collect();
        let lb = stage.lb(&services);
        let sum = random_file(&web.files().join("large"), LARGE);
        // A route of its own is narrow on one side only: both ends of the link take full packets.
        let prefixes = if up { ["10.71.2.0/25", "fd71:2::/80"] } else { ["10.71.1.0/26", "fd71:1::/80"] };
        for prefix in prefixes {
            stage.world.lb.ip(&[format!("route add {prefix} dev {narrow} mtu lock {NARROW}")]).unwrap();
        }
        for service in &services {
            let before = verdicts(&lb, "too_big");
            let local = stage.folder().join("local");
            download(&stage.world.client, service, &local);
            let url = format!("http://{}/files/up-{}", service.listen(), service.name);
            stage
                .world
                .client
                .output("curl", &["-sS", "--fail", "--max-time", "30", "-T", local.to_str().unwrap(), &url])
                .unwrap();
            assert_eq!(sha256(&local), sum, "{} {}", service.name, service.mode);
            assert_eq!(sha256(&web.files().join(format!("up-{}", service.name))), sum, "{}", service.mode);
            // The client knows the way to the service's address from the other mode already.
            let knew = up && service.mode != MODES[0];
            assert!(knew || verdicts(&lb, "too_big") > before, "{} {}", service.name, service.mode);
            if up {
                let route = learned(&stage.world.client, service.listen().ip());
                assert!(route.contains(&format!("mtu {NARROW}")), "{route}");
            }
        }
    }
}

/// Makes a backend that unpacks tunnels itself and answers past the balancer.
fn tunnel_backend(world: &World) -> TunnelEnd {
    let backend = &world.backends[0];
    backend.set_sysctl("net.ipv4.conf.all.arp_ignore", "1").unwrap();
    backend.set_sysctl("net.ipv4.conf.all.arp_announce", "2").unwrap();
    for (family, bits, clients) in [(Family::V4, 32, "10.71.1.0/24"), (Family::V6, 128, "fd71:1::/64")] {
        let address = format!("address add {}/{bits} dev lo", family.service());
        backend.ip(&[address, format!("route add {clients} dev eth0")]).unwrap();
    }
    // Raw sockets would get segments in a tunnel as one, whose checksum nobody has finished.
    backend.output("ethtool", &["-K", "eth0", "gro", "off"]).unwrap();
    TunnelEnd::start(backend)
}

#[test]
fn a_client_learns_what_fits_into_the_tunnel_and_its_upload_arrives() {
    let stage = Stage::new("mtu_tunnel", Topology::OneArm, 1);
    let _tunnel_end = tunnel_backend(&stage.world);
    let web = stage.web_on_disk(0);
    let services = Family::BOTH.map(|family| Service::tcp(family, "dsr-ipip", WEB_PORT, vec![0], WEB_PORT));
    let lb = stage.lb(&services);
    let local = stage.folder().join("large");
    let sum = random_file(&local, LARGE);
    for (service, room) in services.iter().zip([1480, 1460]) {
        let before = verdicts(&lb, "too_big");
        let url = format!("http://{}/files/up-{}", service.listen(), service.name);
        stage
            .world
            .client
            .output("curl", &["-sS", "--fail", "--max-time", "30", "-T", local.to_str().unwrap(), &url])
            .unwrap();
        assert_eq!(sha256(&web.files().join(format!("up-{}", service.name))), sum);
        assert!(verdicts(&lb, "too_big") > before, "the client was told");
        let route = learned(&stage.world.client, service.listen().ip());
        assert!(route.contains(&format!("mtu {room}")), "{route}");
    }
}

#[test]
fn a_udp_client_learns_that_nobody_listens() {
    let stage = Stage::new("udp_refused", Topology::TwoArm, 1);
    let services: Vec<_> = Family::BOTH
        .into_iter()
        .flat_map(|family| {
            (NOBODY_PORT..).zip(MODES).map(move |(port, mode)| Service::udp(family, mode, port, vec![0], NOBODY_PORT))
        })
        .collect();
    let lb = stage.lb(&services);
    for service in &services {
        let before = verdicts(&lb, "error_to_client");
        assert_refused(&stage.world.client, service);
        assert!(verdicts(&lb, "error_to_client") > before, "{} {}", service.name, service.mode);
    }
}
