//! What runs, where it comes from, and what a timer will take back.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::super::{
    clock::{timestamp, timestamp_after},
    decisions::{decisions, notes},
    effective::{Effective, added_text},
    engine::Engine,
};
use crate::{
    api::{
        PrintConfig,
        model::{BackendView, ConfigStatus, ConfigView, Failed, Settled, Unconfirmed},
    },
    config::{self, FileText},
    core::OperatorLayer,
    dataplane::Dataplane,
};

/// Timers set by the wall clock are looked at again at least so often: it may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// And at most so often.
const LOOK_LATER: Duration = Duration::from_millis(50);

/// A configuration that runs or ran.
#[derive(Clone, Debug)]
pub struct Running {
    /// The file or directory it was read from.
    pub source: String,
    pub files: Arc<Vec<FileText>>,
    /// Names of the services in the files.
    pub in_files: Arc<BTreeSet<String>>,
    /// When it was taken over: RFC 3339, UTC.
    pub taken: String,
    /// Who had it taken over.
    pub by: String,
    /// Why it runs instead of the agent's own file.
    pub fallback: Option<Failed>,
}

impl Running {
    /// Taken over now.
    pub fn now(effective: &Effective, by: &str, fallback: Option<Failed>) -> Self {
        Self {
            source: effective.source.clone(),
            files: Arc::clone(&effective.files),
            in_files: Arc::clone(&effective.in_files),
            taken: timestamp(),
            by: by.to_owned(),
            fallback,
        }
    }
}

#[derive(Debug)]
pub struct State {
    /// Tells revisions of this agent from those of another.
    begun: u64,
    pub running: Running,
    pending: Option<Pending>,
    /// When to look whether a decision has ended.
    look_at: Option<Instant>,
    /// Backends of the command under way, before it.
    pub(super) before: Vec<Option<BackendView>>,
}

/// A change that waits to be confirmed.
#[derive(Debug)]
struct Pending {
    previous: Running,
    deadline: Instant,
    shown: Unconfirmed,
}

impl State {
    pub fn new(running: Running) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let begun = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Self { begun, running, pending: None, look_at: Some(Instant::now()), before: Vec::new() }
    }

    /// Another one after every change of configuration or layer, and after every start.
    pub fn revision<D: Dataplane>(&self, engine: &Engine<D>) -> String {
        format!("{:x}-{}", self.begun, engine.decisions())
    }

    pub fn unconfirmed(&self) -> Option<&Unconfirmed> {
        self.pending.as_ref().map(|pending| &pending.shown)
    }

    pub fn status<D: Dataplane>(&self, engine: &Engine<D>) -> ConfigStatus {
        let mut without_effect = decisions(engine.layer(), engine.config(), &self.running.in_files);
        without_effect.retain(|decision| decision.no_effect.is_some());
        let Running { source, taken, by, fallback, .. } = self.running.clone();
        let (revision, unconfirmed) = (self.revision(engine), self.unconfirmed().cloned());
        ConfigStatus { revision, source, taken, by, fallback, unconfirmed, without_effect }
    }

    /// The running configuration, to be printed by whoever has the time.
    pub fn printer<D: Dataplane>(&self, engine: &Engine<D>) -> PrintConfig {
        let status = self.status(engine);
        let (files, in_files) = (Arc::clone(&self.running.files), Arc::clone(&self.running.in_files));
        let (layer, config) = (engine.layer().clone(), Arc::clone(engine.config()));
        Box::new(move || {
            let all: Vec<FileText> = files.iter().cloned().chain(added_text(&layer, &in_files)).collect();
            let toml = config::show(&all, &notes(&layer, &in_files)).map_err(|error| error.in_short())?;
            let decisions = decisions(&layer, &config, &in_files);
            Ok(ConfigView { status, files: files.to_vec(), toml, decisions })
        })
    }

    /// When [`super::Changes::due`] has something to do.
    pub fn wake_at(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.deadline).chain(self.look_at).min()
    }

    pub(super) fn previous(&self) -> Option<&Running> {
        self.pending.as_ref().map(|pending| &pending.previous)
    }

    pub(super) fn settled<D: Dataplane>(&self, engine: &Engine<D>, what: &str, dry_run: bool) -> Settled {
        let (source, revision) = (self.running.source.clone(), self.revision(engine));
        Settled { what: what.to_owned(), dry_run, source, revision }
    }

    /// The files stay, what operators decided over them changed.
    pub(super) fn take_files(&mut self, effective: &Effective) {
        self.running.in_files = Arc::clone(&effective.in_files);
    }

    /// Returns until when it has to be confirmed.
    pub(super) fn take_over(
        &mut self,
        effective: &Effective,
        by: &str,
        confirm_seconds: Option<u64>,
    ) -> Option<String> {
        let new = Running::now(effective, by, None);
        let previous = std::mem::replace(&mut self.running, new);
        self.pending = confirm_seconds.map(|seconds| Pending {
            deadline: Instant::now() + Duration::from_secs(seconds),
            shown: Unconfirmed {
                by: by.to_owned(),
                at: timestamp(),
                until: timestamp_after(seconds),
                previous: previous.source.clone(),
            },
            previous,
        });
        self.unconfirmed().map(|shown| shown.until.clone())
    }

    pub(super) fn confirmed(&mut self) {
        self.pending = None;
    }

    pub(super) fn rolled_back(&mut self, effective: &Effective) {
        if let Some(pending) = self.pending.take() {
            self.running = pending.previous;
            self.take_files(effective);
        }
    }

    pub(super) fn rollback_due(&mut self, now: Instant) -> bool {
        let Some(pending) = self.pending.as_mut().filter(|pending| pending.deadline <= now) else { return false };
        // Once: the queue has it now.
        pending.deadline = now + LOOK_AGAIN;
        true
    }

    pub(super) fn roll_back_later(&mut self, pause: Duration) {
        if let Some(pending) = &mut self.pending {
            pending.deadline = pending.deadline.min(Instant::now() + pause);
        }
    }

    pub(super) fn end_due(&mut self, now: Instant) -> bool {
        let due = self.look_at.is_some_and(|at| at <= now);
        if due {
            self.look_at = None;
        }
        due
    }

    pub(super) fn end_later(&mut self, pause: Duration) {
        self.look_at = Some(Instant::now() + pause);
    }

    /// Sets the timer for the decision of `layer` that ends next.
    pub(super) fn follow_ends(&mut self, layer: &OperatorLayer) {
        let ends = layer.next_end().and_then(|end| humantime::parse_rfc3339(end).ok());
        self.look_at = ends.map(|end| {
            let left = end.duration_since(SystemTime::now()).unwrap_or_default();
            Instant::now() + left.clamp(LOOK_LATER, LOOK_AGAIN)
        });
    }
}
