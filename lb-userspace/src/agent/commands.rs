//! What an operator asks for, in the words of the core, and what came of it, in words for people.

use axum::http::StatusCode;

use crate::{
    api::{
        Refusal,
        model::{BackendView, Change, CommandRequest, ServiceView},
    },
    core::{Command, CommandError},
};

const DEFAULT_WEIGHT: u16 = 1;
const DEFAULT_TIER: u8 = 0;

/// The same in the core's words.
pub fn command_of(request: &CommandRequest) -> Command {
    let (service, address) = (request.service.clone(), request.address);
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

/// The backend a request is about, as it stands now.
pub fn backend_of(services: &[ServiceView], request: &CommandRequest) -> Option<BackendView> {
    let service = services.iter().find(|service| service.name == request.service)?;
    service.backends.iter().find(|backend| backend.address == request.address).cloned()
}

/// What happens now: `drains: 312 flows left`.
pub fn outcome(request: &CommandRequest, before: Option<&BackendView>, after: Option<&BackendView>) -> String {
    let left = match after.map_or(0, |backend| backend.live_flows) {
        0 => "no flows left".to_owned(),
        1 => "1 flow left".to_owned(),
        n => format!("{n} flows left"),
    };
    let effective = after.map_or_else(String::new, |backend| {
        let used = if backend.effective.used { "used" } else { "not used yet" };
        format!("{used} ({})", backend.effective.reason)
    });
    match request.change {
        Change::Add { .. } => format!("is added: {effective}"),
        Change::Remove => format!("is removed: {left}"),
        Change::Drain => format!("drains: {left}"),
        Change::Maintenance => format!("is in maintenance, no longer probed: {left}"),
        Change::Ready => format!("is ready: {effective}"),
        Change::Weight { weight } => match before {
            Some(before) => format!("has weight {weight}, had {}: {effective}", before.weight),
            None => format!("has weight {weight}: {effective}"),
        },
    }
}

/// A backend in short, for the audit log.
pub fn in_short(backend: Option<&BackendView>) -> String {
    backend.map_or_else(
        || "absent".to_owned(),
        |b| {
            let leaving = if b.leaving { ", leaving" } else { "" };
            format!("{}, weight {}, tier {}{leaving}", b.admin.state, b.weight, b.tier)
        },
    )
}

/// `not done: drain web 10.0.0.11:8080`.
pub fn not_done(request: &CommandRequest) -> String {
    format!("not done: {}", command_of(request))
}

/// The core's no, with what to type next.
pub fn refusal(request: &CommandRequest, error: &CommandError) -> Refusal {
    let (status, next) = match error {
        CommandError::UnknownService { .. } => (StatusCode::NOT_FOUND, "lb service list".to_owned()),
        CommandError::UnknownBackend { .. } => (StatusCode::NOT_FOUND, format!("lb backend list {}", request.service)),
        _ => (StatusCode::CONFLICT, format!("lb backend list {}", request.service)),
    };
    Refusal::new(status, not_done(request), error.to_string(), next)
}
