//! The agent's time: monotonic for decisions, wall clock for people.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::core::Now;

/// Monotonic time since the agent began. Tests stop it with `tokio::time::pause`.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    began: Instant,
}

impl Clock {
    pub fn start() -> Self {
        Self { began: Instant::now() }
    }

    pub fn now(&self) -> Now {
        self.began.elapsed()
    }

    /// What the core calls `then`, as an instant.
    pub fn instant(&self, then: Now) -> Instant {
        self.began + then
    }

    /// What an instant is to the core.
    pub fn at(&self, instant: Instant) -> Now {
        instant.saturating_duration_since(self.began)
    }
}

/// The wall clock: RFC 3339, UTC, whole seconds.
pub fn timestamp() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The wall clock so many seconds from now, in the same form. What is beyond the year 9999 is its end.
pub fn timestamp_after(seconds: u64) -> String {
    const LAST: u64 = 253_402_300_799;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let then = Duration::from_secs(now.saturating_add(seconds).min(LAST));
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + then).to_string()
}

/// For counters in documents.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
