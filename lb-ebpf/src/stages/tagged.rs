//! VLAN tags: taken off, so that every other stage finds headers where it expects them, and put on
//! again before the frame leaves. Which tags those are follows from the interface that the host's
//! routes name; the program itself can only send by the interface below.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{VlanKey, VlanTags, vlan_bit},
    verdict::{Exit, Reason, Verdict},
    vlan,
};

use crate::{
    ctx::Frame,
    maps::{VLAN_BITS, VLANS_IN, VLANS_OUT},
    packet::Packet,
};

/// Notes that the frame has no tags, before a stage goes on with it.
#[inline(always)]
pub fn none(md: *mut xdp_md) {
    if let Some(packet) = Packet::current() {
        packet.tags = VlanTags::NONE;
        packet.ingress = Frame::of(md).ifindex();
    }
}

/// Takes the frame's tags off and notes them, with the interface that the kernel would take the
/// frame for. 0: it has none that are known; the frame is as it was.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_off(md: *mut xdp_md) -> u32 {
    none(md);
    let Some(packet) = Packet::current() else { return 0 };
    let mut frame = Frame::of(md);
    let (Some(tags), Some(addresses)) = (vlan::tags(&frame), vlan::link_addresses(&frame)) else { return 0 };
    if frame.adjust_head(tags.bytes() as i32).is_none() {
        return 0;
    }
    packet.tags = tags;
    let key = VlanKey { ifindex: packet.ingress, tags: tags.without_priority() };
    // SAFETY: one word, replaced as a whole.
    if let Some(ifindex) = unsafe { VLANS_IN.get(key) } {
        packet.ingress = *ifindex;
    }
    // The kernel leaves no frame shorter than an Ethernet header, so there is room.
    vlan::write(&mut frame, addresses, &VlanTags::NONE).is_some() as u32
}

/// Whether an interface may be a VLAN's.
#[inline(always)]
pub fn may_be_vlan(ifindex: u32) -> bool {
    VLAN_BITS.get(0).is_some_and(|bits| bits & vlan_bit(ifindex) != 0)
}

/// Puts the tags on that the frame has to leave with. Gives the verdict with which it leaves by the
/// interface below.
#[inline(always)]
pub fn leave(md: *mut xdp_md, verdict: Verdict) -> Verdict {
    Verdict::from_bits(put_on(md, verdict.bits()))
}

/// Verdicts go in and out as [`Verdict::bits`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn put_on(md: *mut xdp_md, verdict: u64) -> u64 {
    let verdict = Verdict::from_bits(verdict);
    let Some(packet) = Packet::current() else { return verdict.bits() };
    let mut tags = packet.tags;
    let mut out = verdict;
    match verdict.exit() {
        Exit::Drop | Exit::Continue => return verdict.bits(),
        // The way it came.
        Exit::Pass | Exit::Transmit => {}
        Exit::Redirect => {
            let below = Frame::of(md).ifindex();
            let mut ifindex = verdict.target();
            // SAFETY: the agent replaces values as a whole, and they are copied at once.
            if let Some(link) = unsafe { VLANS_OUT.get(ifindex) } {
                tags = link.tags;
                tags.outer = tags.outer.with_priority_of(packet.tags.outer);
                ifindex = link.parent;
            } else if packet.ingress != below {
                tags = VlanTags::NONE;
            }
            // Otherwise the host knows nothing of the tags that the frame came with: it keeps them.
            let exit = if ifindex == below { Exit::Transmit } else { Exit::Redirect };
            out = verdict.leaving(exit, ifindex);
        }
    }
    let bytes = tags.bytes();
    if bytes == 0 || tag(md, bytes as u32, &tags).is_some() { out.bits() } else { Verdict::of(Reason::Internal).bits() }
}

#[inline(always)]
fn tag(md: *mut xdp_md, bytes: u32, tags: &VlanTags) -> Option<()> {
    let mut frame = Frame::of(md);
    let addresses = vlan::link_addresses(&frame)?;
    frame.adjust_head(-(bytes as i32))?;
    vlan::write(&mut frame, addresses, tags)
}
