//! Passwords, read from files when they are needed and kept nowhere.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use super::failure::Failure;
use crate::config::LoginCheck;

/// Longest file that is read.
const FILE_MAX: u64 = 4096;

/// The first line of the login's password file; `None`: it has none.
///
/// # Errors
/// The file cannot be read: a failure of this host, not of the backend.
pub fn password(login: &LoginCheck) -> Result<Option<String>, Failure> {
    let Some(path) = &login.password_file else { return Ok(None) };
    let read = first_line(path).map_err(|error| {
        Failure::Local(io::Error::new(error.kind(), format!("`password-file` {}: {error}", path.display())))
    })?;
    Ok(Some(read))
}

fn first_line(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_MAX).read_to_string(&mut text)?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
