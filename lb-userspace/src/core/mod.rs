//! Decisions. Pure: no async, no clock, no I/O, no aya. Inputs come with their time, and what
//! follows from them is data: the probes to run and the tables that should be in the maps.
//!
//! ```text
//! Config, operator's layer, probe outcomes, source addresses, flow census, what was published
//!     -> Core::handle -> Core::desired (Tables) -> plan(actual, desired) -> Vec<Op>
//! ```
//!
//! The way of a decision: `state` (what came in, which services it concerns) -> `configure` (who is
//! a backend), `health`, `census` (who has left) -> `publish` (one service into the tables), which
//! asks `rotation` or `maglev` for the selection table, `tracked` where flows without an entry are, and `ledger` for everything that is handed out: ids,
//! slots, port pools, address roles. `adopt` fills the ledger from the maps of an earlier agent.

mod adopt;
mod census;
mod commands;
mod configure;
mod extents;
mod health;
mod ids;
mod index;
mod ledger;
mod maglev;
mod plan;
mod pools;
mod publish;
pub mod reconcile;
mod roles;
mod rotation;
mod service;
mod state;
mod tracked;
mod tunnel;
mod view;

pub use commands::{Command, CommandError};
pub use plan::plan;
pub use state::Core;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Check, Config},
    dataplane::FlowCensus,
};

/// Monotonic time since any fixed point; the core only compares and subtracts.
pub type Now = Duration;

/// One thing to ask, shared by every backend that needs just this answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeKey {
    pub target: SocketAddr,
    pub check: Check,
    pub interval: Duration,
    pub timeout: Duration,
    pub jitter_percent: u8,
}

/// How one probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeOutcome {
    pub up: bool,
    /// Where it ended, as HAProxy names it: `L4OK`, `L4CON`, `L4TOUT`, `L7OK 200`, `L7STS 503`,
    /// `L7RSP`, `L7TOUT`; followed by `: ` and the kernel's words where there are any.
    pub result: String,
    pub took: Duration,
}

/// What an operator decided about backends; persisted apart from the configuration file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorLayer {
    /// By service name, then backend address.
    pub services: BTreeMap<String, BTreeMap<SocketAddr, Override>>,
}

/// One backend's part of the operator's layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Override {
    /// The backend is not in the file: the operator added it, with this tier.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub added_tier: Option<u8>,
    /// The backend is in the file: the operator removed it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub removed: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub admin: Option<Admin>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<u16>,
    /// Who decided: a user name or `uid N`.
    pub by: String,
    /// When: RFC 3339, UTC.
    pub at: String,
}

/// The operator's word on a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Admin {
    #[default]
    Ready,
    /// No new flows; existing ones finish.
    Drain,
    /// No new flows and no probes; existing ones finish.
    Maintenance,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HealthState {
    Unknown,
    Up,
    Down,
}

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    Config(Arc<Config>),
    Operator(OperatorLayer),
    Probe {
        key: ProbeKey,
        outcome: ProbeOutcome,
    },
    /// The host's source address towards a backend of a `full-nat` service; `None`: no route.
    Source {
        backend: IpAddr,
        source: Option<IpAddr>,
    },
    /// Whether packets to one backend may take different ways.
    RoutesVary(bool),
    Flows(FlowCensus),
    /// The maps hold this generation of [`Core::desired`] (see [`reconcile::ReconcileReport`]).
    /// Nothing that has left the tables is handed out again, and nothing that is leaving goes, before
    /// this has been said: send it after every step that succeeded.
    Published {
        generation: u32,
    },
}

/// A change worth telling: for the log and for `lb events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub service: String,
    pub backend: Option<SocketAddr>,
    pub text: String,
}

/// Everything that is shown of one backend: four separate fields, never one word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendView {
    pub address: SocketAddr,
    /// Id in the maps, once it has one.
    pub id: Option<u32>,
    pub weight: u16,
    pub tier: u8,
    pub admin: Admin,
    /// Set where the operator's layer says something about this backend.
    pub overridden: Option<Override>,
    pub health: HealthState,
    /// The last probe's result, or why there is none.
    pub health_reason: String,
    /// When `health` last changed.
    pub health_since: Now,
    /// Whether new flows reach it.
    pub used: bool,
    /// Why or why not, in words: `tier 0 serves`, `health down (L4CON 2/2)`, `standby: tier 0 serves`.
    pub used_reason: String,
    /// Removed from the configuration, kept until its flows are over.
    pub leaving: bool,
    /// Flows with an entry in the flow table.
    pub live_flows: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// The service as configured.
    pub config: crate::config::Service,
    pub id: Option<u32>,
    /// The tier that serves; `None`: no backend is ready.
    pub active_tier: Option<u8>,
    /// Flows with an entry in the flow table.
    pub live_flows: u64,
    /// Set where flows need no entry.
    pub tracking: Option<TrackingView>,
    pub backends: Vec<BackendView>,
}

/// How far the flows of a service go by their hash alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackingView {
    pub slots: usize,
    /// Slots whose flows are looked up in the flow table, because they may be elsewhere.
    pub unsettled: usize,
    /// Time after which no flow without an entry can be on a backend that its slot left.
    pub settles_in: Option<Duration>,
}
