//! The far end of a tunnel, for backends whose kernel has no such device: takes the outer IPv4 header
//! off and leaves the packet to the stack.

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    abi::Protocol,
    numbers::{GRE, IPIP},
    packet::PacketAccess,
};

use crate::ctx::Frame;

const UDP: u8 = Protocol::Udp as u8;
/// Where GUE goes when nothing else is configured (draft-ietf-intarea-gue, section 4).
const GUE_PORT: [u8; 2] = 6080u16.to_be_bytes();

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
    if ethernet[12] != 8 || ethernet[13] != 0 || version != 0x45 {
        return None;
    }
    match frame.read::<u8>(23)? {
        IPIP => frame.adjust_head(20)?,
        GRE => frame.adjust_head(24)?,
        UDP if frame.read::<[u8; 2]>(36)? == GUE_PORT => frame.adjust_head(28)?,
        _ => return None,
    }
    frame.write(0, ethernet)
}
