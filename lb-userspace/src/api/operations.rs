//! Every path of the API, with what it takes and answers. The routes come from here, and so does the
//! OpenAPI document.

use std::time::Duration;

use axum::{
    Extension, Json, Router,
    extract::{
        DefaultBodyLimit, FromRequestParts, Path, Query, State,
        rejection::{JsonRejection, QueryRejection},
    },
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::{
    Peer, Refusal, Request, Task, WriteOptions,
    model::{
        Applied, ApplyRequest, BackendList, CommandDone, CommandRequest, ConfigView, Document, EventList, EventView,
        FreezeRequest, Healthiness, Kind, Nothing, ServiceDone, ServiceFrozen, ServiceList, ServiceRequest,
        ServiceView, Settled, Status, Stopping,
    },
    openapi,
    server::Api,
};
use crate::config::TEXT_MAX;

type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// One path with one method.
pub(super) struct Operation {
    pub path: &'static str,
    pub summary: &'static str,
    /// Names of parameters in the query, with what they mean.
    pub query: &'static [(&'static str, &'static str)],
    /// What is sent; `None`: it is a read.
    pub body: Option<SchemaOf>,
    /// What is answered: its kind and its body; `None`: JSON of another kind.
    pub answer: Option<(&'static str, SchemaOf)>,
    route: fn() -> MethodRouter<Api>,
}

impl Operation {
    pub fn route_on(&self, router: Router<Api>) -> Router<Api> {
        router.route(self.path, (self.route)())
    }
}

const fn read<T: Kind + JsonSchema>(
    path: &'static str,
    summary: &'static str,
    route: fn() -> MethodRouter<Api>,
) -> Operation {
    Operation { path, summary, query: &[], body: None, answer: Some((T::KIND, of::<T>)), route }
}

const fn write<B: JsonSchema, T: Kind + JsonSchema>(
    path: &'static str,
    summary: &'static str,
    route: fn() -> MethodRouter<Api>,
) -> Operation {
    Operation { path, summary, query: &[], body: Some(of::<B>), answer: Some((T::KIND, of::<T>)), route }
}

fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

pub(super) const OPERATIONS: &[Operation] = &[
    read::<Status>("/v1/status", "The agent and the data path in one look.", || get(status)),
    read::<Healthiness>("/v1/health", "Whether everything is as it should be; 503 when it is not.", || get(health)),
    read::<ServiceList>("/v1/services", "All services with their backends.", || get(services)),
    read::<ServiceView>("/v1/services/{name}", "One service with its backends.", || get(service)),
    write::<ServiceRequest, ServiceDone>(
        "/v1/services/{name}",
        "Adds a service beside those of the file, or removes one.",
        || post(change_service),
    ),
    write::<FreezeRequest, ServiceFrozen>(
        "/v1/services/{name}/freeze",
        "No flow of the service begins for a moment, or flows begin again.",
        || post(freeze),
    ),
    Operation {
        query: &[("service", "Only failovers of this service.")],
        ..read::<EventList>("/v1/events", "Receipts of the last failovers, oldest first.", || get(events))
    },
    read::<EventView>("/v1/events/{id}", "The receipt of one failover.", || get(event)),
    Operation {
        query: &[("service", "Only backends of this service.")],
        ..read::<BackendList>("/v1/backends", "Backends of all services, or of one.", || get(backends))
    },
    write::<CommandRequest, CommandDone>(
        "/v1/commands",
        "Decides something about one or more backends of a service.",
        || post(command),
    ),
    read::<ConfigView>("/v1/config", "The running configuration, and what operators decided over it.", || get(config)),
    write::<ApplyRequest, Applied>(
        "/v1/config",
        "Takes a configuration over, or the agent's own file again; a dry run tells what it would do.",
        || post(apply).layer(DefaultBodyLimit::max(APPLY_BYTES)),
    ),
    write::<Nothing, Settled>("/v1/config/confirm", "The last change stays.", || post(confirm)),
    write::<Nothing, Settled>("/v1/config/rollback", "The last change is taken back at once.", || post(roll_back)),
    write::<Nothing, Stopping>("/v1/stop", "Ends the agent, not the traffic.", || post(stop_agent)),
    Operation {
        path: "/v1/openapi.json",
        summary: "This document.",
        query: &[],
        body: None,
        answer: None,
        route: || get(|| async { Json(openapi::document()) }),
    },
];

/// A configuration as JSON text is at most so much longer.
const APPLY_BYTES: usize = 2 * TEXT_MAX + (1 << 20);

type Answer<T> = Result<Json<Document<T>>, Refusal>;

async fn status(State(api): State<Api>) -> Answer<Status> {
    document(api.handle.ask(Request::Status).await?)
}

async fn health(State(api): State<Api>) -> Result<Response, Refusal> {
    let problems = api.handle.ask(Request::Status).await?.problems();
    let status = if problems.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = Healthiness { healthy: problems.is_empty(), problems };
    Ok((status, Json(Document::new(body))).into_response())
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

async fn config(State(api): State<Api>) -> Answer<ConfigView> {
    let print = api.handle.ask(Request::Config).await?;
    let printed = tokio::task::spawn_blocking(print).await.map_err(|e| e.to_string()).and_then(|printed| printed);
    document(printed.map_err(|why| {
        let what = "the configuration cannot be shown";
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, what, why, "look at the file itself")
    })?)
}

async fn command(
    State(api): State<Api>,
    writer: Writer,
    body: Result<Json<CommandRequest>, JsonRejection>,
) -> Answer<CommandDone> {
    let request = body_of(body)?;
    document(writer.change(&api, |reply| Task::Command { request, reply }).await?)
}

async fn change_service(
    State(api): State<Api>,
    Path(name): Path<String>,
    writer: Writer,
    body: Result<Json<ServiceRequest>, JsonRejection>,
) -> Answer<ServiceDone> {
    let request = body_of(body)?;
    document(writer.change(&api, |reply| Task::Service { name, request, reply }).await?)
}

async fn freeze(
    State(api): State<Api>,
    Path(name): Path<String>,
    writer: Writer,
    body: Result<Json<FreezeRequest>, JsonRejection>,
) -> Answer<ServiceFrozen> {
    let FreezeRequest { max_millis } = body_of(body)?;
    let Writer { peer, options } = writer;
    let lasts = (max_millis > 0).then(|| Duration::from_millis(max_millis));
    document(api.handle.ask(|reply| Request::Freeze { name, lasts, peer, options, reply }).await??)
}

async fn events(State(api): State<Api>, query: Result<Query<BackendQuery>, QueryRejection>) -> Answer<EventList> {
    let Query(BackendQuery { service }) = query.map_err(|e| unreadable(e.status(), &e.body_text()))?;
    let mut events = api.handle.ask(Request::Events).await?;
    if let Some(name) = service {
        events.retain(|event| event.service == name);
    }
    document(EventList { events })
}

async fn event(State(api): State<Api>, Path(id): Path<String>) -> Answer<EventView> {
    let events = api.handle.ask(Request::Events).await?;
    let (oldest, newest) = (events.first().map_or(0, |event| event.id), events.last().map_or(0, |event| event.id));
    let found = events.into_iter().find(|event| event.id.to_string() == id);
    document(found.ok_or_else(|| {
        let known = if newest == 0 { "there is none yet".to_owned() } else { format!("{oldest} to {newest} are kept") };
        Refusal::new(StatusCode::NOT_FOUND, format!("there is no failover with the number {id}"), known, "lb events")
    })?)
}

async fn apply(
    State(api): State<Api>,
    writer: Writer,
    body: Result<Json<ApplyRequest>, JsonRejection>,
) -> Answer<Applied> {
    let request = body_of(body)?;
    document(writer.change(&api, |reply| Task::Apply { request, reply }).await?)
}

async fn confirm(State(api): State<Api>, writer: Writer) -> Answer<Settled> {
    document(writer.change(&api, |reply| Task::Confirm { reply }).await?)
}

async fn roll_back(State(api): State<Api>, writer: Writer) -> Answer<Settled> {
    document(writer.change(&api, |reply| Task::RollBack { reply: Some(reply) }).await?)
}

async fn stop_agent(State(api): State<Api>, writer: Writer) -> Answer<Stopping> {
    let Writer { peer, options } = writer;
    if let Some(expected) = options.revision {
        let revision = api.handle.ask(Request::Status).await?.config.revision;
        if revision != expected {
            let why = format!("it was meant for revision {expected}, but the configuration is at {revision}");
            return Err(Refusal::new(StatusCode::CONFLICT, "the agent was not stopped", why, "lb status"));
        }
    }
    if options.dry_run {
        return document(Stopping { pid: std::process::id() });
    }
    document(api.handle.ask(|reply| Request::Stop { peer, reply }).await?)
}

fn document<T: Kind>(body: T) -> Answer<T> {
    Ok(Json(Document::new(body)))
}

fn body_of<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Refusal> {
    body.map(|Json(request)| request).map_err(|e| unreadable(e.status(), &e.body_text()))
}

/// Somebody who may write, and how the write is meant.
struct Writer {
    peer: Peer,
    options: WriteOptions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteQuery {
    #[serde(default)]
    dry_run: bool,
    revision: Option<String>,
}

impl Writer {
    async fn change<T>(
        self,
        api: &Api,
        task: impl FnOnce(tokio::sync::oneshot::Sender<Result<T, Refusal>>) -> Task,
    ) -> Result<T, Refusal> {
        let Self { peer, options } = self;
        api.handle.ask(|reply| Request::Change { task: task(reply), peer, options }).await?
    }
}

/// Looked at before the body: whoever may not write is not listened to.
impl FromRequestParts<Api> for Writer {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, Refusal> {
        let Extension(peer) = Extension::<Peer>::from_request_parts(parts, api)
            .await
            .map_err(|e| unreadable(StatusCode::INTERNAL_SERVER_ERROR, &e.body_text()))?;
        allowed(peer, api)?;
        let Query(WriteQuery { dry_run, revision }) = Query::from_request_parts(parts, api)
            .await
            .map_err(|e: QueryRejection| unreadable(e.status(), &e.body_text()))?;
        let header = parts.headers.get(header::IF_MATCH).map(|value| value.to_str().map(str::to_owned));
        let header = header.transpose().map_err(|e| unreadable(StatusCode::BAD_REQUEST, &e.to_string()))?;
        // An entity tag stands in quotes; `*` matches everything.
        let header = header.map(|tag| tag.trim().trim_matches('"').to_owned()).filter(|tag| tag != "*");
        Ok(Self { peer, options: WriteOptions { dry_run, revision: revision.or(header) } })
    }
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
