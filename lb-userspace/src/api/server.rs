//! The routes.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, Path, Query, Request as HttpRequest, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{Method, StatusCode, Uri},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    ApiSocket, Handle, Peer, Refusal, Request,
    connections::accept,
    model::{BackendList, CommandDone, CommandRequest, Document, ServiceList, ServiceView, Status, Stopping},
};

/// Bytes of a request body.
const BODY_BYTES: usize = 64 * 1024;
/// Time to answer a request, body included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers on `socket` until `stop`, then removes it.
pub async fn serve(socket: ApiSocket, handle: Handle, stop: CancellationToken) {
    let own_uid = rustix::process::geteuid().as_raw();
    accept(&socket.listener, routes(Api { handle, own_uid }), stop).await;
}

#[derive(Clone)]
struct Api {
    handle: Handle,
    own_uid: u32,
}

type Answer<T> = Result<Json<Document<T>>, Refusal>;

fn routes(api: Api) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services", get(services))
        .route("/v1/services/{name}", get(service))
        .route("/v1/backends", get(backends))
        .route("/v1/commands", post(command))
        .route("/v1/stop", post(stop_agent))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn(in_time))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(api)
}

async fn status(State(api): State<Api>) -> Answer<Status> {
    document(api.handle.ask(Request::Status).await?)
}

async fn services(State(api): State<Api>) -> Answer<ServiceList> {
    document(ServiceList { services: api.handle.ask(Request::Services).await? })
}

async fn service(State(api): State<Api>, Path(name): Path<String>) -> Answer<ServiceView> {
    let services = api.handle.ask(Request::Services).await?;
    document(find(services, &name)?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BackendQuery {
    service: Option<String>,
}

async fn backends(State(api): State<Api>, query: Result<Query<BackendQuery>, QueryRejection>) -> Answer<BackendList> {
    let Query(BackendQuery { service }) = query.map_err(|e| unreadable(e.status(), &e.body_text()))?;
    let services = api.handle.ask(Request::Services).await?;
    let chosen = match service {
        Some(name) => vec![find(services, &name)?],
        None => services,
    };
    document(BackendList { backends: chosen.into_iter().flat_map(|service| service.backends).collect() })
}

async fn command(
    State(api): State<Api>,
    Extension(peer): Extension<Peer>,
    body: Result<Json<CommandRequest>, JsonRejection>,
) -> Answer<CommandDone> {
    allowed(peer, &api)?;
    let Json(request) = body.map_err(|e| unreadable(e.status(), &e.body_text()))?;
    document(api.handle.ask(|reply| Request::Command { request, peer, reply }).await??)
}

async fn stop_agent(State(api): State<Api>, Extension(peer): Extension<Peer>) -> Answer<Stopping> {
    allowed(peer, &api)?;
    document(api.handle.ask(|reply| Request::Stop { peer, reply }).await?)
}

fn document<T: super::model::Kind>(body: T) -> Answer<T> {
    Ok(Json(Document::new(body)))
}

fn find(services: Vec<ServiceView>, name: &str) -> Result<ServiceView, Refusal> {
    let mut names: Vec<String> = services.iter().map(|service| service.name.clone()).collect();
    services.into_iter().find(|service| service.name == name).ok_or_else(|| {
        names.sort();
        let known =
            if names.is_empty() { "there is none".to_owned() } else { format!("there are: {}", names.join(", ")) };
        Refusal::new(StatusCode::NOT_FOUND, format!("no service is named `{name}`"), known, "lb service list")
    })
}

fn allowed(peer: Peer, api: &Api) -> Result<(), Refusal> {
    if peer.may_write(api.own_uid) {
        return Ok(());
    }
    tracing::warn!(target: "audit", uid = peer.uid, pid = peer.pid, "a change was refused: not root");
    Err(Refusal::new(
        StatusCode::FORBIDDEN,
        "changes are not allowed for this user",
        format!("uid {} asked; only root and uid {} may change things", peer.uid, api.own_uid),
        "repeat it with sudo",
    ))
}

fn unreadable(status: StatusCode, why: &str) -> Refusal {
    Refusal::new(status, "the request cannot be read", why, "use an `lb` of the agent's version")
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
