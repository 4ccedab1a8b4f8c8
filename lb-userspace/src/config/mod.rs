//! The configuration file: parsed once into a [`Config`] that needs no further checks.
//!
//! ```text
//! load -> toml (tables with spans) -> read (each setting by itself, by the definitions in keys)
//!      -> check (settings against each other) -> Config, or every error with its place
//! ```

mod check;
mod clients;
mod diagnostic;
mod endpoint;
mod form;
mod health;
mod keys;
mod load;
mod model;
mod prime;
mod quic;
mod read;
mod reader;
mod reference;
mod report;
mod source;
mod suggest;
mod summary;
mod timeouts;
mod tunnel;
mod value;

pub use diagnostic::{Diagnostic, Severity};
pub use endpoint::why_unusable;
pub use keys::{MAX_TIER, MAX_WEIGHT};
pub use load::{Loaded, load, parse};
pub use model::{
    Backend, Check, Clients, Config, Health, Limits, MssClamp, PortRange, Quic, Service, StatusRange, Tunnel,
    TunnelSource, XdpMode,
};
pub(crate) use prime::is_prime;
pub use reference::reference;
pub use report::{ConfigError, ReportStyle, render};
pub use summary::{MapMemory, ServiceSummary, Summary};

/// A commented, valid configuration file to begin with.
pub const EXAMPLE: &str = include_str!("example.toml");
