//! Whose a client's packet was that something is told of now: the backend that [`pipeline::forward`]
//! would find, by the same look-ups and in the same order. Nothing begins, and nothing is noted.
//!
//! [`pipeline::forward`]: crate::pipeline

use lb_common::{
    abi::{Backend, BackendState, Granularity, Protocol, ServiceValue},
    hash::backend_extra,
};

use super::{
    hashed, select,
    table::{self, NO_PLACE},
};
use crate::{
    maps::{BACKENDS, FLOWS},
    packet::{NO_BACKEND, Packet},
};

/// Finds the live backend of the flow of the client's packet that `packet` describes, whose service is
/// set; sets the flow.
///
/// Of a client whose packets are scheduled one by one, nothing tells which backend had this one: one
/// that would have the client's next packet is found, so that in turn all of them learn.
#[inline(always)]
pub fn find(packet: &mut Packet) -> Option<&'static Backend> {
    packet.backend_id = NO_BACKEND;
    packet.sought = Granularity::Flow as u32;
    let tracked = packet.service.has(ServiceValue::TRACKED);
    if tracked && hashed::settled(0) != 0 {
        return BACKENDS.get(packet.flow.backend_id);
    }
    if packet.service.granularity == Granularity::Packet as u8 {
        packet.sought = Granularity::Packet as u32;
        hashed::set_hash();
        packet.backend_id = select::pick(0);
        if packet.backend_id == NO_BACKEND {
            return None;
        }
    }
    packet.set_tuple(backend_extra(packet.backend_id));
    if !tracked {
        packet.hash = packet.tuple.hash;
    }
    if table::find_forward() != 0 && table::copy(packet) {
        let backend = BACKENDS.get(packet.flow.backend_id)?;
        let lives = BackendState::keeps_flows(backend.state) && backend.generation == packet.flow.backend_generation;
        if lives {
            packet.send_to_backend(backend);
        }
        return lives.then_some(backend);
    }
    let found = tracked && (with_its_client(packet) || hashed::began_unlisted(packet));
    if found { BACKENDS.get(packet.flow.backend_id) } else { None }
}

/// The flow of a client that stays on one backend goes there, if it is not a connection.
#[inline(always)]
fn with_its_client(packet: &mut Packet) -> bool {
    if packet.service.granularity != Granularity::Client as u8 || packet.transport.protocol != Protocol::Udp {
        return false;
    }
    packet.set_client();
    if table::find_forward() == 0 || packet.place.index == NO_PLACE {
        return false;
    }
    let Some(entry) = FLOWS.get_ptr_mut(packet.place.index) else { return false };
    // SAFETY: one aligned word of a map value; a backend that it does not mean any more is no worse than
    // the one that the client's next packet would get.
    let id = unsafe { (&raw const (*entry).backend_id).read() };
    hashed::go(packet, id, false)
}
