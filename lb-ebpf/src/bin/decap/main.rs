//! The backend's end of tunnels (`lb decap`): strips what balancers put around packets for this
//! host's service addresses, and hands them to the stack.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

// What this program needs of the other one's frames.
#[path = "../../ctx.rs"]
#[allow(dead_code)]
mod ctx;
mod maps;
#[path = "../../opaque.rs"]
mod opaque;

use aya_ebpf::{
    bindings::xdp_action, btf_maps::lpm_trie::Key, helpers::generated::bpf_xdp_get_buff_len, macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    abi::{VlanTags, decap::Settings},
    checksum::Sum,
    decap::{self, Fate, Inner, Outcome, Outer},
    packet::{Field, PacketAccess},
    vlan,
};

use crate::{
    ctx::Frame,
    maps::{Headers, OWN, SCRATCH, SETTINGS, SOURCES, STATS, VIP_STATS, VIPS},
};

/// Frames in several buffers too: all headers are in the first. Of tagged frames the tags stay; they
/// are counted nowhere, as a card that takes them off would not count them.
#[xdp(frags)]
pub fn lb_decap(ctx: XdpContext) -> u32 {
    let mut frame = Whole::new(&ctx);
    take_tags_off(&mut frame);
    let bytes = frame.len as u64;
    let outcome = run(&mut frame);
    let outcome = put_tags_on(&mut frame, outcome);
    if let Some(counters) = STATS.get_ptr_mut(outcome as u32) {
        // SAFETY: the pointer is of this CPU's element, and the program is not preempted on it.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes;
        }
    }
    match outcome.fate() {
        Fate::Stripped | Fate::Passed => xdp_action::XDP_PASS,
        Fate::Dropped => xdp_action::XDP_DROP,
    }
}

/// Notes the frame's tags and goes on without them, so that headers are where they are expected.
#[inline(always)]
fn take_tags_off(frame: &mut Whole) {
    let Some(headers) = SCRATCH.get_ptr_mut(0) else { return };
    // SAFETY: as in `run`.
    let tags = unsafe { &mut (*headers).tags };
    *tags = VlanTags::NONE;
    let (Some(found), Some(addresses)) = (vlan::tags(frame), vlan::link_addresses(frame)) else { return };
    if frame.adjust_head(found.bytes() as i32).is_some() {
        *tags = found;
        // The kernel leaves no frame shorter than an Ethernet header, so there is room.
        let _ = vlan::write(frame, addresses, &VlanTags::NONE);
    }
}

/// Puts them on again, for the stack.
#[inline(always)]
fn put_tags_on(frame: &mut Whole, outcome: Outcome) -> Outcome {
    let Some(headers) = SCRATCH.get_ptr_mut(0) else { return Outcome::Internal };
    // SAFETY: as in `run`.
    let tags = unsafe { &(*headers).tags };
    let bytes = tags.bytes();
    if bytes == 0 || outcome.fate() == Fate::Dropped {
        return outcome;
    }
    let Some(addresses) = vlan::link_addresses(frame) else { return Outcome::Internal };
    let tagged = frame.adjust_head(-(bytes as i32)).and_then(|()| vlan::write(frame, addresses, tags));
    if tagged.is_some() { outcome } else { Outcome::Internal }
}

/// Looks at the packet from outside to inside, and touches it only when all is well.
#[inline(always)]
fn run(frame: &mut Whole) -> Outcome {
    let (Some(settings), Some(headers)) = (SETTINGS.get(0), SCRATCH.get_ptr_mut(0)) else { return Outcome::Internal };
    // SAFETY: this CPU's element, on which the program is not preempted; any bytes are a value once
    // they were written as one, and zeros are.
    let Headers { outer, inner, .. } = unsafe { &mut *headers };
    match look(frame, settings, outer, inner) {
        Ok(vip) => {
            let bytes = frame.len as u64;
            let outcome = strip(frame, outer, inner);
            if outcome.fate() == Fate::Stripped {
                count(vip, bytes);
            }
            outcome
        }
        Err(outcome) => outcome,
    }
}

/// The number of the service's address, where the packet is to be stripped.
#[inline(always)]
fn look(frame: &Whole, settings: &Settings, outer: &mut Outer, inner: &mut Inner) -> Result<u32, Outcome> {
    decap::outer(frame, settings.gue_port, outer)?;
    if SOURCES.get(&Key::new(128, outer.source)).is_none() {
        return Err(Outcome::WrongSource);
    }
    // SAFETY: values of this map are written once, before the program is attached.
    if settings.flags & Settings::OWN_ADDRESSES != 0 && unsafe { OWN.get(outer.destination) }.is_none() {
        return Err(Outcome::WrongDestination);
    }
    let mut vip = 0;
    decap::inner(frame, frame.len, outer, inner, |address| {
        // SAFETY: as above.
        let found = unsafe { VIPS.get(address) };
        vip = found.copied().unwrap_or(0);
        found.is_some()
    })?;
    Ok(vip)
}

/// Counts a packet that was stripped for a service's address.
#[inline(always)]
fn count(vip: u32, bytes: u64) {
    if let Some(counters) = VIP_STATS.get_ptr_mut(vip) {
        // SAFETY: as in `lb_decap`.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes;
        }
    }
}

#[inline(always)]
fn strip(frame: &mut Whole, outer: &Outer, inner: &Inner) -> Outcome {
    let growth = outer.growth() as i32;
    if decap::hand_over(frame, outer, inner).is_none() || frame.adjust_head(growth).is_none() {
        return Outcome::Internal;
    }
    if outer.is_gue() && !decap::checksum_fits(frame, outer, inner) {
        return Outcome::BadChecksum;
    }
    match decap::mark_congestion(frame, outer, inner) {
        Some(()) => outer.stripped(),
        None => Outcome::Internal,
    }
}

/// A frame whose length counts all of its buffers.
struct Whole {
    frame: Frame,
    len: usize,
}

impl Whole {
    #[inline(always)]
    fn new(ctx: &XdpContext) -> Self {
        let frame = Frame::new(ctx);
        // SAFETY: the context is valid.
        let len = unsafe { bpf_xdp_get_buff_len(frame.md()) } as usize;
        Self { frame, len }
    }

    /// As that of [`Frame`].
    #[inline(always)]
    fn adjust_head(&mut self, delta: i32) -> Option<()> {
        self.frame.adjust_head(delta)?;
        self.len = self.len.wrapping_sub(delta as isize as usize);
        Some(())
    }
}

impl PacketAccess for Whole {
    #[inline(always)]
    fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn read<T: Field>(&self, offset: usize) -> Option<T> {
        self.frame.read(offset)
    }

    #[inline(always)]
    fn write<T: Field>(&mut self, offset: usize, value: T) -> Option<()> {
        self.frame.write(offset, value)
    }

    #[inline(always)]
    fn sum(&self, offset: usize, len: usize) -> Option<Sum> {
        self.frame.sum(offset, len)
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing in the program panics; the verifier would refuse this loop if anything reached it.
    loop {}
}

/// As that of the other program: one source, one licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
