//! The unix socket as a file: who may bind it, and who takes it away again.

use std::{
    fs::{self, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::Mode;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixListener;

const MODE: u32 = 0o660;
const BACKLOG: i32 = 128;

#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another agent{} answers at {}", .pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), .path.display())]
    InUse { path: PathBuf, pid: Option<i32> },
    #[error("{} exists and is no socket", .0.display())]
    NoSocket(PathBuf),
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A bound socket; its file is removed on drop.
#[derive(Debug)]
pub struct ApiSocket {
    pub(super) listener: UnixListener,
    _file: SocketFile,
}

impl ApiSocket {
    /// Binds `path` with mode 0660, in a directory that is made when it is missing. What a dead
    /// agent left there is replaced. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Another agent answers there, the path is something else, or the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let error = |source| SocketError::Io { path: path.to_owned(), source };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(error)?;
        }
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(error)?;
        // Before bind: the file is never there with more rights than it should have.
        rustix::fs::fchmod(socket.as_fd(), Mode::from_raw_mode(MODE)).map_err(|e| error(e.into()))?;
        socket.bind(&SockAddr::unix(path).map_err(error)?).map_err(error)?;
        // After bind: the umask took its share.
        fs::set_permissions(path, Permissions::from_mode(MODE)).map_err(error)?;
        let file = SocketFile::of(path).map_err(error)?;
        socket.listen(BACKLOG).map_err(error)?;
        socket.set_nonblocking(true).map_err(error)?;
        let listener = UnixListener::from_std(std::os::fd::OwnedFd::from(socket).into()).map_err(error)?;
        Ok(Self { listener, _file: file })
    }
}

/// Removes the file when dropped, if it is still the one that was bound.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::symlink_metadata(path)?;
        Ok(Self { path: path.to_owned(), identity: (meta.dev(), meta.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file stays behind");
        }
    }
}

/// Takes away a socket nobody listens on.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let error = |source| SocketError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(error(e)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(SocketError::NoSocket(path.to_owned())),
        Ok(_) => {}
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(stream) => {
            let pid = rustix::net::sockopt::socket_peercred(&stream).ok().map(|cred| cred.pid.as_raw_nonzero().get());
            Err(SocketError::InUse { path: path.to_owned(), pid })
        }
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(error),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(error(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_is_made_for_owner_and_group_and_removed_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/lb.sock");
        let socket = ApiSocket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o660);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_agent_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        ApiSocket::bind(&path).unwrap();
    }

    #[tokio::test]
    async fn a_living_agent_is_not_pushed_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.sock");
        let first = ApiSocket::bind(&path).unwrap();
        let refused = ApiSocket::bind(&path).unwrap_err();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(refused, SocketError::InUse { pid: Some(pid), .. } if pid == own), "{refused}");
        drop(first);
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(ApiSocket::bind(&path).unwrap_err(), SocketError::NoSocket(_)));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_socket_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.sock");
        let first = ApiSocket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = ApiSocket::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }
}
