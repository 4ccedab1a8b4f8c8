//! One agent at a time: for a state directory, and for a directory of pins.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

const FILE: &str = "agent.pid";

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another agent{} uses {}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .path.display())]
    Held { path: PathBuf, pid: Option<u32> },
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Held for as long as the agent lives; the kernel lets go of it whatever way the agent ends.
#[derive(Debug)]
pub struct AgentLock {
    _state: File,
    _pins: File,
}

impl AgentLock {
    /// Takes both locks and writes the own pid into the state directory. Makes the state directory;
    /// the directory of pins must be there.
    ///
    /// # Errors
    /// Another agent holds one of them.
    pub fn take(state_dir: &Path, pin_dir: &Path) -> Result<Self, LockError> {
        let file = state_dir.join(FILE);
        let error = |source| LockError::Io { path: file.clone(), source };
        fs::create_dir_all(state_dir).map_err(|source| LockError::Io { path: state_dir.to_owned(), source })?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&file);
        let mut state = options.map_err(error)?;
        if !lock(&state).map_err(error)? {
            return Err(LockError::Held { path: state_dir.to_owned(), pid: read_pid(&mut state) });
        }
        let pins = File::open(pin_dir).map_err(|source| LockError::Io { path: pin_dir.to_owned(), source })?;
        if !lock(&pins).map_err(|source| LockError::Io { path: pin_dir.to_owned(), source })? {
            return Err(LockError::Held { path: pin_dir.to_owned(), pid: None });
        }
        state.set_len(0).and_then(|()| writeln!(state, "{}", std::process::id())).map_err(error)?;
        Ok(Self { _state: state, _pins: pins })
    }
}

/// An agent that holds one of the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Not known of an agent with another state directory.
    pub pid: Option<u32>,
}

/// The agent that uses `state_dir` or `pin_dir`, if one does.
///
/// # Errors
/// One of them is there but cannot be opened.
pub fn holder(state_dir: &Path, pin_dir: &Path) -> Result<Option<Holder>, LockError> {
    for path in [state_dir.join(FILE), pin_dir.to_owned()] {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(LockError::Io { path, source }),
        };
        // A lock that was free is let go with the file.
        if !lock(&file).map_err(|source| LockError::Io { path, source })? {
            return Ok(Some(Holder { pid: read_pid(&mut file) }));
        }
    }
    Ok(None)
}

fn lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_is_told_the_first_ones_pid() {
        let (state, pins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = AgentLock::take(state.path(), pins.path()).unwrap();
        let own = std::process::id();
        let refused = AgentLock::take(state.path(), pins.path()).unwrap_err();
        assert!(matches!(refused, LockError::Held { pid: Some(pid), .. } if pid == own), "{refused}");
        assert_eq!(holder(state.path(), pins.path()).unwrap(), Some(Holder { pid: Some(own) }));
        drop(first);
        assert_eq!(holder(state.path(), pins.path()).unwrap(), None);
        AgentLock::take(state.path(), pins.path()).unwrap();
    }

    #[test]
    fn two_state_directories_cannot_share_the_pins() {
        let (a, b, pins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let _first = AgentLock::take(a.path(), pins.path()).unwrap();
        assert!(matches!(AgentLock::take(b.path(), pins.path()), Err(LockError::Held { .. })));
        assert_eq!(holder(b.path(), pins.path()).unwrap(), Some(Holder { pid: None }));
    }
}
