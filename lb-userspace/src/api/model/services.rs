//! Services and their backends as they are shown.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
