//! What a balancer lacks, by facts that are made up.

use std::fs;

use lb_common::abi::Mode;
use lb_userspace::{
    api::{
        doctor::{Check, CheckResult, Diagnosis},
        model::ServiceView,
    },
    config::DeadManPolicy,
    dataplane::kernel::{AttachedMode, Silence},
    doctor::{AgentFacts, BackendFacts, BalancerFacts, InterfaceFacts, balancer::checks},
    host::{Link, Queues, Route, Sysctl, XdpAbility},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A balancer with nothing to mend, and its settings.
struct Host {
    facts: BalancerFacts,
    settings: TempDir,
}

impl Host {
    fn new() -> Self {
        let settings = tempfile::tempdir().unwrap();
        let link = Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            mac: Some([2; 6]),
            mtu: 1600,
            up: true,
            kind: "ethernet".to_owned(),
            vlan: None,
        };
        let interface = InterfaceFacts {
            name: "eth0".to_owned(),
            link: Some(link),
            programs: vec![(AttachedMode::Native, 7)],
            own: Some(7),
            joins_segments: false,
            strips_tags: false,
            queues: Some(Queues { used: 2, greatest: 2 }),
            ability: Some(XdpAbility::new(0x7f)),
        };
        let next_hop = "10.0.0.11".parse().unwrap();
        let route = Route { source: None, ifindex: 2, gateway: None, next_hop, local: false };
        let backend = BackendFacts {
            address: "10.0.0.11:8080".parse().unwrap(),
            mode: Mode::Nat,
            route: Some(route),
            neighbour: Some(true),
        };
        let facts = BalancerFacts {
            kernel: "6.12.9-amd64".to_owned(),
            btf: true,
            missing_rights: Vec::new(),
            bpffs: true,
            pins_refused: None,
            lockdown: Some("none".to_owned()),
            sysctl: Sysctl::at(settings.path()),
            cpus: 2,
            interrupts_balanced: true,
            open_files: Some(65_536),
            clock_right: Some(true),
            state_dir: "/var/lib/lb".into(),
            state_dir_refused: None,
            state_dir_free: Some(1 << 30),
            interfaces: vec![interface],
            backends: vec![backend],
            silence: Some(Silence { policy: DeadManPolicy::Freeze, generation: 3, over: None }),
            agent: AgentFacts::NotAllowed,
            services: vec![service(&json!({})), service(&json!({}))],
        };
        let host = Self { facts, settings };
        host.set("net/core/bpf_jit_enable", "1");
        host.set("kernel/unprivileged_bpf_disabled", "2");
        host.set("net/ipv4/conf/eth0/forwarding", "1");
        for interface in ["all", "eth0"] {
            host.set(&format!("net/ipv4/conf/{interface}/rp_filter"), "0");
        }
        host
    }

    fn set(&self, setting: &str, value: &str) {
        let path = self.settings.path().join(setting);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    fn interface(&mut self) -> &mut InterfaceFacts {
        &mut self.facts.interfaces[0]
    }

    fn check(&self, name: &str) -> Check {
        let checks = checks(&self.facts);
        checks.iter().find(|check| check.name == name).cloned().unwrap_or_else(|| panic!("no {name}: {checks:#?}"))
    }

    /// Result of a check, with a word that its evidence has, and one that its fix has.
    #[track_caller]
    fn finds(&self, name: &str, result: CheckResult, evidence: &str, fix: &str) {
        let check = self.check(name);
        assert_eq!(check.result, result, "{check:?}");
        assert!(check.evidence.contains(evidence), "{check:?}");
        let told = check.fix.clone().unwrap_or_default();
        assert!(told.contains(fix) && (result == CheckResult::Ok || !told.is_empty()), "{check:?}");
    }
}

/// A service with one backend that is up, but for what `health` says otherwise.
fn service(health: &Value) -> ServiceView {
    let mut told = json!({ "state": "up", "reason": "L7OK 200", "forMillis": 5000 });
    told.as_object_mut().unwrap().extend(health.as_object().unwrap().clone());
    let backend = json!({
        "service": "web", "address": "10.0.0.11:8080", "id": 0, "weight": 1, "tier": 0, "role": null,
        "admin": { "state": "ready" }, "health": told, "effective": { "used": true, "reason": "tier 0 serves" },
        "leaving": false, "liveFlows": 0,
    });
    let check = json!({ "check": "http GET /healthz", "intervalMillis": 1, "timeoutMillis": 1, "fall": 1, "rise": 1 });
    let service = json!({
        "name": "web", "listen": "203.0.113.10:80", "protocol": "tcp", "mode": "nat", "scheduler": "maglev",
        "granularity": "flow", "healthCheck": check, "id": 0, "activeTier": 0, "liveFlows": 0, "backends": [backend],
    });
    serde_json::from_value(service).unwrap()
}

#[test]
fn a_balancer_that_lacks_nothing_is_told_so() {
    let host = Host::new();
    let wrong: Vec<Check> = checks(&host.facts).into_iter().filter(|check| check.result > CheckResult::Ok).collect();
    // That this user may not ask the agent is the only thing that was made up so.
    assert_eq!(wrong.iter().map(|check| check.name.as_str()).collect::<Vec<_>>(), ["agent"]);
}

#[test]
fn what_is_wrong_with_the_host_is_found_with_evidence_and_what_to_type() {
    use CheckResult::{Fail, Warn};
    let mut host = Host::new();
    host.facts.kernel = "5.10.0".to_owned();
    host.finds("kernel", Fail, "5.10.0; 6.1 is the oldest", "apt install");
    host.facts.btf = false;
    host.finds("btf", Fail, "CONFIG_DEBUG_INFO_BTF", "kernel");
    host.facts.missing_rights = vec!["CAP_PERFMON"];
    host.finds("rights", Warn, "CAP_PERFMON", "sudo");
    host.facts.bpffs = false;
    host.finds("bpffs", Warn, "not mounted", "mount -t bpf bpf /sys/fs/bpf");
    host.set("net/core/bpf_jit_enable", "0");
    host.finds("jit", Fail, "interpreted", "sysctl -w net.core.bpf_jit_enable=1");
    host.set("kernel/unprivileged_bpf_disabled", "0");
    host.finds("unprivileged bpf", Warn, "anybody", "sysctl -w kernel.unprivileged_bpf_disabled=1");
    host.facts.open_files = Some(1024);
    host.finds("open files", Warn, "1024", "65536");
    host.facts.clock_right = Some(false);
    host.finds("time", Warn, "clock", "timedatectl");
    host.facts.state_dir_free = Some(20 << 20);
    host.finds("disk", Warn, "20480 KiB", "df -h /var/lib/lb");
    host.facts.state_dir_free = Some(0);
    host.finds("disk", Fail, "0 KiB", "df -h /var/lib/lb");
    host.set("net/ipv4/conf/eth0/forwarding", "0");
    host.finds("forwarding eth0", Fail, "ipv4", "sysctl -w net/ipv4/conf/eth0/forwarding=1");
}

#[test]
fn what_is_wrong_with_an_interface_is_found() {
    use CheckResult::{Fail, Warn};
    let mut host = Host::new();
    host.interface().programs = vec![(AttachedMode::Generic, 7)];
    host.finds("xdp eth0", Warn, "generic mode", "lb detach");
    host.interface().programs = vec![(AttachedMode::Native, 99)];
    host.finds("xdp eth0", Fail, "99 of somebody else", "--replace");
    host.interface().programs = Vec::new();
    host.finds("xdp eth0", Fail, "not any more", "systemctl restart lb");
    host.interface().ability = Some(XdpAbility::new(0));
    host.finds("xdp ability eth0", Warn, "no native mode", "ethtool");
    host.interface().joins_segments = true;
    host.finds("offloads eth0", Fail, "LRO", "ethtool -K eth0 lro off");
    host.interface().joins_segments = false;
    host.interface().strips_tags = true;
    host.finds("offloads eth0", Warn, "VLAN", "ethtool -K eth0 rxvlan off");
    host.interface().queues = Some(Queues { used: 1, greatest: 8 });
    host.finds("queues eth0", Warn, "1 for receiving", "ethtool -L eth0 combined 2");
    host.interface().link.as_mut().unwrap().mtu = 1500;
    host.facts.backends[0].mode = Mode::DsrGue;
    host.finds("mtu eth0", Warn, "1500 bytes", "ip link set eth0 mtu");
    host.interface().link.as_mut().unwrap().up = false;
    host.finds("interface eth0", Fail, "down", "ip link set eth0 up");
}

#[test]
fn the_way_to_a_backend_is_looked_at() {
    let mut host = Host::new();
    host.finds("backend 10.0.0.11:8080", CheckResult::Ok, "by eth0, on the link", "");
    host.facts.backends[0].neighbour = Some(false);
    host.finds("backend 10.0.0.11:8080", CheckResult::Fail, "does not answer", "ping -c1 10.0.0.11");
    host.facts.backends[0].route = None;
    host.finds("backend 10.0.0.11:8080", CheckResult::Fail, "no route", "ip route get 10.0.0.11");
}

#[test]
fn a_backend_that_is_down_is_told_with_the_reason_and_what_to_try() {
    let mut host = Host::new();
    let cases = [
        ("L4CON: Connection refused", "ss -ltnup"),
        ("L4TOUT", "ping -c1 10.0.0.11"),
        ("L7STS 503", "curl -vk http://10.0.0.11:8080/healthz"),
        ("L6RSP: no TLS", "openssl s_client -connect 10.0.0.11:8080"),
        ("no result yet", "lb backend list web"),
    ];
    for (reason, fix) in cases {
        host.facts.services = vec![service(&json!({ "state": "down", "reason": reason }))];
        host.finds("health web 10.0.0.11:8080", CheckResult::Warn, &format!("down for 5 s: {reason}"), fix);
    }
    host.facts.services = vec![service(&json!({ "state": "down", "reason": "L4TOUT", "askedAt": "service" }))];
    host.facts.services[0].mode = "dsr-ipip".to_owned();
    let fix = "lb doctor --backend --mode dsr-ipip --vip 203.0.113.10";
    host.finds("health web 10.0.0.11:8080", CheckResult::Warn, "L4TOUT", fix);
    host.facts.services = vec![service(&json!({ "askedAt": "backend", "askedAtReason": "no way" }))];
    host.finds("health web 10.0.0.11:8080", CheckResult::Warn, "not at the service's: no way", "lb status");
    // What an operator took out is no news.
    host.facts.services = vec![service(&json!({ "state": "down", "reason": "maintenance: not probed" }))];
    host.facts.services[0].backends[0].admin.state = "maintenance".to_owned();
    assert!(checks(&host.facts).iter().all(|check| !check.name.starts_with("health")));
}

#[test]
fn of_very_many_backends_that_are_down_some_are_told_and_the_others_counted() {
    let mut host = Host::new();
    host.facts.services = (0..50).map(|_| service(&json!({ "state": "down", "reason": "L4CON" }))).collect();
    let told = checks(&host.facts).into_iter().filter(|check| check.name.starts_with("health")).count();
    assert_eq!(told, 20);
    host.finds("more backends", CheckResult::Warn, "30 more", "lb backend list");
}

#[test]
fn machines_read_every_check_with_result_evidence_and_fix() {
    let mut host = Host::new();
    host.facts.btf = false;
    let diagnosis = Diagnosis { checks: checks(&host.facts) };
    assert!(diagnosis.failed());
    let text = serde_json::to_value(&diagnosis).unwrap();
    let all = text["checks"].as_array().unwrap();
    for check in all {
        assert!(check["name"].is_string() && check["evidence"].is_string(), "{check}");
        assert!(["skip", "ok", "warn", "fail"].contains(&check["result"].as_str().unwrap()), "{check}");
    }
    let btf = all.iter().find(|check| check["name"] == "btf").unwrap();
    assert_eq!((btf["result"].as_str(), btf["fix"].is_string()), (Some("fail"), true));
}
