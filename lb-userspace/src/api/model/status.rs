//! The agent and the data path in one look.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigStatus;
use crate::config::DeadMan;

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
