//! What an operator decides about a backend.

use super::{
    Exit, Failure,
    args::{BackendCommand, Global, Target},
    output::Printer,
    reads::{self, block_on},
    render,
};
use crate::api::{
    client,
    model::{Change, CommandDone, CommandRequest},
};

/// `lb backend ...`: the list, or one change.
pub fn backend(global: &Global, printer: &Printer, command: BackendCommand) -> Result<Exit, Failure> {
    let (target, change) = match command {
        BackendCommand::List { service, watch } => {
            return reads::backend_list(global, printer, service.as_deref(), watch);
        }
        BackendCommand::Add { target, weight, tier } => (target, Change::Add { weight, tier }),
        BackendCommand::Remove(target) => (target, Change::Remove),
        BackendCommand::Drain(target) => (target, Change::Drain),
        BackendCommand::Ready(target) => (target, Change::Ready),
        BackendCommand::Maintenance(target) => (target, Change::Maintenance),
        BackendCommand::Weight { target, weight } => (target, Change::Weight { weight }),
    };
    let Target { service, address, force } = target;
    let request = CommandRequest { service, address, change, force };
    let done: CommandDone = block_on(client::post(&global.socket, "/v1/commands", &request))?
        .map_err(|e| Failure::of_client(e, &global.socket))?;
    printer.print(done, render::command_done)?;
    Ok(Exit::Done)
}
