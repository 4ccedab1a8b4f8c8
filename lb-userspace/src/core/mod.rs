//! Decisions. Pure: no async, no clock, no I/O, no aya. Inputs come with their time, and what
//! follows from them is data: the probes to run and the tables that should be in the maps.
//!
//! ```text
//! Config, operator's layer, probe outcomes, source addresses, flow census, what was published
//!     -> Core::handle -> Core::desired (Tables) -> plan(actual, desired) -> Vec<Op>
//! ```
//!
//! The way of a decision: `state` (what came in, which services it concerns) -> `configure` (who is
//! a backend), `probed` (what probes found: `health`, `agent_word`, and where backends have roles
//! `election`), `census` (who has left) -> `publish` (one service into the tables), whose
//! `table` asks `rotation` or `maglev` for the selection table, `tracked` where flows without an entry are, and
//! `ledger` for everything that is handed out: ids,
//! slots, port pools, address roles. `adopt` fills the ledger from the maps of an earlier agent.

mod adopt;
mod agent_word;
mod census;
mod commands;
mod configure;
mod election;
mod ending;
mod extents;
mod freeze;
mod health;
mod ids;
mod impact;
mod index;
mod layer;
mod ledger;
pub mod maglev;
mod plan;
mod pools;
mod probed;
mod publish;
mod receipts;
pub mod reconcile;
mod report;
mod roles;
mod rotation;
mod service;
mod state;
mod suspicion;
mod table;
mod tiers;
mod touched;
mod tracked;
mod tunnel;
mod view;
mod way;

pub use commands::{Command, CommandError};
pub use freeze::FREEZE_MAX;
pub use impact::{BackendImpact, Fate, FlowImpact, Impact, Presence, ServiceImpact};
pub use layer::{AddedService, Aspect, Mark, OperatorLayer, Override};
pub use plan::{plan, plan_within};
pub use receipts::{FailoverCause, Receipt, ReceiptFlows};
pub use report::{AgentAdmin, AgentReply, Certificate, Epoch, Phase, ProbeOutcome, Role, RoleReport};
pub use state::Core;
pub use touched::{Scope, Touched};
pub use way::{AskedAt, Way, WayTunnel};

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Check, Config},
    dataplane::{FlowCensus, KnockCounts},
};

/// Monotonic time since any fixed point; the core only compares and subtracts.
pub type Now = Duration;

/// One thing to ask, shared by every backend that needs just this answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProbeKey {
    pub target: SocketAddr,
    pub check: Check,
    pub interval: Duration,
    /// The pace while the state may be changing.
    pub fast: Option<FastPace>,
    pub timeout: Duration,
    pub jitter_percent: u8,
    /// To a service's address by way of the target; `None`: to the target itself.
    pub way: Option<Way>,
}

/// After a result unlike the one before, so many more results are wanted so soon after each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FastPace {
    pub interval: Duration,
    pub results: u32,
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
#[allow(clippy::large_enum_variant, reason = "nearly all inputs are probes, and none is kept")]
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
    /// The data path has seen a backend refuse, or not answer, the connections of clients.
    Suspect(Suspect),
    /// The first new flow of a service after it was asked for: see [`Core::awaited_flows`].
    FlowBegun {
        service_id: u32,
        at: Now,
    },
    /// No flow of a configured service begins for so long (at most [`FREEZE_MAX`]); `tick` is the end by
    /// the data path's clock.
    Freeze {
        service: String,
        lasts: Duration,
        tick: u32,
    },
    Thaw {
        service: String,
    },
    /// A time that [`Core::wake_at`] told.
    Tick,
    /// The maps hold this generation of [`Core::desired`] (see [`reconcile::ReconcileReport`]).
    /// Nothing that has left the tables is handed out again, and nothing that is leaving goes, before
    /// this has been said: send it after every step that succeeded.
    Published {
        generation: u32,
    },
}

/// What the data path has seen of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Of the maps.
    pub backend_id: u32,
    pub seen: SuspectFor,
    /// How many clients it happened to, at least.
    pub clients: u32,
    /// How long ago the first packet came to the backend that was refused or not answered.
    pub first: Duration,
    /// How long ago the backend last answered a flow's first packet; `None`: it never has.
    pub answered: Option<Duration>,
}

impl Suspect {
    /// The same, told so much later.
    #[must_use]
    pub fn later(self, by: Duration) -> Self {
        Self { first: self.first + by, answered: self.answered.map(|answered| answered + by), ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspectFor {
    /// Connections were refused, and none was answered meanwhile.
    Refused,
    /// ICMP errors said that it, its port or its network cannot be reached, and nothing was answered meanwhile.
    Unreachable,
    /// No connection was answered for so long, and the oldest one waits for it.
    Silent { waited: Duration },
    /// Clients sent their first packet again, where answers are not seen.
    Repeated,
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
    /// The last probe, with its phases; `None`: none has ended yet.
    pub last_probe: Option<ProbeOutcome>,
    /// Where its probes go; `None`: it has none.
    pub asked: Option<AskedAt>,
    /// Where its service asks for roles.
    pub role: Option<RoleView>,
    /// What its own agent said last, in words.
    pub agent: Option<String>,
    /// What the data path has seen speaks against it: new flows go elsewhere until probes have decided.
    pub suspended: bool,
    /// Whether new flows reach it.
    pub used: bool,
    /// Why or why not, in words: `tier 0 serves`, `health down (L4CON 2/2)`, `standby: tier 0 serves`.
    pub used_reason: String,
    /// Removed from the configuration, kept until its flows are over.
    pub leaving: bool,
    /// Flows with an entry in the flow table.
    pub live_flows: u64,
    /// Connections that it did not take, at the last walk.
    pub knocks: KnockCounts,
}

/// The role of a database's server, as the service counts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleView {
    pub role: Role,
    pub reason: String,
    /// Behind the backend that is furthest ahead (bytes of the log).
    pub lag_bytes: Option<u64>,
    /// Behind, by its own word.
    pub lag_time: Option<Duration>,
    pub epoch: Option<String>,
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
    /// Until when no flow begins.
    pub frozen_until: Option<Now>,
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
