//! Errors of the network: a narrow way to a client, and hosts on whose ports nobody listens.

use std::{io::ErrorKind, path::Path};

use xtask::world::{Balancer, Namespace, World, config::Service, process};

use super::{PATIENCE, echo::udp_client};

/// What the narrow part takes.
pub const NARROW: u32 = 1300;

/// A host behind the client, which is its router. Both ends of their link take packets of 1,500 bytes,
/// but the router sends none larger than [`NARROW`] to it: it tells their senders.
pub fn behind_a_narrow_router(world: &World) -> Namespace {
    let far = Namespace::create(&format!("{}-far", world.name)).unwrap();
    for host in [&far, &world.client] {
        host.set_sysctl("net.ipv6.conf.default.accept_dad", "0").unwrap();
    }
    let router = &world.client;
    router.ip(&[format!("link add far type veth peer name eth0 netns {}", far.name())]).unwrap();
    router
        .ip(&["link set far up", "address add 10.71.9.1/24 dev far", "address add fd71:9::1/64 dev far nodad"])
        .unwrap();
    far.ip(&["link set eth0 up", "address add 10.71.9.2/24 dev eth0", "address add fd71:9::2/64 dev eth0 nodad"])
        .unwrap();
    far.ip(&["route add default via 10.71.9.1", "route add default via fd71:9::1"]).unwrap();
    far.output("ethtool", &["-K", "eth0", "tx", "off"]).unwrap();
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        router.set_sysctl(key, "1").unwrap();
    }
    router
        .ip(&[
            format!("route replace 10.71.9.0/24 dev far mtu lock {NARROW}"),
            "route del fd71:9::/64 dev far".to_owned(),
            format!("route add fd71:9::/64 dev far mtu lock {NARROW}"),
        ])
        .unwrap();
    world.lb.ip(&["route add 10.71.9.0/24 via 10.71.1.2", "route add fd71:9::/64 via fd71:1::2"]).unwrap();
    far
}

/// How often the data path came to this verdict.
pub fn verdicts(lb: &Balancer, reason: &str) -> u64 {
    let stats = lb.json(&["stats"]).unwrap();
    let verdicts = stats["verdicts"].as_array().unwrap();
    let verdict = verdicts.iter().find(|verdict| verdict["reason"] == reason);
    verdict.unwrap_or_else(|| panic!("no verdict {reason} in {stats}"))["packets"].as_u64().unwrap()
}

/// What the host has learned about the way to an address.
pub fn learned(host: &Namespace, address: std::net::IpAddr) -> String {
    host.output("ip", &["route", "get", &address.to_string()]).unwrap()
}

pub fn download(host: &Namespace, service: &Service, to: &Path) {
    let url = format!("http://{}/files/large", service.listen());
    host.output("curl", &["-sS", "--fail", "--max-time", "30", "-o", to.to_str().unwrap(), &url]).unwrap();
}

/// A client's socket to a service behind which nobody listens is told so.
pub fn assert_refused(client: &Namespace, service: &Service) {
    let socket = udp_client(client, 0, service.listen()).unwrap();
    // Hosts limit how many errors they send: the first may not be told.
    process::until("the client's socket has an error", PATIENCE, || {
        match socket.send(b"anybody?").and_then(|_| socket.recv(&mut [0; 64])) {
            Ok(_) => panic!("somebody answers"),
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
    .unwrap();
}
