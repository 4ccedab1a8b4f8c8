//! The Internet checksum over more of the frame than its headers, which the data path needs only where
//! a sender left a checksum out.

use core::ptr::null_mut;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_csum_diff, bpf_xdp_load_bytes},
};
use lb_common::checksum::Sum;

use crate::{opaque::opaque, packet::Packet};

/// Bytes that are summed at once: as many as `bpf_csum_diff` takes on Linux 6.1.
pub const CHUNK: usize = 512;
/// The largest IP packet.
const CHUNKS: usize = 65_536 / CHUNK;

/// [`sum_bytes`]: the frame is shorter.
const SHORT: u64 = u64::MAX;

/// The sum of the `len` bytes from `offset` on, also of a frame in several buffers; `None`: the frame is
/// shorter.
#[inline(always)]
pub fn of_bytes(md: *mut xdp_md, offset: u32, len: u32) -> Option<Sum> {
    match sum_bytes(md, offset, len) {
        SHORT => None,
        sum => Some(Sum::ZERO.partial(sum as u32)),
    }
}

/// Copies chunk by chunk, because the verifier lets nobody walk through the frame itself that far.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn sum_bytes(md: *mut xdp_md, offset: u32, len: u32) -> u64 {
    let Some(packet) = Packet::current() else { return SHORT };
    let chunk = (&raw mut packet.chunk).cast::<u64>();
    let mut sum = 0;
    for step in 0..CHUNKS as u32 {
        let done = step * CHUNK as u32;
        if done >= len {
            break;
        }
        let rest = (len - done) as usize;
        // What is left of the last chunk, at least one byte: said so that the verifier of Linux 6.1 sees it.
        let part = if rest >= CHUNK { CHUNK } else { opaque((rest - 1) & (CHUNK - 1)) + 1 };
        // SAFETY: the chunk is this CPU's alone and `CHUNK` bytes long.
        unsafe {
            if part < CHUNK {
                for word in 0..CHUNK / 8 {
                    chunk.add(word).write_volatile(0);
                }
            }
            if bpf_xdp_load_bytes(md, offset + done, chunk.cast(), part as u32) != 0 {
                return SHORT;
            }
            sum = bpf_csum_diff(null_mut(), 0, chunk.cast(), CHUNK as u32, sum as u32);
        }
        if sum < 0 {
            return SHORT;
        }
    }
    sum as u32 as u64
}
