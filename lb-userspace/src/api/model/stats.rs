//! What is read off the pinned maps: counters and flows.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
