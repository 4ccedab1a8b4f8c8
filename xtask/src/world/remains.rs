//! What a world leaves outside its namespaces: a folder below `/run/lbw` and pins in bpffs. The
//! folder holds a lock for as long as the world's process lives, so that the remains of a killed
//! run can be told from a world in use.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};

use super::namespace;
use crate::shell;

const FOLDER: &str = "/run/lbw";
const BPFFS: &str = "/sys/fs/bpf";
const PREFIX: &str = "lbw-";

/// The pin folder of the world of this name.
pub(super) fn pins(world: &str) -> PathBuf {
    Path::new(BPFFS).join(world)
}

/// Folder and pins of one living world; removed when dropped.
pub(super) struct Claim {
    world: String,
    folder: PathBuf,
    /// Locked; the kernel lets go when the process ends, however it ends.
    _lock: File,
}

impl Claim {
    /// Comes before the world's first namespace: what has no lock is taken for remains.
    pub(super) fn new(world: &str) -> Result<Self> {
        let folder = Path::new(FOLDER).join(world);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join("lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(|| format!("world {world} is in use"))?;
        mount_bpffs()?;
        Ok(Self { world: world.to_owned(), folder, _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        clear(&self.world);
    }
}

/// Removes worlds whose process has ended without doing so.
pub(super) fn sweep() {
    let namespaces = names(namespace::FOLDER);
    let folders = names(FOLDER);
    let pins = names(BPFFS);
    let worlds: BTreeSet<String> = namespaces.iter().chain(&folders).chain(&pins).filter_map(|n| world_of(n)).collect();
    for world in worlds.into_iter().filter(|world| is_abandoned(world)) {
        let prefix = format!("{world}-");
        for name in namespaces.iter().filter(|name| name.starts_with(&prefix)) {
            namespace::remove(name);
        }
        clear(&world);
    }
}

fn clear(world: &str) {
    for folder in [pins(world), Path::new(FOLDER).join(world)] {
        if folder.exists()
            && let Err(error) = fs::remove_dir_all(&folder)
        {
            eprintln!("{} is left behind: {error}", folder.display());
        }
    }
}

/// `lbw-12-0-client` -> `lbw-12-0`; names that are not ours -> `None`.
fn world_of(name: &str) -> Option<String> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, number) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
    Some(format!("{PREFIX}{pid}-{number}"))
}

fn is_abandoned(world: &str) -> bool {
    match File::open(Path::new(FOLDER).join(world).join("lock")) {
        Ok(lock) => flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn names(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    shell::output(shell::tool("mount").args(["-t", "bpf", "bpf", BPFFS])).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_worlds_are_taken_for_worlds() {
        assert_eq!(world_of("lbw-12-3-client").as_deref(), Some("lbw-12-3"));
        assert_eq!(world_of("lbw-12-3").as_deref(), Some("lbw-12-3"));
        for other in ["lbw-", "lbw-x-1-client", "lbw-12", "client", "lb-12-3", "lbw-12-web-1"] {
            assert_eq!(world_of(other), None, "{other}");
        }
    }
}
