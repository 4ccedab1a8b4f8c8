//! Services whose backends are not alike: one writes, the others only read.

use std::time::Duration;

/// Which of a service's backends get flows, by what their database says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolePolicy {
    pub role: WantedRole,
    /// `replica`: those that are further behind get no flows.
    pub max_lag: Option<MaxLag>,
    /// `replica`: with no replica left, the primary reads too.
    pub replica_fallback: bool,
    pub on_multiple_primaries: OnMultiplePrimaries,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedRole {
    Primary,
    Replica,
}

impl WantedRole {
    pub const ALL: [Self; 2] = [Self::Primary, Self::Replica];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// How far behind the primary a replica may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaxLag {
    /// Of the log: PostgreSQL, Patroni, Redis.
    Bytes(u64),
    /// PostgreSQL, MySQL, MariaDB.
    Time(Duration),
}

/// What happens while two backends say that they are the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMultiplePrimaries {
    /// No new flows.
    Block,
    /// The one that had the flows keeps them; without one, as `Block`.
    KeepCurrent,
    /// The one whose history is ahead of every other's (timeline, GTID); without one, as `Block`.
    HighestEpoch,
}

impl OnMultiplePrimaries {
    pub const ALL: [Self; 3] = [Self::Block, Self::KeepCurrent, Self::HighestEpoch];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::KeepCurrent => "keep-current",
            Self::HighestEpoch => "highest-epoch",
        }
    }
}
