//! Looks at how backends answer, on a thread of its own: what it finds must not wait for anything. It looks
//! when the data path names a backend, when a backend's time for an answer is over, and every few milliseconds
//! in any case.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc as blocking,
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::{sync::mpsc, time::Instant};

use super::run_loop::Finding;
use crate::dataplane::kernel::{Knocks, Looked};

/// From one look to the next, at the latest, and at the earliest.
const EVERY: Duration = Duration::from_millis(10);
const LEAST: Duration = Duration::from_millis(1);
/// Backends that may be named from one look to the next.
const NAMED: usize = 1024;
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends with the next look when it is dropped.
#[derive(Debug)]
pub struct KnockThread {
    over: Arc<AtomicBool>,
    waker: KnockWaker,
}

/// Lets the thread look at once.
#[derive(Clone, Debug)]
pub struct KnockWaker(blocking::SyncSender<u32>);

impl KnockWaker {
    /// Never waits.
    pub fn look_at(&self, backend_id: u32) {
        // Full: it will look, and find this one in its turn; disconnected: it has ended, and said why.
        let _ = self.0.try_send(backend_id);
    }
}

impl KnockThread {
    /// # Errors
    /// The pinned maps cannot be opened, or the thread cannot be started.
    pub fn start(pin_dir: &Path, findings: mpsc::Sender<Finding>) -> anyhow::Result<Self> {
        let mut knocks = Knocks::open(pin_dir)?;
        let (waker, wakes) = blocking::sync_channel(NAMED);
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let work = move || {
            let mut failing = false;
            // What comes just behind something that wakes does not wake, and is seen by one more look.
            let mut soon = false;
            let mut named = Vec::new();
            while !seen.load(Ordering::Relaxed) {
                let pause = match knocks.look(&named) {
                    Ok(looked) => {
                        failing = false;
                        let pause = looked.next.unwrap_or(EVERY).clamp(LEAST, EVERY);
                        if !tell(&findings, looked) {
                            return;
                        }
                        pause
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, "how backends answer cannot be looked at; trying again");
                        }
                        PAUSE
                    }
                };
                named.clear();
                soon = wait(&wakes, if soon { LEAST.min(pause) } else { pause }, &mut named);
            }
        };
        thread::Builder::new()
            .name("lb-knocks".to_owned())
            .spawn(work)
            .context("starting the thread that looks at how backends answer")?;
        Ok(Self { over, waker: KnockWaker(waker) })
    }

    pub fn waker(&self) -> KnockWaker {
        self.waker.clone()
    }
}

impl Drop for KnockThread {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Waits so long at most, and [`LEAST`] at least, for backends that are named. Whether there is one.
fn wait(wakes: &blocking::Receiver<u32>, longest: Duration, named: &mut Vec<u32>) -> bool {
    let began = Instant::now();
    // No more come, too, when nobody is left to name any: it ends.
    let Ok(first) = wakes.recv_timeout(longest) else { return false };
    named.push(first);
    thread::sleep(LEAST.saturating_sub(began.elapsed()));
    named.extend(wakes.try_iter().take(NAMED));
    true
}

/// `false`: nobody listens any more.
fn tell(findings: &mpsc::Sender<Finding>, Looked { suspects, sent_again, .. }: Looked) -> bool {
    if sent_again > 0 {
        tracing::debug!(sent_again, "SYNs without an answer were sent again");
    }
    suspects.is_empty() || findings.blocking_send(Finding::Suspects { suspects, at: Instant::now() }).is_ok()
}
