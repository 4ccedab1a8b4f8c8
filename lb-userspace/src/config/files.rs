//! The text of a configuration: one file, or every `*.toml` of a directory in the order of their
//! names.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    diagnostic::{At, Diagnostic, Finding, Findings},
    report::ConfigError,
    source::{Source, Span},
};

/// Most that is read, all files together: far beyond what the limits allow, small enough to hold in
/// memory.
pub const TEXT_MAX: usize = 16 << 20;
/// Most files of a directory.
const FILES_MAX: usize = 4096;

/// One file of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct FileText {
    /// As messages name it.
    pub name: String,
    pub text: String,
}

/// Reads a file, or the files of a directory.
///
/// # Errors
/// Every file that cannot be read or is no text.
pub fn read(path: &Path) -> Result<Vec<FileText>, ConfigError> {
    let name = path.display().to_string();
    let paths =
        if path.is_dir() { files_of(path).map_err(|error| unreadable(&name, &error))? } else { vec![path.to_owned()] };
    if paths.is_empty() {
        let message = format!("there is no configuration in the directory {name:?}");
        let help = "its files end in `.toml`: begin with `lb config init > DIRECTORY/lb.toml`";
        return Err(ConfigError::new(&name, vec![Diagnostic::without_text(message, help)]));
    }
    let (mut files, mut bad, mut left) = (Vec::new(), Vec::new(), TEXT_MAX);
    for path in paths {
        match read_one(&path, left) {
            Ok(file) => {
                left = left.saturating_sub(file.text.len());
                files.push(file);
            }
            Err(error) => bad.extend(error.into_diagnostics()),
        }
    }
    if bad.is_empty() { Ok(files) } else { Err(ConfigError::new(&name, bad)) }
}

/// Files that count: visible ones that end in `.toml`. What editors leave behind (`.lb.toml.swp`,
/// `lb.toml~`, `#lb.toml#`) does not.
fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let counts = |name: &OsStr| {
        !name.as_encoded_bytes().starts_with(b".") && Path::new(name).extension() == Some("toml".as_ref())
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if counts(&entry.file_name()) && !entry.path().is_dir() {
            files.push(entry.path());
        }
    }
    if files.len() > FILES_MAX {
        return Err(io::Error::other(format!("it has more than {FILES_MAX} files")));
    }
    files.sort();
    Ok(files)
}

fn read_one(path: &Path, left: usize) -> Result<FileText, ConfigError> {
    let name = path.display().to_string();
    let bytes = read_bytes(path, left).map_err(|error| unreadable(&name, &error))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(FileText { name, text }),
        Err(error) => {
            let offset = error.utf8_error().valid_up_to();
            Err(not_utf8(&name, error.as_bytes(), offset))
        }
    }
}

fn read_bytes(path: &Path, left: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(left as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > left {
        let message = format!("it is larger than {} MiB", TEXT_MAX >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}

fn unreadable(name: &str, error: &io::Error) -> ConfigError {
    let help = match error.kind() {
        io::ErrorKind::NotFound => "check the path (`--config PATH`)",
        io::ErrorKind::PermissionDenied => "let this user read it (`ls -l` shows who may), or run as one who may",
        io::ErrorKind::FileTooLarge => "check that this is the configuration file",
        _ => "check that the file is there and can be read: `cat FILE`",
    };
    let message = format!("cannot read the configuration file {name:?}: {error}");
    ConfigError::new(name, vec![Diagnostic::without_text(message, help)])
}

fn not_utf8(name: &str, bytes: &[u8], offset: usize) -> ConfigError {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut findings = Findings::new(Source::new(&[FileText { name: name.to_owned(), text }]));
    let at = At { path: String::new(), span: Span { start: offset, end: offset + 1 } };
    let message = format!("this is not UTF-8 text: byte 0x{:02x}", bytes.get(offset).unwrap_or(&0));
    findings.error(Finding::new(&at, message).help("save the file as UTF-8; is it a configuration file at all?"));
    ConfigError::new(name, findings.into_diagnostics())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_may_not_be_read_is_told_with_the_words_of_the_system() {
        let error = unreadable("/etc/lb.toml", &io::Error::from_raw_os_error(13)).to_string();
        assert!(error.contains("/etc/lb.toml") && error.contains("Permission denied (os error 13)"), "{error}");
        assert!(error.contains("let this user read it"), "{error}");
    }
}
