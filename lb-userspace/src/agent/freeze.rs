//! Freezing a service for a moment, and thawing it. Nothing of it is stored: it is over in a minute.

use std::time::Duration;

use axum::http::StatusCode;

use super::{changes::State, engine::Engine};
use crate::{
    api::{Peer, Refusal, WriteOptions, model::ServiceFrozen},
    core::FREEZE_MAX,
    dataplane::Dataplane,
};

/// `lasts`: for how long; `None` thaws.
///
/// # Errors
/// There is no such service, the time is too long, or somebody else was first.
pub(super) fn freeze<D: Dataplane>(
    engine: &mut Engine<D>,
    state: &State,
    name: String,
    lasts: Option<Duration>,
    peer: Peer,
    options: &WriteOptions,
) -> Result<ServiceFrozen, Refusal> {
    let verb = if lasts.is_some() { "freeze" } else { "thaw" };
    let refuse = |status, why: String, next: &str| {
        Err(Refusal::new(status, format!("not done: {verb} {name}"), why, next.to_owned()))
    };
    if engine.service(&name).is_none() {
        return refuse(StatusCode::NOT_FOUND, format!("there is no service `{name}`"), "lb service list");
    }
    if let Some(lasts) = lasts.filter(|lasts| *lasts > FREEZE_MAX) {
        let (asked, most) = (humantime::format_duration(lasts), humantime::format_duration(FREEZE_MAX));
        let why = format!("{asked} is too long: clients give up; at most {most}");
        return refuse(StatusCode::UNPROCESSABLE_ENTITY, why, "lb service freeze --help");
    }
    let revision = state.revision(engine);
    if let Some(expected) = options.revision.as_ref().filter(|expected| **expected != revision) {
        let why = format!("it was meant for revision {expected}, but the configuration is at {revision}");
        return refuse(StatusCode::CONFLICT, why, "lb status");
    }
    let text = match lasts {
        Some(lasts) => {
            let lasts = humantime::format_duration(lasts);
            format!("is frozen for at most {lasts}: new flows wait, others go on; lb service thaw {name}")
        }
        None => "is thawed: flows begin again".to_owned(),
    };
    if options.dry_run {
        let text = format!("dry run: {text}");
        return Ok(ServiceFrozen {
            service: name,
            text,
            frozen_millis: None,
            published: engine.in_step(),
            dry_run: true,
        });
    }
    tracing::info!(target: "audit", uid = peer.uid, user = peer.name(), service = name, "{text}");
    engine.freeze(name.clone(), lasts);
    let frozen_millis = engine.service(&name).and_then(|service| service.frozen_millis);
    Ok(ServiceFrozen { service: name, text, frozen_millis, published: engine.in_step(), dry_run: false })
}
