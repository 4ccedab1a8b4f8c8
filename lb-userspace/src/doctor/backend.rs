//! Direct server return: what a backend needs besides a server that listens.

use std::net::IpAddr;

use lb_common::abi::Mode;

use super::{Facts, facts::is_quiet};
use crate::{
    api::doctor::{Check, CheckResult},
    config::Tunnel,
    dataplane::kernel::decap::{Prefix, Stripping},
    host::{HostAddress, Link},
};

/// Largest packet of clients on usual networks.
const CLIENT_MTU: u32 = 1500;
/// What the largest outer headers take: IPv6 and UDP.
pub(super) const GROWTH_MAX: u32 = 48;

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// The services' addresses; none: those that `lb decap` strips for.
    pub vips: Vec<IpAddr>,
    /// `None`: not told.
    pub mode: Option<Mode>,
    /// Where tunnels come from; none: not told.
    pub balancers: Vec<Prefix>,
    pub gue_port: Option<u16>,
}

impl Question {
    fn gue_port(&self) -> u16 {
        self.gue_port.unwrap_or(Tunnel::GUE_PORT)
    }

    fn has_tunnel(&self) -> bool {
        self.mode.is_none_or(|mode| Mode::is_tunnel(mode as u8))
    }
}

/// Everything there is to check, in order.
pub fn checks(facts: &Facts, question: &Question) -> Vec<Check> {
    let mut question = question.clone();
    if question.vips.is_empty() {
        let told = facts.stripping.iter().flatten().flat_map(|stripping| stripping.rules.vips.iter().copied());
        question.vips = told.collect();
        question.vips.sort();
        question.vips.dedup();
    }
    if question.vips.is_empty() {
        let check = Check::new("address", CheckResult::Fail, "no service's address was told");
        return vec![check.fix("lb doctor --backend --vip ADDRESS")];
    }
    let question = &question;
    let mut checks: Vec<Check> = question.vips.iter().map(|vip| address(facts, *vip)).collect();
    checks.push(arp(facts, question));
    checks.extend(question.vips.iter().map(|vip| decapsulation(facts, question, *vip)));
    checks.push(reverse_path(facts, question));
    checks.push(mtu(facts, question));
    checks.extend(ways(facts, question));
    checks
}

/// The host takes packets to the address, and no neighbour learns that it has it.
fn address(facts: &Facts, vip: IpAddr) -> Check {
    let name = format!("address {vip}");
    let bits = if vip.is_ipv4() { 32 } else { 128 };
    let add = format!("ip address add {vip}/{bits} dev lo");
    let holders: Vec<(&HostAddress, &Link)> = facts
        .addresses
        .iter()
        .filter(|held| held.address == vip)
        .filter_map(|held| Some((held, facts.link(held.ifindex)?)))
        .collect();
    let told = holders.iter().map(|(held, link)| format!("on {}, as /{}", link.name, held.prefix_len));
    let told = told.collect::<Vec<_>>().join("; ");
    if holders.is_empty() {
        return Check::new(name, CheckResult::Fail, "on no interface: the stack does not take its packets").fix(add);
    }
    if let Some((held, link)) = holders.iter().find(|(_, link)| !is_quiet(link)) {
        let evidence = format!("{told}: neighbours that ask for it are answered, and it is taken from the balancer");
        let fix = format!("ip address del {vip}/{} dev {}; {add}", held.prefix_len, link.name);
        return Check::new(name, CheckResult::Fail, evidence).fix(fix);
    }
    if let Some((held, link)) = holders.iter().find(|(held, _)| held.prefix_len != bits) {
        let evidence = format!("{told}: the whole network counts as this host's own");
        let fix = format!("ip address del {vip}/{} dev {}; {add}", held.prefix_len, link.name);
        return Check::new(name, CheckResult::Fail, evidence).fix(fix);
    }
    if !holders.iter().any(|(held, _)| held.usable) {
        return Check::new(
            name,
            CheckResult::Warn,
            format!("{told}, but not usable yet (duplicate address detection)"),
        );
    }
    Check::new(name, CheckResult::Ok, told)
}

/// IPv4: an interface answers for addresses of others and names them in its own questions, unless it
/// is told not to. IPv6 answers for an interface's own addresses only.
fn arp(facts: &Facts, question: &Question) -> Check {
    const NAME: &str = "arp";
    if question.vips.iter().all(IpAddr::is_ipv6) {
        return Check::new(NAME, CheckResult::Skip, "IPv6 interfaces answer for their own addresses only");
    }
    let (mut bad, mut good) = (Vec::new(), Vec::new());
    for link in facts.ethernet() {
        let settings = [facts.ipv4_setting(&link.name, "arp_ignore"), facts.ipv4_setting(&link.name, "arp_announce")];
        let [Some(ignore), Some(announce)] = settings else { continue };
        let told = format!("{}: arp_ignore {ignore}, arp_announce {announce}", link.name);
        // 3 hides addresses of scope host only, which that of a service need not have.
        let quiet = matches!(ignore, 1 | 2 | 8) && announce == 2;
        if quiet { good.push(told) } else { bad.push(told) }
    }
    if bad.is_empty() {
        let told = if good.is_empty() { "no interface has neighbours".to_owned() } else { good.join("; ") };
        return Check::new(NAME, CheckResult::Ok, told);
    }
    let evidence = format!("{}: this host claims the service's address before its neighbours", bad.join("; "));
    Check::new(NAME, CheckResult::Fail, evidence)
        .fix("sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2")
}

/// Something takes the outer headers off.
fn decapsulation(facts: &Facts, question: &Question, vip: IpAddr) -> Check {
    let name = format!("decapsulation {vip}");
    if !question.has_tunnel() {
        return Check::new(name, CheckResult::Skip, "dsr-l2 has no tunnel");
    }
    let devices = devices(facts, question, vip);
    let stripping = match &facts.stripping {
        Ok(stripping) => stripping.as_slice(),
        Err(why) if devices.is_empty() => {
            let evidence = format!("no tunnel device, and whether `lb decap` runs cannot be seen: {why}");
            return Check::new(name, CheckResult::Warn, evidence).fix("repeat it with sudo");
        }
        Err(_) => &[],
    };
    let gaps: Vec<(&Stripping, Option<String>)> =
        stripping.iter().map(|stripping| (stripping, gap(stripping, question, vip))).collect();
    if let Some((stripping, _)) = gaps.iter().find(|(_, gap)| gap.is_none()) {
        return Check::new(name, CheckResult::Ok, format!("lb decap on {}", stripping.interface));
    }
    let gue = question.mode == Some(Mode::DsrGue);
    if !devices.is_empty() && (!gue || facts.udp_ports.contains(&question.gue_port())) {
        let port = if gue { format!(", and UDP port {} is open", question.gue_port()) } else { String::new() };
        return Check::new(name, CheckResult::Ok, format!("tunnel device {}{port}", devices.join(", ")));
    }
    let mut evidence: Vec<String> = gaps
        .iter()
        .filter_map(|(stripping, gap)| Some(format!("lb decap on {}: {}", stripping.interface, gap.as_ref()?)))
        .collect();
    evidence.push(if devices.is_empty() {
        "no tunnel device is up".to_owned()
    } else {
        format!("tunnel device {}, but nobody has UDP port {}", devices.join(", "), question.gue_port())
    });
    if question.mode.is_none() {
        evidence.push("dsr-l2 does without".to_owned());
    }
    let result = if question.mode.is_some() || !stripping.is_empty() { CheckResult::Fail } else { CheckResult::Warn };
    let interface = gaps.first().map_or_else(|| entrance(facts), |(stripping, _)| stripping.interface.clone());
    let from = question.balancers.iter().map(|prefix| format!(" --from {prefix}")).collect::<String>();
    let from = if from.is_empty() { " --from BALANCER".to_owned() } else { from };
    let vips = question.vips.iter().map(|vip| format!(" --vip {vip}")).collect::<String>();
    let port = if question.gue_port() == Tunnel::GUE_PORT {
        String::new()
    } else {
        format!(" --gue-port {}", question.gue_port())
    };
    Check::new(name, result, evidence.join("; ")).fix(format!("lb decap --iface {interface}{vips}{from}{port}"))
}

/// Why a program does not take the headers off; `None`: it does.
fn gap(stripping: &Stripping, question: &Question, vip: IpAddr) -> Option<String> {
    let rules = &stripping.rules;
    if stripping.attachment.is_none() {
        return Some("its program is gone".to_owned());
    }
    if !rules.vips.contains(&vip) {
        return Some(format!("not for {vip}"));
    }
    if question.mode == Some(Mode::DsrGue) && rules.gue_port != Some(question.gue_port()) {
        return Some(format!("not GUE to port {}", question.gue_port()));
    }
    let missing = question.balancers.iter().find(|wanted| !rules.balancers.iter().any(|known| covers(known, wanted)));
    missing.map(|missing| format!("not from {missing}"))
}

fn covers(known: &Prefix, wanted: &Prefix) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let ((known_bits, family), (wanted_bits, other)) = (bits(known.address), bits(wanted.address));
    let differ = (known_bits ^ wanted_bits).checked_shr(128 - u32::from(known.length)).unwrap_or(0);
    family == other && known.length <= wanted.length && differ == 0
}

/// Devices that take GRE off, whatever is inside.
const GRE: [&str; 2] = ["gre", "ip6gre"];

/// Tunnel devices that are up and take packets of the address's family out of the mode's tunnels, or of any
/// where no mode was told.
fn devices(facts: &Facts, question: &Question, vip: IpAddr) -> Vec<String> {
    let gre = question.mode.is_none_or(|mode| mode == Mode::DsrGre);
    let others = question.mode != Some(Mode::DsrGre);
    let bare = if vip.is_ipv4() { ["ipip", "ip6tnl"] } else { ["sit", "ip6tnl"] };
    let takes = |kind: &str| others && bare.contains(&kind) || gre && GRE.contains(&kind);
    let fits = |link: &&Link| link.up && takes(&link.kind);
    facts.links.iter().filter(fits).map(|link| link.name.clone()).collect()
}

/// Where packets come in, as far as can be guessed: by the way to clients.
fn entrance(facts: &Facts) -> String {
    let way = facts.ways.values().flatten().next();
    way.and_then(|way| facts.link(way.ifindex)).map_or_else(|| "IF".to_owned(), |link| link.name.clone())
}

/// IPv4: a packet of a client is dropped where the way to the client is another interface's, and the
/// filter is strict (RFC 3704).
fn reverse_path(facts: &Facts, question: &Question) -> Check {
    const NAME: &str = "reverse path";
    if question.vips.iter().all(IpAddr::is_ipv6) {
        return Check::new(NAME, CheckResult::Skip, "the kernel filters IPv4 only");
    }
    let clients = facts.ways.iter().filter(|(client, _)| client.is_ipv4());
    let leaves: Vec<u32> = clients.filter_map(|(_, way)| Some(way.as_ref()?.ifindex)).collect();
    let (entrances, sure) = entrances(facts, question);
    let (mut strict, mut told) = (Vec::new(), Vec::new());
    for link in entrances {
        let Some(filter) = facts.ipv4_setting(&link.name, "rp_filter") else { continue };
        told.push(format!("{}: rp_filter {filter}", link.name));
        if filter == 1 && leaves.iter().any(|leaves| *leaves != link.ifindex) {
            strict.push(link.name.as_str());
        }
    }
    let told = told.join("; ");
    if strict.is_empty() {
        return Check::new(NAME, CheckResult::Ok, told);
    }
    let ways: Vec<&str> = leaves.iter().map(|ifindex| facts.link_name(*ifindex)).collect();
    let evidence = format!(
        "{told}: packets of clients that come in by {} are dropped, because the way to clients is {}",
        strict.join(", "),
        ways.join(", ")
    );
    // Where the greater of two values counts, 2 (loose) is greater than 1 (strict).
    let settings = strict.iter().map(|name| format!(" net.ipv4.conf.{}.rp_filter=2", name.replace('.', "/")));
    Check::new(NAME, if sure { CheckResult::Fail } else { CheckResult::Warn }, evidence)
        .fix(format!("sysctl -w{}", settings.collect::<String>()))
}

/// Interfaces that packets of clients come in by, and whether that is sure: where tunnels are opened,
/// or any Ethernet interface.
fn entrances<'a>(facts: &'a Facts, question: &Question) -> (Vec<&'a Link>, bool) {
    let opens = |link: &&Link| {
        let stripped = facts.stripping.iter().flatten().filter_map(|stripping| stripping.attachment.as_ref());
        let kind = link.kind.as_str();
        let device = link.up && (["ipip", "ip6tnl"].contains(&kind) || GRE.contains(&kind));
        question.has_tunnel() && (device || stripped.into_iter().any(|attached| attached.ifindex == link.ifindex))
    };
    let opening: Vec<&Link> = facts.links.iter().filter(opens).collect();
    if !opening.is_empty() {
        return (opening, true);
    }
    let ethernet: Vec<&Link> = facts.ethernet().collect();
    let sure = ethernet.len() == 1;
    (ethernet, sure)
}

/// Room for the outer headers around clients' largest packets.
fn mtu(facts: &Facts, question: &Question) -> Check {
    const NAME: &str = "mtu";
    if !question.has_tunnel() {
        return Check::new(NAME, CheckResult::Skip, "dsr-l2 has no tunnel");
    }
    let told = |link: &Link| format!("{}: {} bytes", link.name, link.mtu);
    let (small, large): (Vec<&Link>, Vec<&Link>) =
        facts.ethernet().partition(|link| link.mtu < CLIENT_MTU + GROWTH_MAX);
    if small.is_empty() {
        let told: Vec<String> = large.into_iter().map(told).collect();
        return Check::new(NAME, CheckResult::Ok, told.join("; "));
    }
    let lengths: Vec<String> = small.iter().map(|link| told(link)).collect();
    let evidence = format!(
        "{}: a client's packet of {CLIENT_MTU} bytes has 20 to {GROWTH_MAX} more in a tunnel; the balancer does not \
         forward what does not fit",
        lengths.join("; ")
    );
    let fixes: Vec<String> =
        small.iter().map(|link| format!("ip link set {} mtu {}", link.name, CLIENT_MTU + GROWTH_MAX)).collect();
    let fix = format!(
        "{} (and as much on the way from the balancer); or announce a smaller segment: ip route change default ... advmss {}",
        fixes.join("; "),
        CLIENT_MTU - GROWTH_MAX - 60
    );
    Check::new(NAME, CheckResult::Warn, evidence).fix(fix)
}

/// Answers find clients, and not by way of the balancer, which would take them for forged.
fn ways(facts: &Facts, question: &Question) -> Vec<Check> {
    let wanted = |client: &IpAddr| question.vips.iter().any(|vip| vip.is_ipv4() == client.is_ipv4());
    let ways = facts.ways.iter().filter(|(client, _)| wanted(client));
    ways.map(|(client, way)| {
        let family = if client.is_ipv4() { "IPv4" } else { "IPv6" };
        let name = format!("way to {family} clients");
        let Some(way) = way else {
            let family = if client.is_ipv4() { "-4" } else { "-6" };
            return Check::new(name, CheckResult::Fail, format!("no route, for instance to {client}"))
                .fix(format!("ip {family} route add default via GATEWAY"));
        };
        let interface = facts.link_name(way.ifindex);
        let told = match way.gateway {
            Some(gateway) => format!("by {interface}, via {gateway}"),
            None => format!("by {interface}, without a gateway"),
        };
        let host = |address: IpAddr| Prefix { address, length: if address.is_ipv4() { 32 } else { 128 } };
        let through =
            way.gateway.filter(|gateway| question.balancers.iter().any(|known| covers(known, &host(*gateway))));
        match through {
            Some(gateway) => {
                let evidence =
                    format!("{told}: that is the balancer, which takes answers of a backend for forged packets");
                Check::new(name, CheckResult::Fail, evidence)
                    .fix(format!("give answers another way than {gateway}: ip route replace default via GATEWAY"))
            }
            None => Check::new(name, CheckResult::Ok, told),
        }
    })
    .collect()
}
