//! What receipts need of the outside: the moment when clients are served again, and a place on disk.

use std::{path::Path, sync::Arc, thread, time::Duration};

use anyhow::Context;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep},
};

use super::{receipts::ReceiptFile, run_loop::Finding};
use crate::{api::model::EventView, dataplane::kernel::Stats};

/// Services that are watched at a time.
const WATCHED: usize = 16;
/// Between two looks at a service's counter, while clients are expected any moment.
const LOOK: Duration = Duration::from_millis(5);
/// For so long; then less often.
const SOON: Duration = Duration::from_secs(10);
const LOOK_LATER: Duration = Duration::from_millis(250);
/// Nobody has come: the receipt goes without.
const GIVE_UP: Duration = Duration::from_secs(600);

/// Watches for the first new flow of services.
pub(super) struct FlowWatch {
    stats: Arc<Stats>,
    places: Arc<Semaphore>,
    findings: mpsc::Sender<Finding>,
}

impl FlowWatch {
    /// # Errors
    /// The pinned counters cannot be opened.
    pub fn open(pin_dir: &Path, findings: mpsc::Sender<Finding>) -> anyhow::Result<Self> {
        let stats = Arc::new(Stats::open(pin_dir)?);
        Ok(Self { stats, places: Arc::new(Semaphore::new(WATCHED)), findings })
    }

    /// Tells when a flow of the service begins, from now on. Must be called within a tokio runtime.
    pub fn watch(&self, service_id: u32) {
        let begun = move |stats: &Stats| stats.service(service_id).map(|counters| counters.flows);
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        let Ok(before) = begun(&self.stats) else { return };
        let (stats, findings) = (Arc::clone(&self.stats), self.findings.clone());
        tokio::spawn(async move {
            let began = Instant::now();
            while began.elapsed() < GIVE_UP {
                sleep(if began.elapsed() < SOON { LOOK } else { LOOK_LATER }).await;
                if begun(&stats).is_ok_and(|flows| flows != before) {
                    drop(findings.send(Finding::FlowBegun { service_id, at: Instant::now() }).await);
                    break;
                }
            }
            drop(place);
        });
    }
}

/// Writes receipts to disk, on a thread of its own. When it is dropped, the last ones are written first.
#[derive(Debug)]
pub(super) struct ReceiptWriter {
    jobs: Option<std::sync::mpsc::Sender<Vec<EventView>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ReceiptWriter {
    /// # Errors
    /// The thread cannot be started.
    pub fn start(file: ReceiptFile) -> anyhow::Result<Self> {
        let (jobs, inbox) = std::sync::mpsc::channel::<Vec<EventView>>();
        let work = move || {
            while let Ok(mut events) = inbox.recv() {
                // Of several that wait the last one says everything.
                while let Ok(newer) = inbox.try_recv() {
                    events = newer;
                }
                if let Err(error) = file.store(&events) {
                    tracing::warn!(%error, "receipts of failovers could not be stored");
                }
            }
        };
        let thread = thread::Builder::new().name("lb-receipts".to_owned()).spawn(work);
        let thread = thread.context("starting the thread that stores receipts")?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub fn write(&self, events: Vec<EventView>) {
        if let Some(jobs) = &self.jobs {
            // The thread ends with this alone.
            drop(jobs.send(events));
        }
    }
}

impl Drop for ReceiptWriter {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
