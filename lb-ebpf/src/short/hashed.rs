//! Flows without an entry, on a slot that is clean: the way that [`crate::stages::hashed`] tells of.

use lb_common::{
    abi::{Address, BackendState, Mode, Port, ServiceValue},
    encap::Tunnel,
    flow::{TCP_ACK, TCP_RST, TCP_SYN},
    hash::{selection_slot, slot_hash},
    verdict::Verdict,
};

use super::{LONGER, Plain, sent};
use crate::{
    ctx::Frame,
    maps::{BACKENDS, SELECTION},
    stages::{dead_man, hashed::of_flow},
    stats, tunnel,
};

#[inline(always)]
pub fn run(frame: &mut Frame, packet: &Plain, service: &ServiceValue) -> Verdict {
    let (network, transport) = (&packet.network, &packet.transport);
    let opens = transport.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN;
    if transport.tcp_flags & TCP_SYN != 0 && service.mss != 0 || opens && may_not_begin(service) {
        return LONGER;
    }
    let (from, to) = (transport.source_port, transport.destination_port);
    let (source, destination) = (&network.source, &network.destination);
    let hash = slot_hash(service.stable_hash, service, source, destination, from, to, transport.protocol as u8);
    step!(Hash, hash);
    let index = service.selection_base.wrapping_add(selection_slot(hash, 0, service.stable_len));
    let Some(slot) = SELECTION.get(index).filter(|slot| slot.is_clean()) else { return LONGER };
    let id = slot.current();
    step!(Place, id);
    let Some(backend) = BACKENDS.get(id).filter(|backend| backend.state == BackendState::Live as u8) else {
        return LONGER;
    };
    step!(Backend, backend.generation);
    if !Mode::is_tunnel(service.mode) {
        return send(frame, packet, service.id, id, None);
    }
    if service.mode == Mode::DsrGre as u8 {
        return LONGER;
    }
    let tunnel = tunnel::without_gre(backend, of_flow(hash, transport));
    if !tunnel.destination.is_v4() {
        return send(frame, packet, service.id, id, Some(&tunnel));
    }
    // Pieces of code of their own, in which the compiler knows what the header is made of.
    let v4 = |address: &Address| Address::v4(address.v4_octets());
    let tunnel = Tunnel { source: v4(&tunnel.source), destination: v4(&tunnel.destination), ..tunnel };
    if tunnel.gue_port == Port::ANY {
        send(frame, packet, service.id, id, Some(&Tunnel { gue_port: Port::ANY, ..tunnel }))
    } else {
        send(frame, packet, service.id, id, Some(&tunnel))
    }
}

/// Whether it takes a look at the time to know whether a connection may begin.
#[inline(always)]
fn may_not_begin(service: &ServiceValue) -> bool {
    service.has(ServiceValue::PARKED) || dead_man::says().is_some()
}

#[inline(always)]
fn send(frame: &mut Frame, packet: &Plain, service: u32, backend: u32, tunnel: Option<&Tunnel>) -> Verdict {
    let Some(hop) = sent::hop(frame, packet, backend, tunnel) else { return LONGER };
    step!(Hop, hop.ifindex);
    if packet.transport.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN {
        stats::flow_begun(service, backend);
    }
    stats::sent(service, backend, false, packet.bytes);
    step!(Count);
    sent::one_sided(frame, packet, service, tunnel, hop)
}
