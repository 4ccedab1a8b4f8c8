//! Receipts of failovers, and frozen services.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Receipts, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EventList {
    pub events: Vec<EventView>,
}

/// One failover: a backend that stopped taking new flows. All times are RFC 3339, UTC, to the
/// millisecond.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    pub id: u64,
    pub service: String,
    pub backend: SocketAddr,
    /// `down`, `demoted`, `drain`, `maintenance`, `removed`, `agent`, `no-route`; or, where clients' packets
    /// told before a check did, `refused`, `unreachable` or `unanswered`.
    pub cause: String,
    /// In words.
    pub reason: String,
    /// What becomes of its flows: `reset`, `rehome` or `keep`.
    pub policy: String,
    /// The end of its last good probe before, or where clients' packets told, the last answer to one; none:
    /// there was none since the agent began.
    pub last_good: Option<String>,
    /// When the data path saw the first packet that was refused or not answered; none: that did not tell.
    #[serde(default)]
    pub first_bad: Option<String>,
    /// Different clients to whom that happened until it was decided, at least.
    #[serde(default)]
    pub witnesses: u32,
    /// When it was decided.
    pub detected: String,
    /// When the maps held the decision.
    pub switched: Option<String>,
    /// When a new flow began elsewhere after that, seen within 5 ms; none: no client has come.
    pub first_good: Option<String>,
    /// When it took new flows again.
    pub back: Option<String>,
    /// From `firstBad` to `switched`.
    #[serde(default)]
    pub suspect_micros: Option<u64>,
    /// From `lastGood` to `detected`.
    pub detect_micros: Option<u64>,
    /// From `detected` to `switched`.
    pub switch_micros: Option<u64>,
    /// From `detected` to `firstGood`.
    pub serve_micros: Option<u64>,
    /// Backends that served right after it, at most eight.
    pub serving: Vec<SocketAddr>,
    pub flows: EventFlows,
}

/// What became of the flows that the backend had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EventFlows {
    /// Those there were at the last count before.
    pub before: u64,
    pub reset: u64,
    pub rehomed: u64,
    /// That went on, at the last count.
    pub kept: u64,
    /// To be ended, and not ended yet.
    pub left: u64,
    /// Different clients among those that the agent found still there; 0: none was left to find.
    pub clients: u64,
    /// Connections that it refused or did not answer, and that another backend got instead.
    #[serde(default)]
    pub rescued: u64,
}

/// Asks for a service to be frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FreezeRequest {
    /// For how long at most: up to a minute. 0 thaws it.
    pub max_millis: u64,
}

/// A service that was frozen or thawed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceFrozen {
    pub service: String,
    /// What happens now, in words.
    pub text: String,
    /// Time left; none: it is not frozen.
    pub frozen_millis: Option<u64>,
    /// Whether the maps already say so; if not, it is being retried.
    pub published: bool,
    /// Nothing was done: `text` says what would be.
    #[serde(default)]
    pub dry_run: bool,
}
