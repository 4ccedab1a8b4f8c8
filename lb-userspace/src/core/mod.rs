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
//! asks `rotation` or `maglev` for the selection table and `ledger` for everything that is handed out: ids,
//! slots, port pools, address roles. `adopt` fills the ledger from the maps of an earlier agent.

mod adopt;
mod census;
mod commands;
mod configure;
mod extents;
mod health;
mod ids;
mod impact;
mod index;
mod layer;
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
mod touched;
mod view;

pub use commands::{Command, CommandError};
pub use impact::{BackendImpact, Fate, FlowImpact, Impact, Presence, ServiceImpact};
pub use layer::{AddedService, Aspect, Mark, OperatorLayer, Override};
pub use plan::{plan, plan_within};
pub use state::Core;
pub use touched::{Scope, Touched};

use std::{
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
    pub live_flows: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceView {
    /// The service as configured.
    pub config: crate::config::Service,
    pub id: Option<u32>,
    /// The tier that serves; `None`: no backend is ready.
    pub active_tier: Option<u8>,
    pub live_flows: u64,
    pub backends: Vec<BackendView>,
}
