//! What the API asks of the agent's loop, which alone knows the state and alone changes it.

use std::time::Duration;

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Peer,
    model::{
        Applied, ApplyRequest, CommandDone, CommandRequest, ConfigView, ErrorView, EventView, ServiceDone,
        ServiceFrozen, ServiceRequest, ServiceView, Settled, Status, Stopping,
    },
};

/// One question to the loop, with the place for its answer.
pub enum Request {
    Status(oneshot::Sender<Status>),
    Services(oneshot::Sender<Vec<ServiceView>>),
    Config(oneshot::Sender<PrintConfig>),
    Events(oneshot::Sender<Vec<EventView>>),
    /// Freezes a service for so long, or thaws it.
    Freeze {
        name: String,
        lasts: Option<Duration>,
        peer: Peer,
        options: WriteOptions,
        reply: Reply<ServiceFrozen>,
    },
    Change {
        task: Task,
        peer: Peer,
        options: WriteOptions,
    },
    Stop {
        peer: Peer,
        reply: oneshot::Sender<Stopping>,
    },
}

/// Prints the running configuration; takes long for a long one.
pub type PrintConfig = Box<dyn FnOnce() -> Result<ConfigView, String> + Send>;

/// The place for an answer.
pub type Reply<T> = oneshot::Sender<Result<T, Refusal>>;

/// One change of what runs, with the place for its answer where somebody waits for it.
#[derive(Debug)]
pub enum Task {
    /// Something about backends.
    Command { request: CommandRequest, reply: Reply<CommandDone> },
    /// A service more or less, beside those of the files.
    Service { name: String, request: ServiceRequest, reply: Reply<ServiceDone> },
    /// Another configuration.
    Apply { request: ApplyRequest, reply: Reply<Applied> },
    /// The agent's own file again.
    Reload,
    /// The last change stays.
    Confirm { reply: Reply<Settled> },
    /// The last change is taken back; without a reply, because nobody confirmed it.
    RollBack { reply: Option<Reply<Settled>> },
    /// Decisions that have ended go.
    Expire,
}

/// How a write is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Only say what would be.
    pub dry_run: bool,
    /// Only if the configuration is at this revision.
    pub revision: Option<String>,
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub status: StatusCode,
    pub what: String,
    pub why: String,
    pub next: String,
    /// Everything there is to say, on several lines.
    pub report: Option<String>,
}

impl Refusal {
    pub fn new(status: StatusCode, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { status, what: what.into(), why: why.into(), next: next.into(), report: None }
    }

    fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent does not answer",
            "it is stopping",
            "start it again: lb run --config FILE",
        )
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, what, why, next, report } = self;
        (status, Json(super::model::Document::new(ErrorView { code: 1, what, why, next, report }))).into_response()
    }
}

/// The API's end of the channel to the loop.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Request>);

impl Handle {
    pub fn new(requests: mpsc::Sender<Request>) -> Self {
        Self(requests)
    }

    pub(super) async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| Refusal::stopping())?;
        answer.await.map_err(|_| Refusal::stopping())
    }
}
