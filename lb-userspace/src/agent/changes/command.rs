//! What an operator asks for about backends and services, in the words of the core, and what came of
//! it, in words for people.

use std::net::SocketAddr;

use axum::http::StatusCode;

use super::{
    state::State,
    task::{Author, Job},
};
use crate::{
    agent::{clock::timestamp_after, engine::Engine},
    api::{
        Refusal, Task,
        model::{
            BackendDone, BackendView, Change, CommandDone, CommandRequest, ImpactView, ServiceChange, ServiceRequest,
        },
    },
    core::{Command, CommandError, Mark, OperatorLayer},
    dataplane::Dataplane,
};

const DEFAULT_WEIGHT: u16 = 1;
const DEFAULT_TIER: u8 = 0;

/// The layer with what is asked for.
pub(super) fn plan<D: Dataplane>(
    engine: &Engine<D>,
    request: &CommandRequest,
    mark: &Mark,
) -> Result<OperatorLayer, Refusal> {
    if mark.until.is_some() && matches!(request.change, Change::Ready) {
        let why = "`ready` takes a decision back: there is nothing that could end";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, not_done(request), why, "leave out --for"));
    }
    if request.drain_seconds.is_some() && !matches!(request.change, Change::Drain) {
        let why = "only a drain has a time after which flows end";
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, not_done(request), why, "leave out --timeout"));
    }
    let mark = &Mark { drain_end: request.drain_seconds.map(timestamp_after), ..mark.clone() };
    let commands: Vec<Command> = request.backends().into_iter().map(|address| command_of(request, address)).collect();
    engine.plan_commands(&commands, mark, request.force).map_err(|error| refusal(request, &error))
}

/// Remembers how the backends of a command stand before it.
pub(super) fn note_before<D: Dataplane>(engine: &Engine<D>, job: &Job, state: &mut State) {
    if let Task::Command { request, .. } = &job.task {
        state.before = views(engine, request);
    }
}

/// What a command did; `state` knows how its backends stood before.
pub(super) fn done<D: Dataplane>(
    engine: &Engine<D>,
    request: &CommandRequest,
    author: Author,
    state: &mut State,
) -> CommandDone {
    let before = std::mem::take(&mut state.before);
    let after = views(engine, request);
    let mut all = Vec::new();
    for ((address, after), before) in request.backends().into_iter().zip(after).zip(before) {
        tracing::info!(
            target: "audit",
            user = author.name(),
            author = ?author,
            command = %command_of(request, address),
            force = request.force,
            reason = request.reason,
            for_seconds = request.for_seconds,
            before = in_short(before.as_ref()),
            after = in_short(after.as_ref()),
            "a change by an operator"
        );
        let text = outcome(request, before.as_ref(), after.as_ref());
        all.push(BackendDone { address, text, backend: after });
    }
    answer(request, all, engine.in_step(), false, state.revision(engine))
}

/// What a command would be about; nothing is done.
pub(super) fn would_be_done<D: Dataplane>(
    engine: &Engine<D>,
    request: &CommandRequest,
    revision: String,
) -> CommandDone {
    let told = request.backends().into_iter().zip(views(engine, request)).map(|(address, backend)| {
        let flows = flows_left(backend.as_ref());
        let text = format!("dry run: {}, {flows}", command_of(request, address));
        BackendDone { address, text, backend }
    });
    answer(request, told.collect(), engine.in_step(), true, revision)
}

/// What happens to a service.
pub(super) fn service_text(name: &str, request: &ServiceRequest, impact: &ImpactView) -> String {
    let flows = impact.services.iter().find(|service| service.name == name).map(|service| service.flows);
    let flows = flows.unwrap_or_default();
    match &request.change {
        ServiceChange::Add { toml: Some(_) } => "is added".to_owned(),
        ServiceChange::Add { toml: None } => "is back".to_owned(),
        ServiceChange::Remove => {
            format!("is removed: {}", counted(flows.drained + flows.kept + flows.rehomed + flows.reset))
        }
    }
}

fn answer(
    request: &CommandRequest,
    mut all: Vec<BackendDone>,
    published: bool,
    dry_run: bool,
    revision: String,
) -> CommandDone {
    let others = all.split_off(all.len().min(1));
    let first = all.pop();
    let (text, backend) = first.map_or_else(Default::default, |first| (first.text, first.backend));
    let (service, address) = (request.service.clone(), request.address);
    CommandDone { service, address, text, backend, others, published, dry_run, revision }
}

/// The backends that a request is about, as they stand now.
fn views<D: Dataplane>(engine: &Engine<D>, request: &CommandRequest) -> Vec<Option<BackendView>> {
    engine.backends(&request.service, &request.backends())
}

/// The same in the core's words.
fn command_of(request: &CommandRequest, address: SocketAddr) -> Command {
    let service = request.service.clone();
    match request.change {
        Change::Add { weight, tier } => Command::Add {
            service,
            address,
            weight: weight.unwrap_or(DEFAULT_WEIGHT),
            tier: tier.unwrap_or(DEFAULT_TIER),
        },
        Change::Remove => Command::Remove { service, address },
        Change::Drain => Command::Drain { service, address },
        Change::Ready => Command::Ready { service, address },
        Change::Maintenance => Command::Maintenance { service, address },
        Change::Weight { weight } => Command::Weight { service, address, weight },
    }
}

/// What happens now: `drains: 312 flows left`.
fn outcome(request: &CommandRequest, before: Option<&BackendView>, after: Option<&BackendView>) -> String {
    let left = flows_left(after);
    let effective = after.map_or_else(String::new, |backend| {
        let used = if backend.effective.used { "used" } else { "not used yet" };
        format!("{used} ({})", backend.effective.reason)
    });
    match request.change {
        Change::Add { .. } => format!("is added: {effective}"),
        Change::Remove => format!("is removed: {left}"),
        Change::Drain => match request.drain_seconds {
            Some(seconds) => format!("drains for at most {seconds} s: {left}"),
            None => format!("drains: {left}"),
        },
        Change::Maintenance => format!("is in maintenance, no longer probed: {left}"),
        Change::Ready => format!("is ready: {effective}"),
        Change::Weight { weight } => match before {
            Some(before) => format!("has weight {weight}, had {}: {effective}", before.weight),
            None => format!("has weight {weight}: {effective}"),
        },
    }
}

/// A backend in short, for the audit log.
fn in_short(backend: Option<&BackendView>) -> String {
    backend.map_or_else(
        || "absent".to_owned(),
        |b| {
            let leaving = if b.leaving { ", leaving" } else { "" };
            format!("{}, weight {}, tier {}{leaving}", b.admin.state, b.weight, b.tier)
        },
    )
}

/// `not done: drain web 10.0.0.11:8080`.
pub(super) fn not_done(request: &CommandRequest) -> String {
    let others = match request.backends().len() {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    format!("not done: {}{others}", command_of(request, request.address))
}

/// The core's no, with what to type next.
fn refusal(request: &CommandRequest, error: &CommandError) -> Refusal {
    let (status, next) = match error {
        CommandError::UnknownService { .. } => (StatusCode::NOT_FOUND, "lb service list".to_owned()),
        CommandError::UnknownBackend { .. } => (StatusCode::NOT_FOUND, format!("lb backend list {}", request.service)),
        _ => (StatusCode::CONFLICT, format!("lb backend list {}", request.service)),
    };
    Refusal::new(status, not_done(request), error.to_string(), next)
}

fn flows_left(backend: Option<&BackendView>) -> String {
    counted(backend.map_or(0, |backend| backend.live_flows))
}

fn counted(flows: u64) -> String {
    match flows {
        0 => "no flows left".to_owned(),
        1 => "1 flow left".to_owned(),
        n => format!("{n} flows left"),
    }
}
