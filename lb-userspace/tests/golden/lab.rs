//! A balancer between two networks, with nothing but itself behind the wires.
//!
//! ```text
//! client 198.51.100.7 -- router 192.0.2.254 -- front [lb] back -- 10.0.0.11, .12, .13
//!        2001:db8:c::7          2001:db8:1::fe                     2001:db8:2::11 ...
//! ```

mod run;
mod serve;

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{self, Command},
    thread,
};

use aya::maps::MapData;
use lb_common::{
    abi::{Protocol, Settings, limits::WAYS, names},
    flow::{Word, ticks},
};
use lb_userspace::{
    config::{Limits, PortRange, XdpMode},
    dataplane::{
        Dataplane as _, Op,
        kernel::{FlowFilter, FlowRecord, Flows, KernelDataplane, Pins, SharedArray, Stats, Vlans},
    },
    host::VlanDevice,
};

pub use self::{
    run::{Sent, run, run_in_parts},
    serve::{Served, Spec},
};
use crate::{
    frames::{Packet, Segment},
    pool::{self, Shared},
};

/// The interface a frame comes from or leaves by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Front,
    Back,
}

pub const FRONT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const BACK_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0xfe];

/// Link-layer address of backend `n` (1 to 3).
pub const fn backend_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, 0x10 + n]
}

/// Families and transports that a table of cases goes through.
pub const KINDS: [(bool, Protocol); 4] =
    [(true, Protocol::Tcp), (true, Protocol::Udp), (false, Protocol::Tcp), (false, Protocol::Udp)];

pub fn vip(v4: bool) -> IpAddr {
    if v4 { "203.0.113.10" } else { "2001:db8:f::10" }.parse().unwrap()
}

pub fn client(v4: bool) -> IpAddr {
    if v4 { "198.51.100.7" } else { "2001:db8:c::7" }.parse().unwrap()
}

/// The balancer's address towards the backends.
pub fn source(v4: bool) -> IpAddr {
    if v4 { "10.0.0.1" } else { "2001:db8:2::1" }.parse().unwrap()
}

pub fn backend(v4: bool, n: u8) -> IpAddr {
    if v4 { format!("10.0.0.1{n}") } else { format!("2001:db8:2::1{n}") }.parse().unwrap()
}

/// The far ends have no IPv6 address: they would solicit and report, and that would be counted.
const SETUP: &str = "
link set lo up
link add front address 02:00:00:00:01:01 type veth peer name front-far
link add back address 02:00:00:00:02:01 type veth peer name back-far
link set front-far addrgenmode none
link set back-far addrgenmode none
addr add 192.0.2.1/24 dev front
addr add 2001:db8:1::1/64 dev front nodad
addr add 10.0.0.1/24 dev back
addr add 2001:db8:2::1/64 dev back nodad
link set front up
link set back up
link set front-far up
link set back-far up
route add default via 192.0.2.254
route add default via 2001:db8:1::fe
neigh add 192.0.2.254 lladdr 02:00:00:00:01:fe dev front nud permanent
neigh add 2001:db8:1::fe lladdr 02:00:00:00:01:fe dev front nud permanent
neigh add 10.0.0.11 lladdr 02:00:00:00:02:11 dev back nud permanent
neigh add 10.0.0.12 lladdr 02:00:00:00:02:12 dev back nud permanent
neigh add 10.0.0.13 lladdr 02:00:00:00:02:13 dev back nud permanent
neigh add 2001:db8:2::11 lladdr 02:00:00:00:02:11 dev back nud permanent
neigh add 2001:db8:2::12 lladdr 02:00:00:00:02:12 dev back nud permanent
neigh add 2001:db8:2::13 lladdr 02:00:00:00:02:13 dev back nud permanent
";

/// Small, so that tables can be filled.
pub const LIMITS: Limits =
    Limits { services: 16, backends: 64, addresses: 64, selection_slots: 256, flows: 1024, port_pools: 8 };

/// The configuration's default: 60,416 ports.
pub const PORTS: [PortRange; 2] = [PortRange { first: 1024, last: 56_903 }, PortRange { first: 61_000, last: 65_535 }];

pub struct Lab {
    limits: Limits,
    shared: Shared,
    pub data: KernelDataplane,
    stats: Stats,
    served: u32,
    /// VLAN interfaces of the host, once they are told.
    pub vlans: Vec<VlanDevice>,
    reloaded: bool,
}

/// Runs a test in a network namespace of its own, with the program loaded and attached there.
pub fn lab(test: impl FnOnce(&mut Lab) + Send + 'static) {
    lab_of(1024, test);
}

/// The same with room for so many flows.
pub fn lab_of(flows: u32, test: impl FnOnce(&mut Lab) + Send + 'static) {
    lab_with(Limits { flows, ..LIMITS }, test);
}

/// The same with room for so much.
pub fn lab_with(limits: Limits, test: impl FnOnce(&mut Lab) + Send + 'static) {
    // The namespace ends with the thread. It stays on its CPU, because each CPU takes its own turns.
    let result = thread::spawn(move || {
        // SAFETY: has no arguments.
        pin_to(unsafe { libc::sched_getcpu() } as usize);
        let mut lab = Lab::new(limits);
        test(&mut lab);
        lab.end();
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

impl Lab {
    fn new(limits: Limits) -> Self {
        // SAFETY: no preconditions.
        let uid = unsafe { libc::geteuid() };
        assert_eq!(uid, 0, "golden packets need the kernel's verifier and a network namespace: run them as root");
        // SAFETY: concerns this thread only.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "a network namespace");
        ip_batch(SETUP);
        for family in ["ipv4", "ipv6"] {
            for interface in ["front", "back"] {
                std::fs::write(format!("/proc/sys/net/{family}/conf/{interface}/forwarding"), "1").unwrap();
            }
        }
        let mut shared = pool::take(limits);
        for interface in ["front", "back"] {
            shared.loaded.attach(interface, XdpMode::Native).expect("the program attaches");
        }
        let data = KernelDataplane::open(&shared.pin_dir.0).expect("the maps open");
        let stats = Stats::open(&shared.pin_dir.0).expect("the counters open");
        Self { limits, shared, data, stats, served: 0, vlans: vec![], reloaded: false }
    }

    /// Leaves the program to the next test, unless another one has been loaded over it.
    fn end(self) {
        let Self { shared, data, stats, reloaded, .. } = self;
        drop((data, stats));
        if !reloaded {
            pool::give_back(shared);
        }
    }

    /// Where another program may be loaded over this one.
    pub fn pin_dir_to_reload(&mut self) -> &Path {
        self.reloaded = true;
        &self.shared.pin_dir.0
    }

    /// Makes everything as it was when the lab was new.
    pub fn restart(&mut self) {
        pool::clear_maps(&self.shared);
        for interface in ["front", "back"] {
            self.shared.loaded.attach(interface, XdpMode::Native).expect("the program attaches");
        }
        self.data = KernelDataplane::open(&self.shared.pin_dir.0).expect("the maps open");
        self.served = 0;
    }

    /// Secret of the flow table.
    pub fn hash_seed(&self) -> u64 {
        let map = MapData::from_pin(Pins::new(&self.shared.pin_dir.0).map(names::SETTINGS)).unwrap();
        let map = aya::maps::Map::Array(map);
        aya::maps::Array::<_, Settings>::try_from(&map).unwrap().get(&0, 0).unwrap().hash_seed
    }

    /// Tells the program what VLAN interfaces there are.
    pub fn tell_vlans(&self) {
        Vlans::open(&self.shared.pin_dir.0).unwrap().reconcile(&self.vlans).unwrap();
    }

    pub fn apply(&mut self, op: Op) {
        self.data.apply(&op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
    }

    /// Live flows, in the order of the table.
    pub fn flows(&self) -> Vec<FlowRecord> {
        Flows::open(&self.shared.pin_dir.0).unwrap().iter(&FlowFilter::default()).collect()
    }

    /// Ticks of the clock that the program reads.
    pub fn now(&self) -> u32 {
        ticks(self.clock())
    }

    /// The same in nanoseconds.
    pub fn clock(&self) -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes the time to a place that is there.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    /// Says whether packets to one backend may take different ways.
    pub fn set_routes_vary(&mut self, vary: bool) {
        self.data.apply(&Op::SetRoutesVary(vary)).unwrap();
    }

    /// Waits until the kernel is asked anew for the ways to backends: 16 interrupts of the timer, of which
    /// there are 100 a second at the least.
    pub fn until_ways_are_asked_for(&self) {
        thread::sleep(std::time::Duration::from_millis(170));
    }

    /// Waits for the next tick of the program's clock.
    pub fn next_tick(&self) {
        let now = self.now();
        while self.now() == now {
            thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    /// Writes the whole flow table.
    pub fn set_every_word(&self, word: Word) {
        let map = MapData::from_pin(Pins::new(&self.shared.pin_dir.0).map(names::FLOW_WORDS)).unwrap();
        let buckets = SharedArray::<[u64; WAYS]>::map(&map).unwrap();
        for bucket in 0..buckets.len() {
            buckets.write(bucket, &[word.0; WAYS]).unwrap();
        }
    }

    /// The only live flow.
    pub fn flow(&self) -> FlowRecord {
        let flows = self.flows();
        assert_eq!(flows.len(), 1, "{flows:#?}");
        flows.into_iter().next().unwrap()
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Where the maps are pinned.
    pub fn pin_dir(&self) -> &Path {
        &self.shared.pin_dir.0
    }

    /// What a frame is that leaves for backend `n`.
    pub fn to_backend(&self, n: u8, packet: &Packet) -> Vec<u8> {
        framed(backend_mac(n), BACK_MAC, packet)
    }

    /// What a frame is that leaves for the client.
    pub fn to_client(&self, packet: &Packet) -> Vec<u8> {
        framed(ROUTER_MAC, FRONT_MAC, packet)
    }
}

/// A packet as it comes in: from the router, or from backend `n`.
pub fn from_client(packet: &Packet) -> Vec<u8> {
    framed(FRONT_MAC, ROUTER_MAC, packet)
}

pub fn from_backend(n: u8, packet: &Packet) -> Vec<u8> {
    framed(BACK_MAC, backend_mac(n), packet)
}

/// A packet between two addresses.
pub fn packet(from: SocketAddr, to: SocketAddr, ttl: u8, protocol: Protocol, flags: u8) -> Packet {
    let segment = match protocol {
        Protocol::Tcp => Segment::tcp(from.port(), to.port(), flags, b"hello"),
        Protocol::Udp => Segment::udp(from.port(), to.port(), b"hello"),
        Protocol::Sctp => panic!("SCTP has chunks and no flags"),
    };
    let mut packet = Packet::new(&from.ip().to_string(), &to.ip().to_string(), segment);
    packet.ttl = ttl;
    packet
}

/// A client's packet to the service's port 80.
pub fn request(served: &Served, client_port: u16, flags: u8) -> Packet {
    let spec = served.spec;
    packet((client(spec.v4), client_port).into(), (vip(spec.v4), 80).into(), 64, spec.protocol, flags)
}

fn framed(to: [u8; 6], from: [u8; 6], packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

/// CPUs of the machine; a test itself stays on one.
pub fn cpus() -> usize {
    // SAFETY: asks for a number.
    unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) as usize }
}

fn pin_to(cpu: usize) {
    // SAFETY: a zeroed set is an empty one, and the call concerns this thread only.
    let refused = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
    };
    assert_eq!(refused, 0, "CPU {cpu}");
}

pub fn ifindex(side: Side) -> u32 {
    lb_userspace::dataplane::kernel::ifindex(match side {
        Side::Front => "front",
        Side::Back => "back",
    })
    .expect("the interface")
}

pub fn ip_batch(commands: &str) {
    let file = std::env::temp_dir().join(format!("lb-golden-{}-{:?}", process::id(), thread::current().id()));
    std::fs::write(&file, commands).unwrap();
    // Started by this thread, so it works in this thread's namespace.
    let output = Command::new("ip").arg("-batch").arg(&file).output().expect("ip (Debian: iproute2)");
    std::fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Compares frames byte by byte, and leaves both as a capture behind where they differ.
#[track_caller]
pub fn assert_frame(got: &[u8], wanted: &[u8]) {
    if got == wanted {
        return;
    }
    let path = std::env::temp_dir().join(format!("golden-{}-{:?}.pcap", process::id(), thread::current().id()));
    let file = std::fs::File::create(&path).unwrap();
    let mut capture = pcap_file::pcap::PcapWriter::new(file).unwrap();
    for frame in [wanted, got] {
        let length = frame.len() as u32;
        capture.write_packet(&pcap_file::pcap::PcapPacket::new(std::time::Duration::ZERO, length, frame)).unwrap();
    }
    let at = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(got.len().min(wanted.len()));
    panic!(
        "the frame differs at byte {at}\n   got {got:02x?}\nwanted {wanted:02x?}\nwanted and got are in {}",
        path.display()
    );
}
