//! The configuration file: parsed once into a [`Config`] that needs no further checks.
//!
//! ```text
//! files (one or several) -> load -> toml (tables with spans), merge -> read (each setting by itself, by the definitions in keys)
//!      -> check (settings against each other) -> Config, or every error with its place
//! ```

mod check;
mod clients;
mod dead_man;
mod diagnostic;
mod endpoint;
mod failover;
mod failover_keys;
mod files;
mod form;
mod health;
mod health_check;
mod health_keys;
mod health_values;
mod init;
mod keys;
mod load;
mod max_connections;
mod merge;
mod model;
mod passive;
mod prime;
mod probes;
mod quic;
mod read;
mod reader;
mod reference;
mod report;
mod role;
mod role_keys;
mod schema;
mod shape;
mod show;
mod source;
mod suggest;
mod summary;
mod timeouts;
mod tunnel;
mod value;

pub use dead_man::{DeadMan, DeadManPolicy};
pub use diagnostic::{Diagnostic, Severity};
pub use endpoint::why_unusable;
pub use failover::{Failover, FlowPolicies, FlowPolicy};
pub use files::{FileText, TEXT_MAX, read as read_files};
pub(crate) use health_values::REGEX_SIZE;
pub use init::{InitLink, InitWish, init};
pub use keys::{MAX_TIER, MAX_WEIGHT};
pub use load::{Loaded, load, parse, parse_files};
pub use model::{
    AgentHealth, Backend, Clients, Config, Health, Limits, MssClamp, Passive, PortRange, Quic, Service, Tunnel,
    TunnelSource, XdpMode,
};
pub(crate) use prime::is_prime;
pub use probes::{
    AgentCheck, BodyMatch, Check, DnsCheck, DnsResponse, ExecCheck, HeaderMatch, HttpCheck, HttpMethod, LoginCheck,
    PatroniCheck, StatusRange, TlsCheck, Trust, UdpCheck, Via,
};
pub use reference::reference;
pub use report::{ConfigError, ReportStyle, render};
pub use role::{MaxLag, OnMultiplePrimaries, RolePolicy, WantedRole};
pub use schema::schema;
pub use show::{AddedBackend, BackendNotes, Notes, ServiceNotes, show};
pub use summary::{MapMemory, ServiceSummary, Summary};

/// A commented, valid configuration file to begin with.
pub const EXAMPLE: &str = include_str!("example.toml");
