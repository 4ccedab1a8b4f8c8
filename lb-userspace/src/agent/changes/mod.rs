//! Everything that changes what runs, one after the other: commands of operators, another
//! configuration, what a timer ends. Each is planned on what the one before left, and goes one way:
//!
//! ```text
//! asked -> worked out (read, checked, tried on a copy) -> host prepared -> stored on disk -> in effect -> answered
//! ```
//!
//! Commands need neither work nor a host; once the disk has room for what they leave there they are put into
//! effect while it is written: the maps do not wait for the disk, whoever asked does. Where it fails then, the
//! command is taken back and refused, so that what runs is what an agent that starts would find.
//!
//! A change that fails on its way changes nothing that lasts. Nothing here waits: reading, checking and storing
//! are done by other threads, and come back as a [`Finding`].

mod answers;
mod command;
mod state;
mod store;
mod task;
mod work;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::http::StatusCode;
use tokio::{sync::mpsc, time::Instant};

pub use self::{
    state::{Running, State},
    store::Stored,
    task::{Author, Job},
    work::Candidate,
};
use self::{
    store::Store,
    work::{ServiceEdit, Texts, Work},
};
use super::{
    effective::OwnFile,
    engine::Engine,
    last_good::{Copy, Keeper},
    layer::LayerFile,
    reload,
    run_loop::Finding,
    state_file::StateError,
};
use crate::{
    api::{Refusal, Task, WriteOptions},
    config::Config,
    core::OperatorLayer,
    dataplane::Dataplane,
};

/// Longest time that a change may wait to be confirmed.
const CONFIRM_MAX: u64 = 24 * 3600;
/// Before a rollback that failed is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Where changes are read from and kept.
#[derive(Clone, Debug)]
pub struct Places {
    pub own: OwnFile,
    pub layer: LayerFile,
    pub keeper: Keeper,
}

/// What the loop has to do next for the change that is under way.
#[derive(Debug)]
pub enum Step {
    /// Make the host ready for this; told to [`Changes::prepared`].
    Prepare(Arc<Config>),
    /// Put this into effect, then call [`Changes::in_effect`].
    Effect(Effect),
}

/// Decided and stored.
#[derive(Debug)]
pub struct Effect {
    pub config: Option<Arc<Config>>,
    pub layer: Option<OperatorLayer>,
}

#[derive(Debug)]
pub struct Changes {
    places: Places,
    findings: mpsc::Sender<Finding>,
    pub state: State,
    waiting: VecDeque<Job>,
    under_way: Option<UnderWay>,
}

/// The change that is under way.
#[derive(Debug)]
struct UnderWay {
    job: Job,
    /// A new configuration, once it is worked out.
    candidate: Option<Box<Candidate>>,
    /// A new layer, of a command.
    layer: Option<OperatorLayer>,
    /// It is in effect, and the disk has still to answer: the layer before.
    ahead: Option<OperatorLayer>,
    /// It is being taken back: why.
    refusal: Option<Refusal>,
}

impl UnderWay {
    fn new(job: Job, layer: Option<OperatorLayer>) -> Self {
        Self { job, candidate: None, layer, ahead: None, refusal: None }
    }
}

impl Changes {
    /// `running` is what the agent started with. What is found out goes to `findings`.
    pub fn new(places: Places, running: Running, findings: mpsc::Sender<Finding>) -> Self {
        Self { places, findings, state: State::new(running), waiting: VecDeque::new(), under_way: None }
    }

    /// One more change; it waits for its turn.
    pub fn ask<D: Dataplane>(&mut self, engine: &mut Engine<D>, job: Job) -> Option<Step> {
        self.waiting.push_back(job);
        self.next(engine)
    }

    /// Asks for what a timer is for, if one has come to its end.
    pub fn due<D: Dataplane>(&mut self, engine: &mut Engine<D>) -> Option<Step> {
        let now = Instant::now();
        let task = if self.state.rollback_due(now) {
            Task::RollBack { reply: None }
        } else if self.state.end_due(now) {
            Task::Expire
        } else {
            return None;
        };
        let options = WriteOptions::default();
        self.ask(engine, Job { task, author: Author::Timer, options })
    }

    /// A candidate was worked out, or why there is none.
    pub fn worked<D: Dataplane>(
        &mut self,
        engine: &mut Engine<D>,
        result: Result<Box<Candidate>, Refusal>,
    ) -> Option<Step> {
        let job = &self.under_way.as_ref()?.job;
        let judged = result.and_then(|candidate| self.judge(engine, job, candidate));
        match judged {
            Ok(Judged::Go(candidate)) => {
                let config = Arc::clone(&candidate.effective.config);
                self.under_way.as_mut()?.candidate = Some(candidate);
                Some(Step::Prepare(config))
            }
            Ok(Judged::Answer(candidate, needs_restart)) => {
                let job = self.under_way.take()?.job;
                self.answer_dry_run(engine, job, *candidate, needs_restart);
                self.next(engine)
            }
            Err(refusal) => self.fail(engine, refusal),
        }
    }

    /// The host is ready for a configuration, or cannot be made so.
    pub fn prepared<D: Dataplane>(
        &mut self,
        engine: &mut Engine<D>,
        config: &Arc<Config>,
        result: Result<(), String>,
    ) -> Option<Step> {
        let candidate = self.under_way.as_ref()?.candidate.as_ref()?;
        if !Arc::ptr_eq(&candidate.effective.config, config) {
            return None;
        }
        match result {
            Ok(()) => {
                self.store();
                None
            }
            Err(error) => {
                let refusal = Refusal::new(
                    StatusCode::CONFLICT,
                    self.under_way.as_ref()?.job.not_done(),
                    error,
                    "mend that on the host, then try again",
                );
                self.fail(engine, refusal)
            }
        }
    }

    /// It is on disk, or not.
    pub fn stored<D: Dataplane>(&mut self, engine: &mut Engine<D>, stored: Stored) -> Option<Step> {
        let under_way = self.under_way.as_mut()?;
        match stored {
            Stored::Begun => under_way.ahead = Some(engine.layer().clone()),
            Stored::Done(Ok(())) if under_way.ahead.take().is_some() => return self.in_effect(engine),
            Stored::Done(Ok(())) => {}
            Stored::Done(Err(error)) => return self.not_stored(engine, &error),
        }
        let under_way = self.under_way.as_ref()?;
        let candidate = under_way.candidate.as_ref();
        let config = candidate.map(|candidate| Arc::clone(&candidate.effective.config));
        let layer = candidate.map_or_else(|| under_way.layer.clone(), |candidate| Some(candidate.layer.clone()));
        if matches!(under_way.job.task, Task::Command { .. }) {
            command::note_before(engine, &under_way.job, &mut self.state);
        }
        Some(Step::Effect(Effect { config, layer }))
    }

    fn not_stored<D: Dataplane>(&mut self, engine: &mut Engine<D>, error: &StateError) -> Option<Step> {
        let under_way = self.under_way.as_mut()?;
        let ahead = under_way.ahead.take();
        let taken_back = if ahead.is_some() { "; it was in effect for a moment, and is taken back" } else { "" };
        tracing::error!(%error, "a change was refused: it could not be stored{taken_back}");
        let refusal = Refusal::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            under_way.job.not_done(),
            format!("it could not be stored: {error}{taken_back}"),
            "make room or mend the state directory, then try again",
        );
        if ahead.is_none() {
            return self.fail(engine, refusal);
        }
        under_way.refusal = Some(refusal);
        Some(Step::Effect(Effect { config: None, layer: ahead }))
    }

    /// The loop has put it into effect, or taken it back: answer where the disk has it, and go on with the next.
    pub fn in_effect<D: Dataplane>(&mut self, engine: &mut Engine<D>) -> Option<Step> {
        if self.under_way.as_ref()?.ahead.is_some() {
            return None;
        }
        if let Some(refusal) = self.under_way.as_mut()?.refusal.take() {
            return self.fail(engine, refusal);
        }
        let UnderWay { job, candidate, .. } = self.under_way.take()?;
        self.state.follow_ends(engine.layer());
        self.answer(engine, job, candidate);
        self.next(engine)
    }

    fn next<D: Dataplane>(&mut self, engine: &mut Engine<D>) -> Option<Step> {
        while self.under_way.is_none()
            && let Some(job) = self.waiting.pop_front()
        {
            let begun = self.admit(engine, &job).and_then(|()| self.begin(engine, &job));
            match begun {
                Ok(Begun::Work(work)) => {
                    self.under_way = Some(UnderWay::new(job, None));
                    self.work(*work);
                }
                Ok(Begun::Store(layer)) => {
                    self.under_way = Some(UnderWay::new(job, layer));
                    self.store();
                }
                Ok(Begun::Nothing) => self.answer_nothing_done(engine, job),
                Err(refusal) => self.refused(engine, job, refusal),
            }
        }
        None
    }

    /// Whether the job may begin at all.
    fn admit<D: Dataplane>(&self, engine: &Engine<D>, job: &Job) -> Result<(), Refusal> {
        let revision = self.state.revision(engine);
        if let Some(expected) = job.options.revision.as_ref().filter(|expected| **expected != revision) {
            return Err(Refusal::new(
                StatusCode::CONFLICT,
                job.not_done(),
                format!(
                    "it was meant for revision {expected}, but the configuration is at {revision}: somebody else was first"
                ),
                "look at what runs now (lb config show, lb status), then repeat it with that revision",
            ));
        }
        let replaces = matches!(job.task, Task::Apply { .. } | Task::Reload) && !job.options.dry_run;
        match self.state.unconfirmed() {
            Some(pending) if replaces => Err(Refusal::new(
                StatusCode::CONFLICT,
                job.not_done(),
                format!("the last change, by {}, waits to be confirmed until {}", pending.by, pending.until),
                "lb config confirm, or: lb config rollback",
            )),
            None if matches!(job.task, Task::Confirm { .. } | Task::RollBack { reply: Some(_) }) => {
                let next = "lb status shows whether one does";
                Err(Refusal::new(StatusCode::CONFLICT, job.not_done(), "no change waits to be confirmed", next))
            }
            _ => Ok(()),
        }
    }

    /// What has to be done first.
    fn begin<D: Dataplane>(&self, engine: &Engine<D>, job: &Job) -> Result<Begun, Refusal> {
        let current =
            || Texts::Given { source: self.state.running.source.clone(), files: Arc::clone(&self.state.running.files) };
        let work = |texts, edit, tried: bool| {
            let core = tried.then(|| engine.copy_to_try());
            let (own, layer) = (self.places.own.clone(), engine.layer().clone());
            Ok(Begun::Work(Box::new(Work { texts, own, layer, edit, core })))
        };
        match &job.task {
            Task::Command { request, .. } => {
                let mark = task::mark(&job.author, request.reason.as_ref(), request.for_seconds);
                let layer = command::plan(engine, request, &mark)?;
                Ok(if job.options.dry_run { Begun::Nothing } else { Begun::Store(Some(layer)) })
            }
            Task::Service { name, request, .. } => {
                let mark = task::mark(&job.author, request.reason.as_ref(), request.for_seconds);
                let view = engine.service(name);
                let serves = view.as_ref().is_some_and(|view| view.backends.iter().any(|b| b.effective.used));
                let edit =
                    ServiceEdit { name: name.clone(), request: request.clone(), mark, serves, exists: view.is_some() };
                work(current(), Some(edit), true)
            }
            Task::Apply { request, .. } => {
                if request.confirm_seconds.is_some_and(|seconds| !(1..=CONFIRM_MAX).contains(&seconds)) {
                    let why = format!("a change can wait for 1 to {CONFIRM_MAX} seconds to be confirmed");
                    return Err(Refusal::new(
                        StatusCode::UNPROCESSABLE_ENTITY,
                        job.not_done(),
                        why,
                        "lb config apply --help",
                    ));
                }
                let texts = match &request.files {
                    None => Texts::Own,
                    Some(files) => Texts::Given {
                        source: request.source.clone().unwrap_or_else(|| "what was sent".to_owned()),
                        files: Arc::new(files.clone()),
                    },
                };
                work(texts, None, true)
            }
            Task::Reload => work(Texts::Own, None, false),
            Task::RollBack { .. } if job.options.dry_run => Ok(Begun::Nothing),
            Task::RollBack { .. } => match self.state.previous() {
                Some(previous) => {
                    let texts = Texts::Given { source: previous.source.clone(), files: Arc::clone(&previous.files) };
                    work(texts, None, false)
                }
                None => Ok(Begun::Nothing),
            },
            Task::Confirm { .. } if job.options.dry_run => Ok(Begun::Nothing),
            Task::Confirm { .. } => Ok(Begun::Store(None)),
            Task::Expire => match engine.layer().expired(&super::clock::timestamp()) {
                None => Ok(Begun::Nothing),
                Some((layer, _)) if !layer.same_services(engine.layer()) => {
                    let (own, core) = (self.places.own.clone(), None);
                    Ok(Begun::Work(Box::new(Work { texts: current(), own, layer, edit: None, core })))
                }
                Some((layer, _)) => Ok(Begun::Store(Some(layer))),
            },
        }
    }

    /// Whether a candidate may be taken over.
    fn judge<D: Dataplane>(&self, engine: &Engine<D>, job: &Job, candidate: Box<Candidate>) -> Result<Judged, Refusal> {
        let fixed = reload::fixed(engine.config(), &candidate.effective.config);
        if let Task::Apply { request, .. } = &job.task
            && let Some(budget) = request.max_reset
            && let Some(why) = answers::over_budget(&candidate.impact.flows, budget)
        {
            return Err(Refusal::new(StatusCode::CONFLICT, job.not_done(), why, "see which: lb config diff FILE"));
        }
        if job.options.dry_run {
            return Ok(Judged::Answer(candidate, fixed));
        }
        match reload::refuse(&fixed) {
            None => Ok(Judged::Go(candidate)),
            Some(why) => {
                let next = "lb config diff shows what else would change";
                Err(Refusal::new(StatusCode::CONFLICT, job.not_done(), why, next))
            }
        }
    }

    fn work(&self, work: Work) {
        let findings = self.findings.clone();
        tokio::task::spawn_blocking(move || {
            let result = work.run().map(Box::new);
            // The loop is gone only when the agent stops.
            drop(findings.blocking_send(Finding::Worked(result)));
        });
    }

    /// Writes to disk what the change under way is to leave there.
    fn store(&self) {
        let Some(under_way) = &self.under_way else { return };
        if let (Task::Command { .. }, Some(layer)) = (&under_way.job.task, &under_way.layer) {
            let file = self.places.layer.clone();
            return Store::begin_layer(file, layer.clone(), self.findings.clone());
        }
        let candidate = under_way.candidate.as_ref();
        let layer = candidate.map_or_else(|| under_way.layer.clone(), |candidate| Some(candidate.layer.clone()));
        let at = super::clock::timestamp();
        let by = under_way.job.author.name();
        let copy = |source: &str, files| Copy::new(source, &by, &at, files);
        let (mut good, mut unconfirmed) = (None, None);
        match (&under_way.job.task, candidate) {
            (Task::Apply { request, .. }, Some(candidate)) => {
                let copy = copy(&candidate.effective.source, &candidate.effective.files);
                if request.confirm_seconds.is_some() { unconfirmed = Some(copy) } else { good = Some(copy) }
            }
            (Task::Reload, Some(candidate)) => {
                good = Some(copy(&candidate.effective.source, &candidate.effective.files));
            }
            (Task::Confirm { .. }, _) => {
                let running = &self.state.running;
                good = Some(copy(&running.source, &running.files));
            }
            _ => {}
        }
        Store { places: self.places.clone(), layer, good, unconfirmed }.begin(self.findings.clone());
    }

    /// The change under way comes to nothing.
    fn fail<D: Dataplane>(&mut self, engine: &mut Engine<D>, refusal: Refusal) -> Option<Step> {
        let job = self.under_way.take()?.job;
        self.refused(engine, job, refusal);
        self.next(engine)
    }

    fn refused<D: Dataplane>(&mut self, engine: &mut Engine<D>, job: Job, refusal: Refusal) {
        if job.is_of_configuration() {
            engine.configuration_refused(refusal.why.clone());
        }
        match job.task {
            Task::RollBack { .. } => self.state.roll_back_later(AGAIN),
            Task::Expire => self.state.end_later(AGAIN),
            _ => {}
        }
        job.refuse(refusal);
    }
}

/// What a job begins with.
enum Begun {
    Work(Box<Work>),
    /// Straight to the disk, with a new layer or without.
    Store(Option<OperatorLayer>),
    Nothing,
}

/// What is to become of a candidate.
enum Judged {
    Go(Box<Candidate>),
    /// Only told, with the settings that need a restart.
    Answer(Box<Candidate>, Vec<&'static str>),
}
