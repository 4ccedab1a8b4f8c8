//! Errors of the network about flows between IPv4 and IPv6: hosts of each family understand what routers and
//! hosts of the other one say.

mod stage;

use stage::{
    Stage,
    narrow::{NARROW, assert_refused, behind_a_narrow_router, download, learned, verdicts},
    random_file, sha256,
};
use xtask::world::{Family, Topology, config::Service, servers::WEB_PORT};

/// Enough for many segments of full size.
const LARGE: u64 = 3_000_000;
const NOBODY_PORT: u16 = 7009;

/// What fits of the other family's packets where this much of a family's does.
fn of_the_other(family: Family, mtu: u32) -> u32 {
    match family {
        Family::V4 => mtu + 20,
        Family::V6 => mtu - 20,
    }
}

fn services() -> [Service; 2] {
    Family::BOTH.map(|family| Service::tcp(family, "full-nat", 80, vec![0], WEB_PORT).across_families())
}

#[test]
fn a_udp_client_learns_in_its_family_that_nobody_listens() {
    let stage = Stage::new("family_refused", Topology::TwoArm, 1);
    let services = Family::BOTH
        .map(|family| Service::udp(family, "full-nat", NOBODY_PORT, vec![0], NOBODY_PORT).across_families());
    let lb = stage.lb(&services);
    for service in &services {
        let before = verdicts(&lb, "error_to_client");
        assert_refused(&stage.world.client, service);
        assert!(verdicts(&lb, "error_to_client") > before, "{}", service.name);
    }
}

#[test]
fn a_backend_learns_in_its_family_of_a_narrow_way_to_the_client() {
    let stage = Stage::new("family_narrow", Topology::TwoArm, 1);
    let far = behind_a_narrow_router(&stage.world);
    let web = stage.web_on_disk(0);
    let services = services();
    let lb = stage.lb(&services);
    let sum = random_file(&web.files().join("large"), LARGE);
    for service in &services {
        let before = verdicts(&lb, "error_to_backend");
        let local = stage.folder().join("downloaded");
        download(&far, service, &local);
        assert_eq!(sha256(&local), sum, "{}", service.name);
        assert!(verdicts(&lb, "error_to_backend") > before, "{}: the router was heard", service.name);
        let route = learned(&stage.world.backends[0], service.backend_family.lb_backend_side());
        let mtu = of_the_other(service.family, NARROW);
        assert!(route.contains(&format!("mtu {mtu}")), "{}: {route}", service.name);
    }
}

#[test]
fn a_client_learns_what_the_way_to_a_backend_of_the_other_family_takes() {
    let stage = Stage::new("family_narrow_up", Topology::TwoArm, 1);
    let web = stage.web_on_disk(0);
    let services = services();
    let lb = stage.lb(&services);
    let local = stage.folder().join("large");
    let sum = random_file(&local, LARGE);
    // A route of its own is narrow on one side only: both ends of the link take full packets.
    for prefix in ["10.71.2.0/25", "fd71:2::/80"] {
        stage.world.lb.ip(&[format!("route add {prefix} dev eth1 mtu lock {NARROW}")]).unwrap();
    }
    for service in &services {
        let before = verdicts(&lb, "too_big");
        let url = format!("http://{}/files/up-{}", service.listen(), service.name);
        let client = &stage.world.client;
        client.output("curl", &["-sS", "--fail", "--max-time", "30", "-T", local.to_str().unwrap(), &url]).unwrap();
        assert_eq!(sha256(&web.files().join(format!("up-{}", service.name))), sum, "{}", service.name);
        assert!(verdicts(&lb, "too_big") > before, "{}: the client was told", service.name);
        let route = learned(client, service.listen().ip());
        let mtu = of_the_other(service.backend_family, NARROW);
        assert!(route.contains(&format!("mtu {mtu}")), "{}: {route}", service.name);
    }
}
