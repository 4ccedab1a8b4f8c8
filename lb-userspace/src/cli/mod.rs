//! The command line: reads arguments, asks the agent or the maps, prints. It decides nothing.

mod args;
mod backend;
mod check;
mod decap;
mod detach;
mod doctor;
mod failure;
mod flows;
mod maps;
mod output;
mod reads;
mod render;
mod run;
mod stats;

use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
use args::{Command, ConfigCommand, ServiceCommand};
pub use failure::{Exit, Failure};
use output::Printer;

/// Parses the process's arguments, does what they say and returns the exit code:
/// 0 done, 1 failed, 2 usage, 3 agent not reachable.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.global.color.write_global();
    let printer = Printer::new(cli.global.output);
    match dispatch(cli, &printer) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            printer.failure(&failure);
            failure.exit.into()
        }
    }
}

fn dispatch(cli: Cli, printer: &Printer) -> Result<Exit, Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Run(arguments) => run::run(&global, arguments),
        Command::Status { watch } => reads::status(&global, printer, watch),
        Command::Service(ServiceCommand::List { watch }) => reads::service_list(&global, printer, watch),
        Command::Service(ServiceCommand::Show { name, watch }) => reads::service_show(&global, printer, &name, watch),
        Command::Backend(command) => backend::backend(&global, printer, command),
        Command::Stats { service, watch } => stats::stats(&global, printer, service.as_deref(), watch),
        Command::Flows(arguments) => flows::flows(&global, printer, &arguments),
        Command::Config(ConfigCommand::Check { file }) => check::check(printer, &file),
        Command::Decap(arguments) => decap::decap(&global, printer, arguments),
        Command::Doctor(arguments) => doctor::doctor(&global, printer, arguments),
        Command::Detach { force } => detach::detach(&global, printer, force),
    }
}
