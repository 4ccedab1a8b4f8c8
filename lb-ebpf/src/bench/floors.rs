//! The least that a program can do: what is left of a measurement when nothing is decided.

use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_redirect, macros::xdp, programs::XdpContext};
use lb_common::packet::PacketAccess;

use crate::{
    ctx::Frame,
    maps::{CROSS, SINK},
};

#[xdp(frags)]
pub fn floor_pass(_: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Turns the frame round: both link-layer addresses are exchanged.
#[xdp(frags)]
pub fn floor_tx(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let turned = || -> Option<()> {
        let [a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12] = frame.read(0)?;
        frame.write(0, [g, h, i, j, k, l, a, b, c, d, e, f])
    }();
    if turned.is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_ABORTED }
}

/// A host that every packet crosses: IPv4 goes out of the other interface, with that one's link-layer
/// addresses and nothing else changed.
#[xdp(frags)]
pub fn floor_cross(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    let crossed = || -> Option<u32> {
        // SAFETY: values of this map are written once, before the program is attached.
        let hop = unsafe { CROSS.get(frame.ifindex()) }?;
        if frame.read::<[u8; 2]>(12)? != [8, 0] {
            return None;
        }
        frame.write(0, hop.destination)?;
        frame.write(6, hop.source)?;
        // SAFETY: takes two numbers.
        Some(unsafe { bpf_redirect(hop.ifindex, 0) } as u32)
    }();
    crossed.unwrap_or(xdp_action::XDP_PASS)
}

/// Only makes room for an outer header: with the harness taking it back, two moves of the head.
#[xdp(frags)]
pub fn floor_grow_v4(ctx: XdpContext) -> u32 {
    match Frame::new(&ctx).adjust_head(-20) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

#[xdp(frags)]
pub fn floor_grow_v6(ctx: XdpContext) -> u32 {
    match Frame::new(&ctx).adjust_head(-40) {
        Some(()) => xdp_action::XDP_TX,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Encapsulation with headers that are always the same.
#[xdp(frags)]
pub fn floor_ipip_v4(ctx: XdpContext) -> u32 {
    encapsulated(&ctx, &OUTER_V4).unwrap_or(xdp_action::XDP_ABORTED)
}

#[xdp(frags)]
pub fn floor_ipip_v6(ctx: XdpContext) -> u32 {
    encapsulated(&ctx, &OUTER_V6).unwrap_or(xdp_action::XDP_ABORTED)
}

/// Live frames: counts what comes back, and ends it.
#[xdp(frags)]
pub fn sink(_: XdpContext) -> u32 {
    if let Some(count) = SINK.get_ptr_mut(0) {
        // SAFETY: this CPU's element.
        unsafe { *count += 1 };
    }
    xdp_action::XDP_DROP
}

/// Ethernet and IPv4 headers but for the last two bytes: from 10.0.0.1 to 10.0.0.0/16, protocol 4.
static OUTER_V4: [u64; 4] = [
    u64::from_ne_bytes([2, 0, 0, 0, 0, 2, 2, 0]),
    u64::from_ne_bytes([0, 0, 0, 1, 8, 0, 0x45, 0]),
    u64::from_ne_bytes([0, 102, 0, 0, 0x40, 0, 64, 4]),
    u64::from_ne_bytes([0x26, 0x80, 10, 0, 0, 1, 10, 0]),
];

/// Ethernet and most of an IPv6 header: from and to fd00::, protocol 41.
static OUTER_V6: [u64; 6] = [
    u64::from_ne_bytes([2, 0, 0, 0, 0, 2, 2, 0]),
    u64::from_ne_bytes([0, 0, 0, 1, 0x86, 0xdd, 0x60, 0]),
    u64::from_ne_bytes([0, 0, 0, 82, 41, 64, 0xfd, 0]),
    0,
    u64::from_ne_bytes([0, 0, 0, 0, 0, 1, 0xfd, 0]),
    0,
];

#[inline(always)]
fn encapsulated<const WORDS: usize>(ctx: &XdpContext, outer: &[u64; WORDS]) -> Option<u32> {
    let mut frame = Frame::new(ctx);
    frame.adjust_head(if WORDS == OUTER_V4.len() { -20 } else { -40 })?;
    for (at, word) in outer.iter().enumerate() {
        frame.write(at * 8, *word)?;
    }
    Some(xdp_action::XDP_TX)
}
