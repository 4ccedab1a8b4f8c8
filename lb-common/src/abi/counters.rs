//! Counters. All maps of counters are per CPU: a writer never shares a cache line with another
//! CPU, and a reader adds them up.

use bytemuck::{Pod, Zeroable};

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct DirectionCounters {
    pub packets: u64,
    /// Whole frames, link-layer header included, frame check sequence not.
    pub bytes: u64,
}

/// Value of `service_stats`, indexed by service id; zeroed by the agent when the id is given to
/// another service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct ServiceCounters {
    /// Client to backend, as sent on.
    pub forward: DirectionCounters,
    /// Backend to client, as sent on.
    pub reply: DirectionCounters,
    /// Flows begun.
    pub flows: u64,
    /// Packets answered with a reset or an ICMP error: of clients, and of backends whose flows are over.
    pub refused: u64,
    /// Packets for the service that were dropped.
    pub dropped: u64,
    /// Times that a connection was sent to another backend, because one refused it or did not answer.
    pub rescued: u64,
}

/// Value of `backend_stats`, indexed by backend id; zeroed by the agent when the id is given to
/// another backend.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct BackendCounters {
    pub forward: DirectionCounters,
    pub reply: DirectionCounters,
    /// Flows begun.
    pub flows: u64,
    /// Flows ended by the data path (closed, evicted); the agent counts those that it ages.
    pub ended: u64,
    /// Flows that were over with their backend and answered with a reset, or an ICMP error.
    pub reset: u64,
    /// Flows that were over with their backend and scheduled anew.
    pub moved: u64,
    /// Connections that it refused: a reset in answer to a SYN, or an ICMP error about one.
    #[cfg(not(feature = "fixture-older"))]
    pub refusals: u64,
    /// Connections that were sent to another backend because it did not answer.
    #[cfg(not(feature = "fixture-older"))]
    pub unanswered: u64,
    /// Connections that were sent to another backend for either reason.
    #[cfg(not(feature = "fixture-older"))]
    pub rescued: u64,
}

/// Value of `verdict_stats`, indexed by [`crate::verdict::Reason`].
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct VerdictCounters {
    pub packets: u64,
    /// Frame lengths as received.
    pub bytes: u64,
}
