//! A file or a text in, a valid configuration or everything that is wrong with it out.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use toml::de::{DeTable, DeValue};

use super::{
    check,
    diagnostic::{At, Diagnostic, Finding, Findings, Reported},
    keys,
    model::Config,
    read,
    reader::Table,
    report::ConfigError,
    source::{Source, Span},
};

/// Largest file that is read: far beyond what the limits allow, small enough to hold in memory.
const FILE_MAX: u64 = 16 << 20;

/// A configuration that may be used, and what its author should know about it.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub config: Config,
    /// In the order of the file; none of them an error.
    pub warnings: Vec<Diagnostic>,
}

/// Reads a configuration file.
///
/// # Errors
/// The file cannot be read, or is no valid configuration. The error has all findings and renders
/// them; see [`ConfigError`].
pub fn load(path: &Path) -> Result<Loaded, ConfigError> {
    let name = path.display().to_string();
    let bytes = read_file(path).map_err(|error| unreadable(&name, &error))?;
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(&name, text),
        Err(error) => Err(not_utf8(&name, &bytes, error.valid_up_to())),
    }
}

/// Reads a configuration from text; `name` stands for the file in messages.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, text: &str) -> Result<Loaded, ConfigError> {
    let mut findings = Findings::new(Source::new(name, text));
    let (document, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        syntax_error(&mut findings, text, &errors);
        return Err(ConfigError::new(name, findings.into_diagnostics()));
    }
    let at = At { path: String::new(), span: Span { start: 0, end: 0 } };
    let top = Table::open(&mut findings, document.get_ref(), &keys::TOP, at);
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

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_MAX {
        let message = format!("it is larger than {} MiB", FILE_MAX >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

fn unreadable(name: &str, error: &io::Error) -> ConfigError {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "check the path (`--config FILE`)",
        io::ErrorKind::PermissionDenied => "let this user read it (`ls -l` shows who may), or run as one who may",
        io::ErrorKind::IsADirectory => "name the file in it, as in `--config DIRECTORY/lb.toml`",
        io::ErrorKind::FileTooLarge => "check that this is the configuration file",
        _ => "check that the file is there and can be read: `cat FILE`",
    };
    let message = format!("cannot read the configuration file {name:?}: {error}");
    ConfigError::new(name, vec![Diagnostic::without_text(message, help)])
}

fn not_utf8(name: &str, bytes: &[u8], offset: usize) -> ConfigError {
    let mut findings = Findings::new(Source::new(name, &String::from_utf8_lossy(bytes)));
    let at = At { path: String::new(), span: Span { start: offset, end: offset + 1 } };
    let message = format!("this is not UTF-8 text: byte 0x{:02x}", bytes.get(offset).unwrap_or(&0));
    findings.error(Finding::new(&at, message).help("save the file as UTF-8; is it a configuration file at all?"));
    ConfigError::new(name, findings.into_diagnostics())
}

/// The parser goes on after an error, but what it says then is guesswork: only the first is told.
fn syntax_error(findings: &mut Findings, text: &str, errors: &[toml::de::Error]) -> Reported {
    let start = |error: &&toml::de::Error| error.span().map_or(0, |span| span.start);
    let first = errors.iter().min_by_key(start);
    let span = first.and_then(|error| error.span()).map_or(Span { start: 0, end: 0 }, Span::from);
    let message = first.map_or("", |error| error.message());
    let finding = if let Some((value, span)) = unquoted(text, span.start) {
        let at = At { path: String::new(), span };
        Finding::new(&at, "this is not valid TOML: text must stand in quotes").help(format!("write {value:?}"))
    } else {
        let at = At { path: String::new(), span };
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

    #[test]
    fn a_file_that_may_not_be_read_is_told_with_the_words_of_the_system() {
        let error = unreadable("/etc/lb.toml", &io::Error::from_raw_os_error(13)).to_string();
        assert!(error.contains("/etc/lb.toml") && error.contains("Permission denied (os error 13)"), "{error}");
        assert!(error.contains("let this user read it"), "{error}");
    }
}
