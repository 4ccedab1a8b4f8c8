//! A change in the queue, and who wants it.

use crate::{
    agent::clock::{timestamp, timestamp_after},
    api::{Peer, Refusal, Task, WriteOptions},
    core::Mark,
};

/// Whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    Peer(Peer),
    /// SIGHUP.
    Signal,
    /// A file that changed.
    Watch,
    /// A time that was set.
    Timer,
}

impl Author {
    pub fn name(&self) -> String {
        match self {
            Self::Peer(peer) => peer.name(),
            Self::Signal => "SIGHUP".to_owned(),
            Self::Watch => "file watch".to_owned(),
            Self::Timer => "timer".to_owned(),
        }
    }
}

/// A task in the queue.
#[derive(Debug)]
pub struct Job {
    pub task: Task,
    pub author: Author,
    pub options: WriteOptions,
}

impl Job {
    /// `not done: drain web 10.0.0.11:8080`.
    pub fn not_done(&self) -> String {
        match &self.task {
            Task::Command { request, .. } => super::command::not_done(request),
            Task::Service { name, .. } => format!("not done: the change of service `{name}`"),
            Task::Apply { .. } | Task::Reload => "the configuration stays as it was".to_owned(),
            Task::Confirm { .. } => "nothing was confirmed".to_owned(),
            Task::RollBack { .. } => "nothing was rolled back".to_owned(),
            Task::Expire => "decisions that have ended stay for now".to_owned(),
        }
    }

    /// Whether a failure is one of the configuration, to be seen in the status until the next success.
    pub fn is_of_configuration(&self) -> bool {
        matches!(self.task, Task::Apply { .. } | Task::Reload | Task::RollBack { .. }) && !self.options.dry_run
    }

    /// Answers whoever waits, if anybody does.
    pub fn refuse(self, refusal: Refusal) {
        // Whoever asked may be gone.
        match self.task {
            Task::Command { reply, .. } => drop(reply.send(Err(refusal))),
            Task::Service { reply, .. } => drop(reply.send(Err(refusal))),
            Task::Apply { reply, .. } => drop(reply.send(Err(refusal))),
            Task::Confirm { reply } => drop(reply.send(Err(refusal))),
            Task::RollBack { reply } => drop(reply.map(|reply| reply.send(Err(refusal)))),
            Task::Reload | Task::Expire => {}
        }
    }
}

/// The mark of a decision made now, which ends after `for_seconds`.
pub fn mark(author: &Author, reason: Option<&String>, for_seconds: Option<u64>) -> Mark {
    let reason = reason.map(|reason| reason.trim().to_owned()).filter(|reason| !reason.is_empty());
    let until = for_seconds.map(timestamp_after);
    Mark { by: author.name(), at: timestamp(), reason, until, drain_end: None }
}
