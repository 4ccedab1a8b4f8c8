//! Whether probes run when they are due.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Of all probes since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Punctuality {
    pub probes: u64,
    /// Began more than half an interval after they were due.
    pub late: u64,
    /// Sum of all delays.
    pub delay: Duration,
    pub worst: Duration,
}

#[derive(Debug, Default)]
pub struct Counters {
    probes: AtomicU64,
    late: AtomicU64,
    nanos: AtomicU64,
    worst: AtomicU64,
}

impl Counters {
    /// A probe begins, this long after it was due.
    pub fn begins(&self, delay: Duration, interval: Duration) {
        let nanos = u64::try_from(delay.as_nanos()).unwrap_or(u64::MAX);
        self.probes.fetch_add(1, Ordering::Relaxed);
        self.late.fetch_add(u64::from(delay > interval / 2), Ordering::Relaxed);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.worst.fetch_max(nanos, Ordering::Relaxed);
    }

    pub fn read(&self) -> Punctuality {
        Punctuality {
            probes: self.probes.load(Ordering::Relaxed),
            late: self.late.load(Ordering::Relaxed),
            delay: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
            worst: Duration::from_nanos(self.worst.load(Ordering::Relaxed)),
        }
    }
}
