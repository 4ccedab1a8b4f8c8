//! What a configuration comes to, in a few lines: for `lb config check`.

use std::{fmt, mem::size_of};

use lb_common::{
    abi::{self, Granularity, limits, names},
    verdict::Reason,
};
use serde::Serialize;

use super::{
    model::{Config, Health, Limits, Service},
    probes::Check,
};
use crate::dataplane::kernel::object;

/// Bytes that the kernel keeps beside key and value of each element of a hash map (`struct
/// htab_elem` up to its key, Linux 5.15 to 6.18), and per bucket.
const HASH_ELEMENT_OVERHEAD: u64 = 48;
const HASH_BUCKET: u64 = 16;
/// The kernel rounds values of arrays, and keys and values of hash maps, up to this.
const VALUE_ALIGN: u64 = 8;

/// What a configuration comes to.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    pub services: Vec<ServiceSummary>,
    pub backends: usize,
    /// CPUs that the per-CPU maps are counted for.
    pub cpus: usize,
    /// Every map at the configured limits.
    pub maps: Vec<MapMemory>,
    pub memory_bytes: u64,
    #[serde(skip)]
    limits: Limits,
}

/// One service on one line.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceSummary {
    pub name: String,
    pub listen: String,
    pub protocol: &'static str,
    pub mode: &'static str,
    /// Scheduler and what it schedules: `round-robin per flow`.
    pub schedule: String,
    /// `http /healthz every 500ms`
    pub check: String,
    pub backends: usize,
}

/// Kernel memory of one map, as well as it can be told before it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapMemory {
    pub name: &'static str,
    pub entries: u64,
    pub bytes: u64,
}

impl Config {
    /// Sums the configuration up for a host with that many (possible) CPUs.
    pub fn summary(&self, cpus: usize) -> Summary {
        let maps = maps(&self.limits, cpus as u64);
        Summary {
            services: self.services.iter().map(service).collect(),
            backends: self.services.iter().map(|service| service.backends.len()).sum(),
            cpus,
            memory_bytes: maps.iter().map(|map| map.bytes).sum(),
            maps,
            limits: self.limits,
        }
    }
}

fn service(service: &Service) -> ServiceSummary {
    let per = match service.granularity {
        Granularity::Flow => "flow",
        Granularity::Packet => "packet",
        Granularity::Client => "client",
    };
    ServiceSummary {
        name: service.name.clone(),
        listen: service.listen.to_string(),
        protocol: service.protocol.name(),
        mode: service.mode.name(),
        schedule: format!("{} per {per}", service.scheduler.name()),
        check: check(&service.health),
        backends: service.backends.len(),
    }
}

fn check(health: &Health) -> String {
    let port = health.port.map_or(String::new(), |port| format!(" on port {port}"));
    let every = humantime::format_duration(health.interval);
    match &health.check {
        Check::None => "not checked".to_owned(),
        Check::Http(http) => format!("{} check of {}{port} every {every}", health.check.name(), http.path),
        check => format!("{} check{port} every {every}", check.name()),
    }
}

fn maps(limits: &Limits, cpus: u64) -> Vec<MapMemory> {
    let [services, backends, flows] = [limits.services, limits.backends, limits.flows].map(u64::from);
    let array = |name, entries: u64, value: usize| MapMemory { name, entries, bytes: entries * aligned(value) };
    // Of such an element the kernel keeps where it is on each CPU.
    let per_cpu = |name, entries: u64, value: usize| MapMemory {
        name,
        entries,
        bytes: entries * (aligned(value) * cpus + size_of::<u64>() as u64),
    };
    vec![
        array(names::ADDRESS_BITS, u64::from(limits::ADDRESS_BITS) / 64, size_of::<u64>()),
        hash(names::ADDRESSES, limits.addresses, size_of::<abi::Address>(), size_of::<abi::AddressRoles>()),
        hash(names::SERVICES, limits.services, size_of::<abi::ServiceKey>(), size_of::<abi::ServiceValue>()),
        array(names::SERVICE_LINES, limits::SERVICE_LINES.into(), size_of::<abi::ServiceLine>()),
        array(names::SERVICE_INFO, services, size_of::<abi::ServiceInfo>()),
        array(names::BACKENDS, backends, size_of::<abi::Backend>()),
        array(names::BACKEND_LOAD, backends, size_of::<i64>()),
        array(names::SELECTION, limits.selection_slots.into(), size_of::<abi::Slot>()),
        per_cpu(names::CURSORS, services, size_of::<u32>()),
        array(names::FLOW_WORDS, flows, size_of::<u64>()),
        array(names::REPLY_WORDS, flows * u64::from(limits::REPLY_FACTOR), size_of::<u64>()),
        array(names::FLOWS, flows, size_of::<abi::Flow>()),
        array(names::PORT_POOLS, limits.port_pools.into(), size_of::<abi::PortPool>()),
        hash(names::QUIC_IDS, limits.backends, size_of::<abi::QuicKey>(), size_of::<u32>()),
        array(names::SETTINGS, 1, size_of::<abi::Settings>()),
        hash(names::INTERFACES, limits::INTERFACES + limits::VLANS, size_of::<u32>(), size_of::<abi::Interface>()),
        hash(names::VLANS_IN, limits::VLANS, size_of::<abi::VlanKey>(), size_of::<u32>()),
        hash(names::VLANS_OUT, limits::VLANS, size_of::<u32>(), size_of::<abi::VlanLink>()),
        array(names::VLAN_BITS, 1, size_of::<u64>()),
        hash(names::FRAGMENTS, limits::FRAGMENTS, size_of::<abi::FragmentKey>(), size_of::<abi::FragmentFlow>()),
        MapMemory { name: names::EVENTS, entries: 1, bytes: limits::EVENTS_BYTES.into() },
        array(names::KNOCKS, limits::KNOCKS.into(), size_of::<abi::Knock>()),
        array(names::SILENCES, backends, size_of::<abi::Silence>()),
        hash(names::MOVED, limits::MOVED, size_of::<abi::MovedKey>(), size_of::<u32>()),
        per_cpu(names::HANDSHAKES, services, size_of::<abi::Handshakes>()),
        per_cpu(names::SERVICE_STATS, services, size_of::<abi::ServiceCounters>()),
        per_cpu(names::BACKEND_STATS, backends, size_of::<abi::BackendCounters>()),
        per_cpu(names::VERDICT_STATS, Reason::COUNT.into(), size_of::<abi::VerdictCounters>()),
    ]
}

/// A preallocated hash map.
fn hash(name: &'static str, entries: u32, key: usize, value: usize) -> MapMemory {
    let element = HASH_ELEMENT_OVERHEAD + aligned(key) + aligned(value);
    let buckets = u64::from(entries).next_power_of_two();
    MapMemory { name, entries: entries.into(), bytes: u64::from(entries) * element + buckets * HASH_BUCKET }
}

fn aligned(size: usize) -> u64 {
    (size as u64).next_multiple_of(VALUE_ALIGN)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "services: {}, backends: {}", self.services.len(), self.backends)?;
        for service in &self.services {
            let ServiceSummary { name, listen, protocol, mode, schedule, check, backends } = service;
            let plural = if *backends == 1 { "" } else { "s" };
            writeln!(f, "  {name}: {protocol} {listen}, {mode}, {schedule}, {backends} backend{plural}, {check}")?;
        }
        writeln!(f, "memory of the maps: about {} ({} CPUs)", size(self.memory_bytes), self.cpus)?;
        for (setting, limit) in self.limits.by_setting() {
            write_memory(f, setting, &format!("   {limit}"), |map| limits_of(map) == Some(setting), &self.maps)?;
            writeln!(f)?;
        }
        write_memory(f, "others", "", |map| limits_of(map).is_none(), &self.maps)
    }
}

fn write_memory(
    f: &mut fmt::Formatter<'_>,
    setting: &str,
    limit: &str,
    pick: impl Fn(&str) -> bool,
    maps: &[MapMemory],
) -> fmt::Result {
    let bytes = maps.iter().filter(|map| pick(map.name)).map(|map| map.bytes).sum();
    write!(f, "  {setting:<15} {:>10}{limit}", size(bytes))
}

/// Key under `limits` that sets the size of a map.
fn limits_of(map: &str) -> Option<&'static str> {
    object::capacity(map, &Limits::default()).map(|(_, setting)| setting)
}

/// Bytes with a unit; one digit after the point from KiB on.
fn size(bytes: u64) -> String {
    let scaled = |unit: u64| format!("{}.{}", bytes / unit, bytes % unit * 10 / unit);
    match bytes {
        0..0x400 => format!("{bytes} B"),
        0x400..0x10_0000 => format!("{} KiB", scaled(1 << 10)),
        0x10_0000..0x4000_0000 => format!("{} MiB", scaled(1 << 20)),
        _ => format!("{} GiB", scaled(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_with_a_fitting_unit() {
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1536), "1.5 KiB");
        assert_eq!(size((1 << 20) - 1), "1023.9 KiB");
        assert_eq!(size(3 << 30), "3.0 GiB");
    }

    #[test]
    fn every_pinned_map_is_counted() {
        let counted: Vec<_> = maps(&Limits::default(), 1).iter().map(|map| map.name).collect();
        assert_eq!(counted, names::PINNED);
    }

    #[test]
    fn only_per_cpu_maps_grow_with_the_cpus() {
        let (one, four) = (maps(&Limits::default(), 1), maps(&Limits::default(), 4));
        for (one, four) in one.iter().zip(&four) {
            let per_cpu = [names::CURSORS, names::HANDSHAKES].contains(&one.name) || one.name.ends_with("_stats");
            // Where an element is on each CPU is kept once.
            let kept = if per_cpu { one.entries * 8 } else { 0 };
            assert_eq!(four.bytes - kept, (one.bytes - kept) * if per_cpu { 4 } else { 1 }, "{}", one.name);
        }
    }
}
