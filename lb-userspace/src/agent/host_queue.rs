//! The way to the host's task. It is bounded; what must not be lost waits beside it.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{host_task::HostJob, run_loop::Finding};
use crate::config::Config;

/// Hands jobs to the host's task without ever waiting. Must be used within a tokio runtime.
#[derive(Clone, Debug)]
pub struct HostQueue {
    jobs: mpsc::Sender<HostJob>,
    findings: mpsc::Sender<Finding>,
}

impl HostQueue {
    /// Jobs go to `jobs`; that one cannot be done, to `findings`.
    pub fn new(jobs: mpsc::Sender<HostJob>, findings: mpsc::Sender<Finding>) -> Self {
        Self { jobs, findings }
    }

    /// A job that comes again by itself, by a timer or an event: where there is no room it is left out.
    pub fn ask(&self, job: HostJob) {
        if let Err(mpsc::error::TrySendError::Full(job)) = self.jobs.try_send(job) {
            tracing::warn!(?job, "the host's task is behind: a job is left out");
        }
    }

    /// A job that comes once: where there is no room it waits for some.
    pub fn insist(&self, job: HostJob) {
        if let Err(mpsc::error::TrySendError::Full(job)) = self.jobs.try_send(job) {
            let jobs = self.jobs.clone();
            // A task gone is an agent that stops.
            tokio::spawn(async move { drop(jobs.send(job).await) });
        }
    }

    /// Like [`HostQueue::insist`]; the answer comes as [`Finding::Prepared`], whatever happens.
    pub fn prepare(&self, config: Arc<Config>) {
        let Self { jobs, findings } = self.clone();
        tokio::spawn(async move {
            if jobs.send(HostJob::Prepare(Arc::clone(&config))).await.is_err() {
                let result = Err("the host's task has ended: restart the agent".to_owned());
                drop(findings.send(Finding::Prepared { config, result }).await);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config;

    fn config() -> Arc<Config> {
        Arc::new(config::parse("example", config::EXAMPLE).unwrap().config)
    }

    /// The queue as it was when reloads were lost: no room for the job, none to tell of it.
    #[tokio::test]
    async fn a_configuration_to_prepare_for_is_not_lost_when_both_queues_are_full() {
        let ((jobs, mut inbox), (findings, mut found)) = (mpsc::channel(1), mpsc::channel(1));
        let queue = HostQueue::new(jobs, findings.clone());
        queue.ask(HostJob::Warm(BTreeSet::new()));
        findings.send(Finding::Info(String::new())).await.unwrap();
        queue.prepare(config());
        queue.insist(HostJob::Prune);
        queue.ask(HostJob::Warm(BTreeSet::new()));
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(match inbox.recv().await.unwrap() {
                HostJob::Prepare(_) => "prepare",
                HostJob::Prune => "prune",
                _ => "warm",
            });
        }
        seen.sort_unstable();
        assert_eq!(seen, ["prepare", "prune", "warm"], "and the second warming comes again by itself");
        drop(inbox);
        queue.prepare(config());
        assert!(matches!(found.recv().await, Some(Finding::Info(_))));
        assert!(matches!(found.recv().await, Some(Finding::Prepared { result: Err(_), .. })));
    }
}
