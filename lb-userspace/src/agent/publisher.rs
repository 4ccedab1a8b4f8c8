//! Brings desired tables into the data path, and tries again when that fails.

use super::{backoff::Backoff, clock::timestamp};
use crate::{
    api::model::Failed,
    config::DeadMan,
    core::{Now, Touched, reconcile::Reconciler},
    dataplane::{Dataplane, DataplaneError, Tables},
};

#[derive(Debug)]
pub struct Publisher<D> {
    dataplane: D,
    reconciler: Reconciler,
    published: Option<u32>,
    backoff: Backoff,
    failed: Option<Failed>,
    retry_at: Option<Now>,
}

impl<D: Dataplane> Publisher<D> {
    pub fn new(dataplane: D) -> Self {
        Self {
            dataplane,
            reconciler: Reconciler::default(),
            published: None,
            backoff: Backoff::default(),
            failed: None,
            retry_at: None,
        }
    }

    /// Whether the data path holds `desired`, as far as the agent knows.
    pub fn holds(&self, desired: &Tables) -> bool {
        self.published == Some(desired.generation)
    }

    /// The generation that was published last; 0 before the first.
    pub fn generation(&self) -> u32 {
        self.published.unwrap_or(0)
    }

    /// When to try again, after a failure.
    pub fn retry_at(&self) -> Option<Now> {
        self.retry_at
    }

    /// Why the data path does not hold what it should.
    pub fn failed(&self) -> Option<&Failed> {
        self.failed.as_ref()
    }

    /// Passes a sign of life on, with the rule for when they stop.
    ///
    /// # Errors
    /// The data path did not get it.
    pub fn beat(&mut self, rule: &DeadMan) -> Result<(), DataplaneError> {
        self.dataplane.beat(rule)
    }

    /// Forgets what the data path was believed to hold: the next step reads it.
    pub fn forget(&mut self) {
        self.reconciler.forget();
        self.published = None;
    }

    /// Makes the data path hold `desired`, in which `touched` changed. Returns how many operations that took.
    ///
    /// # Errors
    /// In words; the step is to be repeated at [`Publisher::retry_at`].
    pub fn step(&mut self, desired: &Tables, touched: &Touched, now: Now) -> Result<usize, String> {
        match self.reconciler.step_touched(&mut self.dataplane, desired, touched) {
            Ok(report) => {
                self.published = Some(report.generation);
                self.backoff.succeeded();
                self.failed = None;
                self.retry_at = None;
                Ok(report.applied)
            }
            Err(error) => {
                let error = error.to_string();
                self.published = None;
                self.retry_at = Some(now + self.backoff.failed());
                // The time of the first failure: since then the maps are behind.
                let at = self.failed.take().map_or_else(timestamp, |before| before.at);
                self.failed = Some(Failed { at, error: error.clone() });
                Err(error)
            }
        }
    }
}
