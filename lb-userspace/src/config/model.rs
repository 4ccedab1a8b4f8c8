//! What a valid configuration is. Everything here has been checked: names are unique, addresses of
//! one service share a family (except in tunnels), numbers are in range.

use std::{net::SocketAddr, time::Duration};

use lb_common::abi::{Granularity, Mode, Protocol, Scheduler, limits};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    pub manage_addresses: bool,
    /// Whether a changed file is taken over without being told to.
    pub watch_config: bool,
    /// `full-nat`: source ports that flows may use. Sorted, without overlap, never below 1024.
    pub source_ports: Vec<PortRange>,
    pub limits: Limits,
    /// Slots of a table of `maglev` or `source-hash`; a prime number.
    pub maglev_table_size: u32,
    pub services: Vec<Service>,
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
    pub health: Health,
    /// In file order; addresses are unique within the service.
    pub backends: Vec<Backend>,
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
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Health {
    pub check: Check,
    pub interval: Duration,
    pub timeout: Duration,
    /// Failures in a row that take a backend down.
    pub fall: u32,
    /// Successes in a row that bring it back.
    pub rise: u32,
    /// Each interval is varied by up to this share of it (percent), so that probes spread out.
    pub jitter_percent: u8,
    /// Asked instead of the backend's own port.
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Check {
    /// Always up.
    None,
    /// A connection is accepted.
    Tcp,
    /// A GET is answered with one of the expected statuses.
    Http { path: String, host: Option<String>, expect: Vec<StatusRange> },
}

/// First and last HTTP status, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatusRange {
    pub first: u16,
    pub last: u16,
}
