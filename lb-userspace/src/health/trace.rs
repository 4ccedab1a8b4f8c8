//! Where a probe is, and where its time went.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::core::{Certificate, Phase};

/// Follows one probe. Kept outside of the probe's future, so that it can tell where that was when
/// time ran out.
#[derive(Debug)]
pub struct Trace {
    phase: Phase,
    since: Instant,
    over: Vec<(Phase, Duration)>,
    stamps: Arc<Stamps>,
    pub certificate: Option<Certificate>,
}

impl Trace {
    pub fn begin(phase: Phase) -> Self {
        Self { phase, since: Instant::now(), over: Vec::new(), stamps: Arc::default(), certificate: None }
    }

    /// The phase so far is over, the next one begins.
    pub fn enter(&mut self, next: Phase) {
        self.enter_at(next, Instant::now());
    }

    /// Begins an exchange of question and answer on a stream with these stamps: they tell when the
    /// one was sent and the other began.
    pub fn exchange(&mut self, stamps: &Arc<Stamps>) {
        self.enter(Phase::Send);
        stamps.reset();
        self.stamps = Arc::clone(stamps);
    }

    /// The first part of the answer is there.
    pub fn answered(&mut self) {
        self.follow_stamps();
    }

    /// The phase it is in.
    pub fn phase(&mut self) -> Phase {
        self.follow_stamps();
        self.phase
    }

    /// Everything, the phase it was in included.
    pub fn finish(mut self) -> (Vec<(Phase, Duration)>, Option<Certificate>) {
        self.follow_stamps();
        self.over.push((self.phase, self.since.elapsed()));
        (self.over, self.certificate)
    }

    fn follow_stamps(&mut self) {
        let (sent, first) = self.stamps.read();
        if let (Phase::Send, Some(sent)) = (self.phase, sent) {
            self.enter_at(Phase::FirstByte, sent);
        }
        if let (Phase::FirstByte, Some(first)) = (self.phase, first) {
            self.enter_at(Phase::Body, first);
        }
    }

    fn enter_at(&mut self, next: Phase, at: Instant) {
        self.over.push((self.phase, at.saturating_duration_since(self.since)));
        self.phase = next;
        self.since = at.max(self.since);
    }
}

/// When a stream was last written to before its first answer, and when that came.
#[derive(Debug, Default)]
pub struct Stamps(Mutex<(Option<Instant>, Option<Instant>)>);

impl Stamps {
    pub fn written(&self) {
        let mut stamps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if stamps.1.is_none() {
            stamps.0 = Some(Instant::now());
        }
    }

    pub fn read_some(&self) {
        let mut stamps = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stamps.1.get_or_insert_with(Instant::now);
    }

    fn reset(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (None, None);
    }

    fn read(&self) -> (Option<Instant>, Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
