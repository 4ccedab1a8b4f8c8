//! The only file with packet pointers.

use aya_ebpf::{
    EbpfContext,
    bindings::xdp_md,
    helpers::generated::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use lb_common::{
    checksum::Sum,
    packet::{Field, HEADERS_MAX, PacketAccess, SUM_MAX},
    parse::{NETWORK_OFFSET, Transport},
};

use crate::opaque::opaque;

/// The frame under way. What lies between `start` and `end` can be reached; a frame of several
/// buffers goes on behind `end`, where only the kernel's helpers get at it. Drivers put at least the
/// headers into the first buffer.
pub struct Frame {
    md: *mut xdp_md,
    start: usize,
    end: usize,
}

impl Frame {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { md: ctx.as_ptr().cast(), start: ctx.data(), end: ctx.data_end() }
    }

    /// The frame of a context; for functions of their own, which take no pointers into it along.
    #[inline(always)]
    pub fn of(md: *mut xdp_md) -> Self {
        Self::new(&XdpContext::new(md))
    }

    /// Length in bytes, over all buffers. A call of the kernel: see [`Self::bytes_of`].
    #[inline(always)]
    pub fn bytes(&self) -> u64 {
        // SAFETY: as in `ifindex`.
        unsafe { bpf_xdp_get_buff_len(self.md) }
    }

    /// The same for a frame that holds this packet: where its first buffer has the whole packet,
    /// there is no other, and nothing is asked.
    #[inline(always)]
    pub fn bytes_of(&self, transport: &Transport) -> u64 {
        let linear = self.linear();
        if NETWORK_OFFSET + transport.packet_len as usize <= linear { linear as u64 } else { self.bytes() }
    }

    /// Bytes in the first buffer.
    #[inline(always)]
    pub fn linear(&self) -> usize {
        self.end - self.start
    }

    /// Link-layer source address.
    #[inline(always)]
    pub fn sender(&self) -> [u8; 6] {
        self.read(size_of::<[u8; 6]>()).unwrap_or([0; 6])
    }

    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the kernel hands a valid context to the program, and it outlives the frame.
        unsafe { (*self.md).ingress_ifindex }
    }

    /// The context, for helpers.
    #[inline(always)]
    pub fn md(&self) -> *mut xdp_md {
        self.md
    }

    /// Moves the start of the frame: negative grows it. `None`: no headroom.
    #[inline(always)]
    pub fn adjust_head(&mut self, delta: i32) -> Option<()> {
        // SAFETY: all pointers into the frame are derived anew below.
        let refused = unsafe { bpf_xdp_adjust_head(self.md, delta) };
        self.refresh();
        (refused == 0).then_some(())
    }

    /// Moves the end of the frame: negative cuts it, through as many buffers as it takes.
    #[inline(always)]
    pub fn adjust_tail(&mut self, delta: i32) -> Option<()> {
        // SAFETY: all pointers into the frame are derived anew below.
        let refused = unsafe { bpf_xdp_adjust_tail(self.md, delta) };
        self.refresh();
        (refused == 0).then_some(())
    }

    #[inline(always)]
    fn refresh(&mut self) {
        // SAFETY: as in `ifindex`.
        unsafe {
            self.start = (*self.md).data as usize;
            self.end = (*self.md).data_end as usize;
        }
    }

    #[inline(always)]
    fn place<T>(&self, offset: usize) -> Option<*mut T> {
        self.place_below(offset, HEADERS_MAX)
    }

    /// A whole T at an offset below a limit.
    #[inline(always)]
    fn place_below<T>(&self, offset: usize, limit: usize) -> Option<*mut T> {
        if offset >= limit {
            return None;
        }
        // Without this LLVM finds a second check of the same header redundant, and reads through a
        // pointer that was never compared.
        let place = opaque(self.start + offset);
        if place + size_of::<T>() > self.end {
            return None;
        }
        Some(place as *mut T)
    }
}

/// Adds as many bytes as one call of the kernel takes: a constant multiple of four, at most 512.
#[inline(always)]
fn add_block<const N: usize>(frame: &Frame, offset: usize, sum: Sum) -> Option<Sum> {
    let place: *mut [u8; N] = frame.place_below(offset, HEADERS_MAX + SUM_MAX)?;
    // SAFETY: the frame holds N bytes there, and nothing is subtracted.
    let block = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, place.cast(), N as u32, 0) };
    // A sum of 32 bits; negative: refused, as no constant here is.
    Some(sum.word(block as u32))
}

impl PacketAccess for Frame {
    #[inline(always)]
    fn len(&self) -> usize {
        self.bytes() as usize
    }

    #[inline(always)]
    fn holds(&self, end: usize) -> bool {
        end <= self.end - self.start || end <= self.len()
    }

    #[inline(always)]
    fn read<T: Field>(&self, offset: usize) -> Option<T> {
        // SAFETY: `place` has checked that the frame holds a whole T there.
        self.place::<T>(offset).map(|place| unsafe { place.read_unaligned() })
    }

    #[inline(always)]
    fn write<T: Field>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: as in `read`; the frame is ours alone while the program runs.
        self.place::<T>(offset).map(|place| unsafe { place.write_unaligned(value) })
    }

    /// The kernel's helper takes blocks of a size that the verifier knows: halved at each step, they
    /// add up to any length. Where a block is follows from the length and not from the blocks before
    /// it, so that the paths with and without a block meet again.
    #[inline(always)]
    fn sum(&self, offset: usize, len: usize) -> Option<Sum> {
        if offset >= HEADERS_MAX || len > SUM_MAX {
            return None;
        }
        let mut sum = Sum::ZERO;
        for block in 0..SUM_MAX / 512 {
            if opaque(len) >= (block + 1) * 512 {
                sum = add_block::<512>(self, offset + block * 512, sum)?;
            }
        }
        macro_rules! blocks {
            ($($size:literal)+) => { $(
                if opaque(len) & $size != 0 {
                    sum = add_block::<$size>(self, offset + (opaque(len) & SUM_MAX & !($size * 2 - 1)), sum)?;
                }
            )+ };
        }
        blocks!(256 128 64 32 16 8 4);
        let rest = offset + (opaque(len) & SUM_MAX & !3);
        let limit = HEADERS_MAX + SUM_MAX;
        if opaque(len) & 2 != 0 {
            let place: *mut [u8; 2] = self.place_below(rest, limit)?;
            // SAFETY: as in `read`.
            sum = sum.pair(unsafe { *place });
        }
        if opaque(len) & 1 != 0 {
            let place: *mut u8 = self.place_below(rest + (opaque(len) & 2), limit)?;
            // SAFETY: as in `read`.
            sum = sum.pair([unsafe { *place }, 0]);
        }
        Some(sum)
    }
}
