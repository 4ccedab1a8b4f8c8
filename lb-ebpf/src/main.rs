//! The data path. A packet's way: [`lb`] -> [`short::run`] or, where that does not do, [`lb_whole`] ->
//! [`pipeline::run`] -> one file per stage -> [`transmit`]; a verdict comes back and is counted here. What is
//! rare goes on in a program of its own ([`Stage`](lb_common::verdict::Stage)), and ends here as well.
//!
//! Compiled for the host it is a library (lb-ebpf/host), for fuzzing; so no function has the name of one of the C
//! library's.
#![no_std]
#![cfg_attr(target_arch = "bpf", no_main, feature(asm_experimental_arch))]

#[macro_use]
mod steps;

#[cfg_attr(not(target_arch = "bpf"), path = "atomic_host.rs")]
mod atomic;
mod copy;
mod ctx;
mod events;
mod hops;
pub mod maps;
mod opaque;
mod ordered;
mod packet;
mod pipeline;
pub mod settings;
mod short;
mod stages;
mod stats;
mod sum;
mod transmit;
mod tunnel;

#[cfg(not(target_arch = "bpf"))]
extern crate aya_ebpf as aya_log_ebpf;

use aya_ebpf::{
    EbpfContext, bindings::xdp_action, helpers::generated::bpf_redirect, macros::xdp, programs::XdpContext,
};
use aya_log_ebpf::debug;
use lb_common::verdict::{Exit, Reason, Verdict};

use crate::{
    ctx::Frame,
    maps::STAGES,
    stages::{clients, family, icmp, rescue, tagged, too_big, unusual},
};

#[xdp(frags)]
pub fn lb(ctx: XdpContext) -> u32 {
    let mut bytes = UNTOUCHED;
    let verdict = short::run(&Frame::new(&ctx), &mut bytes);
    match verdict.exit() {
        Exit::Continue => {
            tagged::none(ctx.as_ptr().cast());
            go_on(&ctx, bytes, verdict)
        }
        _ => end(&ctx, bytes, verdict),
    }
}

#[xdp(frags)]
pub fn lb_whole(ctx: XdpContext) -> u32 {
    let mut bytes = UNTOUCHED;
    let verdict = pipeline::run(&Frame::new(&ctx), &mut bytes);
    match verdict.exit() {
        Exit::Continue => go_on(&ctx, bytes, verdict),
        Exit::Redirect if tagged::may_be_vlan(verdict.target()) => {
            tagged::none(ctx.as_ptr().cast());
            finish(&ctx, bytes, verdict)
        }
        _ => end(&ctx, bytes, verdict),
    }
}

#[xdp(frags)]
pub fn lb_icmp(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = icmp::run(&mut frame);
    proceed(&ctx, bytes, verdict)
}

#[xdp(frags)]
pub fn lb_client(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = clients::run(frame.md());
    proceed(&ctx, bytes, verdict)
}

#[xdp(frags)]
pub fn lb_too_big(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = too_big::run(frame.md());
    finish(&ctx, bytes, verdict)
}

#[xdp(frags)]
pub fn lb_family(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = family::run(frame.md());
    proceed(&ctx, bytes, verdict)
}

#[xdp(frags)]
pub fn lb_unusual(ctx: XdpContext) -> u32 {
    let mut bytes = UNTOUCHED;
    let verdict = unusual::run(ctx.as_ptr().cast(), &mut bytes);
    proceed(&ctx, bytes, verdict)
}

#[xdp(frags)]
pub fn lb_rescue(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = rescue::run(frame.md());
    proceed(&ctx, bytes, verdict)
}

/// In the place of a frame's length: it is as it came, so the kernel can be asked for its length.
const UNTOUCHED: u64 = 0;

/// What a stage has decided, which may be to hand the packet to another one.
#[inline(always)]
fn proceed(ctx: &XdpContext, bytes: u64, verdict: Verdict) -> u32 {
    match verdict.exit() {
        Exit::Continue => go_on(ctx, bytes, verdict),
        _ => finish(ctx, bytes, verdict),
    }
}

/// Hands the packet to the stage that the verdict names.
#[inline(always)]
fn go_on(ctx: &XdpContext, bytes: u64, verdict: Verdict) -> u32 {
    // SAFETY: nothing here waits to be dropped.
    unsafe { STAGES.tail_call(ctx, verdict.target()) };
    // The stage is not there, and what is dropped needs no tags.
    end(ctx, bytes, Verdict::of(Reason::Internal))
}

/// The end of a stage, which may have a frame whose tags were taken off. `bytes` as in [`end`].
#[inline(always)]
fn finish(ctx: &XdpContext, bytes: u64, verdict: Verdict) -> u32 {
    let bytes = if bytes == UNTOUCHED { Frame::new(ctx).bytes() } else { bytes };
    end(ctx, bytes, tagged::leave(ctx.as_ptr().cast(), verdict))
}

/// Counts a verdict, for a frame of `bytes` as received or [`UNTOUCHED`], and says it in the kernel's
/// words.
#[inline(always)]
fn end(ctx: &XdpContext, bytes: u64, verdict: Verdict) -> u32 {
    let bytes = if bytes == UNTOUCHED { Frame::new(ctx).bytes() } else { bytes };
    #[cfg(feature = "fixture-twin")]
    let bytes = opaque::opaque(opaque::opaque(bytes as usize)) as u64;
    stats::count(verdict.reason(), bytes);
    debug!(ctx, "{} bytes on interface {}: reason {}", bytes, ctx.ingress_ifindex(), verdict.reason());
    match verdict.exit() {
        Exit::Pass => xdp_action::XDP_PASS,
        Exit::Drop | Exit::Continue => xdp_action::XDP_DROP,
        Exit::Transmit => xdp_action::XDP_TX,
        // SAFETY: takes two numbers; an interface that is gone makes the driver drop the frame.
        Exit::Redirect => (unsafe { bpf_redirect(verdict.target(), 0) }) as u32,
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing in the program panics; the verifier would refuse this loop if anything reached it.
    loop {}
}

/// Helpers such as the socket lookup are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
