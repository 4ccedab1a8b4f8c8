//! A file or a text in, a valid configuration or everything that is wrong with it out.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{
    check,
    diagnostic::{At, Diagnostic, Finding, Findings, Reported},
    files::{self, FileText},
    keys,
    merge::{merge, shifted},
    model::Config,
    read,
    reader::Table,
    report::ConfigError,
    source::{Source, Span},
};

/// A configuration that may be used, and what its author should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// In the order of the files; none of them an error.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a configuration file, or a directory of them.
///
/// # Errors
/// A file cannot be read, or it is no valid configuration. The error has all findings and renders
/// them; see [`ConfigError`].
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    parse_files(&path.display().to_string(), &files::read(path)?)
}

/// Reads a configuration from text; `name` stands for the file in messages.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str) -> Result<Loaded, ConfigError> {
    parse_files(name, &[FileText { name: name.to_owned(), text: text.to_owned() }])
}

/// Reads a configuration from the texts of its files, at least one; `name` stands for them all.
///
/// # Errors
/// As [`load`].
pub fn parse_files(name: &str, files: &[FileText]) -> Result<Loaded, ConfigError> {
    let mut findings = Findings::new(Source::new(files));
    let whole = tables(&mut findings, files);
    if findings.has_errors() {
        return Err(ConfigError::new(name, findings.into_diagnostics()));
    }
    let at = At { path: String::new(), span: Span { start: 0, end: 0 } };
    let top = Table::open(&mut findings, &whole, &keys::TOP, at);
    let draft = read::draft(&mut findings, &top);
    check::whole(&mut findings, &draft);
    let config = draft.finish();
    let refused = findings.has_errors();
    let diagnostics = findings.into_diagnostics();
    match config {
        Ok(config) if !refused => Ok(Loaded { config, warnings: diagnostics }),
        _ => Err(ConfigError::new(name, diagnostics)),
    }
}

/// All files as one table; what could not be parsed or joined is reported.
pub(super) fn tables<'a>(findings: &mut Findings, files: &'a [FileText]) -> DeTable<'a> {
    let mut whole = DeTable::new();
    for (file, base) in files.iter().zip(findings.bases()) {
        let (document, errors) = DeTable::parse_recoverable(&file.text);
        if errors.is_empty() {
            merge(findings, &mut whole, shifted(document.into_inner(), base));
        } else {
            syntax_error(findings, &file.text, base, &errors);
        }
    }
    whole
}

/// The parser goes on after an error, but what it says then is guesswork: only the first is told.
fn syntax_error(findings: &mut Findings, text: &str, base: usize, errors: &[toml::de::Error]) -> Reported {
    let start = |error: &&toml::de::Error| error.span().map_or(0, |span| span.start);
    let first = errors.iter().min_by_key(start);
    let span = first.and_then(|error| error.span()).map_or(Span { start: 0, end: 0 }, Span::from);
    let message = first.map_or("", |error| error.message());
    let finding = if let Some((value, span)) = unquoted(text, span.start) {
        let at = At { path: String::new(), span: span.behind(base) };
        Finding::new(&at, "this is not valid TOML: text must stand in quotes").help(format!("write {value:?}"))
    } else {
        let at = At { path: String::new(), span: span.behind(base) };
        let duplicate = message
            .starts_with("duplicate key")
            .then(|| "each key and each [table] may stand once; tables that repeat are written [[...]]".to_owned());
        Finding::new(&at, format!("this is not valid TOML: {message}")).maybe_help(duplicate)
    };
    findings.error(finding.help("correct this first: what follows was not read"))
}

/// The value in the line of an error, when it looks like text that lacks its quotes: `listen =
/// 10.0.0.1:80`.
fn unquoted(text: &str, offset: usize) -> Option<(&str, Span)> {
    let line_start = text.get(..offset)?.rfind('\n').map_or(0, |at| at + 1);
    let line = text[line_start..].lines().next()?;
    let (key, rest) = line.split_once('=')?;
    let value = rest.split('#').next()?.trim();
    let wordlike = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '/' | '_');
    let start = line_start + key.len() + 1 + (rest.len() - rest.trim_start().len());
    let found = !value.is_empty() && value.chars().all(wordlike) && offset >= start && DeValue::parse(value).is_err();
    found.then_some((value, Span { start, end: start + value.len() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_that_lack_their_quotes_are_taken_for_text() {
        for (line, value) in [("a = 10.0.0.1:80 # x", "10.0.0.1:80"), ("a=web", "web"), ("b = 5s", "5s")] {
            let at = line.find(value).expect("the value is in the line");
            assert_eq!(unquoted(line, at).map(|(value, _)| value), Some(value), "{line}");
            assert_eq!(unquoted(line, at + 1).map(|(_, span)| span.start), Some(at), "{line}");
        }
        for line in ["a = \"x", "a = [1", "a = 5", "a", "= ", "a = true", "a = #b"] {
            assert_eq!(unquoted(line, line.len()), None, "{line}");
        }
    }
}
