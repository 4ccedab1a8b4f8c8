//! Files of the state directory: JSON, replaced as a whole. After a crash such a file holds the old
//! content or the new one.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {why}; {advice}", .path.display())]
    Unreadable { path: PathBuf, why: String, advice: &'static str },
}

/// The content of a file; `None`: there is none.
///
/// # Errors
/// It is there but cannot be read or understood; `advice` is what to do then.
pub fn read<T: DeserializeOwned>(path: &Path, advice: &'static str) -> Result<Option<T>, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Io { path: path.to_owned(), source }),
    };
    let unreadable =
        |e: serde_json::Error| StateError::Unreadable { path: path.to_owned(), why: e.to_string(), advice };
    serde_json::from_slice(&text).map(Some).map_err(unreadable)
}

/// Replaces the content. Blocks on the disk.
///
/// # Errors
/// The file is as it was.
pub fn replace(path: &Path, content: &impl Serialize) -> Result<(), StateError> {
    write_beside(path, content).map_err(|source| StateError::Io { path: path.to_owned(), source })
}

/// Removes the file, if it is there.
///
/// # Errors
/// It is still there.
pub fn remove(path: &Path) -> Result<(), StateError> {
    let removed = match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        removed => removed.and_then(|()| sync_directory(path)),
    };
    removed.map_err(|source| StateError::Io { path: path.to_owned(), source })
}

fn write_beside(path: &Path, content: &impl Serialize) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    // As a whole: the serializer hands out token by token, and each would be a system call.
    let mut text = serde_json::to_vec_pretty(content)?;
    text.push(b'\n');
    let mut file = File::create(&beside)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    sync_directory(path)
}

/// A rename is on disk only with its directory.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
