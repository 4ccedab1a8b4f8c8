//! The data path. A packet's way: [`lb`] -> [`pipeline::run`] -> one file per stage ->
//! [`transmit`]; a verdict comes back and is counted here.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod ctx;
mod events;
mod maps;
mod opaque;
mod packet;
mod pipeline;
mod settings;
mod stages;
mod stats;
mod transmit;

use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_redirect, macros::xdp, programs::XdpContext};
use aya_log_ebpf::debug;
use lb_common::verdict::Exit;

use crate::ctx::Frame;

#[xdp]
pub fn lb(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.bytes();
    let verdict = pipeline::run(&frame);
    stats::verdict(verdict.reason, bytes);
    debug!(&ctx, "{} bytes on interface {}: reason {}", bytes, ctx.ingress_ifindex(), verdict.reason as u32);
    match verdict.exit {
        Exit::Pass => xdp_action::XDP_PASS,
        Exit::Drop => xdp_action::XDP_DROP,
        Exit::Transmit => xdp_action::XDP_TX,
        // SAFETY: takes two numbers; an interface that is gone makes the driver drop the frame.
        Exit::Redirect => (unsafe { bpf_redirect(verdict.ifindex, 0) }) as u32,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing in the program panics; the verifier would refuse this loop if anything reached it.
    loop {}
}

/// Helpers such as the socket lookup are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
