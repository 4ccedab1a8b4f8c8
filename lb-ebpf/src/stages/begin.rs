//! The beginning of a flow: a place in the table, a backend, and in `full-nat` a source port.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{Address, Backend, BackendState, Flow, Mode, Port, Protocol, ServiceValue, limits::BACKEND_ATTEMPTS},
    flow::Word,
    verdict::Reason,
};

use super::{
    load, ports, select,
    table::{self, NO_PLACE, Place, Tuple},
};
use crate::{
    copy::copy,
    ctx::Frame,
    events,
    maps::{BACKENDS, FLOWS},
    packet::{NO_BACKEND, Packet},
    stats,
};

/// Begins the packet's flow: sets its place and flow. Otherwise the reason why it cannot begin, and
/// nothing is left behind.
#[inline(never)]
pub fn begin(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    if packet.service.selection_len == 0 && packet.backend_id == NO_BACKEND {
        return Reason::NoBackend;
    }
    let index = table::claim();
    if index == NO_PLACE {
        return Reason::TableFull;
    }
    packet.full = 0;
    let mut reason = Reason::NoBackend;
    for number in 0..BACKEND_ATTEMPTS {
        reason = attempt(md, packet, index, number);
        // The second attempt looks for one with room, where the first was full.
        let all_full = reason == Reason::BackendsFull && number > 0;
        if all_full || matches!(reason, Reason::ToBackend | Reason::TableFull) {
            break;
        }
    }
    if reason != Reason::ToBackend {
        table::publish(index, packet.now, Word::EMPTY);
        return reason;
    }
    if let Some(place) = FLOWS.get_ptr_mut(index) {
        // SAFETY: the way is busy, so the element is ours alone to write.
        unsafe { copy(&packet.flow, &mut *place) };
    }
    let word = table::first_word(packet);
    table::publish(index, packet.now, word);
    packet.place = Place { index, word };
    // A connection was counted by its first packet; one that is rescued counts with each backend once.
    if packet.rescue.counted != 0 {
        stats::flow_moved(packet.flow.backend_id);
    } else if packet.adopted == 0 || packet.transport.protocol == Protocol::Udp {
        stats::flow_begun(packet.flow.service_id, packet.flow.backend_id);
    }
    load::changed(&packet.flow, Word::EMPTY, word);
    reason
}

/// Tries the backend that the scheduler picks, or the one the packet was scheduled to. `number` counts
/// the attempts for this flow. What it calls does not lie on top of each other's stack: Linux 6.1
/// counts each function as a multiple of 32 bytes, and ends at 512.
#[inline(always)]
fn attempt(md: *mut xdp_md, packet: &mut Packet, index: u32, number: u32) -> Reason {
    let aimed = aim(md, packet, number);
    if aimed != Reason::ToBackend {
        return aimed;
    }
    if Mode::is_one_sided(packet.service.mode) {
        // No reply will come this way: nothing to link.
        return Reason::ToBackend;
    }
    let full_nat = packet.service.mode == Mode::FullNat as u8;
    match table::link_reply(index) {
        // Where somebody else has the port, it stays taken, so that the next attempt gets another;
        // the agent's audit gives it back.
        table::LINKED if full_nat && ports::host_socket(md) != 0 => {
            table::unlink_reply(&packet.reply_tuple, index);
            Reason::PortsExhausted
        }
        table::LINKED => Reason::ToBackend,
        table::TAKEN if full_nat => Reason::PortsExhausted,
        table::TAKEN => Reason::TupleTaken,
        _ => {
            if let Some(backend) = BACKENDS.get(packet.flow.backend_id) {
                ports::give_back(&packet.flow, backend.port_pool);
            }
            Reason::TableFull
        }
    }
}

/// Picks a backend and in `full-nat` a source port that no flow uses, and writes what would be the
/// flow, its reply and its translation.
#[inline(never)]
fn aim(md: *mut xdp_md, packet: &mut Packet, number: u32) -> Reason {
    let id = choice(packet, number);
    let Some(backend) = BACKENDS.get(id) else {
        return if packet.full != 0 { Reason::BackendsFull } else { Reason::NoBackend };
    };
    // A backend that died after the selection table was written is passed over. One that keeps its flows
    // takes those that began earlier.
    let keeps = packet.adopted != 0 && BackendState::keeps_flows(backend.state);
    if backend.state != BackendState::Live as u8 && !keeps {
        return Reason::NoBackend;
    }
    if packet.adopted == 0 && !is_named(packet, id) && load::is_full(id, backend) {
        packet.full = 1;
        return Reason::BackendsFull;
    }
    if packet.service.mode == Mode::FullNat as u8 {
        let port = ports::take_port(backend.port_pool, packet.now);
        if port == 0 {
            events::ports_exhausted(id, backend.address);
            return Reason::PortsExhausted;
        }
        write_reply(packet, backend, backend.source, Port::new(port as u16));
    } else {
        write_reply(packet, backend, packet.tuple.source, packet.tuple.source_port);
    }
    write_flow(md, packet, backend, id);
    packet.send_to_backend(backend);
    Reason::ToBackend
}

/// The backend that the packet was scheduled to, or that its connection ID names, or that the
/// scheduler picks.
#[inline(always)]
fn choice(packet: &Packet, number: u32) -> u32 {
    if packet.backend_id != NO_BACKEND {
        return packet.backend_id;
    }
    match number {
        0 if packet.named != NO_BACKEND && is_named(packet, packet.named) => packet.named,
        0 => select::pick(0),
        _ if packet.full != 0 => select::with_room(),
        _ => select::pick(number),
    }
}

/// Whether the packet's connection ID names this backend: its connection is there already.
#[inline(always)]
fn is_named(packet: &Packet, id: u32) -> bool {
    packet.service.quic_server_id != 0 && packet.named == id
}

/// What the backend will answer to `source`.
#[inline(always)]
fn write_reply(packet: &mut Packet, backend: &Backend, source: Address, port: Port) {
    let backend_port = backend.port_for(packet.tuple.destination_port);
    packet.reply_tuple = Tuple::new(backend.address, source, backend_port, port, packet.tuple.protocol, 0);
}

/// [`Flow::ACROSS_FAMILIES`] where client and backend are of two. In tunnels they may be, untranslated.
#[inline(always)]
fn across_families(packet: &Packet, backend: &Backend) -> u8 {
    let full_nat = packet.service.mode == Mode::FullNat as u8;
    if full_nat && backend.address.is_v4() != packet.network.v4 { Flow::ACROSS_FAMILIES } else { 0 }
}

/// [`Flow::WATCHED`] where the service is.
#[inline(always)]
fn watched(packet: &Packet) -> u8 {
    if packet.service.has(ServiceValue::WATCHED) { Flow::WATCHED } else { 0 }
}

/// Fills in the flow; source and source port are those of the reply tuple.
#[inline(always)]
fn write_flow(md: *mut xdp_md, packet: &mut Packet, backend: &Backend, id: u32) {
    packet.flow = Flow {
        client: packet.tuple.source,
        source: packet.reply_tuple.destination,
        client_port: packet.tuple.source_port,
        service_port: packet.tuple.destination_port,
        source_port: packet.reply_tuple.destination_port,
        protocol: packet.tuple.protocol,
        mode: packet.service.mode,
        service_id: packet.service.id,
        backend_id: id,
        backend_generation: backend.generation,
        created_generation: packet.service.generation,
        client_mac: Frame::of(md).sender(),
        flags: Flow::CLIENT_MAC_KNOWN
            | load::flag(packet.service.scheduler, backend)
            | across_families(packet, backend)
            | watched(packet),
        granularity: packet.sought as u8,
    };
}
