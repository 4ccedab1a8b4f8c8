//! What a backend of direct server return lacks, by facts that are made up.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
};

use lb_common::{
    abi::{DirectionCounters, Mode, VerdictCounters},
    decap::Outcome,
};
use lb_userspace::{
    api::doctor::{Check, CheckResult},
    dataplane::kernel::{
        AttachedMode, Attachment,
        decap::{Prefix, Rules, Stripping},
    },
    doctor::{
        Facts,
        backend::{Question, checks},
    },
    host::{HostAddress, Link, Route, Sysctl},
};
use netlink_packet_route::address::AddressScope;
use tempfile::TempDir;

const VIP: &str = "203.0.113.10";
const VIP6: &str = "2001:db8:f::10";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A backend that has everything for every mode, and its settings.
struct Host {
    facts: Facts,
    settings: TempDir,
}

impl Host {
    fn new() -> Self {
        let settings = tempfile::tempdir().unwrap();
        let link = |ifindex, name: &str, kind: &str, mac| Link {
            ifindex,
            name: name.to_owned(),
            mac,
            mtu: 9000,
            up: true,
            kind: kind.to_owned(),
            vlan: None,
        };
        let way = |source: &str, gateway: &str| Route {
            source: Some(ip(source)),
            ifindex: 2,
            gateway: Some(ip(gateway)),
            next_hop: ip(gateway),
            local: false,
        };
        let facts = Facts {
            links: vec![link(1, "lo", "loopback", None), link(2, "eth0", "ethernet", Some([2; 6]))],
            addresses: vec![address(2, "10.0.0.11", 24), address(1, VIP, 32), address(1, VIP6, 128)],
            ways: BTreeMap::from([
                (ip("198.51.100.7"), Some(way("10.0.0.11", "10.0.0.254"))),
                (ip("2001:db8:c::7"), Some(way("2001:db8:2::11", "2001:db8:2::fe"))),
            ]),
            sysctl: Sysctl::at(settings.path()),
            stripping: Ok(vec![stripping("eth0")]),
            udp_ports: BTreeSet::new(),
        };
        let host = Self { facts, settings };
        for interface in ["all", "eth0", "tunl0"] {
            for (name, value) in [("arp_ignore", 0), ("arp_announce", 0), ("rp_filter", 0)] {
                host.set(interface, name, value);
            }
        }
        host.set("all", "arp_ignore", 1);
        host.set("eth0", "arp_announce", 2);
        host
    }

    fn set(&self, interface: &str, name: &str, value: u32) {
        let folder = self.settings.path().join("net/ipv4/conf").join(interface);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), format!("{value}\n")).unwrap();
    }

    fn check(&self, question: &Question, name: &str) -> Check {
        let checks = checks(&self.facts, question);
        checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name} in {checks:#?}")).clone()
    }

    /// Result and what to type.
    fn result(&self, question: &Question, name: &str) -> (CheckResult, String) {
        let check = self.check(question, name);
        (check.result, check.fix.unwrap_or_default())
    }

    fn tunnel_device(&mut self, name: &str, kind: &str) {
        let (name, kind) = (name.to_owned(), kind.to_owned());
        self.facts.links.push(Link { ifindex: 9, name, mac: None, mtu: 1480, up: true, kind, vlan: None });
    }
}

fn address(ifindex: u32, text: &str, prefix_len: u8) -> HostAddress {
    HostAddress {
        ifindex,
        address: ip(text),
        prefix_len,
        scope: AddressScope::Universe,
        usable: true,
        deprecated: false,
    }
}

fn prefix(text: &str, length: u8) -> Prefix {
    Prefix { address: ip(text), length }
}

fn stripping(interface: &str) -> Stripping {
    let rules = Rules {
        vips: vec![ip(VIP), ip(VIP6)],
        balancers: vec![prefix("10.0.0.0", 24)],
        own: vec![],
        gue_port: Some(6080),
    };
    Stripping {
        interface: interface.to_owned(),
        attachment: Some(Attachment {
            interface: interface.to_owned(),
            ifindex: 2,
            mode: AttachedMode::Native,
            program_id: 7,
            replaced: false,
            note: None,
        }),
        vips: rules.vips.iter().map(|vip| (*vip, DirectionCounters::default())).collect(),
        rules,
        outcomes: Outcome::ALL.iter().map(|outcome| (*outcome, VerdictCounters::default())).collect(),
    }
}

fn question(mode: Mode) -> Question {
    Question { vips: vec![ip(VIP)], mode: Some(mode), balancers: vec![prefix("10.0.0.1", 32)], gue_port: None }
}

#[test]
fn a_backend_that_has_everything_is_well_in_every_mode() {
    let host = Host::new();
    for mode in [Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue, Mode::DsrGre] {
        let checks = checks(&host.facts, &Question { vips: vec![ip(VIP), ip(VIP6)], ..question(mode) });
        assert!(checks.iter().all(|c| matches!(c.result, CheckResult::Ok | CheckResult::Skip)), "{checks:#?}");
        assert!(checks.iter().all(|c| c.fix.is_none() && !c.evidence.is_empty()), "{checks:#?}");
        let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "address 203.0.113.10",
                "address 2001:db8:f::10",
                "arp",
                "decapsulation 203.0.113.10",
                "decapsulation 2001:db8:f::10",
                "reverse path",
                "mtu",
                "way to IPv4 clients",
                "way to IPv6 clients"
            ]
        );
    }
}

#[test]
fn addresses_are_those_of_lb_decap_unless_told() {
    let mut host = Host::new();
    let nothing = Question::default();
    assert_eq!(host.result(&nothing, "address 203.0.113.10").0, CheckResult::Ok);
    assert_eq!(host.result(&nothing, "address 2001:db8:f::10").0, CheckResult::Ok);
    host.facts.stripping = Ok(vec![]);
    let fix = "lb doctor --backend --vip ADDRESS".to_owned();
    assert_eq!(host.result(&nothing, "address"), (CheckResult::Fail, fix));
}

#[test]
fn a_service_address_belongs_on_the_loopback_interface_and_alone() {
    let of = |held: Vec<HostAddress>| {
        let mut host = Host::new();
        host.facts.addresses = held;
        host.result(&question(Mode::DsrL2), "address 203.0.113.10")
    };
    let fail = |fix: &str| (CheckResult::Fail, fix.to_owned());
    assert_eq!(of(vec![]), fail("ip address add 203.0.113.10/32 dev lo"));
    assert_eq!(
        of(vec![address(1, VIP, 32), address(2, VIP, 24)]),
        fail("ip address del 203.0.113.10/24 dev eth0; ip address add 203.0.113.10/32 dev lo")
    );
    assert_eq!(
        of(vec![address(1, VIP, 24)]),
        fail("ip address del 203.0.113.10/24 dev lo; ip address add 203.0.113.10/32 dev lo")
    );
    let tentative = HostAddress { usable: false, ..address(1, VIP, 32) };
    assert_eq!(of(vec![tentative]).0, CheckResult::Warn);
    let mut host = Host::new();
    let dummy = Link { ifindex: 3, name: "dummy0".into(), kind: "dummy".into(), ..host.facts.links[1].clone() };
    host.facts.links.push(dummy);
    host.facts.addresses = vec![address(3, VIP, 32)];
    assert_eq!(host.result(&question(Mode::DsrL2), "address 203.0.113.10").0, CheckResult::Ok);
}

#[test]
fn neighbours_must_not_learn_the_address_by_arp() {
    let host = Host::new();
    host.set("all", "arp_ignore", 0);
    let check = host.check(&question(Mode::DsrL2), "arp");
    assert_eq!(check.result, CheckResult::Fail);
    assert!(check.evidence.starts_with("eth0: arp_ignore 0, arp_announce 2:"), "{}", check.evidence);
    let fix = "sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2";
    assert_eq!(check.fix.as_deref(), Some(fix));
    host.set("eth0", "arp_ignore", 2);
    assert_eq!(host.result(&question(Mode::DsrL2), "arp").0, CheckResult::Ok);
    host.set("eth0", "arp_announce", 1);
    assert_eq!(host.result(&question(Mode::DsrL2), "arp").0, CheckResult::Fail);
    let v6 = Question { vips: vec![ip(VIP6)], ..question(Mode::DsrL2) };
    assert_eq!(host.result(&v6, "arp").0, CheckResult::Skip);
}

#[test]
fn somebody_takes_the_outer_headers_off() {
    const NAME: &str = "decapsulation 203.0.113.10";
    let mut host = Host::new();
    let begin = "lb decap --iface eth0 --vip 203.0.113.10 --from 10.0.0.1/32".to_owned();
    let gaps: [fn(&mut Stripping); 4] = [
        |stripping| stripping.attachment = None,
        |stripping| stripping.rules.vips = vec![ip(VIP6)],
        |stripping| stripping.rules.balancers = vec![prefix("10.0.1.0", 24)],
        |stripping| stripping.rules.gue_port = None,
    ];
    for gap in gaps {
        let mut stripping = stripping("eth0");
        gap(&mut stripping);
        host.facts.stripping = Ok(vec![stripping]);
        assert_eq!(host.result(&question(Mode::DsrGue), NAME), (CheckResult::Fail, begin.clone()));
    }
    assert_eq!(host.result(&question(Mode::DsrIpip), NAME).0, CheckResult::Ok, "the port is GUE's");
    host.facts.stripping = Ok(vec![]);
    assert_eq!(host.result(&question(Mode::DsrIpip), NAME), (CheckResult::Fail, begin.clone()));
    assert_eq!(host.result(&question(Mode::DsrL2), NAME).0, CheckResult::Skip);
    let unknown = Question { mode: None, ..question(Mode::DsrL2) };
    assert_eq!(host.result(&unknown, NAME).0, CheckResult::Warn, "dsr-l2 does without");
    host.facts.stripping = Err("Permission denied".to_owned());
    assert_eq!(host.result(&question(Mode::DsrIpip), NAME), (CheckResult::Warn, "repeat it with sudo".to_owned()));

    host.facts.stripping = Ok(vec![]);
    host.tunnel_device("tunl0", "ipip");
    assert_eq!(host.result(&question(Mode::DsrIpip), NAME).0, CheckResult::Ok);
    assert_eq!(host.result(&question(Mode::DsrGue), NAME).0, CheckResult::Fail, "nobody has the port");
    host.facts.udp_ports.insert(6080);
    assert_eq!(host.result(&question(Mode::DsrGue), NAME).0, CheckResult::Ok);
    let v6 = Question { vips: vec![ip(VIP6)], ..question(Mode::DsrIpip) };
    assert_eq!(host.result(&v6, "decapsulation 2001:db8:f::10").0, CheckResult::Fail, "ipip carries no IPv6");

    assert_eq!(host.result(&question(Mode::DsrGre), NAME).0, CheckResult::Fail, "ipip takes no GRE");
    host.tunnel_device("lbgre", "gre");
    assert_eq!(host.result(&question(Mode::DsrGre), NAME).0, CheckResult::Ok);
    let v6 = Question { vips: vec![ip(VIP6)], ..question(Mode::DsrGre) };
    assert_eq!(host.result(&v6, "decapsulation 2001:db8:f::10").0, CheckResult::Ok, "GRE carries both");
}

#[test]
fn a_strict_filter_drops_what_comes_out_of_a_tunnel_device() {
    let mut host = Host::new();
    host.set("all", "rp_filter", 1);
    assert_eq!(host.result(&question(Mode::DsrIpip), "reverse path").0, CheckResult::Ok, "the way to clients is eth0");
    host.tunnel_device("tunl0", "ipip");
    let loose = "sysctl -w net.ipv4.conf.tunl0.rp_filter=2".to_owned();
    assert_eq!(host.result(&question(Mode::DsrIpip), "reverse path"), (CheckResult::Fail, loose));
    assert_eq!(host.result(&question(Mode::DsrL2), "reverse path").0, CheckResult::Ok);
    host.set("tunl0", "rp_filter", 2);
    assert_eq!(host.result(&question(Mode::DsrIpip), "reverse path").0, CheckResult::Ok);
}

#[test]
fn outer_headers_need_room_and_answers_a_way_past_the_balancer() {
    let mut host = Host::new();
    host.facts.links[1].mtu = 1500;
    let (result, fix) = host.result(&question(Mode::DsrGue), "mtu");
    assert_eq!(result, CheckResult::Warn);
    assert!(fix.starts_with("ip link set eth0 mtu 1548"), "{fix}");
    assert_eq!(host.result(&question(Mode::DsrL2), "mtu").0, CheckResult::Skip);

    const WAY: &str = "way to IPv4 clients";
    let through = Question { balancers: vec![prefix("10.0.0.254", 32)], ..question(Mode::DsrL2) };
    assert_eq!(host.result(&through, WAY).0, CheckResult::Fail);
    host.facts.ways.insert(ip("198.51.100.7"), None);
    let (result, fix) = host.result(&question(Mode::DsrL2), WAY);
    assert_eq!((result, fix.as_str()), (CheckResult::Fail, "ip -4 route add default via GATEWAY"));
}
