//! Walks over the flow table, on a thread of its own: a large table must not hold up a failover.

use std::{path::Path, sync::mpsc as blocking, thread, time::Instant};

use anyhow::Context;
use rustix::process::setpriority_process;
use tokio::sync::mpsc;

use super::run_loop::{Finding, Swept};
use crate::dataplane::{
    DataplaneError,
    kernel::{Audit, Stats, Sweeper},
};

/// Lower priority than that of the loop and the probes, which have 0.
const NICE: i32 = 10;

#[derive(Clone, Copy, Debug)]
pub enum SweepJob {
    Sweep,
    Audit,
}

/// Ends by itself when it is dropped.
#[derive(Debug)]
pub struct SweepThread {
    jobs: blocking::SyncSender<SweepJob>,
}

impl SweepThread {
    /// # Errors
    /// The pinned maps cannot be opened, or the thread cannot be started.
    pub fn start(pin_dir: &Path, findings: mpsc::Sender<Finding>) -> anyhow::Result<Self> {
        let mut sweeper = Sweeper::open(pin_dir)?;
        let stats = Stats::open(pin_dir)?;
        // A sweep, and an audit behind it.
        let (jobs, inbox) = blocking::sync_channel(2);
        let work = move || {
            // Of this thread only: where processors are short, a failover goes first.
            if let Err(error) = setpriority_process(None, NICE) {
                tracing::debug!(%error, "the flow table's thread keeps its priority");
            }
            while let Ok(job) = inbox.recv() {
                let Some(finding) = work(job, &mut sweeper, &stats) else { continue };
                if findings.blocking_send(finding).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("lb-sweep".to_owned())
            .spawn(work)
            .context("starting the thread that ages flows")?;
        Ok(Self { jobs })
    }

    /// Whether the job found a place; if not, it comes again by its timer.
    pub fn ask(&self, job: SweepJob) -> bool {
        let taken = self.jobs.try_send(job).is_ok();
        if !taken {
            tracing::debug!(?job, "the flow table's thread is behind");
        }
        taken
    }
}

fn work(job: SweepJob, sweeper: &mut Sweeper, stats: &Stats) -> Option<Finding> {
    match job {
        SweepJob::Sweep => Some(Finding::Swept(sweep(sweeper, stats).map_err(|error| error.to_string()))),
        SweepJob::Audit => match sweeper.audit() {
            Ok(Audit { ports: 0, replies: 0 }) => None,
            Ok(Audit { ports, replies }) => {
                Some(Finding::Info(format!("freed {ports} source ports and {replies} reply words that no flow held")))
            }
            Err(error) => Some(Finding::Warning(format!("the port audit failed: {error}"))),
        },
    }
}

fn sweep(sweeper: &mut Sweeper, stats: &Stats) -> Result<Swept, DataplaneError> {
    let began = Instant::now();
    let census = sweeper.sweep()?;
    let took = began.elapsed();
    let verdicts = stats.verdicts()?.into_iter().map(|(reason, counted)| (reason, counted.packets)).collect();
    Ok(Swept { census, took, verdicts })
}
