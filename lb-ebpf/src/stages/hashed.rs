//! Flows without an entry: where the hash of a flow says all there is to say about it, the flow table
//! is not looked at. What the two halves of a slot mean is told in [`lb_common::abi::Slot`].
//!
//! | slot | flow | goes to |
//! | --- | --- | --- |
//! | clean | any | `current`; nothing is written |
//! | not clean | in the flow table | its backend |
//! | | not there, TCP, not its first packet | `stable`, with an entry; a reset where that is dead or gone |
//! | | not there, TCP's first packet | `current`, with an entry |
//! | | not there, UDP | `stable` while it lives, else `current`, with an entry |
//!
//! Where `stable` is `current` no entry is made: only flows that are elsewhere have one. A clean slot
//! whose backend has died is like one whose `stable` is that backend: flows that begin elsewhere get
//! entries, and are found by them.

use lb_common::{
    abi::{BackendState, HashedBy, Port, Protocol, ServiceValue, Slot},
    hash::{selection_slot, slot_hash},
    parse::Transport,
};

use super::table::NO_PLACE;
use crate::{
    copy::copy,
    maps::{BACKENDS, SELECTION},
    packet::Packet,
    stats,
};

/// What becomes of a packet whose flow has no entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unlisted {
    /// It goes where the slot says, without an entry.
    Sent,
    /// Its flow gets an entry, towards the packet's backend or the one that the scheduler picks.
    Begin,
    /// Its backend is dead.
    Dead,
    /// It is of no flow.
    Unknown,
}

/// Sets the hash by which the scheduler picks, where it has a table of hashes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn set_hash() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let Some(by) = HashedBy::of(packet.service.scheduler, packet.service.granularity) else { return 0 };
    packet.slot_hash = hash(packet, by as u8);
    1
}

#[inline(always)]
fn hash(packet: &Packet, by: u8) -> u64 {
    let (network, transport, service) = (&packet.network, &packet.transport, &packet.service);
    let (from, to) = (transport.source_port, transport.destination_port);
    slot_hash(by, service, &network.source, &network.destination, from, to, transport.protocol as u8)
}

/// The slot at an index of the service's table.
#[inline(always)]
pub fn slot(packet: &Packet, index: u32) -> Slot {
    let slot = SELECTION.get(packet.service.selection_base.wrapping_add(index));
    slot.copied().unwrap_or(Slot::gone(Slot::NOBODY))
}

/// Finds the packet's slot. Whether that is all (not 0): the packet goes to the slot's backend, and
/// has no entry in the flow table.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn settled(opens: u32) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let hash = hash(packet, packet.service.stable_hash);
    packet.hash = of_flow(hash, &packet.transport);
    packet.slot = slot(packet, selection_slot(hash, 0, packet.service.stable_len));
    packet.slot_hash = hash;
    if !packet.service.has(ServiceValue::PAIRED) || !packet.slot.is_clean() {
        return 0;
    }
    go(packet, packet.slot.current(), opens != 0) as u32
}

/// What tells a flow from others of its slot's hash, which may be the client's alone.
#[inline(always)]
pub const fn of_flow(hash: u64, transport: &Transport) -> u64 {
    hash ^ u32::from_ne_bytes(join((transport.source_port, transport.destination_port))) as u64
}

#[inline(always)]
const fn join((a, b): (Port, Port)) -> [u8; 4] {
    let ([a, b], [c, d]) = (a.to_wire(), b.to_wire());
    [a, b, c, d]
}

/// Decides about a packet whose flow was looked for and not found; `opens`: it is TCP's first. Where
/// its flow is to be begun at a certain backend, the packet is scheduled to that.
#[inline(always)]
pub fn unlisted(packet: &mut Packet, opens: bool) -> Unlisted {
    let stable = stable(packet.slot);
    let paired = packet.service.has(ServiceValue::PAIRED);
    if paired && stable == packet.slot.current() && go(packet, stable, opens) {
        return Unlisted::Sent;
    }
    if opens && !packet.service.has(ServiceValue::CLIENTS_STAY) {
        return Unlisted::Begin;
    }
    let udp = packet.transport.protocol == Protocol::Udp;
    let state = BACKENDS.get(stable).map_or(BackendState::Empty as u8, |backend| backend.state);
    if state == BackendState::Live as u8 || !opens && state == BackendState::Kept as u8 {
        packet.backend_id = stable;
        packet.adopted = !opens as u32;
        Unlisted::Begin
    } else if opens || udp {
        Unlisted::Begin
    } else if state == BackendState::Dead as u8 {
        packet.backend_id = stable;
        Unlisted::Dead
    } else {
        Unlisted::Unknown
    }
}

/// Finds the backend of the packet's flow, if that began before and has no entry: the same as [`unlisted`],
/// of a packet that comes by now, and nothing begins. Whether the backend lives.
#[inline(always)]
pub fn began_unlisted(packet: &mut Packet) -> bool {
    go(packet, stable(packet.slot), false)
}

/// The backend of the slot's flows that have no entry.
#[inline(always)]
fn stable(slot: Slot) -> u32 {
    if slot.is_clean() { slot.current() } else { slot.stable() }
}

/// The packet goes to this backend without an entry, if that lives.
#[inline(always)]
pub fn go(packet: &mut Packet, id: u32, opens: bool) -> bool {
    let Some(backend) = BACKENDS.get(id) else { return false };
    if backend.state != BackendState::Live as u8 {
        return false;
    }
    packet.place.index = NO_PLACE;
    copy(&packet.network.source, &mut packet.flow.source);
    packet.flow.source_port = packet.transport.source_port;
    packet.flow.service_port = packet.transport.destination_port;
    packet.flow.mode = packet.service.mode;
    packet.flow.flags = 0;
    packet.flow.service_id = packet.service.id;
    packet.flow.backend_id = id;
    packet.send_to_backend(backend);
    if opens {
        stats::flow_begun(packet.service.id, id);
    }
    true
}
