//! QUIC: connections that follow their connection ID, whatever address the client comes from. Only for
//! services that ask for it.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{BackendState, Granularity, QuicKey},
    hash::backend_extra,
    quic,
};

use super::table;
use crate::{
    ctx::Frame,
    maps::{BACKENDS, QUIC_IDS},
    packet::{NO_BACKEND, Packet},
};

/// Sets the backend that the packet's connection ID names, and the key of the flow that leads there:
/// that of the tuple alone, unless the tuple's flow leads elsewhere. Then the connection gets a flow
/// of its own, told apart by the backend as where every packet is scheduled.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn follow_connection(md: *mut xdp_md) -> u32 {
    let id = named(md);
    let Some(packet) = Packet::current() else { return 0 };
    packet.named = id;
    if id == NO_BACKEND || table::find_forward() == 0 {
        return 0;
    }
    let Some(packet) = Packet::current() else { return 0 };
    if table::copy(packet) && packet.flow.backend_id != id {
        packet.backend_id = id;
        packet.sought = Granularity::Packet as u32;
        packet.set_tuple(backend_extra(id));
    }
    0
}

/// The live backend that the connection ID names, or [`NO_BACKEND`].
#[inline(always)]
fn named(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return NO_BACKEND };
    let length = packet.service.quic_server_id;
    let Some(server_id) = quic::server_id(&Frame::of(md), &packet.transport, length) else { return NO_BACKEND };
    let key = QuicKey::new(packet.service.id, server_id);
    // SAFETY: values of this map are replaced as a whole, and one word is read.
    let Some(id) = (unsafe { QUIC_IDS.get(key) }).copied() else { return NO_BACKEND };
    let live = |id| BACKENDS.get(id).is_some_and(|backend| backend.state == BackendState::Live as u8);
    if live(id) { id } else { NO_BACKEND }
}
