//! Tells when the configuration on disk says something else. What is watched is the directory
//! (inotify(7)): editors and package managers put a new file in the place of the old one, and a watch
//! on the file itself would go on looking at the old one.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::{io::unix::AsyncFd, sync::mpsc};

use super::{changes::Author, effective::OwnFile, run_loop::Finding};
use crate::config::FileText;

/// Between a change and the look at it: editors change several files one after the other.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two attempts to watch a directory that is not there.
const AGAIN: Duration = Duration::from_secs(2);

/// Tells `findings` of changes until the loop is gone.
pub async fn run(own: OwnFile, findings: mpsc::Sender<Finding>) {
    let directory = directory_of(&own.path);
    let mut known = read(&own).await;
    loop {
        match Watch::on(&directory) {
            Ok(mut watch) => {
                // It may have changed before the watch began.
                loop {
                    let now = read(&own).await;
                    if now != known {
                        known = now;
                        if findings.send(Finding::Reload(Author::Watch)).await.is_err() {
                            return;
                        }
                    }
                    match watch.changed().await {
                        Ok(Changed::Content) => tokio::time::sleep(SETTLE).await,
                        Ok(Changed::Directory) => break,
                        Err(error) => {
                            tracing::warn!(%error, "{} is not watched for a moment", directory.display());
                            break;
                        }
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "{} cannot be watched yet", directory.display()),
        }
        tokio::time::sleep(AGAIN).await;
        if findings.is_closed() {
            return;
        }
    }
}

fn directory_of(path: &Path) -> PathBuf {
    if path.is_dir() {
        return path.to_owned();
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The texts; `None` while they cannot be read, which is a change too.
async fn read(own: &OwnFile) -> Option<Vec<FileText>> {
    let own = own.clone();
    tokio::task::spawn_blocking(move || own.read().ok()).await.ok().flatten()
}

enum Changed {
    Content,
    /// The directory itself is another one now.
    Directory,
}

struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    fn on(directory: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let content = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        let directory_itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
        inotify::add_watch(&fd, directory, content | directory_itself)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` and stays open as long as it is registered.
        Ok(Self(unsafe { AsyncFd::register(fd) }?))
    }

    /// Waits for something to happen; takes everything that has.
    async fn changed(&mut self) -> io::Result<Changed> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let mut ready = self.0.readable().await?;
            let taken = ready.try_io(|fd| {
                let mut reader = inotify::Reader::new(fd.get_ref(), &mut buffer);
                let gone = ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED | ReadFlags::UNMOUNT;
                let mut directory = false;
                loop {
                    directory |= reader.next()?.events().intersects(gone);
                    if reader.is_buffer_empty() {
                        return Ok(directory);
                    }
                }
            });
            match taken {
                Ok(Ok(true)) => return Ok(Changed::Directory),
                Ok(Ok(false)) => return Ok(Changed::Content),
                Ok(Err(error)) => return Err(error),
                // It was not ready after all.
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Watched {
        dir: tempfile::TempDir,
        found: mpsc::Receiver<Finding>,
    }

    impl Watched {
        async fn start(of_directory: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("lb.d")).unwrap();
            let file = dir.path().join("lb.d/lb.toml");
            fs::write(&file, "a").unwrap();
            let path = if of_directory { dir.path().join("lb.d") } else { file };
            let (findings, found) = mpsc::channel(16);
            tokio::spawn(run(OwnFile { path, interfaces: Vec::new() }, findings));
            // The first look is taken before anything changes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            Self { dir, found }
        }

        async fn told(&mut self) -> bool {
            let found = tokio::time::timeout(Duration::from_secs(5), self.found.recv()).await;
            matches!(found, Ok(Some(Finding::Reload(Author::Watch))))
        }

        async fn quiet(&mut self) -> bool {
            tokio::time::timeout(Duration::from_millis(600), self.found.recv()).await.is_err()
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("lb.d").join(name)
        }
    }

    #[tokio::test]
    async fn a_file_that_an_editor_replaces_is_followed() {
        let mut watched = Watched::start(false).await;
        for content in ["b", "c"] {
            fs::write(watched.path("lb.toml.new"), content).unwrap();
            fs::rename(watched.path("lb.toml.new"), watched.path("lb.toml")).unwrap();
            assert!(watched.told().await, "{content}");
        }
        fs::write(watched.path("lb.toml"), "d").unwrap();
        assert!(watched.told().await, "written in place");
        fs::rename(watched.path("lb.toml"), watched.path("lb.toml~")).unwrap();
        fs::write(watched.path("lb.toml"), "e").unwrap();
        assert!(watched.told().await, "moved away for a backup");
    }

    #[tokio::test]
    async fn what_says_the_same_is_no_change() {
        let mut watched = Watched::start(false).await;
        fs::write(watched.path("lb.toml"), "a").unwrap();
        fs::write(watched.path("other.toml"), "x").unwrap();
        assert!(watched.quiet().await);
    }

    #[tokio::test]
    async fn files_of_a_directory_come_and_go() {
        let mut watched = Watched::start(true).await;
        fs::write(watched.path("web.toml"), "b").unwrap();
        assert!(watched.told().await);
        fs::remove_file(watched.path("web.toml")).unwrap();
        assert!(watched.told().await);
    }

    #[tokio::test]
    async fn a_directory_that_is_replaced_is_watched_again() {
        let mut watched = Watched::start(false).await;
        fs::rename(watched.dir.path().join("lb.d"), watched.dir.path().join("old")).unwrap();
        fs::create_dir(watched.dir.path().join("lb.d")).unwrap();
        fs::write(watched.path("lb.toml"), "b").unwrap();
        assert!(watched.told().await);
        // A watch is on the new one now.
        tokio::time::sleep(AGAIN).await;
        while watched.found.try_recv().is_ok() {}
        fs::write(watched.path("lb.toml"), "c").unwrap();
        assert!(watched.told().await);
    }
}
