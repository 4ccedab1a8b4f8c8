//! Receipts of failovers: the newest of them, in memory and on disk.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    clock::{Clock, micros},
    state_file::{self, StateError},
};
use crate::{
    api::model::{EventFlows, EventView},
    core::{Now, Receipt},
};

const FILE: &str = "events.json";
/// Of the file's format.
const VERSION: u32 = 1;
/// Receipts that are kept; of more, the oldest go.
pub const KEPT: usize = 500;
const ADVICE: &str = "move the file away to begin without it";

/// `events.json` in the state directory.
#[derive(Clone, Debug)]
pub struct ReceiptFile {
    path: PathBuf,
}

#[derive(Deserialize)]
struct Stored {
    version: u32,
    events: Vec<EventView>,
}

#[derive(Serialize)]
struct Content<'a> {
    version: u32,
    events: &'a [EventView],
}

impl ReceiptFile {
    pub fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(FILE) }
    }

    /// What was stored last, oldest first.
    ///
    /// # Errors
    /// The file is there but cannot be read or understood.
    pub fn load(&self) -> Result<Vec<EventView>, StateError> {
        let Some(Stored { version, events }) = state_file::read(&self.path, ADVICE)? else { return Ok(Vec::new()) };
        if version != VERSION {
            let why = format!("version {version} is not {VERSION}");
            return Err(StateError::Unreadable { path: self.path.clone(), why, advice: ADVICE });
        }
        Ok(events)
    }

    /// Replaces the file. Blocks on the disk.
    ///
    /// # Errors
    /// The file is as it was.
    pub fn store(&self, events: &[EventView]) -> Result<(), StateError> {
        state_file::replace(&self.path, &Content { version: VERSION, events })
    }
}

/// The newest receipts.
#[derive(Debug, Default)]
pub struct ReceiptBook {
    kept: VecDeque<EventView>,
    changed: bool,
}

impl ReceiptBook {
    /// With what an earlier agent left, oldest first.
    pub fn of(events: Vec<EventView>) -> Self {
        let skipped = events.len().saturating_sub(KEPT);
        Self { kept: events.into_iter().skip(skipped).collect(), changed: false }
    }

    /// The number of the newest; 0: there is none.
    pub fn last_id(&self) -> u64 {
        self.kept.iter().map(|event| event.id).max().unwrap_or(0)
    }

    /// Oldest first.
    pub fn views(&self) -> Vec<EventView> {
        self.kept.iter().cloned().collect()
    }

    /// Takes a receipt in, or what has changed of it.
    pub fn take(&mut self, receipt: &Receipt, clock: &Clock) {
        let view = view(receipt, clock);
        self.changed = true;
        match self.kept.iter_mut().rev().find(|event| event.id == view.id) {
            // Times are told as they were told first: the wall clock may have been set meanwhile.
            Some(event) => *event = merged(event, view),
            None => {
                tracing::info!(service = view.service, backend = %view.backend, id = view.id, cause = view.cause, "failover: see `lb events show {}`", view.id);
                if self.kept.len() == KEPT {
                    self.kept.pop_front();
                }
                self.kept.push_back(view);
            }
        }
    }

    /// Everything, if it has changed since the last call.
    pub fn to_store(&mut self) -> Option<Vec<EventView>> {
        std::mem::take(&mut self.changed).then(|| self.views())
    }
}

fn merged(before: &EventView, new: EventView) -> EventView {
    let first = |old: &Option<String>, new: Option<String>| old.clone().or(new);
    EventView {
        last_good: first(&before.last_good, new.last_good),
        first_bad: first(&before.first_bad, new.first_bad),
        detected: before.detected.clone(),
        switched: first(&before.switched, new.switched),
        first_good: first(&before.first_good, new.first_good),
        back: first(&before.back, new.back),
        ..new
    }
}

fn view(receipt: &Receipt, clock: &Clock) -> EventView {
    let Receipt { last_good, first_bad, detected, switched, first_good, back, flows, .. } = receipt;
    let (wall, now) = (SystemTime::now(), clock.now());
    let at = |then: Now| humantime::format_rfc3339_millis(wall - now.saturating_sub(then)).to_string();
    let between = |from: Option<Now>, to: Option<Now>| Some(micros(to?.saturating_sub(from?)));
    EventView {
        id: receipt.id,
        service: receipt.service.clone(),
        backend: receipt.backend,
        cause: receipt.cause.name().to_owned(),
        reason: receipt.reason.clone(),
        policy: receipt.policy.to_owned(),
        last_good: last_good.map(at),
        first_bad: first_bad.map(at),
        witnesses: receipt.witnesses,
        detected: at(*detected),
        switched: switched.map(at),
        first_good: first_good.map(at),
        back: back.map(at),
        suspect_micros: between(*first_bad, *switched),
        detect_micros: between(*last_good, Some(*detected)),
        switch_micros: between(Some(*detected), *switched),
        serve_micros: between(Some(*detected), *first_good),
        serving: receipt.serving.clone(),
        flows: EventFlows {
            before: flows.before,
            reset: flows.reset,
            rehomed: flows.rehomed,
            kept: flows.kept,
            left: flows.left,
            clients: flows.clients,
            rescued: flows.rescued,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::{FailoverCause, ReceiptFlows};

    fn receipt(id: u64) -> Receipt {
        Receipt {
            id,
            service: "web".to_owned(),
            backend: "10.0.0.1:80".parse().unwrap(),
            cause: FailoverCause::Down,
            reason: "L4CON".to_owned(),
            policy: "reset",
            last_good: None,
            first_bad: None,
            witnesses: 0,
            detected: Duration::ZERO,
            switched: None,
            first_good: None,
            back: None,
            serving: Vec::new(),
            flows: ReceiptFlows::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_receipt_that_changes_is_one_and_what_is_stored_is_loaded() {
        let clock = Clock::start();
        let dir = tempfile::tempdir().unwrap();
        let file = ReceiptFile::new(dir.path());
        assert_eq!(file.load().unwrap(), []);
        let mut book = ReceiptBook::of(Vec::new());
        assert_eq!(book.to_store(), None);
        book.take(&receipt(1), &clock);
        let first = book.views()[0].detected.clone();
        let changed = Receipt { switched: Some(Duration::from_micros(1500)), ..receipt(1) };
        book.take(&changed, &clock);
        let views = book.views();
        assert_eq!((views.len(), views[0].switch_micros, &views[0].detected), (1, Some(1500), &first));
        file.store(&book.to_store().unwrap()).unwrap();
        assert_eq!(book.to_store(), None);
        assert_eq!(ReceiptBook::of(file.load().unwrap()).views(), views);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_newest_are_kept() {
        let clock = Clock::start();
        let mut book = ReceiptBook::of(Vec::new());
        (1..=KEPT as u64 + 3).for_each(|id| book.take(&receipt(id), &clock));
        let views = book.views();
        assert_eq!((views.len(), views[0].id, book.last_id()), (KEPT, 4, KEPT as u64 + 3));
        assert_eq!(ReceiptBook::of([views, vec![]].concat()).last_id(), KEPT as u64 + 3);
    }

    #[test]
    fn a_file_of_another_version_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), r#"{"version":2,"events":[]}"#).unwrap();
        assert!(ReceiptFile::new(dir.path()).load().unwrap_err().to_string().contains("move the file away"));
    }
}
