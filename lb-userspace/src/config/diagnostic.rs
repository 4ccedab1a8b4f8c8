//! What there is to say about a configuration file, and where.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::source::{Source, Span};

/// One thing to say about a configuration file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The setting, as in `service[0].backend[2].address`; empty when it is the file as a whole.
    pub path: String,
    /// Of a configuration of several files: the one that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// From 1; `None` when the file could not be read.
    pub line: Option<u32>,
    /// From 1, in characters; `None` when the file could not be read.
    pub column: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What is allowed, and what to write instead.
    pub help: Option<String>,
    /// Where to point; lost when a diagnostic travels as JSON.
    #[serde(skip)]
    pub(super) place: Option<Place>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file is accepted, but probably does not do what was meant.
    Warning,
}

#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) source: Arc<Source>,
    pub(super) span: Span,
    /// Other places that belong to it, each with a word on why.
    pub(super) related: Vec<(Span, String)>,
}

impl Diagnostic {
    /// An error about a file whose text is not known.
    pub(super) fn without_text(message: String, help: &str) -> Self {
        Self {
            severity: Severity::Error,
            path: String::new(),
            file: None,
            line: None,
            column: None,
            message,
            help: Some(help.to_owned()),
            place: None,
        }
    }
}

/// A setting: its path and its place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) path: String,
    pub(super) span: Span,
}

/// A value that was read, and where.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) value: T,
    pub(super) at: At,
}

/// Proof that an error was reported: whoever has no value has one of these instead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported(());

pub(super) type Read<T> = Result<T, Reported>;

/// A diagnostic in the making.
pub(super) struct Finding {
    at: At,
    message: String,
    help: Vec<String>,
    related: Vec<(Span, String)>,
}

impl Finding {
    pub(super) fn new(at: &At, message: impl Into<String>) -> Self {
        Self { at: at.clone(), message: message.into(), help: Vec::new(), related: Vec::new() }
    }

    /// Adds a line of help.
    pub(super) fn help(mut self, line: impl Into<String>) -> Self {
        self.help.push(line.into());
        self
    }

    /// Adds a line of help where there is one.
    pub(super) fn maybe_help(mut self, line: Option<String>) -> Self {
        self.help.extend(line);
        self
    }

    /// Points at another place too.
    pub(super) fn and(mut self, at: &At, why: impl Into<String>) -> Self {
        self.related.push((at.span, why.into()));
        self
    }
}

/// Collects what is found while one file is read.
pub(super) struct Findings {
    source: Arc<Source>,
    found: Vec<Diagnostic>,
}

impl Findings {
    pub(super) fn new(source: Source) -> Self {
        Self { source: Arc::new(source), found: Vec::new() }
    }

    pub(super) fn error(&mut self, finding: Finding) -> Reported {
        self.push(Severity::Error, finding);
        Reported(())
    }

    pub(super) fn warning(&mut self, finding: Finding) {
        self.push(Severity::Warning, finding);
    }

    /// Where a setting is, to name it in the message of another one: `line 7`, `line 7 of a.toml`.
    pub(super) fn place(&self, at: &At) -> String {
        let (line, _) = self.source.position(at.span.start);
        match self.source.name_of(at.span.start) {
            Some(file) => format!("line {line} of {file}"),
            None => format!("line {line}"),
        }
    }

    /// Offset of the first byte of each file.
    pub(super) fn bases(&self) -> Vec<usize> {
        self.source.bases().collect()
    }

    pub(super) fn has_errors(&self) -> bool {
        self.found.iter().any(|d| d.severity == Severity::Error)
    }

    /// Everything found, in the order of the files.
    pub(super) fn into_diagnostics(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|d| d.place.as_ref().map(|place| place.span.start));
        self.found
    }

    fn push(&mut self, severity: Severity, finding: Finding) {
        let Finding { at: At { path, span }, message, help, related } = finding;
        let (line, column) = self.source.position(span.start);
        let file = self.source.name_of(span.start).map(str::to_owned);
        let help = (!help.is_empty()).then(|| help.join("\n"));
        let place = Some(Place { source: Arc::clone(&self.source), span, related });
        let (line, column) = (Some(line), Some(column));
        self.found.push(Diagnostic { severity, path, file, line, column, message, help, place });
    }
}
