//! What a balancer needs. Pure: facts in, checks out.

use std::path::Path;

use lb_common::abi::Mode;

use super::{
    backend::GROWTH_MAX,
    balancer_facts::{AgentFacts, BackendFacts, BalancerFacts, InterfaceFacts},
    told,
};
use crate::{
    api::doctor::{Check, CheckResult},
    config::DeadManPolicy,
    dataplane::kernel::AttachedMode,
    host::{BPFFS, Link},
};

/// Versions that the data path was written for.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// The largest IP packet of clients (Ethernet).
const CLIENT_MTU: u32 = 1500;
/// Probes, API and maps need fewer; each probe under way has one.
const FILES_WANTED: u64 = 4096;
/// Bytes of disk for what is decided at run time: files of some KiB, each written anew beside the old one.
const ROOM_WANTED: u64 = 64 << 20;
const ROOM_NEEDED: u64 = 1 << 20;

/// Everything there is to check, in order: kernel, interfaces, ways to backends, agent.
pub fn checks(facts: &BalancerFacts) -> Vec<Check> {
    let mut checks = vec![
        kernel(facts),
        btf(facts),
        rights(facts),
        bpffs(facts),
        lockdown(facts),
        jit(facts),
        unprivileged(facts),
        state_directory(facts),
        disk(facts),
        files(facts),
        time(facts),
    ];
    if facts.interfaces.is_empty() {
        let evidence = "the program is on none, and none was named";
        checks.push(Check::new("interfaces", CheckResult::Fail, evidence).fix("lb doctor --config /etc/lb/lb.toml"));
    }
    for interface in &facts.interfaces {
        checks.extend(of_interface(facts, interface));
    }
    checks.extend(facts.backends.iter().map(|backend| way(facts, backend)));
    checks.extend(agent(facts));
    checks.extend(told::checks(&facts.services));
    checks.push(dead_man(facts));
    checks
}

fn ok(name: impl Into<String>, evidence: impl Into<String>) -> Check {
    Check::new(name, CheckResult::Ok, evidence)
}

fn warn(name: impl Into<String>, evidence: impl Into<String>) -> Check {
    Check::new(name, CheckResult::Warn, evidence)
}

fn fail(name: impl Into<String>, evidence: impl Into<String>) -> Check {
    Check::new(name, CheckResult::Fail, evidence)
}

fn skip(name: impl Into<String>, evidence: impl Into<String>) -> Check {
    Check::new(name, CheckResult::Skip, evidence)
}

fn kernel(facts: &BalancerFacts) -> Check {
    let (major, minor) = OLDEST_KERNEL;
    let mut numbers = facts.kernel.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(a), Some(b)) if (a, b) >= OLDEST_KERNEL => ok("kernel", format!("Linux {}", facts.kernel)),
        (Some(_), Some(_)) => fail("kernel", format!("Linux {}; {major}.{minor} is the oldest", facts.kernel))
            .fix("apt install linux-image-amd64 && reboot"),
        _ => warn("kernel", format!("a version that cannot be read: `{}`", facts.kernel)),
    }
}

fn btf(facts: &BalancerFacts) -> Check {
    if facts.btf {
        return ok("btf", "/sys/kernel/btf/vmlinux is there");
    }
    fail("btf", "the kernel does not tell its types: it was built without CONFIG_DEBUG_INFO_BTF")
        .fix("use a kernel of the distribution")
}

fn rights(facts: &BalancerFacts) -> Check {
    if facts.missing_rights.is_empty() {
        return ok("rights", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_NET_RAW");
    }
    // What asks is not what runs.
    let evidence = format!("this process lacks {}: the agent needs it", facts.missing_rights.join(", "));
    warn("rights", evidence).fix("sudo lb doctor")
}

fn bpffs(facts: &BalancerFacts) -> Check {
    if facts.bpffs {
        return match &facts.pins_refused {
            None => ok("bpffs", format!("mounted at {BPFFS}, and pins can be made")),
            // What asks is not what runs.
            Some(why) => warn("bpffs", format!("mounted at {BPFFS}; this user cannot make pins there: {why}"))
                .fix("sudo lb doctor; for the unit's user: install -d -o lb -g lb -m 0750 /sys/fs/bpf/lb"),
        };
    }
    warn("bpffs", format!("not mounted at {BPFFS}: an agent with CAP_SYS_ADMIN mounts it, another one cannot start"))
        .fix(format!("mount -t bpf bpf {BPFFS}"))
}

fn lockdown(facts: &BalancerFacts) -> Check {
    match facts.lockdown.as_deref() {
        None => skip("lockdown", "this kernel has none"),
        Some("confidentiality") => {
            warn("lockdown", "confidentiality: programs may not read kernel memory; XDP still runs")
        }
        Some(word) => ok("lockdown", word),
    }
}

fn jit(facts: &BalancerFacts) -> Check {
    match setting(facts, "net/core/bpf_jit_enable").as_deref() {
        Some("0") => fail("jit", "net.core.bpf_jit_enable is 0: programs are interpreted, many times slower")
            .fix("sysctl -w net.core.bpf_jit_enable=1"),
        Some(value) => ok("jit", format!("net.core.bpf_jit_enable is {value}")),
        None => ok("jit", "always on in this kernel"),
    }
}

fn unprivileged(facts: &BalancerFacts) -> Check {
    let name = "unprivileged bpf";
    match setting(facts, "kernel/unprivileged_bpf_disabled").as_deref() {
        Some("0") => {
            warn(name, "anybody on this host may load BPF programs").fix("sysctl -w kernel.unprivileged_bpf_disabled=1")
        }
        Some(value) => ok(name, format!("off (kernel.unprivileged_bpf_disabled is {value})")),
        None => skip(name, "not told"),
    }
}

fn state_directory(facts: &BalancerFacts) -> Check {
    let (name, shown) = ("state directory", facts.state_dir.display());
    match &facts.state_dir_refused {
        None => ok(name, format!("{shown} can be written to")),
        Some(why) => warn(name, format!("{shown} cannot be written to by this user: {why}")).fix("sudo lb doctor"),
    }
}

/// What is decided at run time is written there before it is done; without room it is refused.
fn disk(facts: &BalancerFacts) -> Check {
    let (name, shown) = ("disk", facts.state_dir.display());
    match facts.state_dir_free {
        None => skip(name, "not told"),
        Some(free) if free < ROOM_WANTED => {
            let evidence = format!("{} KiB are free in {shown}: changes at run time will be refused", free >> 10);
            let result = if free < ROOM_NEEDED { CheckResult::Fail } else { CheckResult::Warn };
            Check::new(name, result, evidence).fix(format!("df -h {shown}; then make room there"))
        }
        Some(free) => ok(name, format!("{} MiB are free in {shown}", free >> 20)),
    }
}

fn files(facts: &BalancerFacts) -> Check {
    match facts.open_files {
        Some(limit) if limit < FILES_WANTED => {
            let evidence = format!("at most {limit} here; each probe under way needs one");
            warn("open files", evidence).fix("ulimit -n 65536 (the unit has LimitNOFILE=65536)")
        }
        Some(limit) => ok("open files", format!("at most {limit}")),
        None => ok("open files", "without a limit"),
    }
}

fn time(facts: &BalancerFacts) -> Check {
    match facts.clock_right {
        Some(true) => ok("time", "the clock is kept right"),
        Some(false) => {
            warn("time", "nobody keeps the clock right: certificates and the times of decisions depend on it")
                .fix("timedatectl set-ntp true")
        }
        None => skip("time", "not told"),
    }
}

fn of_interface(facts: &BalancerFacts, interface: &InterfaceFacts) -> Vec<Check> {
    let name = &interface.name;
    let Some(link) = &interface.link else {
        return vec![fail(format!("interface {name}"), "there is none of this name").fix("ip -brief link")];
    };
    let mut checks = vec![up(link), ability(interface, link), program(facts, interface, link), mtu(facts, link)];
    checks.push(offloads(interface));
    checks.push(queues(facts, interface));
    checks.push(interrupts(facts, interface));
    checks.push(forwarding(facts, name));
    checks.push(reverse_path(facts, name));
    checks
}

fn up(link: &Link) -> Check {
    let name = format!("interface {}", link.name);
    if link.mac.is_none() {
        return fail(name, format!("{}: no Ethernet interface", link.kind));
    }
    if !link.up {
        return fail(name, "down, or without a carrier").fix(format!("ip link set {} up", link.name));
    }
    ok(name, format!("{}, up", link.kind))
}

/// What its driver can do, before a program is on it.
fn ability(interface: &InterfaceFacts, link: &Link) -> Check {
    let name = format!("xdp ability {}", interface.name);
    if matches!(link.kind.as_str(), "bridge" | "macvlan" | "ipvlan" | "vlan") {
        return warn(name, format!("a {}: programs run in generic mode here, which is slower", link.kind))
            .fix(format!("interfaces = [the interface below {}]; ip -details link show {0}", link.name));
    }
    let Some(ability) = interface.ability else { return skip(name, "the kernel does not tell (Linux 6.3 does)") };
    if !ability.native() {
        return warn(name, "the driver has no native mode: generic mode is slower")
            .fix(format!("ethtool --driver {}; a newer kernel's driver may have it", link.name));
    }
    let words = [
        ("native", ability.native()),
        ("redirect", ability.redirects()),
        ("target", ability.is_target()),
        ("frames in parts", ability.parts()),
    ];
    let told = words.into_iter().filter(|(_, can)| *can).map(|(word, _)| word).collect::<Vec<_>>().join(", ");
    if !ability.is_target() {
        let fix = match link.kind.as_str() {
            // Its other end takes frames only when it polls.
            "veth" => format!("ethtool -K PEER gro on, with the other end of {} as PEER", link.name),
            _ => format!("one interface for both ways does without; ethtool --driver {}", link.name),
        };
        return warn(name, format!("{told}: frames from other interfaces are not taken")).fix(fix);
    }
    ok(name, told)
}

/// Whose program is on it, and how it runs.
fn program(facts: &BalancerFacts, interface: &InterfaceFacts, link: &Link) -> Check {
    let name = format!("xdp {}", interface.name);
    let foreign = interface.programs.iter().find(|(_, id)| Some(*id) != interface.own);
    if let Some((mode, id)) = foreign {
        let evidence = format!("program {id} of somebody else is there ({} mode)", mode.name());
        return fail(name, evidence)
            .fix(format!("bpftool net show dev {0}; lb run --replace takes its place", interface.name));
    }
    match interface.programs.first() {
        Some((AttachedMode::Generic, id)) => {
            let why = match (link.kind.as_str(), refusal(facts, &interface.name)) {
                // In the words of the driver.
                (_, Some(note)) => note,
                ("bridge" | "macvlan" | "vlan" | "bond", None) => format!("a {} has no native mode", link.kind),
                _ => "its driver has no native mode, or it was chosen".to_owned(),
            };
            warn(name, format!("program {id} in generic mode, which is slower: {why}"))
                .fix("attach to the interface below it; or, after a change of the driver: lb detach, and start again")
        }
        Some((mode, id)) => ok(name, format!("program {id}, {} mode", mode.name())),
        None if interface.own.is_some() => {
            fail(name, "the program was there, and is not any more").fix("systemctl restart lb")
        }
        None => skip(name, "no program yet: nothing is balanced here"),
    }
}

/// Why the program is not native, as the agent was told when it attached.
fn refusal(facts: &BalancerFacts, interface: &str) -> Option<String> {
    let AgentFacts::Answers(status) = &facts.agent else { return None };
    status.data_path.interfaces.iter().find(|known| known.name == interface)?.note.clone()
}

fn mtu(facts: &BalancerFacts, link: &Link) -> Check {
    let name = format!("mtu {}", link.name);
    let tunnels = facts.backends.iter().any(|backend| {
        Mode::is_tunnel(backend.mode as u8) && backend.route.is_some_and(|route| route.ifindex == link.ifindex)
    });
    let wanted = CLIENT_MTU + GROWTH_MAX;
    if tunnels && link.mtu < wanted {
        let evidence = format!(
            "{} bytes: a client's packet of {CLIENT_MTU} has 20 to {GROWTH_MAX} more in a tunnel, and is refused",
            link.mtu
        );
        return warn(name, evidence).fix(format!("ip link set {} mtu {wanted}; or mss-clamp = \"auto\"", link.name));
    }
    ok(name, format!("{} bytes", link.mtu))
}

fn offloads(interface: &InterfaceFacts) -> Check {
    let name = format!("offloads {}", interface.name);
    // A veth says that it takes tags off, and never does.
    let virtual_wire = interface.link.as_ref().is_some_and(|link| link.kind == "veth");
    if interface.joins_segments {
        return fail(name, "the card joins segments (LRO): packets of other hosts must not be forwarded so")
            .fix(format!("ethtool -K {} lro off", interface.name));
    }
    if interface.strips_tags && !virtual_wire {
        return warn(name, "the card takes VLAN tags off: packets of its VLANs are taken for untagged ones")
            .fix(format!("ethtool -K {} rxvlan off", interface.name));
    }
    ok(name, "neither segments are joined nor tags taken off")
}

fn queues(facts: &BalancerFacts, interface: &InterfaceFacts) -> Check {
    let name = format!("queues {}", interface.name);
    let Some(queues) = interface.queues else { return skip(name, "the driver tells of none") };
    let useful = queues.greatest.min(u32::try_from(facts.cpus).unwrap_or(u32::MAX));
    let evidence = format!("{} for receiving, at most {}; {} CPUs", queues.used, queues.greatest, facts.cpus);
    if queues.used < useful {
        return warn(name, format!("{evidence}: some CPUs get no packets"))
            .fix(format!("ethtool -L {} combined {useful}", interface.name));
    }
    ok(name, evidence)
}

/// A hint only: interrupts may as well be spread by hand.
fn interrupts(facts: &BalancerFacts, interface: &InterfaceFacts) -> Check {
    let name = format!("interrupts {}", interface.name);
    let Some(queues) = interface.queues.filter(|queues| queues.used > 1 && facts.cpus > 1) else {
        return skip(name, "one queue, or one CPU");
    };
    if facts.interrupts_balanced {
        return ok(name, format!("{} queues; irqbalance spreads their interrupts", queues.used));
    }
    ok(name, format!("{} queues; no irqbalance: see that each has a CPU (/proc/interrupts)", queues.used))
}

/// The data path asks the kernel's tables, which answer only where forwarding is on.
fn forwarding(facts: &BalancerFacts, interface: &str) -> Check {
    let name = format!("forwarding {interface}");
    let v6 = facts.backends.iter().any(|backend| backend.address.is_ipv6());
    let v4 = facts.backends.iter().any(|backend| backend.address.is_ipv4()) || !v6;
    let families = [("ipv4", v4), ("ipv6", v6)];
    let off: Vec<&str> = families
        .into_iter()
        .filter(|(family, used)| {
            *used && setting(facts, &format!("net/{family}/conf/{interface}/forwarding")).as_deref() == Some("0")
        })
        .map(|(family, _)| family)
        .collect();
    if off.is_empty() {
        return ok(name, "on");
    }
    // Before the agent has run that is as it should be.
    let runs = facts.silence.is_some();
    let evidence = format!(
        "off for {}: {}",
        off.join(" and "),
        if runs { "packets are dropped (no_route)" } else { "the agent turns it on" }
    );
    let fix: Vec<String> =
        off.iter().map(|family| format!("sysctl -w net/{family}/conf/{interface}/forwarding=1")).collect();
    if runs { fail(name, evidence).fix(fix.join("; ")) } else { ok(name, evidence) }
}

/// What passes to the host's own stack (ssh, replies of its own) meets the filter; what is balanced does not.
fn reverse_path(facts: &BalancerFacts, interface: &str) -> Check {
    let name = format!("reverse path {interface}");
    let read = |of: &str| setting(facts, &format!("net/ipv4/conf/{of}/rp_filter"))?.parse::<u32>().ok();
    match (read("all"), read(interface)) {
        (Some(all), Some(own)) if all.max(own) == 1 && facts.interfaces.len() > 1 => {
            let evidence = "strict (1): the kernel drops what comes in by another interface than its way back";
            warn(name, evidence).fix(format!("sysctl -w net/ipv4/conf/{interface}/rp_filter=2"))
        }
        (Some(all), Some(own)) => ok(name, format!("rp_filter {}", all.max(own))),
        _ => skip(name, "not told"),
    }
}

/// Packets to the backend have a way, and its next hop is known.
fn way(facts: &BalancerFacts, backend: &BackendFacts) -> Check {
    let name = format!("backend {}", backend.address);
    let ip = backend.address.ip();
    let Some(route) = backend.route else {
        return fail(name, "no route").fix(format!("ip route get {ip}"));
    };
    if route.local {
        return fail(name, "this host has the address: the balancer cannot send packets to itself")
            .fix(format!("ip address show to {ip}"));
    }
    let interface = facts
        .interfaces
        .iter()
        .find_map(|interface| interface.link.as_ref().filter(|link| link.ifindex == route.ifindex));
    let by = interface.map_or_else(|| format!("interface number {}", route.ifindex), |link| link.name.clone());
    let told = match route.gateway {
        Some(gateway) => format!("by {by}, via {gateway}"),
        None => format!("by {by}, on the link"),
    };
    if backend.mode == Mode::DsrL2 && route.gateway.is_some() {
        return fail(name, format!("{told}: dsr-l2 needs it on a segment with the balancer"))
            .fix("mode = \"dsr-ipip\", \"dsr-gue\" or \"dsr-gre\" for its service");
    }
    match backend.neighbour {
        Some(false) => fail(name, format!("{told}; {} does not answer", route.next_hop))
            .fix(format!("ip neighbour show {}; ping -c1 {}", route.next_hop, route.next_hop)),
        Some(true) => ok(name, told),
        None => ok(name, format!("{told}; {} was not asked for yet", route.next_hop)),
    }
}

fn agent(facts: &BalancerFacts) -> Vec<Check> {
    let attached = facts.silence.is_some();
    match &facts.agent {
        AgentFacts::Answers(status) => {
            let told = format!(
                "pid {}, up for {} s, generation {}",
                status.agent.pid, status.agent.uptime_seconds, status.data_path.generation
            );
            let mut checks = vec![ok("agent", told)];
            checks.extend(drift(facts, status.data_path.generation));
            let problems = status.problems();
            checks.extend(problems.into_iter().map(|problem| fail("status", problem).fix("lb status")));
            let down = status.services.iter().filter(|service| service.used == 0 && service.backends > 0);
            checks.extend(down.map(|service| {
                fail(format!("service {}", service.name), "no backend takes flows")
                    .fix(format!("lb backend list {}", service.name))
            }));
            checks
        }
        AgentFacts::NotAllowed => vec![warn("agent", "this user may not ask it").fix("sudo lb doctor")],
        AgentFacts::Silent(why) if attached => {
            let evidence = format!("the data path is there, its agent does not answer: {why}");
            vec![fail("agent", evidence).fix("systemctl status lb; journalctl -u lb")]
        }
        AgentFacts::Silent(_) => vec![skip("agent", "none runs, and nothing is attached")],
    }
}

/// Whether the maps hold what the agent has published last.
fn drift(facts: &BalancerFacts, published: u32) -> Option<Check> {
    let held = facts.silence?.generation;
    Some(if held == published {
        ok("drift", format!("the maps hold generation {held}, the agent's last"))
    } else {
        warn(
            "drift",
            format!(
                "the maps hold generation {held}, the agent's last is {published}: a change is under way, or failed"
            ),
        )
        .fix("lb doctor, again; where it stays so: lb status, then systemctl restart lb")
    })
}

fn dead_man(facts: &BalancerFacts) -> Check {
    let Some(silence) = facts.silence else { return skip("dead man", "nothing is attached") };
    let (policy, effect) = (silence.policy.name(), silence.policy.effect());
    match silence.over {
        Some(over) if silence.policy != DeadManPolicy::Freeze => {
            let since = over.as_secs();
            fail("dead man", format!("{policy}, for {since} s: the agent is silent, {effect}"))
                .fix("systemctl restart lb")
        }
        Some(_) => warn("dead man", format!("{policy}: the agent is silent, {effect}")).fix("systemctl restart lb"),
        None => ok("dead man", format!("{policy}; the agent gives signs of life")),
    }
}

fn setting(facts: &BalancerFacts, path: &str) -> Option<String> {
    facts.sysctl.read(Path::new(path)).ok().flatten()
}
