//! What a valid configuration is. Everything here has been checked: names are unique, addresses of
//! one service share a family (except in tunnels), numbers are in range.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::{
    abi::{DontFragment, Granularity, Mode, Protocol, Scheduler, ServiceValue, limits},
    flow::Timeouts,
};

pub use super::quic::Quic;

use super::{
    dead_man::DeadMan,
    failover::Failover,
    probes::{AgentCheck, Check, Via},
    role::RolePolicy,
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    pub manage_addresses: bool,
    /// Whether a changed file is taken over without being told to.
    pub watch_config: bool,
    pub dead_man: DeadMan,
    /// `full-nat`: source ports that flows may use. Sorted, without overlap, never below 1024.
    pub source_ports: Vec<PortRange>,
    pub limits: Limits,
    /// Slots of a table of `maglev` or `source-hash`; a prime number.
    pub maglev_table_size: u32,
    pub services: Vec<Service>,
}

impl Config {
    /// Whether a service or a backend has an address of this family.
    pub fn has_family(&self, v4: bool) -> bool {
        let backends = self.services.iter().flat_map(|service| &service.backends).map(|backend| backend.address);
        self.services.iter().map(|service| service.listen).chain(backends).any(|address| address.is_ipv4() == v4)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// Native, and generic where the driver cannot; the agent says which it became.
    Auto,
    Native,
    Generic,
}

impl XdpMode {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Native, Self::Generic];

    /// The word used in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// First and last port, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

/// Capacities of the maps; fixed when the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub services: u32,
    pub backends: u32,
    pub addresses: u32,
    pub selection_slots: u32,
    /// A power of two.
    pub flows: u32,
    pub port_pools: u32,
}

impl Limits {
    /// Each limit with its key, in the order of the reference.
    pub const fn by_setting(&self) -> [(&'static str, u32); 6] {
        [
            ("services", self.services),
            ("backends", self.backends),
            ("addresses", self.addresses),
            ("selection-slots", self.selection_slots),
            ("flows", self.flows),
            ("port-pools", self.port_pools),
        ]
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: limits::SERVICES,
            backends: limits::BACKENDS,
            addresses: limits::ADDRESSES,
            selection_slots: limits::SELECTION_SLOTS,
            flows: limits::FLOWS,
            port_pools: limits::PORT_POOLS,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Letters, digits, `-`, `_` and `.`; unique.
    pub name: String,
    /// Port 0: every port.
    pub listen: SocketAddr,
    pub protocol: Protocol,
    pub mode: Mode,
    pub scheduler: Scheduler,
    pub granularity: Granularity,
    pub tunnel: Tunnel,
    pub mss_clamp: MssClamp,
    /// What counts with [`Granularity::Client`] only.
    pub clients: Clients,
    pub health: Health,
    /// How long silent flows are kept.
    pub timeouts: Timeouts,
    pub passive: Passive,
    pub quic: Quic,
    /// Which backends get flows by their role; `None`: roles do not matter.
    pub role: Option<RolePolicy>,
    pub failover: Failover,
    /// In file order; addresses are unique within the service.
    pub backends: Vec<Backend>,
}

/// What follows from how backends answer the connections of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// Backends that do not answer are taken out of turn.
    pub enabled: bool,
    /// Other backends that a connection is sent to.
    pub retries: u8,
    /// Different clients that must have been refused or not answered.
    pub clients: u8,
    /// Of the service's backends.
    pub max_suspended_percent: u8,
    /// Below this share of backends that are up nobody is taken out of turn.
    pub panic_percent: u8,
    /// After a false alarm.
    pub back_off: Duration,
    /// UDP: within this time the first datagram of a flow is answered; `None`: that need not be.
    pub answer_within: Option<Duration>,
}

impl Passive {
    pub const DEFAULT: Self = Self {
        enabled: true,
        retries: 2,
        clients: 3,
        max_suspended_percent: 50,
        panic_percent: 50,
        back_off: Duration::from_secs(5),
        answer_within: None,
    };
}

impl Default for Passive {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How a service's tunnels to its backends are; without meaning in modes that have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// `dsr-gue`: UDP destination port.
    pub gue_port: u16,
    /// At most one for each family; without one, the host's own address towards the backend.
    pub sources: Vec<TunnelSource>,
    pub dont_fragment: DontFragment,
}

impl Tunnel {
    /// The port assigned to GUE (IANA).
    pub const GUE_PORT: u16 = 6080;

    /// The source towards a backend, where one is configured for its family.
    pub fn source(&self, backend: IpAddr) -> Option<TunnelSource> {
        self.sources.iter().copied().find(|source| source.address.is_ipv4() == backend.is_ipv4())
    }
}

impl Default for Tunnel {
    fn default() -> Self {
        Self { gue_port: Self::GUE_PORT, sources: Vec::new(), dont_fragment: DontFragment::Copy }
    }
}

/// Outer source addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelSource {
    /// Its last `chosen_bits` (0 to 32) are zero, and chosen for each flow.
    pub address: IpAddr,
    pub chosen_bits: u8,
}

/// The largest TCP segments that SYNs of the service may announce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MssClamp {
    /// As they like.
    #[default]
    Off,
    /// What fits both ways.
    Auto,
    /// So many bytes.
    Bytes(u16),
}

impl MssClamp {
    /// As it stands in `ServiceValue::mss`.
    pub const fn number(self) -> u16 {
        match self {
            Self::Off => 0,
            Self::Auto => ServiceValue::MSS_AUTO,
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// How clients are told apart and how long they are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clients {
    /// After the last new flow.
    pub timeout: Duration,
    /// Bits of an address that name one client: IPv4, IPv6.
    pub bits: (u8, u8),
}

impl Default for Clients {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(600), bits: (32, 128) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Port 0 (only where the service has port 0): the port the client asked for. With direct server
    /// return always the service's port.
    pub address: SocketAddr,
    /// 0: no new flows.
    pub weight: u16,
    /// 0 serves first.
    pub tier: u8,
    /// Asked instead of `address`; port 0: the port that is asked otherwise.
    pub check_address: Option<SocketAddr>,
    /// Open flows with which it gets no new ones; `None`: as many as come.
    pub max_connections: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Health {
    pub check: Check,
    pub interval: Duration,
    /// From one probe to the next while the state may be changing.
    pub fast_interval: Option<Duration>,
    pub timeout: Duration,
    /// Failures in a row that take a backend down.
    pub fall: u32,
    /// Successes in a row that bring it back.
    pub rise: u32,
    /// Each interval is varied by up to this share of it (percent), so that probes spread out.
    pub jitter_percent: u8,
    /// Asked instead of the backend's own port.
    pub port: Option<u16>,
    pub via: Via,
    /// What the backend's own agent is asked.
    pub agent: Option<AgentHealth>,
}

impl Default for Health {
    /// Not checked.
    fn default() -> Self {
        Self {
            check: Check::None,
            interval: Duration::from_secs(1),
            fast_interval: None,
            timeout: Duration::from_secs(1),
            fall: 2,
            rise: 2,
            jitter_percent: 10,
            port: None,
            via: Via::Backend,
            agent: None,
        }
    }
}

/// A program on the backend that says how much the backend can take (HAProxy's agent-check).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentHealth {
    pub port: u16,
    pub interval: Duration,
    pub check: AgentCheck,
}
