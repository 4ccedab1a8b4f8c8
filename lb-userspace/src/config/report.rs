//! Diagnostics as a human reads them.

use std::{ffi::OsStr, fmt, io::IsTerminal};

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceCode};
use serde::Serialize;

use super::diagnostic::{Diagnostic, Severity};

/// Why a configuration file was refused: every error that it has, and the warnings besides.
/// `Display` gives the whole report as plain text; serialised, it is `{ file, diagnostics }`.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigError {
    file: String,
    diagnostics: Vec<Diagnostic>,
}

impl ConfigError {
    pub(super) fn new(file: &str, diagnostics: Vec<Diagnostic>) -> Self {
        Self { file: file.to_owned(), diagnostics }
    }

    /// The file or directory.
    pub fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn into_diagnostics(self) -> Vec<Diagnostic> {
        self.diagnostics
    }

    /// The first error with its place, on one line.
    pub fn in_short(&self) -> String {
        let check = format!("see: lb config check {}", self.file);
        let Some(first) = self.diagnostics.iter().find(|finding| finding.severity == Severity::Error) else {
            return check;
        };
        let file = first.file.as_ref().map(|file| format!("{file}, ")).unwrap_or_default();
        let place = match (first.line, first.column) {
            (Some(line), Some(column)) => format!("{file}line {line}, column {column}: "),
            _ => String::new(),
        };
        format!("{place}{}; {check}", first.message)
    }

    /// Errors and warnings in the order of the files.
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }

    /// The whole report, several lines per diagnostic, with a last line that counts them.
    pub fn report(&self, style: ReportStyle) -> String {
        let mut text = render(&self.diagnostics, style);
        let count = |severity| self.diagnostics.iter().filter(|d| d.severity == severity).count();
        text.push_str(&format!("{}: {}", self.file, counted(count(Severity::Error), "error")));
        match count(Severity::Warning) {
            0 => {}
            warnings => text.push_str(&format!(", {}", counted(warnings, "warning"))),
        }
        text.push('\n');
        text
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.report(ReportStyle::Plain).trim_end())
    }
}

impl std::error::Error for ConfigError {}

/// How a report is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportStyle {
    /// ASCII without colours: files, pipes, logs.
    Plain,
    /// Unicode lines without colours.
    Lines,
    /// Unicode lines and colours.
    Colours,
}

impl ReportStyle {
    /// What suits a stream: plain when it is no terminal or a dumb one, and colours unless
    /// `NO_COLOR` is set to anything but an empty string (no-color.org).
    pub fn for_stream(stream: &impl IsTerminal) -> Self {
        Self::choose(stream.is_terminal(), std::env::var_os("NO_COLOR").as_deref(), std::env::var_os("TERM").as_deref())
    }

    fn choose(terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> Self {
        if !terminal || term == Some(OsStr::new("dumb")) {
            Self::Plain
        } else if no_color.is_some_and(|value| !value.is_empty()) {
            Self::Lines
        } else {
            Self::Colours
        }
    }

    fn theme(self) -> GraphicalTheme {
        let mut theme = match self {
            Self::Plain => GraphicalTheme::none(),
            Self::Lines => GraphicalTheme::unicode_nocolor(),
            Self::Colours => GraphicalTheme::unicode(),
        };
        theme.characters.error = "error:".to_owned();
        theme.characters.warning = "warning:".to_owned();
        theme
    }
}

/// Diagnostics with their source lines and carets, an empty line after each.
pub fn render(diagnostics: &[Diagnostic], style: ReportStyle) -> String {
    let handler = GraphicalReportHandler::new_themed(style.theme())
        .with_context_lines(0)
        .with_wrap_lines(false)
        .with_links(false)
        .without_syntax_highlighting();
    let mut text = String::new();
    for diagnostic in diagnostics {
        let before = text.len();
        if handler.render_report(&mut text, &View(diagnostic)).is_err() {
            text.truncate(before);
            text.push_str(&one_line(diagnostic));
        }
        text.push('\n');
    }
    text
}

/// For the case that the drawing fails: a report must never be lost to its looks.
fn one_line(diagnostic: &Diagnostic) -> String {
    let Diagnostic { file, line, column, message, .. } = diagnostic;
    let file = file.as_ref().map(|file| format!("{file}:")).unwrap_or_default();
    format!("{file}{}:{}: {message}\n", line.unwrap_or(0), column.unwrap_or(0))
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A diagnostic as the drawing library wants to see it.
#[derive(Debug)]
struct View<'a>(&'a Diagnostic);

impl fmt::Display for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for View<'_> {}

impl miette::Diagnostic for View<'_> {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.0.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.0.place.as_ref().map(|place| &*place.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.0.place.as_ref()?;
        let range = |span| {
            let span = place.source.first_line(span);
            (span.start, span.end - span.start)
        };
        let main = LabeledSpan::new_primary_with_span(
            (!place.related.is_empty()).then(|| "here".to_owned()),
            range(place.span),
        );
        let related =
            place.related.iter().map(move |(span, why)| LabeledSpan::new_with_span(Some(why.clone()), range(*span)));
        Some(Box::new(std::iter::once(main).chain(related)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_have_not_been_told_otherwise() {
        let os = |text: &'static str| Some(OsStr::new(text));
        assert_eq!(ReportStyle::choose(false, None, os("xterm")), ReportStyle::Plain);
        assert_eq!(ReportStyle::choose(true, None, os("dumb")), ReportStyle::Plain);
        assert_eq!(ReportStyle::choose(true, os("1"), os("xterm")), ReportStyle::Lines);
        assert_eq!(ReportStyle::choose(true, os(""), os("xterm")), ReportStyle::Colours);
        assert_eq!(ReportStyle::choose(true, None, None), ReportStyle::Colours);
    }
}
