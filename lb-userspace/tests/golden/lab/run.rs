//! Frames through the program, and what became of them.

use std::{collections::BTreeMap, thread};

use aya::{
    TestRun as _,
    programs::{ProgramError, TestRunOptions, Xdp},
};

use super::{Lab, Side, cpus, ifindex, pin_to};
use crate::counters::Counters;

/// What became of a frame.
#[derive(Debug)]
pub struct Sent {
    /// `pass`, `drop`, `tx` or `redirect`.
    pub exit: &'static str,
    pub frame: Vec<u8>,
    /// Every counter that changed, in words: `to_backend 1 x 74`, `service 0 flows 1`.
    pub counted: Vec<String>,
}

impl Lab {
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
