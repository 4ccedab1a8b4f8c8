//! Looks at how backends answer, on a thread of its own: what it finds must not wait for anything.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::sync::mpsc;

use super::run_loop::Finding;
use crate::dataplane::kernel::{Knocks, Looked};

/// From one look to the next.
const EVERY: Duration = Duration::from_millis(10);
/// After a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// Ends with the next look when it is dropped.
#[derive(Debug)]
pub struct KnockThread {
    over: Arc<AtomicBool>,
}

impl KnockThread {
    /// # Errors
    /// The pinned maps cannot be opened, or the thread cannot be started.
    pub fn start(pin_dir: &Path, findings: mpsc::Sender<Finding>) -> anyhow::Result<Self> {
        let mut knocks = Knocks::open(pin_dir)?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let work = move || {
            let mut failing = false;
            while !seen.load(Ordering::Relaxed) {
                let pause = match knocks.look() {
                    Ok(looked) => {
                        failing = false;
                        if !tell(&findings, looked) {
                            return;
                        }
                        EVERY
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut failing, true) {
                            tracing::warn!(%error, "how backends answer cannot be looked at; trying again");
                        }
                        PAUSE
                    }
                };
                thread::sleep(pause);
            }
        };
        thread::Builder::new()
            .name("lb-knocks".to_owned())
            .spawn(work)
            .context("starting the thread that looks at how backends answer")?;
        Ok(Self { over })
    }
}

impl Drop for KnockThread {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// `false`: nobody listens any more.
fn tell(findings: &mpsc::Sender<Finding>, Looked { suspects, sent_again }: Looked) -> bool {
    if sent_again > 0 {
        tracing::debug!(sent_again, "SYNs without an answer were sent again");
    }
    suspects.is_empty() || findings.blocking_send(Finding::Suspects(suspects)).is_ok()
}
