//! What the agent and the command line say to each other and to scripts. Everything that is printed
//! with `-o json` is one [`Document`] of these types; fields are added, never renamed or removed,
//! while `apiVersion` stays the same.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::DeadMan;

mod config;
mod events;

pub use config::{
    Applied, ApplyRequest, BackendImpactView, ConfigStatus, ConfigView, DecisionView, FlowImpactView, Healthiness,
    ImpactView, Nothing, ServiceChange, ServiceDone, ServiceImpactView, ServiceRequest, Settled, Unconfirmed,
};

pub use events::{EventFlows, EventList, EventView, FreezeRequest, ServiceFrozen};

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

/// The agent and the data path in one look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub agent: AgentStatus,
    pub data_path: DataPathStatus,
    pub services: Vec<ServiceSummary>,
    #[serde(default)]
    pub config: ConfigStatus,
    /// The last change of the maps that probes led to.
    pub last_change: Option<ProbedChange>,
    /// The last attempt to take a configuration over, if it failed; until one succeeds.
    pub reload_failed: Option<Failed>,
    /// Newest last.
    pub notices: Vec<NoticeView>,
}

impl Status {
    /// What is not as it should be, in words.
    pub fn problems(&self) -> Vec<String> {
        let fallback = self.config.fallback.as_ref().map(|failed| {
            format!("the last good configuration runs since {}, not the agent's own file: {}", failed.at, failed.error)
        });
        let failed = self.reload_failed.as_ref().map(|failed| {
            format!("the last attempt to take a configuration over failed at {}: {}", failed.at, failed.error)
        });
        let behind = self
            .data_path
            .last_error
            .as_ref()
            .map(|failed| format!("the maps do not hold what they should since {}: {}", failed.at, failed.error));
        let bare = self.data_path.interfaces.iter().filter(|interface| !interface.is_attached()).map(|interface| {
            format!("the XDP program is not on {}: {}", interface.name, interface.note.as_deref().unwrap_or_default())
        });
        let ways =
            self.data_path.ways.as_ref().and_then(|ways| ways.problem.as_ref()).map(|why| {
                format!("checks cannot go to the addresses of services, and ask backends at their own: {why}")
            });
        fallback.into_iter().chain(failed).chain(behind).chain(bare).chain(ways).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    pub version: String,
    pub pid: u32,
    /// RFC 3339, UTC.
    pub started: String,
    pub uptime_seconds: u64,
    pub config: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DataPathStatus {
    /// Number of the state that was published last.
    pub generation: u32,
    /// Whether the maps hold what they should.
    pub in_step: bool,
    /// Why they do not; retried until they do.
    pub last_error: Option<Failed>,
    pub interfaces: Vec<InterfaceStatus>,
    pub live_flows: u64,
    pub flow_capacity: u64,
    /// Duration of the last walk over the flow table.
    pub sweep_micros: u64,
    #[serde(default)]
    pub dead_man: DeadManStatus,
    /// How checks get to the addresses of services; None: none of them goes there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ways: Option<WaysStatus>,
}

/// Checks that go to the addresses of services, as the packets of clients do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaysStatus {
    /// Backends that are to be asked so.
    pub backends: usize,
    /// Interfaces with the programs that take the packets there.
    pub interfaces: Vec<String>,
    /// Packets to addresses of services.
    pub sent: u64,
    /// Packets from there.
    pub answered: u64,
    /// Packets that could not be sent.
    pub dropped: u64,
    /// Why backends are asked at their own addresses instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
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

/// What becomes of new flows when the agent is silent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeadManStatus {
    /// `freeze`, `pass` or `drop`.
    pub policy: String,
    /// Silence that it takes.
    pub after_seconds: f64,
}

impl DeadManStatus {
    pub fn of(rule: &DeadMan) -> Self {
        Self { policy: rule.policy.name().to_owned(), after_seconds: rule.after.as_secs_f64() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceStatus {
    pub name: String,
    /// `native` or `generic`; `none` where the program is not on it.
    pub xdp_mode: String,
    /// Why it is not the mode that was hoped for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl InterfaceStatus {
    /// Whether packets that come in there meet the program.
    pub fn is_attached(&self) -> bool {
        self.xdp_mode != "none"
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSummary {
    pub name: String,
    pub listen: SocketAddr,
    pub protocol: String,
    /// Backends that take new flows.
    pub used: usize,
    pub backends: usize,
    pub active_tier: Option<u8>,
    pub live_flows: u64,
    /// For so long at most no flow begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_millis: Option<u64>,
}

/// A change of health, from the end of the probe to the maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbedChange {
    pub at: String,
    pub service: String,
    pub backend: Option<SocketAddr>,
    pub text: String,
    /// Microseconds from the end of the deciding probe to the last map write.
    pub detect_to_written_micros: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    pub at: String,
    pub error: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NoticeView {
    pub at: String,
    /// `info` or `warning`.
    pub level: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    pub text: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceList {
    pub services: Vec<ServiceView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    pub name: String,
    pub listen: SocketAddr,
    pub protocol: String,
    pub mode: String,
    pub scheduler: String,
    pub granularity: String,
    pub health_check: HealthCheckView,
    /// Id in the maps, once it has one.
    pub id: Option<u32>,
    /// The tier that serves; none: no backend is ready.
    pub active_tier: Option<u8>,
    /// Flows with an entry in the flow table.
    pub live_flows: u64,
    /// Where flows need no entry: how far they go by their hash alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<TrackingView>,
    /// For so long at most no flow begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_millis: Option<u64>,
    pub backends: Vec<BackendView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrackingView {
    pub slots: usize,
    /// Slots whose flows are looked up in the flow table, because they may be elsewhere.
    pub unsettled: usize,
    /// Time after which no flow without an entry is left on a backend that its slot was taken from;
    /// none: there is no such flow, or the maps do not know of the change yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settles_in_millis: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckView {
    /// `tcp`, `http GET /healthz`, `none`.
    pub check: String,
    pub interval_millis: u64,
    /// While the state may be changing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_interval_millis: Option<u64>,
    pub timeout_millis: u64,
    pub fall: u32,
    pub rise: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendList {
    pub backends: Vec<BackendView>,
}

/// A backend is four fields, never one word.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    pub service: String,
    pub address: SocketAddr,
    pub id: Option<u32>,
    pub weight: u16,
    pub tier: u8,
    pub admin: AdminView,
    pub health: HealthView,
    /// `primary`, `replica` or `none`, where the service asks for roles.
    pub role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_detail: Option<RoleDetail>,
    /// What its own agent said, where it has one that was heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
    pub effective: EffectiveView,
    /// Removed, kept until its flows are over.
    pub leaving: bool,
    pub live_flows: u64,
    /// Connections that it refused, as of the last count, a second ago.
    #[serde(default)]
    pub refusals: u64,
    /// Connections that were taken from it because it did not answer.
    #[serde(default)]
    pub unanswered: u64,
    /// Connections that another backend got instead, for either reason.
    #[serde(default)]
    pub rescued: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdminView {
    /// `ready`, `drain` or `maintenance`.
    pub state: String,
    /// Who decided, where an operator did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Why, in the operator's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When the decision ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthView {
    /// `up`, `down` or `unknown`.
    pub state: String,
    pub reason: String,
    /// How long it has been so.
    pub for_millis: u64,
    /// None: no probe has ended yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_probe: Option<ProbeView>,
    /// Where its checks go: `service` (the service's address, as the packets of clients) or `backend` (its
    /// own). None: it is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at: Option<String>,
    /// Why its own address is asked, where the service's was meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_at_reason: Option<String>,
}

/// How a probe ended, and where its time went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProbeView {
    pub up: bool,
    pub result: String,
    pub micros: u64,
    /// In their order; the last one is where it ended.
    pub phases: Vec<PhaseView>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseView {
    /// `connect`, `tls`, `send`, `first-byte`, `body`, `login`, `query` or `run`.
    pub phase: String,
    pub micros: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateView {
    /// RFC 3339, UTC.
    pub not_after: String,
    pub days_left: i64,
}

/// Why a backend has its role, and how far it is behind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RoleDetail {
    pub reason: String,
    /// Behind the backend that is furthest ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_millis: Option<u64>,
    /// Timeline or GTID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EffectiveView {
    /// Whether new flows reach it.
    pub used: bool,
    pub reason: String,
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

/// Counters, straight from the pinned maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StatsView {
    /// Whether names come from a running agent; without one, services are named by their address.
    pub agent_alive: bool,
    pub services: Vec<ServiceStats>,
    /// Every verdict, also those that were never reached.
    pub verdicts: Vec<VerdictStats>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStats {
    pub id: u32,
    pub name: String,
    pub listen: SocketAddr,
    pub protocol: String,
    pub mode: String,
    pub forward: Traffic,
    pub reply: Traffic,
    /// Flows begun.
    pub flows: u64,
    pub refused: u64,
    pub dropped: u64,
    /// Times that a connection was sent to another backend, because one refused it or did not answer.
    pub rescued: u64,
    pub backends: Vec<BackendStats>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendStats {
    pub id: u32,
    pub address: SocketAddr,
    /// `live` or `dead`, as the data path sees it.
    pub state: String,
    pub forward: Traffic,
    pub reply: Traffic,
    pub flows: u64,
    pub ended: u64,
    /// Connections that it refused.
    pub refusals: u64,
    /// Connections that were taken from it because it did not answer.
    pub unanswered: u64,
    /// Connections that another backend got instead, for either reason.
    #[serde(default)]
    pub rescued: u64,
    /// Flows that were over with the backend, and were answered with a reset.
    #[serde(default)]
    pub reset: u64,
    /// The same, that were scheduled anew.
    #[serde(default)]
    pub moved: u64,
}

/// Packets and bytes of one direction; bytes are whole frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct VerdictStats {
    pub reason: String,
    /// `pass`, `forward`, `refuse` or `drop`.
    pub action: String,
    pub packets: u64,
    pub bytes: u64,
    pub meaning: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    pub agent_alive: bool,
    /// Flows that matched; `flows` holds at most the asked number of them.
    pub matched: u64,
    pub flows: Vec<FlowView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowView {
    pub service: String,
    pub protocol: String,
    pub mode: String,
    pub client: SocketAddr,
    /// What the client asked for; none when the service has gone.
    pub listen: Option<SocketAddr>,
    /// Towards the backend: the client's own, or one of the balancer's.
    pub source: SocketAddr,
    pub backend: Option<SocketAddr>,
    pub state: String,
    pub idle_millis: u64,
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
