//! Which network namespace the changes of a host were made in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::HostError;

const OWN: &str = "/proc/thread-self/ns/net";
/// Where `ip netns` keeps namespaces by name.
const NAMED: &str = "/run/netns";

/// The calling thread's network namespace, as the kernel names it: device and inode, which are
/// nobody else's for as long as the namespace exists.
///
/// # Errors
/// There is no `/proc`.
pub(super) fn current() -> Result<String, HostError> {
    identity(Path::new(OWN)).map_err(HostError::file("read", OWN))
}

/// A path that leads into a namespace: its name under `/run/netns`, or that of a process in it.
/// `None`: it is gone, and with it all that was changed there.
pub(super) fn find(wanted: &str) -> Option<PathBuf> {
    let named = entries(Path::new(NAMED));
    let processes = entries(Path::new("/proc")).map(|process| process.join("ns/net"));
    named.chain(processes).find(|path| identity(path).is_ok_and(|found| found == wanted))
}

fn identity(path: &Path) -> std::io::Result<String> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).map(|metadata| format!("{}:{}", metadata.dev(), metadata.ino()))
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path())
}
