//! The file system that keeps maps and programs alive without the agent.

use std::{io, path::Path};

use rustix::{
    fs::statfs,
    mount::{MountFlags, mount},
};

use super::rights;

/// Where the kernel's BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const MAGIC: u64 = 0xcafe_4a11;

/// How the BPF file system came to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bpffs {
    WasMounted,
    MountedNow,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "the BPF file system, in which maps outlive the agent, is not mounted at {path}: {error}. Type: sudo mount -t bpf bpf {path}"
)]
pub struct NoBpffs {
    path: String,
    error: io::Error,
}

/// Makes sure that `path` (normally [`BPFFS`]) is a BPF file system, and mounts it where this
/// process may (CAP_SYS_ADMIN). It stays mounted.
///
/// # Errors
/// It is not mounted, and could not be; the error has the line to type.
pub fn ensure_bpffs(path: &Path) -> Result<Bpffs, NoBpffs> {
    let failed = |error| NoBpffs { path: path.display().to_string(), error };
    if is_bpffs(path).map_err(failed)? {
        return Ok(Bpffs::WasMounted);
    }
    if !rights::may_mount() {
        return Err(failed(io::Error::other("mounting it needs CAP_SYS_ADMIN")));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RELATIME;
    mount("bpf", path, "bpf", flags, c"mode=0700").map_err(|errno| failed(errno.into()))?;
    Ok(Bpffs::MountedNow)
}

/// Whether `path` is (in) a BPF file system.
///
/// # Errors
/// The path does not exist or cannot be asked.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    let magic = statfs(path)?.f_type;
    // The type of f_type differs between architectures; the magic number has 32 bits.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss)]
    let magic = magic as u64 & 0xffff_ffff;
    Ok(magic == MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_is_not_taken_for_a_bpf_one() {
        assert!(!is_bpffs(Path::new("/proc")).unwrap());
        assert!(is_bpffs(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn the_error_has_the_line_to_type() {
        let error = ensure_bpffs(Path::new("/nowhere/bpf")).unwrap_err().to_string();
        assert!(error.ends_with("Type: sudo mount -t bpf bpf /nowhere/bpf"), "{error}");
    }
}
