//! From the tables of the file to drafts: every setting read and judged by itself.

use std::net::SocketAddr;

use lb_common::{
    abi::{Granularity, Mode, Protocol, Scheduler},
    flow::Timeouts,
};
use toml::de::DeTable;

use super::{
    clients,
    dead_man::{self, DeadMan},
    diagnostic::{At, Finding, Findings, Located, Read},
    endpoint::{self, Endpoint},
    failover::Failover,
    failover_keys, health, keys, max_connections,
    model::{Backend, Clients, Config, Health, Limits, MssClamp, Passive, PortRange, Service, Tunnel, XdpMode},
    passive,
    prime::is_prime,
    quic,
    reader::Table,
    role::RolePolicy,
    role_keys, timeouts, tunnel,
};

/// A configuration whose parts may be missing because they were wrong; each missing part has been
/// reported.
pub(super) struct Draft {
    pub(super) source_ports: Read<Located<Vec<PortRange>>>,
    pub(super) maglev_table_size: Read<Located<u32>>,
    pub(super) limits: Read<LimitsDraft>,
    pub(super) services: Vec<ServiceDraft>,
    /// Whether every `[[service]]` could be found and opened.
    pub(super) services_read: Read<()>,
    /// The top of the file.
    pub(super) at: At,
    rest: Read<Rest>,
}

struct Rest {
    interfaces: Vec<String>,
    xdp_mode: XdpMode,
    manage_addresses: bool,
    watch_config: bool,
    dead_man: DeadMan,
}

/// Each capacity, and where to point when it is too small: its value, the table's header where it is
/// left out, or the top of the file where there is no table.
pub(super) struct LimitsDraft {
    pub(super) services: Located<u32>,
    pub(super) backends: Located<u32>,
    pub(super) addresses: Located<u32>,
    pub(super) selection_slots: Located<u32>,
    pub(super) flows: Located<u32>,
    pub(super) port_pools: Located<u32>,
}

pub(super) struct ServiceDraft {
    pub(super) at: At,
    pub(super) name: Read<Located<String>>,
    pub(super) listen: Read<Located<SocketAddr>>,
    pub(super) protocol: Read<Located<Protocol>>,
    pub(super) mode: Read<Located<Mode>>,
    pub(super) scheduler: Read<Located<Scheduler>>,
    pub(super) granularity: Read<Located<Granularity>>,
    pub(super) tunnel: Read<Tunnel>,
    pub(super) mss_clamp: Read<Located<MssClamp>>,
    pub(super) clients: Read<Clients>,
    pub(super) health: Read<Health>,
    timeouts: Read<Timeouts>,
    passive: Read<Passive>,
    pub(super) quic_length: quic::LengthDraft,
    pub(super) role: Read<Option<RolePolicy>>,
    failover: Read<Failover>,
    pub(super) backends: Vec<Read<BackendDraft>>,
    /// Whether every `[[service.backend]]` could be found.
    pub(super) backends_read: Read<()>,
}

pub(super) struct BackendDraft {
    pub(super) endpoint: Read<Located<Endpoint>>,
    /// The endpoint with the port that goes with the service.
    pub(super) address: Read<Located<SocketAddr>>,
    pub(super) weight: Read<Located<u16>>,
    pub(super) tier: Read<u8>,
    pub(super) server_id: quic::ServerIdDraft,
    pub(super) check_address: Read<Option<SocketAddr>>,
    pub(super) max_connections: Read<Option<Located<u32>>>,
}

pub(super) fn draft(findings: &mut Findings, top: &Table<'_>) -> Draft {
    let mut services_read = top.misspelt(keys::SERVICES_TABLE.name).map_or(Ok(()), Err);
    let mut services = Vec::new();
    for table in top.tables(findings, &keys::SERVICES_TABLE) {
        match table {
            Ok(table) => services.push(service(findings, &table)),
            Err(reported) => services_read = Err(reported),
        }
    }
    Draft {
        source_ports: top.value(findings, &keys::SOURCE_PORTS),
        maglev_table_size: maglev_table_size(findings, top),
        limits: limits(findings, top),
        services,
        services_read,
        at: top.at.clone(),
        rest: rest(findings, top),
    }
}

fn rest(findings: &mut Findings, top: &Table<'_>) -> Read<Rest> {
    let interfaces = top.require(findings, &keys::INTERFACES);
    let xdp_mode = top.value(findings, &keys::XDP_MODE);
    let manage_addresses = top.value(findings, &keys::MANAGE_ADDRESSES);
    let watch_config = top.value(findings, &keys::WATCH_CONFIG);
    let policy = top.value(findings, &dead_man::POLICY);
    let after = top.value(findings, &dead_man::AFTER_KEY);
    Ok(Rest {
        interfaces: interfaces?.value,
        xdp_mode: xdp_mode?.value,
        manage_addresses: manage_addresses?.value,
        watch_config: watch_config?.value,
        dead_man: DeadMan { policy: policy?.value, after: after?.value },
    })
}

fn limits(findings: &mut Findings, top: &Table<'_>) -> Read<LimitsDraft> {
    let nothing = DeTable::new();
    let table = match top.table(findings, &keys::LIMITS_TABLE)? {
        Some(table) => table,
        None => {
            let at = At { path: top.path(keys::LIMITS_TABLE.name), span: top.at.span };
            Table::open(findings, &nothing, &keys::LIMITS, at)
        }
    };
    let mut read = |key| table.value(findings, key);
    let services = read(&keys::LIMIT_SERVICES);
    let backends = read(&keys::LIMIT_BACKENDS);
    let addresses = read(&keys::LIMIT_ADDRESSES);
    let selection_slots = read(&keys::LIMIT_SELECTION_SLOTS);
    let flows = read(&keys::LIMIT_FLOWS);
    let port_pools = read(&keys::LIMIT_PORT_POOLS);
    let flows = flows.and_then(|flows| power_of_two(findings, flows));
    Ok(LimitsDraft {
        services: services?,
        backends: backends?,
        addresses: addresses?,
        selection_slots: selection_slots?,
        flows: flows?,
        port_pools: port_pools?,
    })
}

fn maglev_table_size(findings: &mut Findings, top: &Table<'_>) -> Read<Located<u32>> {
    let size = top.value(findings, &keys::MAGLEV_TABLE_SIZE)?;
    let value = size.value;
    if is_prime(value) {
        return Ok(size);
    }
    let message = format!("`maglev-table-size` cannot be {value}: it must be a prime number");
    let below = (2..value).rev().find(|&number| is_prime(number)).unwrap_or(2);
    let above = (value..).find(|&number| is_prime(number)).unwrap_or(value);
    let help = format!("the nearest ones are {below} and {above}");
    Err(findings.error(Finding::new(&size.at, message).help(help)))
}

fn power_of_two(findings: &mut Findings, number: Located<u32>) -> Read<Located<u32>> {
    let value = number.value;
    if value.is_power_of_two() {
        return Ok(number);
    }
    let above = value.next_power_of_two();
    let finding = Finding::new(&number.at, format!("`flows` cannot be {value}: it must be a power of two"))
        .help(format!("the nearest ones are {} and {above}", above / 2));
    Err(findings.error(finding))
}

fn service(findings: &mut Findings, table: &Table<'_>) -> ServiceDraft {
    let name = table.require(findings, &keys::SERVICE_NAME);
    let listen = table.require(findings, &keys::LISTEN);
    let protocol = table.value(findings, &keys::PROTOCOL);
    let mode = table.value(findings, &keys::MODE);
    let scheduler = table.value(findings, &keys::SCHEDULER);
    let granularity = table.value(findings, &keys::GRANULARITY);
    let tunnel = tunnel::read(findings, table, &mode);
    let mss_clamp = table.value(findings, &keys::MSS_CLAMP);
    let clients = clients::read(findings, table, &granularity, &listen);
    let role = role_keys::read(findings, table);
    let health = health::read(findings, table, &protocol, &listen, &mode, role.as_ref().is_ok_and(Option::is_some));
    let role = role_keys::fitting(findings, role, &health);
    let failover = failover_keys::read(findings, table, &protocol, &role);
    let timeouts = timeouts::read(findings, table, &protocol);
    let passive = passive::read(findings, table, &protocol, &mode);
    let quic_length = quic::read_length(findings, table);
    let backends = table
        .tables(findings, &keys::BACKENDS_TABLE)
        .into_iter()
        .map(|backend| backend.map(|table| self::backend(findings, &table, &listen, &mode)))
        .collect();
    let backends_read = table.misspelt(keys::BACKENDS_TABLE.name).map_or(Ok(()), Err);
    let at = table.at.clone();
    ServiceDraft {
        at,
        name,
        listen,
        protocol,
        mode,
        scheduler,
        granularity,
        tunnel,
        clients,
        health,
        timeouts,
        passive,
        role,
        failover,
        mss_clamp,
        quic_length,
        backends,
        backends_read,
    }
}

fn backend(
    findings: &mut Findings,
    table: &Table<'_>,
    listen: &Read<Located<SocketAddr>>,
    mode: &Read<Located<Mode>>,
) -> BackendDraft {
    let endpoint = table.require(findings, &keys::BACKEND_ADDRESS);
    let address = match (&endpoint, listen) {
        (Ok(endpoint), Ok(listen)) => endpoint::with_port(findings, endpoint, listen, mode.as_ref().ok())
            .map(|value| Located { value, at: endpoint.at.clone() }),
        (Err(reported), _) | (_, Err(reported)) => Err(*reported),
    };
    let weight = table.value(findings, &keys::WEIGHT);
    let tier = table.value(findings, &keys::TIER);
    let check_address = table.find(findings, &keys::CHECK_ADDRESS);
    let check_address = check_address.map(|found| found.map(|Located { value, .. }| value.or_port(0)));
    let max_connections = table.find(findings, &max_connections::MAX_CONNECTIONS);
    let server_id = quic::read_server_id(findings, table);
    let tier = tier.map(|tier| tier.value);
    BackendDraft { endpoint, address, weight, tier, check_address, max_connections, server_id }
}

impl Draft {
    /// The configuration, if no part of it is missing.
    pub(super) fn finish(self) -> Read<Config> {
        self.services_read?;
        let Rest { interfaces, xdp_mode, manage_addresses, watch_config, dead_man } = self.rest?;
        Ok(Config {
            interfaces,
            xdp_mode,
            manage_addresses,
            watch_config,
            dead_man,
            source_ports: self.source_ports?.value,
            limits: self.limits?.finish(),
            maglev_table_size: self.maglev_table_size?.value,
            services: self.services.into_iter().map(ServiceDraft::finish).collect::<Read<_>>()?,
        })
    }
}

impl LimitsDraft {
    fn finish(self) -> Limits {
        Limits {
            services: self.services.value,
            backends: self.backends.value,
            addresses: self.addresses.value,
            selection_slots: self.selection_slots.value,
            flows: self.flows.value,
            port_pools: self.port_pools.value,
        }
    }
}

impl ServiceDraft {
    fn finish(self) -> Read<Service> {
        self.backends_read?;
        Ok(Service {
            name: self.name?.value,
            listen: self.listen?.value,
            protocol: self.protocol?.value,
            mode: self.mode?.value,
            scheduler: self.scheduler?.value,
            granularity: self.granularity?.value,
            tunnel: self.tunnel?,
            mss_clamp: self.mss_clamp?.value,
            clients: self.clients?,
            health: self.health?,
            timeouts: self.timeouts?,
            passive: self.passive?,
            quic: quic::finish(self.quic_length, &self.backends)?,
            role: self.role?,
            failover: self.failover?,
            backends: self.backends.into_iter().map(|backend| backend?.finish()).collect::<Read<_>>()?,
        })
    }
}

impl BackendDraft {
    fn finish(self) -> Read<Backend> {
        Ok(Backend {
            address: self.address?.value,
            weight: self.weight?.value,
            tier: self.tier?,
            check_address: self.check_address?,
            max_connections: self.max_connections?.map(|most| most.value),
        })
    }
}
