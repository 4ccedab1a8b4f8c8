//! `lb config ...`: the running configuration, what another one would do, and taking it over.

use std::path::Path;

use serde::Serialize;

use super::{
    Exit, Failure,
    args::{ApplyArgs, ConfigCommand, Format, Global, InitArgs, Write},
    check, init,
    output::Printer,
    reads, render,
    writes::{seconds, write},
};
use crate::{
    api::model::{Applied, ApplyRequest, ConfigView, Nothing, Settled},
    config,
};

pub fn config(global: &Global, printer: &Printer, command: ConfigCommand) -> Result<Exit, Failure> {
    match command {
        ConfigCommand::Check { file } => check::check(printer, &file),
        ConfigCommand::Diff { file, max_reset, exit_code } => {
            let options = Write { dry_run: true, revision: None };
            let told = apply(global, file.as_deref(), max_reset, None, &options)?;
            let differs = !told.impact.services.is_empty() || !told.needs_restart.is_empty();
            printer.print(told, render::applied)?;
            Ok(if exit_code && differs { Exit::Failed } else { Exit::Done })
        }
        ConfigCommand::Apply(ApplyArgs { file, max_reset, confirm, write }) => {
            let done = apply(global, file.as_deref(), max_reset, seconds(confirm), &write)?;
            printer.print(done, render::applied)?;
            Ok(Exit::Done)
        }
        ConfigCommand::Confirm { write } => settle(global, printer, "/v1/config/confirm", &write),
        ConfigCommand::Rollback { write } => settle(global, printer, "/v1/config/rollback", &write),
        ConfigCommand::Show => {
            printer.print(reads::get::<ConfigView>(global, "/v1/config")?, render::config)?;
            Ok(Exit::Done)
        }
        ConfigCommand::Schema { part } => plain(printer, &config::schema(part)),
        ConfigCommand::Init(InitArgs { interfaces, vip, backends }) => init::init(printer, interfaces, vip, backends),
    }
}

/// The file is read here, with the rights of whoever asks: what arrives is what was looked at.
fn apply(
    global: &Global,
    file: Option<&Path>,
    max_reset: Option<u64>,
    confirm_seconds: Option<u64>,
    options: &Write,
) -> Result<Applied, Failure> {
    let mut request = ApplyRequest { max_reset, confirm_seconds, ..ApplyRequest::default() };
    if let Some(file) = file {
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        let files = config::read_files(&file).map_err(|error| Failure {
            report: Some(error.report(config::ReportStyle::Plain)),
            ..Failure::new("the configuration stays as it was", error.in_short(), "check the path")
        })?;
        request.files = Some(files);
        request.source = Some(file.display().to_string());
    }
    write(global, "/v1/config", options, &request)
}

fn settle(global: &Global, printer: &Printer, path: &str, options: &Write) -> Result<Exit, Failure> {
    let done: Settled = write(global, path, options, &Nothing {})?;
    printer.print(done, render::settled)?;
    Ok(Exit::Done)
}

/// What is JSON by itself stands alone, whatever the format.
fn plain(printer: &Printer, content: &impl Serialize) -> Result<Exit, Failure> {
    let text = if printer.format() == Format::Json {
        serde_json::to_string(content)
    } else {
        serde_json::to_string_pretty(content)
    };
    let text = text.map_err(|e| Failure::new("cannot print the result as JSON", e.to_string(), "report this"))?;
    printer.text(&text)?;
    Ok(Exit::Done)
}
