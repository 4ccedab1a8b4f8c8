//! Loaded programs that one test after the other uses: the verifier takes most of a test's time, and under
//! emulation nearly all of it. In between, every map is made as it was when it was loaded.

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, Once,
        atomic::{AtomicU32, Ordering},
    },
};

use aya::{
    maps::{MapInfo, MapType},
    programs::{ProgramInfo, loaded_programs},
    util::nr_cpus,
};
use lb_common::abi::{Settings, names};
use lb_userspace::{
    config::Limits,
    dataplane::kernel::{LoadOptions, Loaded, Pins, detach, detach_interface, load},
};

/// With more than that it takes as long to clear the maps as to load the program.
const FLOWS_MAX: u32 = 4096;

/// A program with its maps.
pub struct Shared {
    limits: Limits,
    pub loaded: Loaded,
    pub pin_dir: PinDir,
}

static IDLE: Mutex<Vec<Shared>> = Mutex::new(Vec::new());

/// A program that is attached nowhere, with maps in which nothing is published.
pub fn take(limits: Limits) -> Shared {
    let mut idle = IDLE.lock().unwrap();
    if let Some(at) = idle.iter().position(|shared| shared.limits == limits) {
        return idle.swap_remove(at);
    }
    drop(idle);
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let pin_dir = PinDir(Path::new("/sys/fs/bpf").join(format!("lb-golden-{}-{number}", process::id())));
    lb_userspace::host::ensure_bpffs(Path::new("/sys/fs/bpf")).expect("a bpf file system");
    let options = LoadOptions { pin_dir: &pin_dir.0, limits: &limits, debug_log: false };
    let loaded = load(&options).expect("the program loads");
    Shared { limits, loaded, pin_dir }
}

/// For the next test.
pub fn give_back(shared: Shared) {
    if shared.limits.flows > FLOWS_MAX {
        return;
    }
    clear_maps(&shared);
    static AT_EXIT: Once = Once::new();
    // SAFETY: the function may be called at any time.
    AT_EXIT.call_once(|| assert_eq!(unsafe { libc::atexit(take_away) }, 0));
    IDLE.lock().unwrap().push(shared);
}

/// Takes the program off, and makes its maps as they were when it was loaded.
pub fn clear_maps(shared: &Shared) {
    let pins = Pins::new(&shared.pin_dir.0);
    for interface in ["front", "back"] {
        detach_interface(&pins, interface).expect("the program comes off");
    }
    for map in maps(&pins, shared.loaded.program_id) {
        clear(&map);
    }
}

/// What is pinned, and what the main program and its stages have besides.
fn maps(pins: &Pins, program_id: u32) -> Vec<MapInfo> {
    // Those of other tests may end meanwhile.
    let ids = |program: ProgramInfo| Some((program.id(), program.map_ids().ok()??));
    let programs: Vec<_> = loaded_programs().filter_map(Result::ok).filter_map(ids).collect();
    let main = programs.iter().find(|(id, _)| *id == program_id).unwrap();
    let pinned = names::PINNED.iter().map(|name| MapInfo::from_pin(pins.map(name)).unwrap());
    let pinned: Vec<_> = pinned.map(|map| map.id()).collect();
    let is_own = |id: &u32| main.1.contains(id) && !pinned.contains(id);
    // Stages are told by the working memory that they share with it.
    let stages = programs.iter().filter(|(_, maps)| maps.iter().any(is_own));
    let mut all: Vec<_> = stages.flat_map(|(_, maps)| maps).chain(&pinned).copied().collect();
    all.sort_unstable();
    all.dedup();
    all.into_iter().map(|id| MapInfo::from_id(id).unwrap()).collect()
}

/// Takes everything off and away at the end, also when a lab could not be finished.
pub struct PinDir(pub PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.0) {
            eprintln!("cleaning up {}: {error:#}", self.0.display());
        }
    }
}

/// Static variables are never dropped.
extern "C" fn take_away() {
    let idle = IDLE.lock().map(|mut idle| std::mem::take(&mut *idle));
    drop(idle);
}

/// Makes a map as it was when it was made; the seed in the settings stays.
fn clear(info: &MapInfo) {
    let name = info.name_as_str().unwrap_or_default();
    let fd = info.fd().unwrap();
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    match info.map_type().unwrap() {
        // Constants.
        MapType::Array if name.contains('.') => {}
        MapType::Array if name == names::SETTINGS => {
            let mut settings = vec![0; value];
            call(LOOKUP, fd.as_fd(), &0u32.to_ne_bytes(), &mut settings).unwrap();
            let kept: &mut Settings = bytemuck::from_bytes_mut(&mut settings);
            (kept.generation, kept.flags) = (0, 0);
            call(UPDATE, fd.as_fd(), &0u32.to_ne_bytes(), &mut settings).unwrap();
        }
        MapType::Array => clear_elements(info, fd.as_fd(), value),
        MapType::PerCpuArray => clear_elements(info, fd.as_fd(), value.next_multiple_of(8) * nr_cpus().unwrap()),
        MapType::Hash | MapType::LruHash => {
            let mut first = vec![0; key];
            while call(NEXT_KEY, fd.as_fd(), &[], &mut first).is_ok() {
                call(DELETE, fd.as_fd(), &first, &mut []).unwrap();
            }
        }
        // The programs of the stages, and records that no test reads: those that are there are its last
        // reader's.
        MapType::ProgramArray | MapType::RingBuf => {}
        other => panic!("a map {name} of type {other:?}: how is that cleared?"),
    }
}

fn clear_elements(info: &MapInfo, fd: BorrowedFd<'_>, bytes: usize) {
    let mut zeros = vec![0; bytes];
    for index in 0..info.max_entries() {
        call(UPDATE, fd, &index.to_ne_bytes(), &mut zeros).unwrap();
    }
}

/// Commands of bpf(2).
const LOOKUP: i64 = 1;
const UPDATE: i64 = 2;
const DELETE: i64 = 3;
const NEXT_KEY: i64 = 4;

/// One call about an element; without a key, about the first one. Some calls take no value.
fn call(command: i64, fd: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> std::io::Result<()> {
    #[repr(C)]
    struct Attributes {
        fd: u64,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = if key.is_empty() { 0 } else { key.as_ptr() as u64 };
    let value = if value.is_empty() { 0 } else { value.as_mut_ptr() as u64 };
    let attributes = Attributes { fd: fd.as_raw_fd() as u64, key, value, flags: 0 };
    // SAFETY: key and value have the map's sizes, and outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of::<Attributes>()) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}
