//! `full-nat` between IPv4 and IPv6: clients of one family, servers of the other, real stacks at both
//! ends.

mod stage;

use std::net::UdpSocket;

use stage::{
    Stage,
    clients::{assert_balanced, assert_in_turn, curl_names},
    echo::{ECHO_PORT, Echo, ask, udp_client},
    random_file, sha256,
};
use xtask::world::{Family, Topology, config::Service, servers::WEB_PORT};

const LARGE: u64 = 20_000_000;
/// UDP payloads up to the largest that an IPv4 link of 1,500 bytes takes as IPv6.
const PAYLOADS: [usize; 6] = [1, 2, 511, 1024, 1200, 1452];

/// Services of both families on `port`, each with backends of the other.
fn tcp(port: u16, backends: &[u8]) -> [Service; 2] {
    Family::BOTH.map(|family| Service::tcp(family, "full-nat", port, backends.to_vec(), WEB_PORT).across_families())
}

/// Leaves the backends with the addresses of one family.
fn take_addresses(stage: &Stage, family: Family) {
    for backend in &stage.world.backends {
        let flag = if family == Family::V4 { "-4" } else { "-6" };
        backend.output("ip", &[flag, "address", "flush", "dev", "eth0"]).unwrap();
    }
}

#[test]
fn curl_of_one_family_is_answered_by_nginx_of_the_other() {
    for topology in Topology::BOTH {
        let stage = Stage::new(&format!("family_{topology:?}"), topology, 3);
        let _webs = stage.webs();
        let services = tcp(80, &[0, 1, 2]);
        let lb = stage.lb(&services);
        for service in &services {
            assert_balanced(&stage.world.client, service.listen(), &service.hosts(), 300);
            let stats = lb.json(&["stats", &service.name]).unwrap();
            let counted = &stats["services"][0];
            assert_eq!((&counted["flows"], &counted["dropped"]), (&301.into(), &0.into()), "{stats}");
            assert!(counted["reply"]["packets"].as_u64().unwrap() > 300 * 4, "{stats}");
        }
    }
}

#[test]
fn servers_that_have_no_address_of_the_clients_family_serve_it() {
    for family in Family::BOTH {
        let stage = Stage::new(&format!("family_only_{family:?}"), Topology::TwoArm, 2);
        let _webs = stage.webs();
        take_addresses(&stage, family);
        let services = [Service::tcp(family, "full-nat", 80, vec![0, 1], WEB_PORT).across_families()];
        let _lb = stage.lb(&services);
        assert_in_turn(&curl_names(&stage.world.client, services[0].listen(), 100), &services[0].hosts());
    }
}

/// Full segments both ways: each side's own MSS leaves room for the other's header.
#[test]
fn twenty_megabytes_arrive_whole_both_ways_between_the_families() {
    let stage = Stage::new("family_large", Topology::TwoArm, 1);
    let web = stage.web_on_disk(0);
    let services = tcp(80, &[0]);
    let lb = stage.lb(&services);
    let sum = random_file(&web.files().join("large"), LARGE);
    for service in &services {
        let url = format!("http://{}/files", service.listen());
        let (local, remote) = (stage.folder().join("downloaded"), format!("uploaded-{}", service.name));
        let curl = |arguments: &[&str]| {
            let mut all = vec!["-sS", "--fail", "--max-time", "100"];
            all.extend(arguments);
            stage.world.client.output("curl", &all).unwrap()
        };
        curl(&["-o", local.to_str().unwrap(), &format!("{url}/large")]);
        assert_eq!(sha256(&local), sum, "download, {}", service.name);
        curl(&["-T", local.to_str().unwrap(), &format!("{url}/{remote}")]);
        assert_eq!(sha256(&web.files().join(&remote)), sum, "upload, {}", service.name);
    }
    let stats = lb.json(&["stats"]).unwrap();
    for service in stats["services"].as_array().unwrap() {
        assert_eq!(service["dropped"], 0, "{stats}");
    }
}

/// Asks with payloads of every size, each of which must come back as it was.
fn ask_all(socket: &UdpSocket) {
    for length in PAYLOADS {
        let word: String = "abcdefghijklmnopqrstuvwxyz".chars().cycle().take(length - 6.min(length - 1)).collect();
        assert_eq!(ask(socket, &word).unwrap(), "web1", "{length} bytes");
    }
}

#[test]
fn udp_is_echoed_between_the_families_also_without_a_checksum() {
    let stage = Stage::new("family_udp", Topology::TwoArm, 1);
    let _echo = Echo::start(&stage.world, 0);
    let services =
        Family::BOTH.map(|family| Service::udp(family, "full-nat", 7001, vec![0], ECHO_PORT).across_families());
    let _lb = stage.lb(&services);
    for service in &services {
        ask_all(&udp_client(&stage.world.client, 0, service.listen()).unwrap());
    }
    // The server's stack drops UDP over IPv6 that has no checksum: it gets one on the way.
    let socket = udp_client(&stage.world.client, 0, services[0].listen()).unwrap();
    leave_out_checksums(&socket);
    ask_all(&socket);
}

/// `SO_NO_CHECK` (linux/net/core/sock.c): UDP over IPv4 is sent without a checksum.
fn leave_out_checksums(socket: &UdpSocket) {
    use std::os::fd::AsRawFd as _;
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, and the socket is open.
    let refused = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(refused, 0, "{}", std::io::Error::last_os_error());
}
