//! Receipts of failovers.

use super::{
    Exit, Failure,
    args::{EventsArgs, EventsCommand, Global},
    output::Printer,
    reads::get,
    render,
};
use crate::api::model::{EventList, EventView};

/// `lb events`: the list, or one of them.
pub fn events(global: &Global, printer: &Printer, arguments: EventsArgs) -> Result<Exit, Failure> {
    let EventsArgs { command, service, limit, watch } = arguments;
    if let Some(EventsCommand::Show { id, watch }) = command {
        let path = format!("/v1/events/{id}");
        return printer.watched(watch, || get::<EventView>(global, &path), render::event);
    }
    let path = match service {
        Some(name) => format!("/v1/events?service={name}"),
        None => "/v1/events".to_owned(),
    };
    let read = || {
        let mut list = get::<EventList>(global, &path)?;
        list.events.drain(..list.events.len().saturating_sub(limit));
        Ok(list)
    };
    printer.watched(watch, read, render::events)
}
