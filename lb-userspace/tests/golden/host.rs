//! The loaded program and the one that fuzzing runs on the host decide alike: the same sequences of packets
//! and changes give the same verdicts, frames and counters.

use lb_common::flow::ticks;
use lb_host::{
    host::{Counters as HostCounters, Host},
    play::{Player, Sent, Side as HostSide, Target},
    world::{Change, LIMITS as WORLD, PORTS, World},
};
use lb_userspace::{
    config::{Limits, PortRange},
    dataplane::Op,
};
use rand::{Rng as _, RngCore as _, SeedableRng as _, rngs::StdRng};

use crate::lab::{Lab, Side, ifindex, lab_with};

const LIMITS: Limits = Limits {
    services: WORLD.services,
    backends: WORLD.backends,
    addresses: WORLD.addresses,
    selection_slots: WORLD.selection_slots,
    flows: WORLD.flows,
    port_pools: WORLD.port_pools,
};

/// Worlds that begin anew, and sequences in each.
const WORLDS: u64 = 40;
const SEQUENCES: u64 = 100;
/// Worlds that may be lost to a machine that stood still at the wrong moment.
const LOST_MAX: u64 = 100;

/// By number of an `xdp_action`.
const EXITS: [&str; 5] = ["aborted", "drop", "pass", "tx", "redirect"];

/// A tick of the program's clock, and how much of it has to be left for a packet to begin.
const TICK: u64 = 1 << 27;
const MARGIN: u64 = 40_000_000;

#[test]
fn host_and_kernel_decide_alike() {
    lab_with(LIMITS, |lab| {
        let (mut packets, mut lost) = (0, 0);
        for world in 0..WORLDS {
            loop {
                match compare(lab, world) {
                    Some(played) => break packets += played,
                    None => lost += 1,
                }
                assert!(lost < LOST_MAX, "the machine stands still too often to compare anything");
                lab.restart();
            }
            lab.restart();
        }
        assert!(packets as u64 > WORLDS * SEQUENCES, "{packets} packets");
    });
}

/// Plays a world's sequences in both. Gives the number of packets; `None`: a tick passed at a moment at which
/// nobody can tell which of the two it was in.
fn compare(lab: &mut Lab, number: u64) -> Option<usize> {
    let world = World::new(ifindex(Side::Front), ifindex(Side::Back));
    let mut host = Host::new(&world);
    host.set_seed(lab.hash_seed());
    // SAFETY: has no arguments; the lab's thread stays on its CPU.
    host.set_cpu(unsafe { libc::sched_getcpu() } as u32);
    let mut both = Both { lab, host, packets: 0, ambiguous: false };
    for change in world.changes() {
        both.apply(&change);
    }
    let mut random = StdRng::seed_from_u64(number);
    let mut player = Player::new(&world).without_retries();
    for _ in 0..SEQUENCES {
        let mut data = vec![0; random.random_range(20..300)];
        random.fill_bytes(&mut data);
        player.play(&data, &mut both);
        if both.ambiguous {
            return None;
        }
        let (kernel, host) = (both.counted(), both.host.counters());
        assert_same("verdict", &kernel.verdicts, &host.verdicts);
        assert_same("service", &kernel.services, &host.services);
        assert_same("backend", &kernel.backends, &host.backends);
    }
    Some(both.packets)
}

#[track_caller]
fn assert_same<T: PartialEq + std::fmt::Debug>(what: &str, kernel: &[T], host: &[T]) {
    assert_eq!(kernel.len(), host.len());
    for (number, (kernel, host)) in kernel.iter().zip(host).enumerate() {
        assert_eq!(kernel, host, "{what} {number}: of the kernel, and on the host");
    }
}

struct Both<'a> {
    lab: &'a mut Lab,
    host: Host,
    packets: usize,
    ambiguous: bool,
}

impl Both<'_> {
    fn apply(&mut self, change: &Change) {
        let op = match change.clone() {
            Change::PortPool { pool } => {
                Op::SetPortPool { pool, ports: vec![PortRange { first: PORTS.0, last: PORTS.1 }] }
            }
            Change::Backend { id, backend } => Op::SetBackend { id, backend },
            Change::ServiceInfo { id, info } => Op::SetServiceInfo { id, info },
            Change::Selection { base, slots } => Op::WriteSelection { base, slots },
            Change::Service { key, value } => Op::SetService { key, value },
            Change::Address { address, roles } => Op::SetAddress { address, roles },
            Change::QuicId { key, backend } => Op::SetQuicId { key, backend },
        };
        self.lab.apply(op);
    }

    fn counted(&self) -> HostCounters {
        let stats = self.lab.stats();
        HostCounters {
            verdicts: stats.verdicts().unwrap().into_values().collect(),
            services: (0..LIMITS.services).map(|id| stats.service(id).unwrap()).collect(),
            backends: (0..LIMITS.backends).map(|id| stats.backend(id).unwrap()).collect(),
        }
    }

    /// The program's clock, at a moment with enough left of its tick.
    fn safe_moment(&self) -> u64 {
        loop {
            let now = self.lab.clock();
            if now % TICK < TICK - MARGIN {
                return now;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Target for Both<'_> {
    fn change(&mut self, change: &Change) {
        self.apply(change);
        self.host.change(change);
    }

    /// The kernel's clock cannot be set.
    fn wait(&mut self, _: u64) {}

    fn run(&mut self, side: HostSide, frame: &[u8], first: usize) -> Sent {
        let begun = self.safe_moment();
        let from = match side {
            HostSide::Front => Side::Front,
            HostSide::Back => Side::Back,
        };
        let result = self.lab.run_in_parts(from, frame, first);
        self.ambiguous |= ticks(begun) != ticks(self.lab.clock());
        // Where the kernel takes no test frames in parts, it gets all of it in one.
        let (first, (exit, out)) = match result {
            Some(result) => (first, result),
            None => (frame.len(), self.lab.run(from, frame)),
        };
        self.host.set_time(begun);
        self.host.set_random(identification(&out));
        let sent = self.host.run(side, frame, first);
        self.packets += 1;
        if !self.ambiguous {
            let action = EXITS[sent.action as usize];
            let same = action == exit && sent.frame == out;
            assert!(
                same,
                "from {side:?}, {first} bytes in the first buffer of {}\nkernel: {exit} {}\nhost:   {action} {}",
                told(frame),
                told(&out),
                told(&sent.frame)
            );
        }
        Sent { ifindex: None, ..sent }
    }
}

/// The identification of the outer IPv4 packet, which the program makes of the kernel's dice where it makes one.
fn identification(frame: &[u8]) -> Option<u32> {
    let tagged = |at: usize| matches!(frame.get(at..at + 2), Some([0x81, 0] | [0x88, 0xa8]));
    let start = if !tagged(12) {
        14
    } else if !tagged(16) {
        18
    } else {
        22
    };
    let id = frame.get(start + 4..start + 6)?;
    (frame[start] >> 4 == 4).then(|| u32::from(u16::from_be_bytes([id[0], id[1]])))
}

/// Length and headers.
fn told(frame: &[u8]) -> String {
    let bytes: String = frame.iter().take(150).map(|byte| format!("{byte:02x}")).collect();
    format!("{} bytes {bytes}", frame.len())
}
