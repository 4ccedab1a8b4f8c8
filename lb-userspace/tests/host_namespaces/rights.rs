//! Missing rights and the BPF file system, each on a thread of its own.

use std::{path::Path, thread};

use caps::{CapSet, Capability};
use lb_userspace::host::{Bpffs, Right, check_rights, ensure_bpffs, is_bpffs};
use rustix::{
    mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount},
    thread::{UnshareFlags, unshare_unsafe},
};

fn require_root() {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test drops capabilities and mounts: run it as `sudo -E cargo test`"
    );
}

#[test]
fn a_missing_capability_is_named() {
    require_root();
    thread::spawn(|| {
        assert_eq!(check_rights(), Ok(()));
        caps::drop(None, CapSet::Effective, Capability::CAP_PERFMON).unwrap();
        let missing = check_rights().unwrap_err();
        assert_eq!(missing.rights, [Right::Perfmon]);
        let text = missing.to_string();
        assert!(text.contains("CAP_PERFMON") && text.contains("\n  sudo setcap "), "{text}");
    })
    .join()
    .unwrap();
}

/// Gives the calling thread a mount namespace of its own, invisible to the machine.
fn own_mounts() {
    // SAFETY: this thread alone is moved; it opens nothing by a path that others rely on.
    unsafe { unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS) }.unwrap();
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
}

#[test]
fn the_bpf_file_system_is_mounted_once_where_we_may() {
    require_root();
    let place = tempfile::tempdir().unwrap();
    let path: &Path = place.path();
    thread::scope(|scope| {
        scope.spawn(|| {
            own_mounts();
            assert_eq!(ensure_bpffs(path).unwrap(), Bpffs::MountedNow);
            assert!(is_bpffs(path).unwrap());
            assert_eq!(ensure_bpffs(path).unwrap(), Bpffs::WasMounted);
            unmount(path, UnmountFlags::empty()).unwrap();
        });
    });
    assert!(!is_bpffs(path).unwrap(), "the machine's own mounts are untouched");
}

#[test]
fn without_the_right_to_mount_the_line_to_type_is_told() {
    require_root();
    let place = tempfile::tempdir().unwrap();
    let path: &Path = place.path();
    thread::scope(|scope| {
        scope.spawn(|| {
            caps::drop(None, CapSet::Effective, Capability::CAP_SYS_ADMIN).unwrap();
            let error = ensure_bpffs(path).unwrap_err().to_string();
            assert!(error.contains("CAP_SYS_ADMIN"), "{error}");
            assert!(error.ends_with(&format!("sudo mount -t bpf bpf {}", path.display())), "{error}");
        });
    });
}
