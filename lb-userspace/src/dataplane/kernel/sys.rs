//! The few `bpf(2)` calls that aya does not offer: force-detaching links, asking a link for its
//! interface, reading a whole map in one call.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn, bpf_link_info, bpf_link_type, bpf_prog_type};
use bytemuck::Pod;

/// What the kernel tells of an XDP link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpLinkInfo {
    pub program_id: u32,
    /// 0: the interface is gone.
    pub ifindex: u32,
}

/// Opens a pinned object (map, program or link).
///
/// # Errors
/// The kernel's, `NotFound` where nothing is pinned.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a link by its number (Linux 5.7).
///
/// # Errors
/// The kernel's, `NotFound` where it is gone.
pub fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_6.__bindgen_anon_1.link_id = id;
    let fd = bpf(bpf_cmd::BPF_LINK_GET_FD_BY_ID, &mut attr)?;
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes a link off its interface, whoever else holds it (Linux 5.9).
///
/// # Errors
/// The kernel's.
pub fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed_attr();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Program and interface of a link; `None` for links of another type.
///
/// # Errors
/// The kernel's.
pub fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<Option<XdpLinkInfo>> {
    // SAFETY: plain integers; all zero is a valid value.
    let mut info: bpf_link_info = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut attr = zeroed_attr();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info_len = size_of::<bpf_link_info>() as u32;
    attr.info.info = &raw mut info as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    if info.type_ != bpf_link_type::BPF_LINK_TYPE_XDP as u32 {
        return Ok(None);
    }
    // SAFETY: the type says which member the kernel filled in.
    let ifindex = unsafe { info.__bindgen_anon_1.xdp.ifindex };
    Ok(Some(XdpLinkInfo { program_id: info.prog_id, ifindex }))
}

/// Every entry of an array or hash map that is not per CPU, in one call (Linux 5.6). Entries that
/// others write meanwhile may be old or new.
///
/// # Errors
/// The kernel's.
pub fn read_all<K: Pod, V: Pod>(map: BorrowedFd<'_>, max_entries: u32) -> io::Result<Vec<(K, V)>> {
    let mut keys = vec![K::zeroed(); max_entries as usize];
    let mut values = vec![V::zeroed(); max_entries as usize];
    // The place to go on from; a hash map writes four bytes, others a key.
    let mut position = [0u8; 64];
    assert!(size_of::<K>() <= position.len());
    let mut attr = zeroed_attr();
    attr.batch.out_batch = position.as_mut_ptr() as u64;
    attr.batch.keys = keys.as_mut_ptr() as u64;
    attr.batch.values = values.as_mut_ptr() as u64;
    attr.batch.count = max_entries;
    attr.batch.map_fd = map.as_raw_fd() as u32;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => {}
        // "No entry" after the last one: the count says how many came before.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        Err(error) => return Err(error),
    }
    // SAFETY: the kernel wrote the number of entries back.
    let count = unsafe { attr.batch.count } as usize;
    Ok(keys.into_iter().zip(values).take(count).collect())
}

/// One element of an array. `value` is as long as the kernel's answer: of a map per CPU, all of them,
/// each rounded up to eight bytes.
///
/// # Errors
/// The kernel's.
pub fn array_element(map: BorrowedFd<'_>, index: u32, value: &mut [u8]) -> io::Result<()> {
    let mut attr = element(map, &index, value);
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).map(drop)
}

/// Writes what [`array_element`] read.
///
/// # Errors
/// The kernel's.
pub fn set_array_element(map: BorrowedFd<'_>, index: u32, value: &mut [u8]) -> io::Result<()> {
    let mut attr = element(map, &index, value);
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

fn element(map: BorrowedFd<'_>, index: &u32, value: &mut [u8]) -> bpf_attr {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(index) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    attr
}

/// The key after `key`, or the first one, of a hash map; `false`: there is none. A key that is gone is
/// followed by the first one.
///
/// # Errors
/// The kernel's.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = key.map_or(0, |key| key.as_ptr() as u64);
    attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The value of a key of a hash map, which is as long as the map says.
///
/// # Errors
/// The kernel's, `NotFound` where the key is gone.
pub fn entry(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attr = entry_attr(map, key, value.as_mut_ptr());
    bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr).map(drop)
}

/// Writes an entry of a hash map.
///
/// # Errors
/// The kernel's.
pub fn set_entry(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<()> {
    let mut attr = entry_attr(map, key, value.as_mut_ptr());
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Removes an entry of a hash map.
///
/// # Errors
/// The kernel's, `NotFound` where the key is gone.
pub fn remove_entry(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = entry_attr(map, key, std::ptr::null_mut());
    bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr).map(drop)
}

fn entry_attr(map: BorrowedFd<'_>, key: &[u8], value: *mut u8) -> bpf_attr {
    let mut attr = zeroed_attr();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = key.as_ptr() as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value as u64;
    attr
}

/// Has the kernel take an XDP program of instructions made here.
///
/// # Errors
/// The kernel's, with what its verifier says.
pub fn load_xdp(instructions: &[bpf_insn]) -> io::Result<OwnedFd> {
    let mut log = vec![0u8; 1 << 16];
    let mut attr = zeroed_attr();
    // SAFETY: a member of plain integers, all of which are zero.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_XDP as u32;
    load.insns = instructions.as_ptr() as u64;
    load.insn_cnt = instructions.len() as u32;
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr() as u64;
    load.log_size = log.len() as u32;
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr).map_err(|error| {
        let said = String::from_utf8_lossy(&log[..log.iter().position(|byte| *byte == 0).unwrap_or(0)]).into_owned();
        io::Error::new(error.kind(), format!("{error}: {said}"))
    })?;
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Runs a program once on a frame of at least 14 bytes, on this thread's CPU; what it returns.
///
/// # Errors
/// The kernel's.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    let mut attr = zeroed_attr();
    attr.test.prog_fd = program.as_raw_fd() as u32;
    attr.test.data_in = frame.as_ptr() as u64;
    attr.test.data_size_in = frame.len() as u32;
    attr.test.repeat = 1;
    bpf(bpf_cmd::BPF_PROG_TEST_RUN, &mut attr)?;
    // SAFETY: the kernel wrote the result back.
    Ok(unsafe { attr.test.retval })
}

/// Waits until no CPU runs a program any more that was replaced before (Linux 4.3: membarrier(2) waits for
/// an RCU grace period).
///
/// # Errors
/// The kernel's.
pub fn wait_for_cpus() -> io::Result<()> {
    const GLOBAL: i32 = 1;
    // SAFETY: takes three numbers.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The data path's clock: see [`lb_common::flow::ticks`].
pub fn tick() -> u32 {
    lb_common::flow::ticks(coarse_ns())
}

/// Nanoseconds of `CLOCK_MONOTONIC_COARSE`: the clock of `bpf_ktime_get_coarse_ns`.
pub fn coarse_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing; this clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Nanoseconds of `CLOCK_MONOTONIC`: the clock of `bpf_ktime_get_ns`.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: as in `coarse_ns`.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A random number other than zero.
///
/// # Errors
/// The kernel's.
pub fn random_u64() -> io::Result<u64> {
    loop {
        let mut bytes = [0u8; 8];
        // SAFETY: the buffer is valid for its length.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        match got {
            8 if bytes != [0; 8] => return Ok(u64::from_ne_bytes(bytes)),
            -1 => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
            _ => {}
        }
    }
}

pub(super) fn zeroed_attr() -> bpf_attr {
    // SAFETY: a union of plain integers; all zero is valid, and the kernel wants unused bytes zero.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

pub(super) fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: `attr` is a whole `bpf_attr`; pointers in it are valid for this call (callers above).
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, attr as *mut bpf_attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
