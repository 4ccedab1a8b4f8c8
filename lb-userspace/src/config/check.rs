//! What can only be judged by looking at more than one setting: within a service, and across the
//! file. Settings that were wrong by themselves are left out here: they have been reported.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{Granularity, Mode, Protocol, Scheduler};

use super::{
    diagnostic::{At, Finding, Findings, Located},
    keys, max_connections,
    model::MssClamp,
    quic,
    read::{BackendDraft, Draft, LimitsDraft, ServiceDraft},
};

/// Fewest source ports that `full-nat` is started with: a backend can have as many flows at a time.
const SOURCE_PORTS_MIN: u32 = 1024;

pub(super) fn whole(findings: &mut Findings, draft: &Draft) {
    for service in &draft.services {
        one_service(findings, service);
    }
    if draft.services.is_empty() && draft.services_read.is_ok() {
        let at = At { path: keys::SERVICES_TABLE.name.to_owned(), span: draft.at.span };
        let finding = Finding::new(&at, "there is no [[service]]: nothing will be balanced");
        findings.warning(finding);
    }
    unique_names(findings, &draft.services);
    unique_listens(findings, &draft.services);
    chained_services(findings, &draft.services);
    enough_source_ports(findings, draft);
    if let Ok(limits) = &draft.limits {
        within_limits(findings, limits, draft);
    }
}

fn one_service(findings: &mut Findings, service: &ServiceDraft) {
    if let (Ok(granularity), Ok(protocol)) = (&service.granularity, &service.protocol)
        && granularity.value == Granularity::Packet
        && protocol.value != Protocol::Udp
    {
        let finding = Finding::new(&granularity.at, "single packets can be scheduled only for UDP")
            .and(&protocol.at, format!("protocol \"{}\"", protocol.value.name()))
            .help("a connection must stay on its backend: write granularity = \"flow\", or protocol = \"udp\"");
        findings.error(finding);
    }
    if service.backends.is_empty() && service.backends_read.is_ok() {
        let at = At { path: format!("{}.{}", service.at.path, keys::BACKENDS_TABLE.name), span: service.at.span };
        let finding = Finding::new(&at, "this service has no backends: every connection to it is refused")
            .help("add one:\n    [[service.backend]]\n    address = \"10.0.0.11:8080\"");
        findings.warning(finding);
    }
    sctp_as_it_is(findings, service);
    countable(findings, service);
    clamped(findings, service);
    same_family(findings, service);
    not_itself(findings, service);
    unique_backends(findings, service);
    weights(findings, service);
    quic::check(findings, service);
    max_connections::check(findings, service);
}

/// The checksum of SCTP covers the ports, and an association may have several addresses, which its
/// packets tell: neither survives a translation.
fn sctp_as_it_is(findings: &mut Findings, service: &ServiceDraft) {
    if let (Ok(protocol), Ok(mode)) = (&service.protocol, &service.mode)
        && protocol.value == Protocol::Sctp
        && !Mode::is_one_sided(mode.value as u8)
    {
        let name = mode.value.name();
        let finding = Finding::new(&protocol.at, format!("\"{name}\" cannot translate SCTP"))
            .and(&mode.at, format!("mode \"{name}\""))
            .help("its checksum covers the whole packet, and its packets tell addresses of the association")
            .help("write mode = \"dsr-l2\" or \"dsr-ipip\": packets go to the backends as they are");
        findings.error(finding);
    }
}

/// Only TCP announces sizes.
fn clamped(findings: &mut Findings, service: &ServiceDraft) {
    if let (Ok(clamp), Ok(protocol)) = (&service.mss_clamp, &service.protocol)
        && clamp.value != MssClamp::Off
        && protocol.value != Protocol::Tcp
    {
        let finding = Finding::new(&clamp.at, "only TCP has a segment size to clamp")
            .and(&protocol.at, format!("protocol \"{}\"", protocol.value.name()))
            .help("leave `mss-clamp` out: senders of packets that do not fit are told so in any case");
        findings.error(finding);
    }
}

/// Schedulers that compare loads need flows to count: where every packet is scheduled anew there are
/// only clients, each with a flow to every backend.
fn countable(findings: &mut Findings, service: &ServiceDraft) {
    if let (Ok(granularity), Ok(scheduler)) = (&service.granularity, &service.scheduler)
        && granularity.value == Granularity::Packet
        && Scheduler::counts_flows(scheduler.value as u8)
    {
        let name = scheduler.value.name();
        let finding = Finding::new(&scheduler.at, format!("\"{name}\" cannot schedule single packets"))
            .and(&granularity.at, "granularity \"packet\"")
            .help("it compares how many flows each backend has: write granularity = \"flow\", or another scheduler");
        findings.error(finding);
    }
}

fn same_family(findings: &mut Findings, service: &ServiceDraft) {
    let (Ok(listen), Ok(mode)) = (&service.listen, &service.mode) else { return };
    if Mode::joins_families(mode.value as u8) {
        return;
    }
    let family = |ip: IpAddr| if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    for endpoint in service.backends().filter_map(|backend| backend.endpoint.as_ref().ok()) {
        let (ours, theirs) = (listen.value.ip(), endpoint.value.ip);
        if ours.is_ipv4() != theirs.is_ipv4() {
            let message = format!("an {} backend cannot serve an {} service", family(theirs), family(ours));
            let finding = Finding::new(&endpoint.at, message)
                .and(&listen.at, family(ours))
                .and(&mode.at, format!("\"{}\" keeps the family", mode.value.name()))
                .help(
                    "\"full-nat\" translates between the families, the tunnels (\"dsr-ipip\", \"dsr-gue\", \"dsr-gre\") take packets of one through the other",
                )
                .help(format!("or write the backend's {} address", family(ours)));
            findings.error(finding);
        }
    }
}

fn not_itself(findings: &mut Findings, service: &ServiceDraft) {
    let Ok(listen) = &service.listen else { return };
    for endpoint in service.backends().filter_map(|backend| backend.endpoint.as_ref().ok()) {
        if endpoint.value.ip == listen.value.ip() {
            let finding = Finding::new(&endpoint.at, "the backend has the service's own address")
                .and(&listen.at, "the service")
                .help("packets would come back to the balancer: write the server's own address");
            findings.error(finding);
        }
    }
}

fn unique_backends(findings: &mut Findings, service: &ServiceDraft) {
    let addresses = service.backends().filter_map(|backend| backend.address.as_ref().ok());
    unique(
        findings,
        addresses,
        |address| *address,
        |place, address| {
            (
                format!("the backend {address} is in this service already ({place})"),
                "remove one of the two; for a larger share give it a weight".to_owned(),
            )
        },
    );
}

fn weights(findings: &mut Findings, service: &ServiceDraft) {
    let weights: Vec<_> = service.backends().filter_map(|backend| backend.weight.as_ref().ok()).collect();
    if let Some(first) = weights.first()
        && weights.len() == service.backends.len()
        && weights.iter().all(|weight| weight.value == 0)
    {
        let finding = Finding::new(&first.at, "every backend of this service has weight 0: none takes new flows")
            .help("give at least one a weight of 1 or more");
        findings.warning(finding);
    }
    let Ok(scheduler) = &service.scheduler else { return };
    if scheduler.value != Scheduler::RoundRobin {
        return;
    }
    if let Some(ignored) = weights.iter().find(|weight| weight.value > 1) {
        let message = format!("weight {} has no effect: \"round-robin\" gives every backend the same", ignored.value);
        let finding = Finding::new(&ignored.at, message).and(&scheduler.at, "round-robin").help(
            "write scheduler = \"weighted-round-robin\" or another one that knows weights, or leave the weights out",
        );
        findings.warning(finding);
    }
}

fn unique_names(findings: &mut Findings, services: &[ServiceDraft]) {
    let names = services.iter().filter_map(|service| service.name.as_ref().ok());
    unique(findings, names, String::clone, |place, name| {
        let message = format!("the name {name:?} is taken already ({place})");
        (message, "commands and metrics know services by their names: give each its own".to_owned())
    });
}

fn unique_listens(findings: &mut Findings, services: &[ServiceDraft]) {
    let listens: Vec<_> = services
        .iter()
        .filter_map(|service| {
            let (listen, protocol) = (service.listen.as_ref().ok()?, service.protocol.as_ref().ok()?);
            Some(Located { value: (listen.value, protocol.value), at: listen.at.clone() })
        })
        .collect();
    unique(
        findings,
        &listens,
        |listen| *listen,
        |place, (address, protocol)| {
            (
                format!("another service listens on {address} ({}) already ({place})", protocol.name()),
                "address, port and protocol together must differ; put the backends into one service".to_owned(),
            )
        },
    );
}

/// Reports each value that was there before, pointing at the first of its kind too.
fn unique<'a, T: 'a, K: Ord>(
    findings: &mut Findings,
    values: impl IntoIterator<Item = &'a Located<T>>,
    key: impl Fn(&T) -> K,
    words: impl Fn(&str, &T) -> (String, String),
) {
    let mut seen: BTreeMap<K, &At> = BTreeMap::new();
    for Located { value, at } in values {
        let first = *seen.entry(key(value)).or_insert(at);
        if first != at {
            let (message, help) = words(&findings.place(first), value);
            let finding = Finding::new(at, message).and(first, "first here").help(help);
            findings.error(finding);
        }
    }
}

/// A backend that is another service's address: its packets leave this host, and nobody answers.
fn chained_services(findings: &mut Findings, services: &[ServiceDraft]) {
    let listens: BTreeMap<IpAddr, &At> = services
        .iter()
        .rev()
        .filter_map(|service| service.listen.as_ref().ok())
        .map(|listen| (listen.value.ip(), &listen.at))
        .collect();
    for service in services {
        let own = service.listen.as_ref().ok().map(|listen| listen.value.ip());
        for endpoint in service.backends().filter_map(|backend| backend.endpoint.as_ref().ok()) {
            let ip = endpoint.value.ip;
            if let Some(at) = listens.get(&ip).filter(|_| own != Some(ip)) {
                let message = format!("{ip} is a service of this file too: a packet is balanced once, not twice");
                let finding = Finding::new(&endpoint.at, message)
                    .and(at, "the service")
                    .help("write the addresses of the servers themselves");
                findings.warning(finding);
            }
        }
    }
}

fn enough_source_ports(findings: &mut Findings, draft: &Draft) {
    let full_nat = |service: &&ServiceDraft| service.mode.as_ref().is_ok_and(|mode| mode.value == Mode::FullNat);
    let (Some(service), Ok(ports)) = (draft.services.iter().find(full_nat), &draft.source_ports) else { return };
    let count: u32 = ports.value.iter().map(|range| u32::from(range.last - range.first) + 1).sum();
    if count < SOURCE_PORTS_MIN {
        let finding = Finding::new(&ports.at, format!("{count} source ports are too few for \"full-nat\""))
            .and(&service.at, "a \"full-nat\" service")
            .help(format!("a backend can have as many flows at a time; give at least {SOURCE_PORTS_MIN}"));
        findings.error(finding);
    }
}

/// How much the services need of each capacity, as far as the file tells: source addresses of
/// `full-nat` are the host's.
fn within_limits(findings: &mut Findings, limits: &LimitsDraft, draft: &Draft) {
    let Draft { services, maglev_table_size: maglev_table, .. } = draft;
    let backends = || services.iter().flat_map(|service| service.backends().map(move |backend| (service, backend)));
    within(findings, &limits.services, services.len(), "services");
    within(findings, &limits.backends, backends().count(), "backends");

    let addresses: BTreeSet<IpAddr> = services
        .iter()
        .filter_map(|service| service.listen.as_ref().ok().map(|listen| listen.value.ip()))
        .chain(backends().filter_map(|(service, backend)| {
            let nat = service.mode.as_ref().is_ok_and(|mode| mode.value == Mode::Nat);
            nat.then(|| backend.endpoint.as_ref().ok().map(|endpoint| endpoint.value.ip)).flatten()
        }))
        .collect();
    within(findings, &limits.addresses, addresses.len(), "addresses");

    let pools: BTreeSet<(SocketAddr, Protocol)> = backends()
        .filter_map(|(service, backend)| {
            let full_nat = service.mode.as_ref().is_ok_and(|mode| mode.value == Mode::FullNat);
            let key = (backend.address.as_ref().ok()?.value, service.protocol.as_ref().ok()?.value);
            full_nat.then_some(key)
        })
        .collect();
    within(findings, &limits.port_pools, pools.len(), "backend endpoints of \"full-nat\" services");

    let maglev = maglev_table.as_ref().map_or(0, |size| size.value as usize);
    let tables: Vec<usize> = services.iter().map(|service| selection_slots(service, maglev)).collect();
    let slots = tables.iter().sum::<usize>() + tables.iter().max().unwrap_or(&0);
    within(findings, &limits.selection_slots, slots, "selection slots (the largest table counted twice)");
}

fn within(findings: &mut Findings, limit: &Located<u32>, needed: usize, what: &str) {
    let Located { value, at } = limit;
    if needed > *value as usize {
        let finding = Finding::new(at, format!("{needed} {what} are more than `{}` allows ({value})", at.path))
            .help(format!("set `{}` to {needed} or more", at.path));
        findings.error(finding);
    }
}

/// Slots of a service's selection table when the largest of its tiers serves.
fn selection_slots(service: &ServiceDraft, maglev_table: usize) -> usize {
    let scheduler = service.scheduler.as_ref().map_or(Scheduler::RoundRobin, |scheduler| scheduler.value);
    let weighted = matches!(scheduler, Scheduler::WeightedRoundRobin | Scheduler::RandomTwo);
    let hashed = matches!(scheduler, Scheduler::SourceHash | Scheduler::Maglev);
    let mut tiers: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
    for backend in service.backends() {
        if let (Ok(tier), Ok(weight)) = (&backend.tier, &backend.weight)
            && weight.value > 0
        {
            tiers.entry(*tier).or_default().push(if weighted { weight.value.into() } else { 1 });
        }
    }
    let slots = |weights: &Vec<usize>| if hashed { maglev_table.max(weights.len()) } else { table_slots(weights) };
    tiers.values().map(slots).max().unwrap_or(0)
}

/// Slots of a table over backends of these weights: reduced by what they have in common, and scaled
/// down where they still add up to more than the longest table that the agent makes.
fn table_slots(weights: &[usize]) -> usize {
    let common = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
    let sum = weights.iter().sum::<usize>() / common;
    let backends = weights.len().max(1);
    let longest = ((1 << 20) / backends).clamp(1024, 4096).max(backends);
    sum.min(longest)
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

impl ServiceDraft {
    /// The backends that could be read.
    fn backends(&self) -> impl Iterator<Item = &BackendDraft> {
        self.backends.iter().filter_map(|backend| backend.as_ref().ok())
    }
}

#[cfg(test)]
mod tests {
    use super::table_slots;

    #[test]
    fn a_table_has_a_slot_per_weight_and_is_never_longer_than_the_agent_makes_it() {
        assert_eq!(table_slots(&[]), 0);
        assert_eq!(table_slots(&[1, 1, 1]), 3);
        assert_eq!(table_slots(&[200, 100]), 3);
        assert_eq!(table_slots(&[3, 7]), 10);
        assert_eq!(table_slots(&[1000, 999, 1000, 1000, 1000]), 4096);
        assert_eq!(table_slots(&[1; 5000]), 5000);
    }
}
