//! Flows that are over with their backend, because it is down, demoted, drained or removed: what becomes
//! of their next packet. The backend's state says it, as its service's policy wants it.
//!
//! | state | a packet from the client | from the backend |
//! | --- | --- | --- |
//! | dead | TCP: reset; UDP, SCTP: port unreachable | the same |
//! | | TCP's reset: sent on, so that the backend's end is freed | sent on |
//! | moved | goes where its flow is scheduled anew | sent on |
//! | any | that opens a connection: as one that is not known | |
//!
//! A connection that was reset keeps its entry for as long as one that was closed, so that the other end
//! is answered too.

use lb_common::{
    abi::{BackendState, Protocol},
    flow::TCP_RST,
    verdict::Reason,
};

use super::table;
use crate::{maps::BACKENDS, packet::Packet, stats};

/// [`forward`]: the flow is gone; the packet may begin another.
pub const OVER: u32 = Reason::Internal as u32;

/// Decides about a client's packet: the number of a [`Reason`], or [`OVER`]. `opens`: it is a
/// connection's first.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forward(opens: u32) -> u32 {
    let Some(packet) = Packet::current() else { return OVER };
    let id = packet.flow.backend_id;
    let Some(backend) = BACKENDS.get(id) else { return OVER };
    let (dead, moved) = (backend.state == BackendState::Dead as u8, backend.state == BackendState::Moved as u8);
    if opens != 0 || !dead {
        if table::end() != 0 && opens == 0 && moved {
            stats::flow_over(id, true);
        }
        return OVER;
    }
    if is_reset(packet) {
        packet.send_to_backend(backend);
        return Reason::ToBackend as u32;
    }
    refuse(packet, id);
    Reason::of_end(backend.cause) as u32
}

/// Decides about a packet of a backend that is dead, which would go to the client otherwise: the number
/// of a [`Reason`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn reply() -> u32 {
    let Some(packet) = Packet::current() else { return OVER };
    let id = packet.flow.backend_id;
    let Some(backend) = BACKENDS.get(id) else { return OVER };
    if is_reset(packet) {
        return Reason::ToClient as u32;
    }
    refuse(packet, id);
    Reason::of_end(backend.cause) as u32
}

/// Why a packet is refused whose flow has no entry, and whose backend is dead.
#[inline(always)]
pub fn unlisted(packet: &Packet) -> Reason {
    BACKENDS.get(packet.backend_id).map_or(Reason::BackendDead, |backend| Reason::of_end(backend.cause))
}

/// RFC 9293, 3.5.2: a reset is never answered with a reset.
#[inline(always)]
fn is_reset(packet: &Packet) -> bool {
    packet.transport.protocol == Protocol::Tcp && packet.transport.tcp_flags & TCP_RST != 0
}

#[inline(always)]
fn refuse(packet: &Packet, backend_id: u32) {
    let was_open = if packet.transport.protocol == Protocol::Tcp { table::close_flow() } else { table::end() };
    if was_open != 0 {
        stats::flow_over(backend_id, false);
    }
}
