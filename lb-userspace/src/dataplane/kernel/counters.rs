//! Adding to counters that the data path counts on at the same moment, without losing what it counts.
//!
//! The data path adds without a lock: its element of a map per CPU is its CPU's alone. An addition from
//! userspace writes the elements of all CPUs, and would undo what was counted between its reading and its
//! writing. So a small program does it, on each CPU in turn, by one instruction for each counter: packets
//! are handled in an interrupt of the CPU, and none comes within an instruction.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::generated::bpf_insn;

use super::sys;

/// The frame that the program runs on: the element's number, padding, then what to add.
const HEAD: usize = 8;
/// Of the shortest frame (an Ethernet header).
const SHORTEST: usize = 16;
const ADDED: u32 = 1;

/// Adds to the elements of one map per CPU, whose values are 64-bit counters.
pub(super) struct Adder {
    program: OwnedFd,
    counters: usize,
}

impl Adder {
    /// `counters`: how many of the 64-bit counters of a value, from its start, are added to.
    ///
    /// # Errors
    /// The kernel refuses the program.
    pub(super) fn new(map: BorrowedFd<'_>, counters: usize) -> Result<Self> {
        ensure!((1..=64).contains(&counters), "values of {counters} counters");
        let program = sys::load_xdp(&instructions(map.as_raw_fd(), counters)).context("loading what adds counters")?;
        Ok(Self { program, counters })
    }

    /// Adds, for each CPU by its number, these values to these elements.
    ///
    /// # Errors
    /// A CPU cannot be run on, or an element is not there.
    pub(super) fn add(&self, per_cpu: &[Vec<(u32, Vec<u64>)>]) -> Result<()> {
        for (cpu, changes) in per_cpu.iter().enumerate().filter(|(_, changes)| !changes.is_empty()) {
            // A thread of its own: its CPU is set, and ends with it.
            let added = thread::scope(|scope| scope.spawn(|| self.add_here(cpu, changes)).join());
            added.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    }

    fn add_here(&self, cpu: usize, changes: &[(u32, Vec<u64>)]) -> Result<()> {
        stay_on(cpu).with_context(|| format!("going to CPU {cpu}"))?;
        let mut frame = vec![0; (HEAD + self.counters * 8).max(SHORTEST)];
        for (element, values) in changes {
            frame[..4].copy_from_slice(&element.to_ne_bytes());
            for (place, value) in frame[HEAD..].chunks_exact_mut(8).zip(values) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
            if sys::test_run(self.program.as_fd(), &frame).context("running what adds counters")? != ADDED {
                bail!("there is no element {element} to add to");
            }
        }
        Ok(())
    }
}

fn stay_on(cpu: usize) -> io::Result<()> {
    // SAFETY: a zeroed set is an empty one, and the call concerns this thread only.
    let refused = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if refused == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// ```text
/// r6 = data; if (r6 + length > data_end) return 0
/// *(u32 *)(fp - 4) = *(u32 *)r6; r0 = lookup(map, fp - 4); if (!r0) return 0
/// for each counter: lock *(u64 *)(r0 + i * 8) += *(u64 *)(r6 + 8 + i * 8)
/// return 1
/// ```
fn instructions(map: i32, counters: usize) -> Vec<bpf_insn> {
    const LOAD_32: u8 = 0x61;
    const LOAD_64: u8 = 0x79;
    const STORE_32: u8 = 0x63;
    const ATOMIC_64: u8 = 0xdb;
    const MOVE: u8 = 0xbf;
    const MOVE_NUMBER: u8 = 0xb7;
    const ADD_NUMBER: u8 = 0x07;
    const LOAD_MAP: u8 = 0x18;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const IF_GREATER: u8 = 0x2d;
    const IF_NOT: u8 = 0x55;
    /// Of the wide load: the number is a descriptor of a map.
    const MAP_DESCRIPTOR: u8 = 1;
    const LOOKUP: i32 = 1;
    let frame_end = HEAD + counters * 8;
    let mut code = vec![
        instruction(LOAD_32, 6, 1, 0, 0),
        instruction(LOAD_32, 2, 1, 4, 0),
        instruction(MOVE, 3, 6, 0, 0),
        instruction(ADD_NUMBER, 3, 0, 0, frame_end as i32),
        // To the end, which is nothing added.
        instruction(IF_GREATER, 3, 2, (11 + 2 * counters) as i16, 0),
        instruction(LOAD_32, 2, 6, 0, 0),
        instruction(STORE_32, 10, 2, -4, 0),
        instruction(MOVE, 2, 10, 0, 0),
        instruction(ADD_NUMBER, 2, 0, 0, -4),
        instruction(LOAD_MAP, 1, MAP_DESCRIPTOR, 0, map),
        instruction(0, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, LOOKUP),
        instruction(IF_NOT, 0, 0, 1, 0),
        instruction(0x05, 0, 0, (2 * counters + 2) as i16, 0),
    ];
    for counter in 0..counters {
        code.push(instruction(LOAD_64, 1, 6, (HEAD + counter * 8) as i16, 0));
        code.push(instruction(ATOMIC_64, 0, 1, (counter * 8) as i16, 0));
    }
    code.extend([
        instruction(MOVE_NUMBER, 0, 0, 0, ADDED as i32),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(MOVE_NUMBER, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ]);
    code
}

fn instruction(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
    // SAFETY: plain integers; all zero is a valid value.
    let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
    instruction.code = code;
    instruction.set_dst_reg(to);
    instruction.set_src_reg(from);
    instruction.off = off;
    instruction.imm = imm;
    instruction
}
