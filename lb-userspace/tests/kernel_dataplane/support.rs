//! Pins and network namespaces that are removed again, also after a failure.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use aya::maps::{Array, HashMap, Map, MapData};
use bytemuck::Zeroable;
use lb_common::{
    abi::{Address, Backend, BackendState, Flow, Mode, Port, limits::WAYS, names},
    flow::{ReplyWord, Word, buckets, index, tag, ticks},
    hash::tuple_hash,
};
use lb_userspace::{
    config::Limits,
    dataplane::kernel::{KernelDataplane, LoadOptions, Loaded, Pins, SharedArray, detach, load},
};

pub const LIMITS: Limits =
    Limits { services: 32, backends: 64, addresses: 64, selection_slots: 512, flows: 512, port_pools: 4 };

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test, in this process or another, uses.
fn unique() -> String {
    // SAFETY: no preconditions.
    let uid = unsafe { libc::geteuid() };
    assert_eq!(uid, 0, "these tests load BPF programs and make network namespaces: run them as root");
    format!("lbk{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A pin directory of its own; what is pinned there is detached at the end.
pub struct PinDir(pub PathBuf);

impl PinDir {
    pub fn new() -> Self {
        Self(Path::new("/sys/fs/bpf").join(format!("test-{}", unique())))
    }

    pub fn load(&self) -> Loaded {
        self.try_load(&LIMITS).expect("the data path loads")
    }

    pub fn try_load(&self, limits: &Limits) -> anyhow::Result<Loaded> {
        load(&LoadOptions { pin_dir: &self.0, limits, debug_log: false })
    }

    pub fn open(&self) -> KernelDataplane {
        KernelDataplane::open(&self.0).expect("the pinned maps open")
    }

    pub fn map(&self, name: &str) -> MapData {
        MapData::from_pin(Pins::new(&self.0).map(name)).expect("the map is pinned")
    }

    pub fn hash<K: aya::Pod, V: aya::Pod>(&self, name: &str) -> HashMap<MapData, K, V> {
        HashMap::try_from(Map::HashMap(self.map(name))).expect("a hash map")
    }

    pub fn array<V: aya::Pod>(&self, name: &str) -> Array<MapData, V> {
        Array::try_from(Map::Array(self.map(name))).expect("an array")
    }

    pub fn shared<T: bytemuck::Pod>(&self, name: &str) -> SharedArray<T> {
        SharedArray::map(&self.map(name)).expect("the array maps into memory")
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        if let Err(error) = detach(&self.0) {
            eprintln!("cleaning up {}: {error:#}", self.0.display());
        }
    }
}

/// A network namespace with a veth pair `a.1` (dots are allowed in names) and `side-b`, both up.
pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn new() -> Self {
        let namespace = Self { name: unique() };
        run("ip", &["netns", "add", &namespace.name]);
        namespace.ip(&["link", "add", "a.1", "type", "veth", "peer", "name", "side-b"]);
        namespace.ip(&["link", "set", "a.1", "up"]);
        namespace.ip(&["link", "set", "side-b", "up"]);
        namespace
    }

    pub fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Runs `body` in a thread inside the namespace; mounts, pins with them, stay as they are.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace is there");
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                use std::os::fd::AsRawFd as _;
                // SAFETY: the descriptor is open; only this thread changes its namespace.
                let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
                assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
                body()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {error}", arguments.join(" "));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Nanoseconds of the clock that flow words carry.
pub fn coarse_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

pub const BACKEND: Backend = Backend {
    address: Address::v4([10, 0, 0, 11]),
    source: Address::v4([10, 0, 0, 1]),
    port: Port::new(8080),
    state: BackendState::Live as u8,
    cause: 0,
    generation: 3,
    service_id: 2,
    port_pool: 1,
    weight: 0,
    tunnel_port: Port::ANY,
    dont_fragment: 0,
    source_bits: 0,
    max_flows: 0,
    reserved: 0,
};

/// A full-nat flow over [`BACKEND`], whose id is 5.
pub fn flow(source_port: u16) -> Flow {
    Flow {
        client: Address::v4([192, 0, 2, 7]),
        source: BACKEND.source,
        client_port: Port::new(40_000),
        service_port: Port::new(80),
        source_port: Port::new(source_port),
        protocol: 6,
        mode: Mode::FullNat as u8,
        service_id: BACKEND.service_id,
        backend_id: 5,
        backend_generation: BACKEND.generation,
        ..Flow::zeroed()
    }
}

/// The flow table written by hand, as the data path would.
pub struct HandTable {
    pub words: SharedArray<[u64; WAYS]>,
    pub replies: SharedArray<[u64; WAYS]>,
    pub flows: SharedArray<Flow>,
    pub pools: SharedArray<lb_common::abi::PortPool>,
    seed: u64,
}

impl HandTable {
    pub fn open(pins: &PinDir) -> Self {
        let settings: lb_common::abi::Settings = pins.array(names::SETTINGS).get(&0, 0).expect("settings");
        Self {
            words: pins.shared(names::FLOW_WORDS),
            replies: pins.shared(names::REPLY_WORDS),
            flows: pins.shared(names::FLOWS),
            pools: pins.shared(names::PORT_POOLS),
            seed: settings.hash_seed,
        }
    }

    /// Stores a flow at a way of its first bucket, its reply word, and takes its source port. Gives
    /// the flow's place and its reply word's.
    pub fn store(&self, flow: &Flow, word: impl FnOnce(u32) -> Word) -> (u32, u32) {
        let hash = tuple_hash(
            self.seed,
            &flow.client,
            &Address::v4([203, 0, 113, 10]),
            flow.client_port,
            flow.service_port,
            flow.protocol,
            0,
        );
        let bucket = buckets(hash, self.words.len() - 1)[0];
        let way = (0..WAYS).find(|way| self.word(index(bucket, *way as u32)) == Word::EMPTY).expect("a free way");
        let at = index(bucket, way as u32);
        self.flows.write(at, flow).expect("a flow");
        let reply = self.store_reply(flow, at);
        self.set_port(flow.source_port.get(), true);
        self.slot(at).store(word(tag(hash)).0, Ordering::Release);
        (at, reply)
    }

    /// Stores the reply word of a flow in the second of its buckets.
    pub fn store_reply(&self, flow: &Flow, at: u32) -> u32 {
        let hash =
            tuple_hash(self.seed, &BACKEND.address, &flow.source, BACKEND.port, flow.source_port, flow.protocol, 0);
        let reply = index(buckets(hash, self.replies.len() - 1)[1], 3);
        let word = ReplyWord::new(tag(hash), at).0;
        self.replies.words(reply / 8).expect("a bucket")[reply as usize % 8].store(word, Ordering::Release);
        reply
    }

    pub fn word(&self, at: u32) -> Word {
        Word(self.slot(at).load(Ordering::Acquire))
    }

    pub fn set_word(&self, at: u32, word: Word) {
        self.slot(at).store(word.0, Ordering::Release);
    }

    pub fn reply(&self, at: u32) -> ReplyWord {
        ReplyWord(self.replies.words(at / 8).expect("a bucket")[at as usize % 8].load(Ordering::Acquire))
    }

    /// Takes or gives back a port of pool 1, as the data path does.
    pub fn set_port(&self, port: u16, taken: bool) {
        let word = &self.pools.words(1).expect("pool 1")[port as usize / 64];
        let bit = 1 << (port % 64);
        if taken {
            word.fetch_or(bit, Ordering::AcqRel)
        } else {
            word.fetch_and(!bit, Ordering::AcqRel)
        };
    }

    pub fn port_taken(&self, port: u16) -> bool {
        self.pools.words(1).expect("pool 1")[port as usize / 64].load(Ordering::Acquire) & 1 << (port % 64) != 0
    }

    fn slot(&self, at: u32) -> &std::sync::atomic::AtomicU64 {
        &self.words.words(at / 8).expect("a bucket")[at as usize % 8]
    }
}

/// Now and `seconds` ago, in ticks.
pub fn ago(seconds: u64) -> u32 {
    ticks(coarse_ns().wrapping_sub(seconds * 1_000_000_000))
}
