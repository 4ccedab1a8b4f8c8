//! `lb config check`: every error of a file in one go, or what the file comes to.

use std::{io, path::Path, thread::available_parallelism};

use serde::Serialize;

use super::{Exit, Failure, args::Format, output::Printer};
use crate::{
    api::model::ConfigCheck,
    config::{self, ReportStyle},
};

pub fn check(printer: &Printer, file: &Path) -> Result<Exit, Failure> {
    let name = file.display().to_string();
    match config::load(file) {
        Ok(loaded) => {
            let cpus = available_parallelism().map_or(1, usize::from);
            let summary = loaded.config.summary(cpus);
            if printer.format() != Format::Json {
                eprint!("{}", config::render(&loaded.warnings, ReportStyle::for_stream(&io::stderr())));
            }
            let diagnostics = value(&loaded.warnings)?;
            let check = ConfigCheck { file: name.clone(), valid: true, diagnostics, summary: Some(value(&summary)?) };
            printer.print(check, |_, _| format!("{name}: valid\n{summary}"))?;
            Ok(Exit::Done)
        }
        Err(error) if printer.format() == Format::Json => {
            let diagnostics = value(error.diagnostics())?;
            printer
                .print(ConfigCheck { file: name, valid: false, diagnostics, summary: None }, |_, _| String::new())?;
            Ok(Exit::Failed)
        }
        Err(error) => {
            eprint!("{}", error.report(ReportStyle::for_stream(&io::stderr())));
            Ok(Exit::Failed)
        }
    }
}

fn value(content: impl Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(content)
        .map_err(|e| Failure::new("cannot print the result as JSON", e.to_string(), "leave out `-o json`"))
}
