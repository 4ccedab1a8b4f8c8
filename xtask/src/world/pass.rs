//! An XDP program that lets every packet pass, for the far ends of the balancer's cables: veth
//! wakes its peer for frames sent by XDP_TX only when a program is attached there. Real NICs need
//! nothing of the kind.

use std::{
    ffi::c_long,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

use anyhow::{Context as _, Result};

use super::Namespace;

const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// `r0 = 2 (XDP_PASS); exit`, as `struct bpf_insn`s.
const PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// `union bpf_attr` for `BPF_PROG_LOAD`, up to `kern_version`.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// `union bpf_attr` for `BPF_LINK_CREATE`, up to `flags`.
#[repr(C)]
struct LinkCreate {
    prog_fd: RawFd,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches the program to the host's interface for as long as the answer lives.
///
/// # Errors
/// There is no such interface, or the kernel (before 5.9) knows no XDP links.
pub(super) fn attach(host: &Namespace, interface: &str) -> Result<OwnedFd> {
    let attached = host.enter(|| {
        let program = load()?;
        let index = index_of(interface)?;
        link(&program, index)
    });
    attached.with_context(|| format!("cannot attach a program to {interface} of {}", host.name()))
}

fn load() -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: PROGRAM.len() as u32,
        insns: PROGRAM.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        // Frames of any size.
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        ..ProgramLoad::default()
    };
    bpf(BPF_PROG_LOAD, &attributes)
}

fn link(program: &OwnedFd, index: u32) -> io::Result<OwnedFd> {
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd(),
        target_ifindex: index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &attributes)
}

fn index_of(interface: &str) -> io::Result<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    Ok(rustix::net::netdevice::name_to_index(socket, interface)?)
}

/// For commands that answer with a descriptor.
fn bpf<T>(command: u32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes and what they point to outlive the call, and their size is given.
    let answer: c_long = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands answer with a new descriptor that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(answer as RawFd) })
}
