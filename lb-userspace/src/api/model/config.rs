//! The configuration over the API: what runs, what a change would do, what one did.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Failed;
use crate::config::FileText;

/// Where the running configuration comes from, in [`super::Status`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    /// Another one after every change of configuration or operator's layer: a writer that names it
    /// (`If-Match`) is refused when somebody else was first.
    pub revision: String,
    /// The file or directory that it was read from.
    pub source: String,
    /// When it was taken over: RFC 3339, UTC.
    pub taken: String,
    /// Who had it taken over: a user, `start`, `SIGHUP`, `file watch`, `rollback`.
    pub by: String,
    /// Set while the last good copy runs instead of the agent's own file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Failed>,
    /// Set while a change waits to be confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed: Option<Unconfirmed>,
    /// What operators decided and what has no effect as the configuration is.
    #[serde(default)]
    pub without_effect: Vec<DecisionView>,
}

/// A change that is taken back unless it is confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unconfirmed {
    pub by: String,
    pub at: String,
    /// When it is taken back: RFC 3339, UTC.
    pub until: String,
    /// What it goes back to.
    pub previous: String,
}

/// The running configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigView {
    #[serde(flatten)]
    pub status: ConfigStatus,
    /// As they were read.
    pub files: Vec<FileText>,
    /// With every default as a comment, and what operators decided over it.
    pub toml: String,
    /// Everything that operators decided.
    pub decisions: Vec<DecisionView>,
}

/// One decision of an operator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecisionView {
    pub service: String,
    /// None: it is about the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<SocketAddr>,
    /// In words: `drain`, `weight 5`, `added, tier 0`, `removed`.
    pub what: String,
    pub by: String,
    pub at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Why it has no effect; none: it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_effect: Option<String>,
}

/// A configuration to take over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApplyRequest {
    /// The texts; none: the agent reads its own file again.
    #[serde(default)]
    pub files: Option<Vec<FileText>>,
    /// Where they come from, for messages.
    #[serde(default)]
    pub source: Option<String>,
    /// Refuse if more live flows than this would be reset.
    #[serde(default)]
    pub max_reset: Option<u64>,
    /// Take it back after so many seconds unless it is confirmed.
    #[serde(default)]
    pub confirm_seconds: Option<u64>,
}

/// What a configuration would do, or did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// Whether it runs now; false after a dry run.
    pub applied: bool,
    pub source: String,
    /// Settings that differ and change only at a restart; with `limits` also `lb detach` before it.
    pub needs_restart: Vec<String>,
    pub impact: ImpactView,
    /// In words.
    pub warnings: Vec<String>,
    /// When it is taken back unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_until: Option<String>,
    /// Whether the maps already say so; if not, it is being retried.
    pub published: bool,
    /// After it.
    pub revision: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImpactView {
    /// Services that something happens to, by name.
    pub services: Vec<ServiceImpactView>,
    pub flows: FlowImpactView,
}

/// Live flows by what becomes of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowImpactView {
    /// Go on as they are.
    pub kept: u64,
    /// Go on, on backends that take no new ones any more.
    pub drained: u64,
    /// Go on with another backend (UDP, policy `rehome`).
    #[serde(default)]
    pub rehomed: u64,
    /// Are cut.
    pub reset: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceImpactView {
    pub name: String,
    /// `added`, `removed`, `changed` or `same`.
    pub presence: String,
    /// In words.
    pub changes: Vec<String>,
    pub backends: Vec<BackendImpactView>,
    /// Share of the selection slots whose backend changes, 0 to 1.
    pub moved: f64,
    pub flows: FlowImpactView,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendImpactView {
    pub address: SocketAddr,
    /// `added`, `removed`, `changed` or `same`.
    pub presence: String,
    /// In words.
    pub changes: Vec<String>,
    /// Share of new flows, 0 to 1.
    pub share_before: f64,
    pub share_after: f64,
    pub flows: FlowImpactView,
}

/// A service to add beside those of the file, or to remove.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRequest {
    #[serde(flatten)]
    pub change: ServiceChange,
    /// Why, for the record.
    #[serde(default)]
    pub reason: Option<String>,
    /// Take it back after so many seconds.
    #[serde(default)]
    pub for_seconds: Option<u64>,
    /// Remove it although it has ready backends.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", tag = "command")]
pub enum ServiceChange {
    /// Without `toml`: a service of the file that was removed comes back.
    Add {
        /// One `[[service]]` table, as it would stand in the file.
        #[serde(default)]
        toml: Option<String>,
    },
    Remove,
}

/// What was done about a service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceDone {
    pub service: String,
    /// What happens now: `is removed: 312 flows left`.
    pub text: String,
    pub dry_run: bool,
    pub impact: ImpactView,
    /// Whether the maps already say so; if not, it is being retried.
    pub published: bool,
    /// After it.
    pub revision: String,
}

/// The last change stays, or was taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Settled {
    /// `confirmed` or `rolled back`.
    pub what: String,
    pub dry_run: bool,
    /// What runs.
    pub source: String,
    pub revision: String,
}

/// Whether everything is as it should be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Healthiness {
    pub healthy: bool,
    /// What is not, in words.
    pub problems: Vec<String>,
}

/// An empty body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Nothing {}
