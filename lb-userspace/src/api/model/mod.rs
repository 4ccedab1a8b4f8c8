//! What the agent and the command line say to each other and to scripts. Everything that is printed
//! with `-o json` is one [`Document`] of these types; fields are added, never renamed or removed,
//! while `apiVersion` stays the same.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod config;
mod events;
mod services;
mod stats;
mod status;

pub use config::{
    Applied, ApplyRequest, BackendImpactView, ConfigStatus, ConfigView, DecisionView, FlowImpactView, Healthiness,
    ImpactView, Nothing, ServiceChange, ServiceDone, ServiceImpactView, ServiceRequest, Settled, Unconfirmed,
};

pub use events::{EventFlows, EventList, EventView, FreezeRequest, ServiceFrozen};
pub use services::{
    AdminView, BackendList, BackendView, CertificateView, EffectiveView, HealthCheckView, HealthView, PhaseView,
    ProbeView, RoleDetail, ServiceList, ServiceView, TrackingView,
};
pub use stats::{BackendStats, FlowList, FlowView, ServiceStats, StatsView, Traffic, VerdictStats};
pub use status::{
    AgentStatus, DataPathStatus, DeadManStatus, Failed, InterfaceStatus, NoticeView, ProbedChange, ServiceSummary,
    Status, WaysStatus,
};

/// The version of every document.
pub const API_VERSION: &str = "lb/v1";

/// A body with its version and kind: `{"apiVersion":"lb/v1","kind":"Status",...}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Document<T> {
    pub api_version: String,
    pub kind: String,
    #[serde(flatten)]
    pub body: T,
}

impl<T: Kind> Document<T> {
    pub fn new(body: T) -> Self {
        Self { api_version: API_VERSION.to_owned(), kind: T::KIND.to_owned(), body }
    }
}

/// A body that is printed as a document.
pub trait Kind {
    const KIND: &'static str;
}

macro_rules! kinds {
    ($($type:ty = $name:literal),+ $(,)?) => { $(impl Kind for $type { const KIND: &'static str = $name; })+ };
}

kinds! {
    Status = "Status",
    ServiceList = "ServiceList",
    ServiceView = "Service",
    BackendList = "BackendList",
    CommandDone = "CommandDone",
    StatsView = "Stats",
    FlowList = "FlowList",
    ConfigCheck = "ConfigCheck",
    Stopping = "Stopping",
    Detached = "Detached",
    ErrorView = "Error",
    ConfigView = "Config",
    Applied = "Applied",
    ServiceDone = "ServiceDone",
    Settled = "Settled",
    Bundle = "Bundle",
    Healthiness = "Health",
    EventList = "EventList",
    EventView = "Event",
    ServiceFrozen = "ServiceFrozen",
}

/// A change an operator asks for. `force` carries it out although it leaves the service, or the tier
/// that serves, without a ready backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandRequest {
    pub service: String,
    pub address: SocketAddr,
    /// More backends of the service: all are changed, or none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<SocketAddr>,
    #[serde(flatten)]
    pub change: Change,
    #[serde(default)]
    pub force: bool,
    /// Why, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The decision ends by itself after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
    /// `drain`: flows that are left after so many seconds get what `on-drain-timeout` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u64>,
}

impl CommandRequest {
    /// Every backend that it is about, each once.
    pub fn backends(&self) -> Vec<SocketAddr> {
        let mut all = vec![self.address];
        for address in &self.addresses {
            if !all.contains(address) {
                all.push(*address);
            }
        }
        all
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "command")]
pub enum Change {
    Add {
        #[serde(default)]
        weight: Option<u16>,
        #[serde(default)]
        tier: Option<u8>,
    },
    Remove,
    Drain,
    Ready,
    Maintenance,
    Weight {
        weight: u16,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommandDone {
    pub service: String,
    pub address: SocketAddr,
    /// What happens now: `drains: 312 flows left`.
    pub text: String,
    /// The backend after the change; none when it is gone at once.
    pub backend: Option<BackendView>,
    /// Of the other backends, where there were more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<BackendDone>,
    /// Whether the maps already say so; if not, it is being retried.
    pub published: bool,
    /// Nothing was done: `text` says what would be.
    #[serde(default)]
    pub dry_run: bool,
    /// After it.
    #[serde(default)]
    pub revision: String,
}

/// What was done about one backend of several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendDone {
    pub address: SocketAddr,
    pub text: String,
    pub backend: Option<BackendView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stopping {
    pub pid: u32,
}

/// What `lb support-bundle` made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Bundle {
    pub path: String,
    pub bytes: u64,
    /// Files in it.
    pub parts: usize,
    /// Of those, what could not be had: its file says why.
    pub missing: Vec<String>,
}

/// What a configuration file comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigCheck {
    pub file: String,
    pub valid: bool,
    /// Every error and warning with its place: see [`crate::config::Diagnostic`].
    pub diagnostics: serde_json::Value,
    /// Of a valid file: see [`crate::config::Summary`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<serde_json::Value>,
}

/// What `lb detach` took away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Detached {
    /// The agent that was stopped for it.
    pub stopped_pid: Option<u32>,
    pub interfaces: Vec<String>,
    /// In words, in the order it was done.
    pub done: Vec<String>,
}

/// What failed, why, and what to do next; also the body of every refused request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorView {
    /// The exit code of the command line.
    #[serde(default)]
    pub code: u8,
    pub what: String,
    pub why: String,
    pub next: String,
    /// Everything there is to say, on several lines: every error of a configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
}
