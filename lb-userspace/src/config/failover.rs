//! What a service does when backends come and go: with the flows they have, and with those to come.

use std::time::Duration;

use lb_common::abi::Protocol;

use super::role::WantedRole;

/// A service's ways of failing over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failover {
    pub flows: FlowPolicies,
    /// Ready backends that are wanted: where a tier has fewer, backends of the next ones step in beside
    /// it. At least 1.
    pub min_ready: u32,
    /// For so long a backend that was out is up before the tiers behind it give back to it.
    pub failback_delay: Duration,
    /// Time in which the share of a returning backend grows to its whole.
    pub slow_start: Duration,
}

impl Failover {
    /// What holds where the file says nothing.
    pub const fn of(protocol: Protocol, role: Option<WantedRole>) -> Self {
        Self {
            flows: FlowPolicies::of(protocol, role),
            min_ready: 1,
            failback_delay: Duration::ZERO,
            slow_start: Duration::ZERO,
        }
    }
}

/// What becomes of the flows of a backend that takes no new ones, by the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowPolicies {
    pub on_down: FlowPolicy,
    pub on_demote: FlowPolicy,
    pub on_drain_timeout: FlowPolicy,
    pub on_remove: FlowPolicy,
}

impl FlowPolicies {
    /// What holds where the file says nothing: flows that cannot go on end at once, so that clients
    /// begin anew; where they can, they go on. Datagrams find their way without being told. A server
    /// that is no longer the primary keeps no writer; one that is no longer a replica may be read on.
    pub const fn of(protocol: Protocol, role: Option<WantedRole>) -> Self {
        let over = match protocol {
            Protocol::Udp => FlowPolicy::Rehome,
            Protocol::Tcp | Protocol::Sctp => FlowPolicy::Reset,
        };
        let on_demote = if matches!(role, Some(WantedRole::Replica)) { FlowPolicy::Keep } else { over };
        Self { on_down: over, on_demote, on_drain_timeout: over, on_remove: FlowPolicy::Keep }
    }
}

/// What becomes of a flow whose backend takes no new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowPolicy {
    /// Its next packet is answered with a reset (UDP: "port unreachable"), from whichever side.
    Reset,
    /// UDP: its next packet goes where a new flow would.
    Rehome,
    /// It goes on.
    Keep,
}

impl FlowPolicy {
    pub const ALL: [Self; 3] = [Self::Reset, Self::Keep, Self::Rehome];

    /// The word used in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Rehome => "rehome",
            Self::Keep => "keep",
        }
    }
}
