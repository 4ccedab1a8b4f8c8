//! `dead-man`: what becomes of new flows while the agent is silent.

use std::time::Duration;

use super::{
    form::{OneOf, Time},
    reader::{Key, LeftOut},
};

/// What the data path does when the agent has not written for a time, whatever the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadMan {
    pub policy: DeadManPolicy,
    /// The agent counts as silent after this time.
    pub after: Duration,
}

impl Default for DeadMan {
    fn default() -> Self {
        Self { policy: DeadManPolicy::Freeze, after: Duration::from_secs(30) }
    }
}

/// What becomes of new flows; those that are known go on whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadManPolicy {
    /// Scheduled by the last state of the maps.
    Freeze,
    /// The kernel's stack gets their packets.
    Pass,
    Drop,
}

impl DeadManPolicy {
    pub const ALL: [Self; 3] = [Self::Freeze, Self::Pass, Self::Drop];

    /// The word used in configuration and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }

    /// What it does, in words.
    pub const fn effect(self) -> &'static str {
        match self {
            Self::Freeze => "everything goes on as last decided",
            Self::Pass => "new flows go to the kernel's stack",
            Self::Drop => "new flows are dropped",
        }
    }
}

/// Four times what lies between two signs of life at least, to the longest time without an agent that
/// anybody may mean.
const AFTER: Time = Time { min: Duration::from_secs(2), max: Duration::from_secs(24 * 3600) };

pub(super) static POLICY: Key<DeadManPolicy> = Key {
    name: "dead-man",
    form: &OneOf { all: &DeadManPolicy::ALL, name: DeadManPolicy::name },
    left_out: LeftOut::Value(DeadManPolicy::Freeze),
    doc: "What becomes of new flows when the agent has been silent for `dead-man-after`: ended, killed, hung. \
          `freeze`: they are scheduled as last decided. `pass`: the kernel's stack of this host gets them. `drop`: \
          they are dropped, so that others can take over. Known flows go on in any case.",
};

pub(super) static AFTER_KEY: Key<Duration> = Key {
    name: "dead-man-after",
    form: &AFTER,
    left_out: LeftOut::Value(Duration::from_secs(30)),
    doc: "Longer than a restart of the agent takes. Without meaning where `dead-man` is `freeze`.",
};
