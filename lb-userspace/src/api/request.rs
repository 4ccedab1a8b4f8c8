//! What the API asks of the agent's loop, which alone knows the state and alone changes it.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use tokio::sync::{mpsc, oneshot};

use super::{
    Peer,
    model::{CommandDone, CommandRequest, ErrorView, ServiceView, Status, Stopping},
};

/// One question to the loop, with the place for its answer.
#[derive(Debug)]
pub enum Request {
    Status(oneshot::Sender<Status>),
    Services(oneshot::Sender<Vec<ServiceView>>),
    Command { request: CommandRequest, peer: Peer, reply: oneshot::Sender<Result<CommandDone, Refusal>> },
    Stop { peer: Peer, reply: oneshot::Sender<Stopping> },
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub status: StatusCode,
    pub what: String,
    pub why: String,
    pub next: String,
}

impl Refusal {
    pub fn new(status: StatusCode, what: impl Into<String>, why: impl Into<String>, next: impl Into<String>) -> Self {
        Self { status, what: what.into(), why: why.into(), next: next.into() }
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
        let Self { status, what, why, next } = self;
        (status, Json(super::model::Document::new(ErrorView { code: 1, what, why, next }))).into_response()
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
