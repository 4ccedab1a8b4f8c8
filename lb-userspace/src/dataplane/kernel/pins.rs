//! The pin directory: where maps, program and links outlive the agent.
//!
//! ```text
//! <pin_dir>/v<ABI_VERSION>/<map name>      every map of `names::PINNED`
//!                          prog-lb         the program that was loaded last
//!                          stages-<id>     what the program of that number goes on with
//!                          link-<if>       one attachment; `.` in the interface's name stands as `:`
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{MapError, MapInfo};
use lb_common::abi::{ABI_VERSION, names};
use tracing::info;

use super::object::MapSpec;
use crate::host::{self, BPFFS, Bpffs};

/// Where pins are unless told otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/lb";
pub(super) const LINK_PREFIX: &str = "link-";
const PROGRAM_PREFIX: &str = "prog-";
const STAGES_PREFIX: &str = "stages-";
const PREVIOUS_PREFIX: &str = "previous-";
const ASIDE_PREFIX: &str = "aside-";

/// Paths under one pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    root: PathBuf,
    version: PathBuf,
}

impl Pins {
    pub fn new(pin_dir: &Path) -> Self {
        Self { root: pin_dir.into(), version: pin_dir.join(format!("v{ABI_VERSION}")) }
    }

    /// The directory of all versions.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of this version's pins.
    pub fn dir(&self) -> &Path {
        &self.version
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.version.join(name)
    }

    pub fn program(&self) -> PathBuf {
        self.program_named(names::PROGRAM)
    }

    /// The pin of the program or stage of this name that was loaded last.
    pub fn program_named(&self, name: &str) -> PathBuf {
        self.version.join(format!("{PROGRAM_PREFIX}{name}"))
    }

    /// Where what is pinned at `path` goes when an upgrade takes its place: [`super::upgrade::rollback`]
    /// brings it back.
    pub fn previous(&self, path: &Path) -> PathBuf {
        self.beside(PREVIOUS_PREFIX, path)
    }

    /// Where it is while an upgrade is under way.
    pub(super) fn set_aside(&self, path: &Path) -> PathBuf {
        self.beside(ASIDE_PREFIX, path)
    }

    fn beside(&self, prefix: &str, path: &Path) -> PathBuf {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        self.version.join(format!("{prefix}{name}"))
    }

    /// The pin of the map of stages of the program with that number.
    pub fn stages(&self, program_id: u32) -> PathBuf {
        self.version.join(format!("{STAGES_PREFIX}{program_id}"))
    }

    /// The pin of the attachment to `interface`.
    pub fn link(&self, interface: &str) -> PathBuf {
        self.version.join(format!("{LINK_PREFIX}{}", file_name(interface)))
    }

    /// Makes the directory, and mounts bpffs at its usual place where it is missing.
    ///
    /// # Errors
    /// The directory is not on bpffs and cannot be brought there.
    pub fn create(&self) -> Result<()> {
        ensure_bpffs(&self.root)?;
        fs::create_dir_all(&self.version)
            .with_context(|| format!("making the pin directory {}", self.version.display()))
    }

    /// Compares one map.
    ///
    /// # Errors
    /// It does not fit, and why.
    pub fn fit(&self, spec: &MapSpec) -> Result<Fit> {
        let path = self.map(spec.name);
        let info = match MapInfo::from_pin(&path) {
            Ok(info) => info,
            Err(error) if is_missing(&error) => return Ok(Fit::New),
            Err(error) => return Err(error).with_context(|| format!("opening the pinned map {}", path.display())),
        };
        check_map(spec, &info, &path)
    }
}

/// How a pinned map fits what a program needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Nothing is pinned: it is made.
    New,
    Same,
    /// One that is made anew takes its content over.
    Changes(Change),
}

/// From what to what, of a map that is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Bytes of a value.
    pub value: (u32, u32),
    /// Elements.
    pub elements: (u32, u32),
}

/// The interface that a pin's file name stands for; `None` for pins of another kind.
pub(super) fn interface_of(file_name: &str) -> Option<String> {
    file_name.strip_prefix(LINK_PREFIX).map(interface_name)
}

/// How an interface's name stands in file names: bpffs refuses names with a dot, and no interface
/// name has a colon.
pub(super) fn file_name(interface: &str) -> String {
    interface.replace('.', ":")
}

/// The interface that [`file_name`] was made of.
pub(super) fn interface_name(file_name: &str) -> String {
    file_name.replace(':', ".")
}

/// The number of the program whose stages a pin's file name stands for.
pub(super) fn stages_of(file_name: &str) -> Option<u32> {
    file_name.strip_prefix(STAGES_PREFIX)?.parse().ok()
}

/// Whether nothing is pinned there.
pub(super) fn is_missing(error: &MapError) -> bool {
    matches!(error, MapError::SyscallError(error) if error.io_error.kind() == io::ErrorKind::NotFound)
}

fn check_map(spec: &MapSpec, info: &MapInfo, path: &Path) -> Result<Fit> {
    let map_type = info.map_type().with_context(|| format!("the pinned map {}", path.display()))? as u32;
    let value = (info.value_size(), spec.value_size);
    let grows = value.0 <= value.1 && !FIXED.contains(&spec.name);
    let layout = [
        ("type", map_type, spec.map_type),
        ("key size", info.key_size(), spec.key_size),
        ("value size", if grows { value.1 } else { value.0 }, value.1),
        ("flags", info.map_flags(), spec.flags),
    ];
    for (what, pinned, wanted) in layout {
        if pinned != wanted {
            bail!(
                "the pinned map {} has {what} {pinned}, this version needs {wanted}: go on with the version that made \
                 it (`lb upgrade --rollback` brings the one before back), or `lb detach` removes it (its flows are \
                 lost), then start again",
                path.display()
            );
        }
    }
    let elements = (info.max_entries(), spec.max_entries);
    if (value.0, elements.0) == (value.1, elements.1) {
        return Ok(Fit::Same);
    }
    // How many there are is a setting, or a matter of the version, which can have come to need more.
    let resizes = spec.setting.is_some() || (elements.0 <= elements.1 && spec.name != names::ADDRESS_BITS);
    if !resizes {
        bail!(
            "the pinned map {} has {} elements, this version needs {}: go on with the version that made it, or run \
             `lb detach` first (its flows are lost), then start again",
            path.display(),
            elements.0,
            elements.1
        );
    }
    Ok(Fit::Changes(Change { value, elements }))
}

/// Maps whose values are words that stand for a place, or of one.
const FIXED: [&str; 3] = [names::FLOW_WORDS, names::REPLY_WORDS, names::ADDRESS_BITS];

fn ensure_bpffs(root: &Path) -> Result<()> {
    if on_bpffs(root)? {
        return Ok(());
    }
    if !root.starts_with(BPFFS) {
        bail!("{} is not on a BPF file system: choose a directory under {BPFFS}", root.display());
    }
    // The lock is on the directory below the mount, so that two starters do not mount twice.
    let below = fs::File::open(BPFFS).with_context(|| format!("opening {BPFFS}; is sysfs mounted?"))?;
    rustix::fs::flock(&below, rustix::fs::FlockOperation::LockExclusive).with_context(|| format!("locking {BPFFS}"))?;
    if host::ensure_bpffs(Path::new(BPFFS))? == Bpffs::MountedNow {
        info!("mounted the BPF file system at {BPFFS}");
    }
    Ok(())
}

/// Whether the path, or the nearest directory above it that exists, is on bpffs.
fn on_bpffs(path: &Path) -> Result<bool> {
    let existing = path.ancestors().find(|directory| directory.exists());
    let directory = existing.with_context(|| format!("{} is not an absolute path", path.display()))?;
    host::is_bpffs(directory).with_context(|| format!("looking at {}", directory.display()))
}
