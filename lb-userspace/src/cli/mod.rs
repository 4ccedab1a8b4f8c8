//! The command line: reads arguments, asks the agent or the maps, prints. It decides nothing.

mod args;
mod backend;
mod check;
mod config;
mod decap;
mod detach;
mod doctor;
mod drain;
mod events;
mod failure;
mod flows;
mod init;
mod manual;
mod maps;
mod output;
mod reads;
mod render;
mod run;
mod service;
mod stats;
mod support_bundle;
mod upgrade;
mod writes;

use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
use args::Command;
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
        Command::Status { check, watch } => reads::status(&global, printer, check, watch),
        Command::Service(command) => service::service(&global, printer, command),
        Command::Backend(command) => backend::backend(&global, printer, command),
        Command::Stats { service, watch } => stats::stats(&global, printer, service.as_deref(), watch),
        Command::Flows(arguments) => flows::flows(&global, printer, &arguments),
        Command::Events(arguments) => events::events(&global, printer, arguments),
        Command::Config(command) => config::config(&global, printer, command),
        Command::Decap(arguments) => decap::decap(&global, printer, arguments),
        Command::Doctor(arguments) => doctor::doctor(&global, printer, arguments),
        Command::Upgrade(arguments) => upgrade::upgrade(&global, printer, arguments),
        Command::SupportBundle { file } => support_bundle::support_bundle(&global, printer, file),
        Command::Completions { shell } => manual::completions(shell),
        Command::Manual { directory } => manual::manual(&directory),
        Command::Detach { force } => detach::detach(&global, printer, force),
    }
}
