//! A balancer between two networks, with nothing but itself behind the wires.
//!
//! ```text
//! client 198.51.100.7 -- router 192.0.2.254 -- front [lb] back -- 10.0.0.11, .12, .13
//!        2001:db8:c::7          2001:db8:1::fe                     2001:db8:2::11 ...
//! ```

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::{self, Command},
    thread,
};

use aya::{
    TestRun as _,
    maps::MapData,
    programs::{ProgramError, TestRunOptions, Xdp},
};
use lb_common::{
    abi::{
        Address, AddressRoles, Backend, BackendState, Granularity, Mode, Port, Protocol, Scheduler, ServiceInfo,
        ServiceKey, ServiceValue, Settings, Slot, limits::WAYS, names,
    },
    flow::{Word, ticks},
};
use lb_userspace::{
    config::{Limits, PortRange, XdpMode},
    dataplane::{
        Dataplane as _, Op,
        kernel::{FlowFilter, FlowRecord, Flows, KernelDataplane, Pins, SharedArray, Stats, Vlans},
    },
};

use lb_userspace::host::VlanDevice;

use crate::{
    counters::Counters,
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

/// What became of a frame.
#[derive(Debug)]
pub struct Sent {
    /// `pass`, `drop`, `tx` or `redirect`.
    pub exit: &'static str,
    pub frame: Vec<u8>,
    /// Every counter that changed, in words: `to_backend 1 x 74`, `service 0 flows 1`.
    pub counted: Vec<String>,
}

/// A service to be published.
#[derive(Clone, Copy)]
pub struct Spec {
    pub v4: bool,
    /// Of the backends; that of the service, unless a test has both.
    pub backends_v4: bool,
    pub protocol: Protocol,
    pub mode: Mode,
    pub granularity: Granularity,
    pub scheduler: Scheduler,
    /// 0: any.
    pub port: u16,
    /// 0: the port that the client asked for.
    pub backend_port: u16,
    pub backends: u8,
}

impl Spec {
    pub fn new(v4: bool, protocol: Protocol, mode: Mode) -> Self {
        Self {
            v4,
            backends_v4: v4,
            protocol,
            mode,
            granularity: Granularity::Flow,
            scheduler: Scheduler::RoundRobin,
            port: 80,
            backend_port: 8080,
            backends: 1,
        }
    }
}

/// A published service.
#[derive(Clone)]
pub struct Served {
    pub spec: Spec,
    pub id: u32,
    /// Ids of backends 1, 2, 3.
    pub backends: Vec<u32>,
    pub value: ServiceValue,
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

    /// Publishes a service whose backends are all ready.
    pub fn serve(&mut self, spec: Spec) -> Served {
        let number = self.served;
        self.served += 1;
        let backends: Vec<u32> = (0..u32::from(spec.backends)).map(|n| number * 4 + n).collect();
        for (n, &id) in (1..).zip(&backends) {
            let full_nat = spec.mode == Mode::FullNat;
            let pool = number * 4 % LIMITS.port_pools + u32::from(n) - 1;
            if full_nat {
                self.apply(Op::SetPortPool { pool, ports: PORTS.to_vec() });
            }
            let entry = Backend {
                address: backend(spec.backends_v4, n).into(),
                source: if Mode::needs_source(spec.mode as u8) {
                    source(spec.backends_v4).into()
                } else {
                    Address::v6([0; 16])
                },
                port: Port::new(spec.backend_port),
                state: BackendState::Live as u8,
                cause: 0,
                generation: 1,
                service_id: number,
                port_pool: pool,
                weight: 1,
                tunnel_port: Port::ANY,
                dont_fragment: 0,
                source_bits: 0,
                max_flows: 0,
                reserved: 0,
            };
            self.apply(Op::SetBackend { id, backend: entry });
            if spec.mode == Mode::Nat {
                let roles = AddressRoles(AddressRoles::NAT_BACKEND);
                self.apply(Op::SetAddress { address: entry.address, roles });
            }
        }
        let address = Address::from(vip(spec.v4));
        let port = Port::new(spec.port);
        let info = ServiceInfo::new(address, port, spec.protocol as u8, spec.mode as u8);
        self.apply(Op::SetServiceInfo { id: number, info });
        let base = number * 16;
        if !backends.is_empty() {
            self.apply(Op::WriteSelection { base, slots: backends.iter().copied().map(Slot::clean).collect() });
        }
        let value = ServiceValue {
            id: number,
            selection_base: base,
            selection_len: backends.len() as u32,
            generation: 7,
            mode: spec.mode as u8,
            scheduler: spec.scheduler as u8,
            granularity: spec.granularity as u8,
            ..ServiceValue::EMPTY
        };
        let served = Served { spec, id: number, backends, value };
        self.publish(&served, value);
        let any = if spec.port == 0 { AddressRoles::ANY_PORT } else { 0 };
        self.apply(Op::SetAddress { address, roles: AddressRoles(AddressRoles::SERVICE | any) });
        if spec.mode == Mode::FullNat {
            let roles = AddressRoles(AddressRoles::SOURCE);
            self.apply(Op::SetAddress { address: source(spec.backends_v4).into(), roles });
        }
        served
    }

    /// Replaces the service's value.
    pub fn publish(&mut self, served: &Served, value: ServiceValue) {
        let key = ServiceKey::new(vip(served.spec.v4).into(), Port::new(served.spec.port), served.spec.protocol as u8);
        self.apply(Op::SetService { key, value });
    }

    /// Points the service at these backends (1 to 3).
    pub fn select(&mut self, served: &Served, backends: &[u8]) {
        let base = served.value.selection_base + 8;
        let slots: Vec<Slot> = backends.iter().map(|&n| Slot::clean(served.backends[usize::from(n) - 1])).collect();
        let selection_len = slots.len() as u32;
        if !slots.is_empty() {
            self.apply(Op::WriteSelection { base, slots });
        }
        self.publish(served, ServiceValue { selection_base: base, selection_len, ..served.value });
    }

    /// Declares backend `n` of a service live or dead.
    pub fn set_state(&mut self, served: &Served, n: u8, state: BackendState) {
        let id = served.backends[usize::from(n) - 1];
        let mut backend = self.data.read().unwrap().backends[&id];
        backend.state = state as u8;
        self.apply(Op::SetBackend { id, backend });
    }

    /// Gives backend `n` of a service a weight.
    pub fn set_weight(&mut self, served: &Served, n: u8, weight: u32) {
        let id = served.backends[usize::from(n) - 1];
        let backend = Backend { weight, ..self.data.read().unwrap().backends[&id] };
        self.apply(Op::SetBackend { id, backend });
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

    /// Runs the program on a frame.
    pub fn send(&mut self, side: Side, frame: &[u8]) -> Sent {
        let before = Counters::read(&self.stats, &self.limits);
        let (exit, out) = run(self.shared.loaded.program().expect("the program"), ifindex(side), frame);
        Sent { exit, frame: out, counted: before.changed(&Counters::read(&self.stats, &self.limits)) }
    }

    /// Runs the program on a frame, without a look at the counters.
    pub fn run(&mut self, side: Side, frame: &[u8]) -> (&'static str, Vec<u8>) {
        run(self.shared.loaded.program().expect("the program"), ifindex(side), frame)
    }

    /// The same with only the first bytes of the frame in its first buffer; `None` as for [`Self::send_in_parts`].
    pub fn run_in_parts(&mut self, side: Side, frame: &[u8], first: usize) -> Option<(&'static str, Vec<u8>)> {
        run_in_parts(self.shared.loaded.program().expect("the program"), ifindex(side), frame, first)
    }

    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The same with only the first bytes of the frame in its first buffer; `None` where the kernel
    /// takes test frames in no such parts.
    pub fn send_in_parts(&mut self, side: Side, frame: &[u8], first: usize) -> Option<Sent> {
        let before = Counters::read(&self.stats, &self.limits);
        let (exit, out) =
            run_in_parts(self.shared.loaded.program().expect("the program"), ifindex(side), frame, first)?;
        Some(Sent { exit, frame: out, counted: before.changed(&Counters::read(&self.stats, &self.limits)) })
    }

    /// Runs the program on frames from several threads, each on a CPU of its own, all at once. Gives
    /// how often each exit was taken.
    pub fn send_from_all_cpus(
        &mut self,
        side: Side,
        frames: impl Fn(usize) -> Vec<Vec<u8>> + Sync,
    ) -> BTreeMap<&'static str, usize> {
        let ifindex = ifindex(side);
        let program = self.shared.loaded.program().expect("the program");
        let cpus = cpus();
        // Threads started from here are in this thread's network namespace.
        let work = |cpu: usize| {
            let frames = frames(cpu);
            pin_to(cpu);
            let mut exits = BTreeMap::new();
            for frame in frames {
                *exits.entry(run(program, ifindex, &frame).0).or_insert(0) += 1;
            }
            exits
        };
        let work = &work;
        let counts: Vec<BTreeMap<&'static str, usize>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..cpus).map(|cpu| scope.spawn(move || work(cpu))).collect();
            threads.into_iter().map(|thread| thread.join().expect("the thread ends")).collect()
        });
        let mut sum = BTreeMap::new();
        for (exit, n) in counts.into_iter().flatten() {
            *sum.entry(exit).or_insert(0) += n;
        }
        sum
    }

    /// Runs the program on a frame from an interface, for tests that do so very often. Gives its exit and
    /// leaves what became of the frame in `out`.
    pub fn run_into(&mut self, ifindex: u32, frame: &[u8], out: &mut [u8]) -> u32 {
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let program = self.shared.loaded.program().expect("the program");
        program.test_run(options).expect("the kernel runs the program").return_value
    }

    /// Where the maps are pinned.
    pub fn pin_dir(&self) -> &Path {
        &self.shared.pin_dir.0
    }

    /// Flows begun so far towards each backend of a service.
    pub fn flows_begun(&self, served: &Served) -> Vec<u64> {
        served.backends.iter().map(|&id| self.stats.backend(id).unwrap().flows).collect()
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

pub fn run(program: &Xdp, ifindex: u32, frame: &[u8]) -> (&'static str, Vec<u8>) {
    run_in_parts(program, ifindex, frame, frame.len()).expect("the kernel runs the program")
}

pub fn run_in_parts(program: &Xdp, ifindex: u32, frame: &[u8], first: usize) -> Option<(&'static str, Vec<u8>)> {
    let mut out = vec![0xee; frame.len() + 1024];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let mut context = [0u8; 24];
    context[4..8].copy_from_slice(&(first as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = match program.test_run(options) {
        Ok(result) => result,
        Err(ProgramError::SyscallError(error))
            if first != frame.len() && error.io_error.raw_os_error() == Some(libc::EINVAL) =>
        {
            return None;
        }
        Err(error) => panic!("the kernel runs the program: {error}"),
    };
    out.truncate(result.data_size_out as usize);
    let exit = match result.return_value {
        1 => "drop",
        2 => "pass",
        3 => "tx",
        4 => "redirect",
        other => panic!("verdict {other} for {frame:02x?}"),
    };
    Some((exit, out))
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
