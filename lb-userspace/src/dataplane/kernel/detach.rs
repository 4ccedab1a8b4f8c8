//! `lb detach`: takes the data path off every interface and removes what is pinned. Needs no agent.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    pins::{self, Pins},
    sys,
};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detached {
    /// Interfaces that had the program, sorted.
    pub interfaces: Vec<String>,
    /// Pins removed, links included.
    pub pins: usize,
}

/// Removes the links and pins of every ABI version under `pin_dir`, links first, so that no program
/// runs without its maps. Anything else there stays. Nothing to do is not an error.
///
/// # Errors
/// The first pin that could not be removed; run it again after the cause is mended.
pub fn detach(pin_dir: &Path) -> Result<Detached> {
    let mut done = Detached::default();
    for version in versions(pin_dir)? {
        let (links, others): (Vec<_>, Vec<_>) =
            entries(&version)?.into_iter().partition(|path| interface_of(path).is_some());
        for path in links {
            detach_link(&path)?;
            done.interfaces.extend(interface_of(&path));
            done.pins += 1;
        }
        for path in others {
            remove(&path)?;
            done.pins += 1;
        }
        fs::remove_dir(&version).with_context(|| format!("removing {}", version.display()))?;
    }
    // Not empty: somebody else's files are there, and stay.
    let _ = fs::remove_dir(pin_dir);
    done.interfaces.sort();
    done.interfaces.dedup();
    Ok(done)
}

/// Takes the program off one interface; the maps and the other interfaces stay.
///
/// # Errors
/// There is no pinned link for it, or the kernel's.
pub fn detach_interface(pins: &Pins, interface: &str) -> Result<()> {
    detach_link(&pins.link(interface))
}

/// Takes one pinned link off its interface and removes the pin.
///
/// # Errors
/// The kernel's.
pub(super) fn detach_link(path: &Path) -> Result<()> {
    let link = sys::open_pin(path).with_context(|| format!("opening the pinned link {}", path.display()))?;
    match sys::detach_link(link.as_fd()) {
        // The interface is gone already.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOLINK | libc::ENODEV)) => {}
        result => result.with_context(|| format!("detaching {}", path.display()))?,
    }
    remove(path)
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("removing the pin {}", path.display()))
}

fn interface_of(path: &Path) -> Option<String> {
    pins::interface_of(path.file_name()?.to_str()?)
}

/// The folders of all layouts.
pub(super) fn versions(pin_dir: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(pin_dir)?.into_iter().filter(|path| is_version(path)).collect())
}

fn is_version(path: &Path) -> bool {
    let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let read = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    match read() {
        Ok(entries) => Ok(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("listing {}", directory.display())),
    }
}
