//! One frame after another into the program under test.
//!
//! BPF_PROG_TEST_RUN repeats a program on one buffer, which a program that rewrites has changed after
//! the first time. The harness puts the buffer's length and every byte back, gives it the next flow's
//! addresses and ports, keeps its checksums right, and tail-calls the program under test. What it
//! costs is measured with [`floor_pass`](crate::floors::floor_pass) under test.
//!
//! The harness notes the time itself, every few thousand frames: the kernel tells the whole call's
//! average in whole nanoseconds, and the call itself waits for milliseconds.

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    helpers::generated::{bpf_ktime_get_ns, bpf_redirect, bpf_xdp_adjust_head},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::bench::{FRAME_BYTES, FRAME_WORDS, Stream, StreamFlow, WINDOW, WINDOWS};

use crate::maps::{SEEN, STREAM, STREAM_FLOW, TARGET, TIMES};

/// Where the headers of a frame have what differs by flow: byte offsets of the last four bytes of
/// both addresses, of the ports, and of four bytes that only the transport checksum covers.
#[derive(Clone, Copy)]
struct Layout {
    v4: bool,
    source: usize,
    destination: usize,
    ports: usize,
    spare: usize,
}

/// Spare: the sequence number (RFC 9293, 3.1).
const TCP4: Layout = Layout { v4: true, source: 26, destination: 30, ports: 34, spare: 38 };
const TCP6: Layout = Layout { v4: false, source: 34, destination: 50, ports: 54, spare: 58 };
/// Spare: the first bytes of the payload.
const UDP4: Layout = Layout { spare: 42, ..TCP4 };
const UDP6: Layout = Layout { spare: 62, ..TCP6 };

/// Identification of an IPv4 packet that may not be fragmented: free (RFC 6864, 4.1).
const ID_V4: usize = 18;

macro_rules! harness {
    ($($run:ident, $capture:ident, $generate:ident: $layout:ident;)+) => { $(
        #[xdp(frags)]
        pub fn $run(ctx: XdpContext) -> u32 {
            if restore(&ctx).and_then(|start| next_flow(start, $layout)).is_some() {
                call(&ctx);
            }
            xdp_action::XDP_ABORTED
        }

        /// Notes first what has become of the last frame.
        #[xdp(frags)]
        pub fn $capture(ctx: XdpContext) -> u32 {
            note(&ctx, $layout);
            if restore(&ctx).and_then(|start| next_flow(start, $layout)).is_some() {
                call(&ctx);
            }
            xdp_action::XDP_ABORTED
        }

        /// Sends the frame out of an interface instead.
        #[xdp(frags)]
        pub fn $generate(ctx: XdpContext) -> u32 {
            match restore(&ctx).and_then(|start| next_flow(start, $layout)) {
                // SAFETY: takes two numbers.
                Some(ifindex) => (unsafe { bpf_redirect(ifindex, 0) }) as u32,
                None => xdp_action::XDP_ABORTED,
            }
        }
    )+ };
}

harness! {
    run_tcp4, capture_tcp4, generate_tcp4: TCP4;
    run_udp4, capture_udp4, generate_udp4: UDP4;
    run_tcp6, capture_tcp6, generate_tcp6: TCP6;
    run_udp6, capture_udp6, generate_udp6: UDP6;
}

/// The same frame each time, without flows: ARP, fragments.
#[xdp(frags)]
pub fn run_fixed(ctx: XdpContext) -> u32 {
    if restore(&ctx).is_some() {
        call(&ctx);
    }
    xdp_action::XDP_ABORTED
}

/// Into the program under test, and never back.
#[inline(always)]
fn call(ctx: &XdpContext) {
    // SAFETY: nothing here is left to be dropped.
    unsafe { TARGET.tail_call(ctx, 0) };
}

/// Gives the buffer its length and bytes back; its start.
#[inline(always)]
fn restore(ctx: &XdpContext) -> Option<usize> {
    let excess = (ctx.data_end() - ctx.data()) as i32 - FRAME_BYTES as i32;
    if excess != 0 {
        // SAFETY: pointers into the frame are derived below.
        unsafe { bpf_xdp_adjust_head(ctx.as_ptr().cast(), excess) };
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + FRAME_BYTES > end {
        return None;
    }
    // SAFETY: the element is there, and nobody else uses it while the stream runs.
    let stream = unsafe { &mut *STREAM.get_ptr_mut(0)? };
    if stream.sent & (WINDOW - 1) == 0 {
        note_time(stream.sent / WINDOW);
    }
    stream.sent += 1;
    for word in 0..FRAME_WORDS {
        // SAFETY: the frame is that long, as was just compared, and ours alone.
        unsafe { (start as *mut u64).add(word).write_unaligned(stream.frame[word]) };
    }
    Some(start)
}

#[inline(always)]
fn note_time(window: u32) {
    if let Some(time) = TIMES.get_ptr_mut(window & (WINDOWS - 1)) {
        // SAFETY: the element is there; the helper has no arguments.
        unsafe { *time = bpf_ktime_get_ns() };
    }
}

/// Writes the next flow's addresses and ports, and what makes up for them in the checksums. `start`
/// is what [`restore`] gave. Gives the interface that the stream names.
#[inline(always)]
fn next_flow(start: usize, layout: Layout) -> Option<u32> {
    let stream = STREAM.get_ptr_mut(0)?;
    // SAFETY: the element is there, and nobody else uses it while the stream runs.
    let (next, lap, stream) = unsafe { ((*stream).next, (*stream).lap, &mut *stream) };
    let flow = STREAM_FLOW.get(next)?;
    let source = flow.source.wrapping_add(lap.wrapping_mul(stream.source_step)).to_be();
    let destination = flow.destination.to_be();
    let source_port = (flow.source_port as u32).wrapping_add(lap.wrapping_mul(stream.port_step)) as u16;
    let ports = source_port.to_be() as u32 | (flow.destination_port.to_be() as u32) << 16;
    advance(stream);
    let addresses = source as u64 + destination as u64;
    // SAFETY: all offsets lie within the frame.
    unsafe {
        ((start + layout.source) as *mut u32).write_unaligned(source);
        ((start + layout.destination) as *mut u32).write_unaligned(destination);
        ((start + layout.ports) as *mut u32).write_unaligned(ports);
        ((start + layout.spare) as *mut u32).write_unaligned(!fold32(addresses + ports as u64));
        if layout.v4 {
            ((start + ID_V4) as *mut u16).write_unaligned(!fold16(fold32(addresses)));
        }
    }
    Some(stream.ifindex)
}

#[inline(always)]
fn advance(stream: &mut Stream) {
    stream.next += 1;
    if stream.next >= stream.flows {
        stream.next = 0;
        stream.lap += 1;
    }
}

/// A ones' complement sum of 32-bit words in 32 bits: the sum of a word and its complement is zero.
#[inline(always)]
fn fold32(sum: u64) -> u32 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum + (sum >> 32)) as u32
}

#[inline(always)]
fn fold16(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// Keeps what the program under test made of the frame before. The first time there was none, and
/// what is kept gives way to the last flow's frame.
#[inline(always)]
fn note(ctx: &XdpContext, layout: Layout) -> Option<()> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + FRAME_BYTES > end {
        return None;
    }
    let stream = STREAM.get(0)?;
    let last = if stream.next == 0 { stream.flows - 1 } else { stream.next - 1 };
    let seen = SEEN.get_ptr_mut(last)?;
    // SAFETY: the offsets lie within the frame; the element is ours alone while the stream runs.
    unsafe {
        let ports = ((start + layout.ports) as *const u32).read_unaligned();
        *seen = StreamFlow {
            source: u32::from_be(((start + layout.source) as *const u32).read_unaligned()),
            destination: u32::from_be(((start + layout.destination) as *const u32).read_unaligned()),
            source_port: u16::from_be(ports as u16),
            destination_port: u16::from_be((ports >> 16) as u16),
        };
    }
    Some(())
}
