//! The program on the host, with the maps that it shares with an agent.

use aya_ebpf::{Machine, Program, bindings::xdp_action};
use lb_common::{
    abi::{BackendCounters, Interface, PortPool, ServiceCounters, VerdictCounters, limits},
    hash::address_bit,
    verdict::{Reason, Stage},
};
use lb_program::{maps, settings};

use crate::{
    play::{Sent, Side, Target},
    world::{BACK_MAC, Change, FRONT_MAC, LIMITS, PORTS, World},
};

pub struct Host {
    machine: Machine,
    front: u32,
    back: u32,
    /// Nanoseconds of its clocks.
    time: u64,
}

/// Every counter there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    pub verdicts: Vec<VerdictCounters>,
    pub services: Vec<ServiceCounters>,
    pub backends: Vec<BackendCounters>,
}

/// An hour after the machine was started.
const START: u64 = 3_600_000_000_000;

impl Host {
    /// With everything that the world publishes at first.
    pub fn new(world: &World) -> Self {
        let mut machine = Machine::new();
        machine.set_time(START);
        machine.set_routes(world.routes());
        let buckets = LIMITS.flows as usize / limits::WAYS;
        maps::FLOW_WORDS.set_len(buckets);
        maps::REPLY_WORDS.set_len(buckets * limits::REPLY_FACTOR as usize);
        maps::FLOWS.set_len(LIMITS.flows as usize);
        maps::SELECTION.set_len(LIMITS.selection_slots as usize);
        maps::SERVICE_INFO.set_len(LIMITS.services as usize);
        maps::BACKENDS.set_len(LIMITS.backends as usize);
        maps::BACKEND_LOAD.set_len(LIMITS.backends as usize);
        maps::PORT_POOLS.set_len(LIMITS.port_pools as usize);
        settings::FLOW_MASK.set(&mut machine, buckets as u32 - 1);
        settings::REPLY_MASK.set(&mut machine, buckets as u32 * limits::REPLY_FACTOR - 1);
        settings::HASH_SEED.set(&mut machine, 1);
        let mut host = Self { machine, front: world.front, back: world.back, time: START };
        for (ifindex, mac) in [(world.front, FRONT_MAC), (world.back, BACK_MAC)] {
            maps::INTERFACES.insert(ifindex, Interface { mac, zero: [0; 2] }, 0).expect("room");
        }
        for change in world.changes() {
            host.change(&change);
        }
        host
    }

    /// Secret of the flow table; before any packet.
    pub fn set_seed(&mut self, seed: u64) {
        settings::HASH_SEED.set(&mut self.machine, seed);
    }

    pub fn set_time(&mut self, ns: u64) {
        self.time = ns;
        self.machine.set_time(ns);
    }

    /// The CPU that it says it is.
    pub fn set_cpu(&mut self, cpu: u32) {
        self.machine.set_cpu(cpu);
    }

    /// What the dice show from now on; `None`: they roll.
    pub fn set_random(&mut self, next: Option<u32>) {
        self.machine.set_random(next);
    }

    /// By number of the reason.
    pub fn verdicts(&self) -> Vec<VerdictCounters> {
        copies(Reason::COUNT, |id| maps::VERDICT_STATS.get(id))
    }

    pub fn counters(&self) -> Counters {
        Counters {
            verdicts: self.verdicts(),
            services: copies(LIMITS.services, |id| maps::SERVICE_STATS.get(id)),
            backends: copies(LIMITS.backends, |id| maps::BACKEND_STATS.get(id)),
        }
    }
}

fn copies<T: Copy + 'static>(count: u32, get: impl Fn(u32) -> Option<&'static T>) -> Vec<T> {
    (0..count).map(|id| *get(id).expect("an element")).collect()
}

impl Target for Host {
    fn change(&mut self, change: &Change) {
        match change {
            Change::PortPool { pool } => {
                let mut words = [u64::MAX; limits::PORT_POOL_WORDS];
                for port in PORTS.0..=PORTS.1 {
                    words[usize::from(port / 64)] &= !(1 << (port % 64));
                }
                let mut ranges = [[0; 2]; limits::PORT_RANGES];
                ranges[0] = [PORTS.0, PORTS.1];
                store(maps::PORT_POOLS.get_ptr_mut(*pool), PortPool { words, cursor: 0, exhausted_in: 0, ranges });
            }
            Change::Backend { id, backend } => store(maps::BACKENDS.get_ptr_mut(*id), *backend),
            Change::ServiceInfo { id, info } => store(maps::SERVICE_INFO.get_ptr_mut(*id), *info),
            Change::Selection { base, slots } => {
                for (index, slot) in (*base..).zip(slots) {
                    store(maps::SELECTION.get_ptr_mut(index), *slot);
                }
            }
            Change::Service { key, value } => maps::SERVICES.insert(key, value, 0).expect("room"),
            Change::Address { address, roles } => {
                let bit = address_bit(address);
                let word = maps::ADDRESS_BITS.get_ptr_mut(bit / 64).expect("a word");
                // SAFETY: nothing runs.
                unsafe { *word |= 1 << (bit % 64) };
                maps::ADDRESSES.insert(address, roles, 0).expect("room");
            }
            Change::QuicId { key, backend } => maps::QUIC_IDS.insert(key, backend, 0).expect("room"),
        }
    }

    fn wait(&mut self, ns: u64) {
        self.set_time(self.time + ns);
    }

    fn run(&mut self, side: Side, frame: &[u8], first: usize) -> Sent {
        let ifindex = match side {
            Side::Front => self.front,
            Side::Back => self.back,
        };
        let output = self.machine.run(lb_program::lb, program, ifindex, frame, first);
        // The agent takes them as they come.
        maps::EVENTS.take();
        let to = match output.action {
            xdp_action::XDP_TX => ifindex,
            _ => output.ifindex,
        };
        Sent { action: output.action, frame: output.frame, ifindex: Some(to) }
    }
}

fn store<T>(place: Option<*mut T>, value: T) {
    // SAFETY: an element of a map, while nothing runs.
    unsafe { place.expect("within the limits").write(value) };
}

/// The program of a stage.
fn program(stage: u32) -> Option<Program> {
    let stage = *Stage::ALL.iter().find(|known| **known as u32 == stage)?;
    Some(match stage {
        Stage::Icmp => lb_program::lb_icmp,
        Stage::TooBig => lb_program::lb_too_big,
        Stage::Client => lb_program::lb_client,
        Stage::Family => lb_program::lb_family,
        Stage::Unusual => lb_program::lb_unusual,
        Stage::Rescue => lb_program::lb_rescue,
        Stage::Whole => lb_program::lb_whole,
    })
}
