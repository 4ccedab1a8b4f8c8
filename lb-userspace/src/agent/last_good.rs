//! The last configuration that ran, as text, for a start whose file is bad; and the one that must not
//! run again by itself, because nobody confirmed it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::state_file::{self, StateError};
use crate::config::FileText;

const GOOD: &str = "last-good.json";
const UNCONFIRMED: &str = "unconfirmed.json";
/// Of the files' format.
const VERSION: u32 = 1;
const ADVICE: &str = "remove it; the agent's own file is used then";

/// A configuration that was taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    version: u32,
    /// Where it came from.
    pub source: String,
    pub by: String,
    /// RFC 3339, UTC.
    pub at: String,
    pub files: Vec<FileText>,
}

impl Copy {
    pub fn new(source: &str, by: &str, at: &str, files: &[FileText]) -> Self {
        Self {
            version: VERSION,
            source: source.to_owned(),
            by: by.to_owned(),
            at: at.to_owned(),
            files: files.to_vec(),
        }
    }

    /// Whether these are the same texts, whatever their files are called.
    pub fn says(&self, files: &[FileText]) -> bool {
        self.files.iter().map(|file| &file.text).eq(files.iter().map(|file| &file.text))
    }
}

/// Both files, in the state directory.
#[derive(Clone, Debug)]
pub struct Keeper {
    good: PathBuf,
    unconfirmed: PathBuf,
}

impl Keeper {
    pub fn new(state_dir: &Path) -> Self {
        Self { good: state_dir.join(GOOD), unconfirmed: state_dir.join(UNCONFIRMED) }
    }

    /// The last configuration that ran and was not to be confirmed any more.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn good(&self) -> Result<Option<Copy>, StateError> {
        read(&self.good)
    }

    /// The last one that was taken over to be confirmed, and was not.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn unconfirmed(&self) -> Result<Option<Copy>, StateError> {
        read(&self.unconfirmed)
    }

    /// This one is good; whatever waited to be confirmed is settled. Blocks on the disk.
    ///
    /// # Errors
    /// It is not stored.
    pub fn store_good(&self, copy: &Copy) -> Result<(), StateError> {
        state_file::replace(&self.good, copy)?;
        state_file::remove(&self.unconfirmed)
    }

    /// This one is about to run until it is confirmed or taken back. Blocks on the disk.
    ///
    /// # Errors
    /// It is not stored.
    pub fn store_unconfirmed(&self, copy: &Copy) -> Result<(), StateError> {
        state_file::replace(&self.unconfirmed, copy)
    }
}

fn read(path: &Path) -> Result<Option<Copy>, StateError> {
    let copy: Option<Copy> = state_file::read(path, ADVICE)?;
    match copy {
        Some(Copy { version, .. }) if version != VERSION => Err(StateError::Unreadable {
            path: path.to_owned(),
            why: format!("version {version} is not {VERSION}"),
            advice: ADVICE,
        }),
        copy => Ok(copy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(text: &str) -> Copy {
        let file = FileText { name: "lb.toml".to_owned(), text: text.to_owned() };
        Copy::new("lb.toml", "anna", "2026-01-01T00:00:00Z", &[file])
    }

    #[test]
    fn what_is_good_settles_what_was_unconfirmed() {
        let dir = tempfile::tempdir().unwrap();
        let keeper = Keeper::new(dir.path());
        assert_eq!((keeper.good().unwrap(), keeper.unconfirmed().unwrap()), (None, None));
        keeper.store_good(&copy("a")).unwrap();
        keeper.store_unconfirmed(&copy("b")).unwrap();
        assert_eq!((keeper.good().unwrap(), keeper.unconfirmed().unwrap()), (Some(copy("a")), Some(copy("b"))));
        keeper.store_good(&copy("b")).unwrap();
        assert_eq!((keeper.good().unwrap(), keeper.unconfirmed().unwrap()), (Some(copy("b")), None));
    }

    #[test]
    fn a_damaged_copy_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(GOOD), "{").unwrap();
        assert!(Keeper::new(dir.path()).good().unwrap_err().to_string().contains("remove it"));
    }

    #[test]
    fn copies_are_told_apart_by_their_texts() {
        let renamed = FileText { name: "other".to_owned(), text: "a".to_owned() };
        assert!(copy("a").says(&[renamed]));
        assert!(!copy("b").says(&copy("a").files) && !copy("a").says(&[]));
    }
}
