//! The set of running probes.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::Rng;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    probe::{Finished, Probe},
    punctuality::{Counters, Punctuality},
    schedule::Schedule,
    tls::Tls,
    ways::KnownWays,
};
use crate::{
    config::Check,
    core::{FastPace, ProbeKey, ProbeOutcome},
};

/// Most probes with an open socket at one time, where the limit on descriptors allows as many.
const MOST_IN_FLIGHT: usize = 16_384;
/// Most programs at one time: each is a process.
const MOST_PROGRAMS: usize = 64;

/// Runs one task per key: the first probe at once, then at a fixed rate (interval ± jitter). A key
/// has at most one probe in flight; ticks that pass meanwhile are skipped. With jitter, each key
/// has a random phase, so that keys that start together spread out.
///
/// Sockets in flight are bounded; keys that wait for one are served in the order they came, each
/// once per turn, so that hanging targets cannot starve the others. The timeout of a probe starts
/// when it has its turn. Programs have turns of their own.
///
/// Dropping the prober ends every probe.
#[derive(Debug)]
pub struct Prober {
    shared: Shared,
    running: HashMap<ProbeKey, AbortOnDropHandle<()>>,
}

#[derive(Clone, Debug)]
struct Shared {
    results: mpsc::Sender<(ProbeKey, ProbeOutcome)>,
    sockets: Arc<Semaphore>,
    programs: Arc<Semaphore>,
    tls: Arc<Tls>,
    counters: Arc<Counters>,
    local_failures: Arc<AtomicU64>,
    ways: Option<KnownWays>,
}

impl Prober {
    /// Probes that report to `results`, with at most half of the file descriptors in flight that this
    /// process may have; its soft limit is raised to the hard one. A full channel holds probes back; a closed one ends them.
    pub fn new(results: mpsc::Sender<(ProbeKey, ProbeOutcome)>) -> Self {
        Self::with_limit(results, default_limit())
    }

    /// Like [`Prober::new`], with at most `limit` (at least one) sockets in flight.
    pub fn with_limit(results: mpsc::Sender<(ProbeKey, ProbeOutcome)>, limit: usize) -> Self {
        let sockets = Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        let shared = Shared {
            results,
            sockets,
            programs: Arc::new(Semaphore::new(MOST_PROGRAMS)),
            tls: Arc::default(),
            counters: Arc::default(),
            local_failures: Arc::default(),
            ways: None,
        };
        Self { shared, running: HashMap::new() }
    }

    /// The same, with ways to the addresses of services; without them backends are asked at their own.
    #[must_use]
    pub fn with_ways(mut self, ways: KnownWays) -> Self {
        self.shared.ways = Some(ways);
        self
    }

    /// Makes `keys` the set that is probed: starts what is new, ends what is gone, leaves the rhythm
    /// of the rest alone. Keys with [`Check::None`] are never probed. A result of a key that has
    /// ended may still be in the channel. Must be called within a tokio runtime.
    pub fn set(&mut self, keys: Vec<ProbeKey>) {
        let wanted: HashSet<ProbeKey> = keys.into_iter().filter(|key| key.check != Check::None).collect();
        self.running.retain(|key, _| wanted.contains(key));
        for key in wanted {
            self.running.entry(key).or_insert_with_key(|key| {
                AbortOnDropHandle::new(tokio::spawn(keep_probing(key.clone(), self.shared.clone())))
            });
        }
    }

    /// How many keys are probed.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Whether probes run when they are due.
    pub fn punctuality(&self) -> Punctuality {
        self.shared.counters.read()
    }

    /// Probes that could not be made because this host lacked descriptors, ports or memory.
    pub fn local_failures(&self) -> u64 {
        self.shared.local_failures.load(Ordering::Relaxed)
    }
}

async fn keep_probing(key: ProbeKey, shared: Shared) {
    let began = Instant::now();
    let mut schedule = Schedule::new(key.interval, key.jitter_percent, rand::rng().random());
    let probe = Probe::new(key);
    let key = probe.key();
    let turns = if matches!(key.check, Check::Exec(_)) { &shared.programs } else { &shared.sockets };
    let mut due = began;
    let mut short = false;
    let mut pace = Pace::default();
    loop {
        let Ok(turn) = turns.acquire().await else { return };
        let started = Instant::now();
        shared.counters.begins(started.saturating_duration_since(due), key.interval);
        match probe.run(&shared.tls, shared.ways.as_ref()).await {
            Ok(Finished { outcome, leftover, deadline }) => {
                short = false;
                pace.ended(key.fast, outcome.up);
                // Without a leftover the socket is closed, and the turn ends here.
                let leftover = leftover.map(|leftover| (leftover, turn));
                if shared.results.send((key.clone(), outcome)).await.is_err() {
                    return;
                }
                if let Some((leftover, _turn)) = leftover {
                    // The answer is known; that the rest did not come in time means nothing.
                    let _ = timeout_at(deadline, leftover).await;
                }
            }
            Err(error) => {
                shared.local_failures.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut short, true) {
                    warn_of_shortage(key, &error);
                }
            }
        }
        due = match pace.next(key.fast) {
            Some(fast) => (started + fast).max(Instant::now()),
            None => began + schedule.next(began.elapsed(), rand::rng().random_range(-1.0..=1.0)),
        };
        sleep_until(due).await;
    }
}

/// How many results are still wanted at the fast pace.
#[derive(Debug, Default)]
struct Pace {
    last: Option<bool>,
    left: u32,
}

impl Pace {
    fn ended(&mut self, fast: Option<FastPace>, up: bool) {
        let changed = self.last.replace(up).is_none_or(|last| last != up);
        self.left = match fast {
            Some(fast) if changed => fast.results.saturating_sub(1),
            _ => self.left.saturating_sub(1),
        };
    }

    fn next(&self, fast: Option<FastPace>) -> Option<Duration> {
        fast.filter(|_| self.left > 0).map(|fast| fast.interval)
    }
}

fn warn_of_shortage(key: &ProbeKey, error: &io::Error) {
    let next = match error.raw_os_error() {
        Some(_) => "raise the limit on open files (LimitNOFILE) or net.ipv4.ip_local_port_range",
        None => "mend it: the next check sees it",
    };
    tracing::warn!(
        target = %key.target,
        check = key.check.name(),
        %error,
        "cannot probe for want of something on this host; the backend keeps its last state. {next}"
    );
}

/// Half of the descriptors this process may open: the rest is for maps, netlink and the API.
fn default_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // The soft limit is low for the sake of programs that use select(2), which this one does not.
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    let descriptors = getrlimit(Resource::Nofile).current;
    descriptors.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(MOST_IN_FLIGHT).clamp(16, MOST_IN_FLIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_after_a_change_are_wanted_soon_and_then_the_pace_is_over() {
        let fast = Some(FastPace { interval: Duration::from_millis(20), results: 3 });
        let mut pace = Pace::default();
        let mut fast_after = |up| {
            pace.ended(fast, up);
            pace.next(fast).is_some()
        };
        let results = [true, true, true, true, false, false, false, false, true, false];
        let expected = [true, true, false, false, true, true, false, false, true, true];
        assert_eq!(results.map(&mut fast_after), expected);
        let mut slow = Pace::default();
        slow.ended(None, false);
        assert_eq!(slow.next(None), None);
    }
}
