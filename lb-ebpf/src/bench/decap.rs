//! The far end of a tunnel, for backends whose kernel has no such device: takes the outer IPv4 header
//! off and leaves the packet to the stack.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{numbers::IPIP, packet::PacketAccess};

use crate::ctx::Frame;

#[xdp]
pub fn decap(ctx: XdpContext) -> u32 {
    let mut frame = Frame::new(&ctx);
    // What is no tunnel's packet stays as it is.
    let _ = unpack(&mut frame);
    xdp_action::XDP_PASS
}

#[inline(always)]
fn unpack(frame: &mut Frame) -> Option<()> {
    let ethernet: [u8; 14] = frame.read(0)?;
    let version: u8 = frame.read(14)?;
    let protocol: u8 = frame.read(23)?;
    if ethernet[12] != 8 || ethernet[13] != 0 || version != 0x45 || protocol != IPIP {
        return None;
    }
    frame.adjust_head(20)?;
    frame.write(0, ethernet)
}
