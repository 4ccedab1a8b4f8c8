//! Clients that stay on one backend with all their flows. A client has an entry in the flow table like
//! a flow, which says where its next flow goes; it lasts for a time after the last new flow. This is a
//! program of its own, see `lb_client`: it goes on with the packet that the first one has read.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{Address, BackendState, Flow, Granularity, Port, limits::BACKEND_ATTEMPTS},
    flow::{Word, tag},
    verdict::{Reason, Verdict},
};

use super::{
    begin::begin,
    fragment, knock, load, select,
    table::{self, NO_PLACE},
};
use crate::{
    maps::{BACKENDS, FLOWS, SERVICE_INFO},
    packet::{NO_BACKEND, Packet},
    pipeline::carry_out,
};

/// Begins the flow of the packet under way at the backend of its client.
#[inline(always)]
pub fn run(md: *mut xdp_md) -> Verdict {
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    let reason = match assign(packet) {
        true => begin(md, packet),
        false if packet.full != 0 => Reason::BackendsFull,
        false => Reason::NoBackend,
    };
    if reason == Reason::ToBackend {
        knock::keep(md);
    }
    let verdict = carry_out(md, packet, reason);
    fragment::settled(md, packet, verdict)
}

/// Schedules the packet, whose flow is about to begin, to the backend of its client: the one that the
/// client had last, else the one it is scheduled to already, else the one the scheduler picks. `false`:
/// there is none.
///
/// Where the flow table has no place for the client, its flow begins all the same.
#[inline(never)]
fn assign(packet: &mut Packet) -> bool {
    let Some(info) = SERVICE_INFO.get(packet.service.id) else { return false };
    packet.set_client();
    packet.full = 0;
    if !find_known(packet, info.client_timeout) {
        choose(packet);
        if packet.backend_id != NO_BACKEND {
            remember(packet, info.client_timeout);
        }
    }
    packet.set_tuple(0);
    packet.sought = Granularity::Flow as u32;
    packet.backend_id != NO_BACKEND
}

/// Finds the client's backend, if that lives.
#[inline(always)]
fn find_known(packet: &mut Packet, timeout: u32) -> bool {
    if table::find_forward() == 0 || !table::copy(packet) {
        return false;
    }
    let id = packet.flow.backend_id;
    let Some(backend) = BACKENDS.get(id) else { return false };
    let lives = backend.state == BackendState::Live as u8;
    if !lives || backend.generation != packet.flow.backend_generation {
        table::end();
        return false;
    }
    packet.backend_id = id;
    // A backend that is to take nothing new keeps its clients for the time that they have left.
    if backend.weight != 0 {
        table::extend(packet, timeout);
    }
    true
}

/// A live backend with room for a flow, where the packet is not scheduled to one yet.
#[inline(always)]
fn choose(packet: &mut Packet) {
    if packet.backend_id != NO_BACKEND {
        return;
    }
    for attempt in 0..BACKEND_ATTEMPTS {
        let id = select::pick(attempt);
        if select::takes_flows(id) {
            packet.backend_id = id;
            return;
        }
        if BACKENDS.get(id).is_some_and(|backend| load::is_full(id, backend)) {
            packet.full = 1;
        }
    }
    if packet.full != 0 {
        packet.backend_id = select::with_room();
    }
}

#[inline(always)]
fn remember(packet: &mut Packet, timeout: u32) {
    let index = table::claim();
    if index == NO_PLACE {
        return;
    }
    let (Some(place), Some(backend)) = (FLOWS.get_ptr_mut(index), BACKENDS.get(packet.backend_id)) else { return };
    let word = Word::client(tag(packet.tuple.hash), timeout, packet.now);
    let flow = Flow {
        client: packet.tuple.source,
        source: Address::from_words([0; 4]),
        client_port: Port::ANY,
        service_port: Port::ANY,
        source_port: Port::ANY,
        protocol: packet.tuple.protocol,
        mode: packet.service.mode,
        service_id: packet.service.id,
        backend_id: packet.backend_id,
        backend_generation: backend.generation,
        created_generation: packet.service.generation,
        client_mac: [0; 6],
        flags: 0,
        granularity: Granularity::Client as u8,
    };
    // SAFETY: the way is busy, so the element is ours alone to write.
    unsafe { *place = flow };
    table::publish(index, packet.now, word);
}
