//! The end of the short way: the packet is written for its next hop.

use lb_common::{
    encap::{Tunnel, encapsulate},
    rewrite::{Translation, lower_known_ttl, translate},
    verdict::{Reason, Verdict},
};

use super::Plain;
use crate::{ctx::Frame, hops, packet::Hop, stages::tagged, stats, transmit::link_layer};

/// The next hop towards a backend, where it is known and takes the packet; not one behind a VLAN
/// interface, where the frame gets tags.
#[inline(always)]
pub fn hop(frame: &Frame, packet: &Plain, backend: u32, tunnel: Option<&Tunnel>) -> Option<&'static Hop> {
    let ingress = frame.ifindex();
    let growth = tunnel.map_or(0, Tunnel::growth);
    let hop = hops::known(backend, ingress, packet.transport.packet_len as u32 + growth as u32)?;
    (hop.ifindex == ingress || !tagged::may_be_vlan(hop.ifindex)).then_some(hop)
}

/// Direct server return: the packet as it is, with another TTL, and in its tunnel if it takes one.
#[inline(always)]
pub fn one_sided(frame: &mut Frame, packet: &Plain, service: u32, tunnel: Option<&Tunnel>, hop: &Hop) -> Verdict {
    let room = make_room(frame, packet, tunnel);
    step!(Room, room.is_some());
    let written = room.and_then(|()| hand_on(frame, packet, tunnel, hop));
    step!(Write, written.is_some());
    leave(frame, service, Reason::ToBackend, hop, written)
}

/// Lowers the TTL, and grows the frame for the outer header.
#[inline(always)]
fn make_room(frame: &mut Frame, packet: &Plain, tunnel: Option<&Tunnel>) -> Option<()> {
    lower_known_ttl(frame, packet.network.v4, packet.ttl)?;
    tunnel.map_or(Some(()), |tunnel| frame.adjust_head(-(tunnel.growth() as i32)))
}

#[inline(always)]
fn hand_on(frame: &mut Frame, packet: &Plain, tunnel: Option<&Tunnel>, hop: &Hop) -> Option<()> {
    if let Some(tunnel) = tunnel {
        encapsulate(frame, &packet.network, &packet.transport, tunnel)?;
    }
    link_layer(frame, hop)
}

/// The packet with the addresses and ports of its translation.
#[inline(always)]
pub fn translated(
    frame: &mut Frame,
    packet: &Plain,
    service: u32,
    reason: Reason,
    to: &Translation,
    hop: &Hop,
) -> Verdict {
    let written = translate(frame, &packet.network, &packet.transport, to).and_then(|()| link_layer(frame, hop));
    step!(Write, written.is_some());
    leave(frame, service, reason, hop, written)
}

/// The verdict of a packet that was `written` for its hop, or could not be.
#[inline(always)]
fn leave(frame: &Frame, service: u32, reason: Reason, hop: &Hop, written: Option<()>) -> Verdict {
    if written.is_none() {
        stats::dropped(service);
        return Verdict::of(Reason::Internal);
    }
    if hop.ifindex == frame.ifindex() { Verdict::transmit(reason) } else { Verdict::redirect(reason, hop.ifindex) }
}
