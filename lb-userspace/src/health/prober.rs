//! The set of running probes.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rand::Rng;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    probe::{Finished, probe},
    schedule::Schedule,
};
use crate::{
    config::Check,
    core::{ProbeKey, ProbeOutcome},
};

/// Most probes with an open socket at one time, where the limit on descriptors allows as many.
const MOST_IN_FLIGHT: usize = 4096;

/// Runs one task per key: the first probe at once, then at a fixed rate (interval ± jitter). A key
/// has at most one probe in flight; ticks that pass meanwhile are skipped. With jitter, each key
/// has a random phase, so that keys that start together spread out.
///
/// Sockets in flight are bounded; keys that wait for one are served in the order they came, each
/// once per turn, so that hanging targets cannot starve the others. The timeout of a probe starts
/// when it has its turn.
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
    local_failures: Arc<AtomicU64>,
}

impl Prober {
    /// Probes that report to `results`, with at most half of the process's file descriptors in
    /// flight. A full channel holds probes back; a closed one ends them.
    pub fn new(results: mpsc::Sender<(ProbeKey, ProbeOutcome)>) -> Self {
        Self::with_limit(results, default_limit())
    }

    /// Like [`Prober::new`], with at most `limit` (at least one) sockets in flight.
    pub fn with_limit(results: mpsc::Sender<(ProbeKey, ProbeOutcome)>, limit: usize) -> Self {
        let sockets = Arc::new(Semaphore::new(limit.clamp(1, Semaphore::MAX_PERMITS)));
        let shared = Shared { results, sockets, local_failures: Arc::default() };
        Self { shared, running: HashMap::new() }
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

    /// Probes that could not be made because this host lacked descriptors, ports or memory.
    pub fn local_failures(&self) -> u64 {
        self.shared.local_failures.load(Ordering::Relaxed)
    }
}

async fn keep_probing(key: ProbeKey, shared: Shared) {
    let began = Instant::now();
    let mut schedule = Schedule::new(key.interval, key.jitter_percent, rand::rng().random());
    let mut short = false;
    loop {
        let Ok(turn) = shared.sockets.acquire().await else { return };
        match probe(&key).await {
            Ok(Finished { outcome, leftover, deadline }) => {
                short = false;
                // Without a leftover the socket is closed, and the turn ends here.
                let leftover = leftover.map(|leftover| (leftover, turn));
                if shared.results.send((key.clone(), outcome)).await.is_err() {
                    return;
                }
                if let Some((leftover, _turn)) = leftover {
                    // The answer is known; that the rest did not come in time means nothing.
                    let _ = timeout_at(deadline, leftover.discard()).await;
                }
            }
            Err(error) => {
                shared.local_failures.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut short, true) {
                    warn_of_shortage(&key, &error);
                }
            }
        }
        let due = schedule.next(began.elapsed(), rand::rng().random_range(-1.0..=1.0));
        sleep_until(began + due).await;
    }
}

fn warn_of_shortage(key: &ProbeKey, error: &io::Error) {
    tracing::warn!(
        target = %key.target,
        %error,
        "cannot probe: this host lacks what a connection needs; the backend keeps its last state. \
         Raise the limit on open files (LimitNOFILE) or net.ipv4.ip_local_port_range"
    );
}

/// Half of the descriptors this process may open: the rest is for maps, netlink and the API.
fn default_limit() -> usize {
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    descriptors.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(MOST_IN_FLIGHT).clamp(16, MOST_IN_FLIGHT)
}
