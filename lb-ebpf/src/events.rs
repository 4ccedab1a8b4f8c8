//! Requests to the agent. A full ring loses them; the packet that asked is counted in any case.

use lb_common::abi::{Address, Event, EventKind};

use crate::maps::EVENTS;

/// Asks for the link-layer address of a next hop.
#[inline(always)]
pub fn neighbour_missing(ifindex: u32, address: Address) {
    send(Event { kind: EventKind::NeighbourMissing as u32, ifindex, address, backend_id: 0, zero: 0 });
}

/// Tells that no source port is free towards a backend.
#[inline(always)]
pub fn ports_exhausted(backend_id: u32, address: Address) {
    send(Event { kind: EventKind::PortsExhausted as u32, ifindex: 0, address, backend_id, zero: 0 });
}

/// Tells that something new speaks against a backend.
#[inline(always)]
pub fn suspect(backend_id: u32) {
    let address = Address::from_words([0; 4]);
    send(Event { kind: EventKind::Suspect as u32, ifindex: 0, address, backend_id, zero: 0 });
}

#[inline(always)]
fn send(event: Event) {
    if let Some(mut entry) = EVENTS.reserve(0) {
        entry.write(event);
        entry.submit(0);
    }
}
