//! Where results go: documents or tables on standard output, failures on standard error.

use std::{
    io::{self, IsTerminal, Write},
    time::Duration,
};

use serde::Serialize;

use super::{
    Exit, Failure,
    args::{Format, Watch},
};
use crate::api::model::{Document, Kind};

/// Clears a terminal and goes to its upper left corner (ECMA-48 ED and CUP).
const CLEAR: &str = "\x1b[2J\x1b[H";

#[derive(Clone, Copy, Debug)]
pub struct Printer {
    format: Format,
}

impl Printer {
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Prints `body`: as a document, or as the text that `render` makes of it. A reader that goes
    /// away before the end is no failure.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub fn print<T: Kind + Serialize>(
        &self,
        body: T,
        render: impl FnOnce(&T, Format) -> String,
    ) -> Result<(), Failure> {
        match self.write(body, render, false) {
            // Whoever reads has seen enough: `lb stats | head`.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|e| cannot_print(&e)),
        }
    }

    /// Prints text that is meant for a file, as it is.
    ///
    /// # Errors
    /// Standard output cannot be written to.
    pub fn text(&self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.map_err(|e| cannot_print(&e)),
        }
    }

    /// Prints what `read` returns, once or again and again. Whoever reads may go away: that ends
    /// the watch without a failure.
    ///
    /// # Errors
    /// The first failure of `read`, or standard output cannot be written to.
    pub fn watched<T: Kind + Serialize>(
        &self,
        watch: Watch,
        mut read: impl FnMut() -> Result<T, Failure>,
        render: impl Fn(&T, Format) -> String,
    ) -> Result<Exit, Failure> {
        let Some(every) = watch.every else {
            self.print(read()?, &render)?;
            return Ok(Exit::Done);
        };
        loop {
            match self.write(read()?, &render, true) {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
                written => written.map_err(|e| cannot_print(&e))?,
            }
            std::thread::sleep(every.max(Duration::from_millis(100)));
        }
    }

    fn write<T: Kind + Serialize>(
        &self,
        body: T,
        render: impl FnOnce(&T, Format) -> String,
        again: bool,
    ) -> io::Result<()> {
        let mut out = anstream::AutoStream::auto(io::stdout().lock());
        if self.format == Format::Json {
            let document = Document::new(body);
            let text = if again { serde_json::to_string(&document)? } else { serde_json::to_string_pretty(&document)? };
            writeln!(out, "{text}")?;
        } else {
            let text = render(&body, self.format);
            if again && io::stdout().is_terminal() {
                write!(out, "{CLEAR}")?;
            }
            writeln!(out, "{}", text.trim_end())?;
            if again && !io::stdout().is_terminal() {
                writeln!(out)?;
            }
        }
        out.flush()
    }

    /// Three lines, or one JSON object.
    pub fn failure(&self, failure: &Failure) {
        let mut err = anstream::AutoStream::auto(io::stderr().lock());
        let written = if self.format == Format::Json {
            let text = serde_json::to_string(&Document::new(failure.view()));
            text.map_err(io::Error::from).and_then(|text| writeln!(err, "{text}"))
        } else {
            let Failure { what, why, next, report, .. } = failure;
            let report = report.as_ref().map(|report| format!("{}\n\n", report.trim_end())).unwrap_or_default();
            // Nobody is left to tell when standard error is gone.
            writeln!(
                err,
                "{report}\x1b[1;31merror:\x1b[0m {what}\n\x1b[1mwhy:\x1b[0m   {why}\n\x1b[1mnext:\x1b[0m  {next}"
            )
        };
        drop(written);
    }
}

fn cannot_print(error: &io::Error) -> Failure {
    Failure::new("cannot print the result", error.to_string(), "look at where standard output goes")
}
