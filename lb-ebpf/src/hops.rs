//! The way to each backend, as the kernel's tables told it within these 16 interrupts of the timer (16 ms at
//! HZ=1000, 64 ms at 250, 160 ms at 100): asking them costs as much as all the rest of a packet's way. A changed route
//! or neighbour is followed after that, with or without an agent.

use aya_ebpf::helpers::generated::bpf_jiffies64;
use lb_common::abi::Settings;

use crate::{
    maps::{HOPS, SETTINGS},
    packet::{Hop, Packet},
    transmit::length,
};

/// An answer of the kernel's tables.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Known {
    hop: Hop,
    /// The [`tick`] it is from.
    tick: u32,
    /// The interface that the packet came in by: routes may depend on it.
    ingress: u32,
    /// Longest IP packet in bytes.
    mtu: u32,
}

/// Tells tick 0 from an element that was never written.
const FILLED: u32 = 1 << 31;

/// Sets the packet's hop from the answer to another packet of this tick to the same backend.
#[inline(always)]
pub fn recall(packet: &mut Packet) -> bool {
    match known(packet.flow.backend_id, packet.ingress, length(packet) as u32) {
        Some(hop) => {
            packet.hop = *hop;
            true
        }
        None => false,
    }
}

/// The timer's interrupts so far, in steps of 16, with [`FILLED`]. The verifier makes one load of it; the clock
/// would be a call.
#[inline(always)]
fn tick() -> u32 {
    // SAFETY: has no arguments.
    (unsafe { bpf_jiffies64() } >> 4) as u32 | FILLED
}

/// The answer of this tick for a packet of `length` bytes that came in by `ingress`. It stays this CPU's.
#[inline(always)]
pub fn known(backend_id: u32, ingress: u32, length: u32) -> Option<&'static Hop> {
    let known = HOPS.get_ptr_mut(backend_id)?;
    // SAFETY: this CPU's element.
    let known = unsafe { &*known };
    (known.tick == tick() && known.ingress == ingress && length <= known.mtu).then_some(&known.hop)
}

/// Keeps the kernel's answer about the packet, unless another packet to the backend could go
/// another way.
#[inline(always)]
pub fn keep(packet: &Packet) {
    let vary = SETTINGS.get(0).is_none_or(|settings| settings.flags & Settings::ROUTES_VARY != 0);
    let Some(known) = HOPS.get_ptr_mut(packet.flow.backend_id).filter(|_| !vary) else { return };
    // SAFETY: this CPU's element; the lookup was asked for the length and left the interface's in its
    // place (Linux 5.12).
    unsafe {
        let mtu = packet.fib.__bindgen_anon_1.mtu_result as u32;
        *known = Known { hop: packet.hop, tick: tick(), ingress: packet.ingress, mtu };
    }
}
