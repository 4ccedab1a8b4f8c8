//! What an operator decides about backends.

use std::net::SocketAddr;

use super::{
    Exit, Failure,
    args::{BackendCommand, Decision, Global, Target},
    drain,
    output::Printer,
    reads, render,
    writes::{seconds, write},
};
use crate::api::model::{Change, CommandDone, CommandRequest};

/// `lb backend ...`: the list, or one change.
pub fn backend(global: &Global, printer: &Printer, command: BackendCommand) -> Result<Exit, Failure> {
    let mut drain = None;
    let (target, change) = match command {
        BackendCommand::List { service, watch } => {
            return reads::backend_list(global, printer, service.as_deref(), watch);
        }
        BackendCommand::Add { target, weight, tier } => (target, Change::Add { weight, tier }),
        BackendCommand::Remove(target) => (target, Change::Remove),
        BackendCommand::Drain { target, timeout, wait } => {
            drain = Some((timeout, wait));
            (target, Change::Drain)
        }
        BackendCommand::Ready(target) => (target, Change::Ready),
        BackendCommand::Maintenance(target) => (target, Change::Maintenance),
        BackendCommand::Weight { target, weight } => (target, Change::Weight { weight }),
    };
    let Target { service, mut addresses, force, decision: Decision { reason, lasts }, write: options } = target;
    let address = addresses.remove(0);
    let for_seconds = seconds(lasts);
    let drain_seconds = seconds(drain.and_then(|(timeout, _)| timeout));
    let waits = drain.is_some_and(|(_, wait)| wait) && !options.dry_run;
    let drained: Vec<SocketAddr> = std::iter::once(address).chain(addresses.iter().copied()).collect();
    let request = CommandRequest {
        service: service.clone(),
        address,
        addresses,
        change,
        force,
        reason,
        for_seconds,
        drain_seconds,
    };
    let done: CommandDone = write(global, "/v1/commands", &options, &request)?;
    if waits {
        return drain::wait(global, printer, done, &service, &drained, drain_seconds);
    }
    printer.print(done, render::command_done)?;
    Ok(Exit::Done)
}
