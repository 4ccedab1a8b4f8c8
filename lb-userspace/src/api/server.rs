//! Serving the operations.

use std::time::Duration;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request as HttpRequest},
    http::{Method, StatusCode, Uri},
    middleware::{self, Next},
    response::Response,
};
use tokio_util::sync::CancellationToken;

use super::{ApiSocket, Handle, Refusal, connections::accept, operations::OPERATIONS};

/// Bytes of a request body; where a configuration is sent, of that and its wrapping.
const BODY_BYTES: usize = 64 * 1024;
/// Time to answer a request, body included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers on `socket` until `stop`, then removes it.
pub async fn serve(socket: ApiSocket, handle: Handle, stop: CancellationToken) {
    let own_uid = rustix::process::geteuid().as_raw();
    accept(&socket.listener, routes(Api { handle, own_uid }), stop).await;
}

/// What handlers work with.
#[derive(Clone)]
pub(super) struct Api {
    pub handle: Handle,
    pub own_uid: u32,
}

fn routes(api: Api) -> Router {
    let router = OPERATIONS.iter().fold(Router::new(), |router, operation| operation.route_on(router));
    router
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(in_time))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(api)
}

async fn no_route(uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at {}", uri.path()),
        "this agent does not have it",
        "use an `lb` of the agent's version",
    )
}

async fn no_method(method: Method, uri: Uri) -> Refusal {
    Refusal::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} cannot be asked with {method}", uri.path()),
        "reads are GET, changes are POST",
        "use an `lb` of the agent's version",
    )
}

async fn in_time(request: HttpRequest, next: Next) -> Result<Response, Refusal> {
    tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await.map_err(|_| {
        Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "the agent did not answer",
            format!("it was busy for {} s", ANSWER_TIMEOUT.as_secs()),
            "look at its log, then try again",
        )
    })
}
