//! From a backend to a client, of a flow that goes on as before: found by its reply's word, written back to what
//! the client knows.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup, bpf_fib_lookup__bindgen_ty_1},
    helpers::generated::bpf_fib_lookup as fib_lookup,
};
use lb_common::{
    abi::{AddressRoles, BackendState, Flow, Protocol},
    flow::{Seen, TCP_FIN, TCP_RST, TCP_SYN},
    hash::tuple_hash,
    rewrite::Translation,
    verdict::{Reason, Verdict},
};

use super::{
    LONGER, Plain,
    listed::{Found, same},
    sent,
    tags::tagged_reply,
};
use crate::{
    ctx::Frame,
    maps::{BACKENDS, SERVICE_INFO},
    packet::{Hop, Packet},
    pipeline::now,
    settings::hash_seed,
    stages::{admit, tagged},
    stats, transmit,
};

#[inline(always)]
pub fn run(frame: &mut Frame, packet: &Plain) -> Verdict {
    let (network, transport) = (&packet.network, &packet.transport);
    if transport.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) != 0 || !may_be_reply(packet) {
        return LONGER;
    }
    let (from, to, protocol) = (transport.source_port, transport.destination_port, transport.protocol as u8);
    let hash = tuple_hash(hash_seed(), &network.source, &network.destination, from, to, protocol, 0);
    let Some(found) = Found::at(tagged_reply(hash)) else { return LONGER };
    let flow = &found.copy();
    let Some(backend) = BACKENDS.get(flow.backend_id) else { return LONGER };
    let lives = backend.generation == flow.backend_generation && backend.state == BackendState::Live as u8;
    let answers = same(&flow.source, &network.destination)
        && flow.source_port == to
        && flow.protocol == protocol
        && same(&backend.address, &network.source)
        && backend.port_for(flow.service_port) == from;
    let Some(info) = SERVICE_INFO.get(flow.service_id) else { return LONGER };
    let seen = Seen { tcp: transport.protocol == Protocol::Tcp, reply: true, tcp_flags: transport.tcp_flags };
    let Some(after) = found.word.goes_on(seen, now(), &info.timeouts) else { return LONGER };
    if !lives || !answers || flow.flags & Flow::ACROSS_FAMILIES != 0 || !found.is_whole() {
        return LONGER;
    }
    let to = Translation {
        source: info.address,
        destination: flow.client,
        source_port: flow.service_port,
        destination_port: flow.client_port,
    };
    let Some(hop) = &next_hop(frame, packet, &to) else { return LONGER };
    if after != found.word {
        found.touch(after);
    }
    stats::sent(flow.service_id, flow.backend_id, true, packet.bytes);
    sent::translated(frame, packet, flow.service_id, Reason::ToClient, &to, hop)
}

/// Whether that is all that the packet can be: no service has its destination.
#[inline(always)]
fn may_be_reply(packet: &Plain) -> bool {
    let mut to = AddressRoles(0);
    if admit::maybe_ours(&packet.network.destination) {
        to = admit::roles(&packet.network.destination);
    }
    !to.has(AddressRoles::SERVICE)
        && (to.has(AddressRoles::SOURCE) || admit::roles(&packet.network.source).has(AddressRoles::NAT_BACKEND))
}

/// The way to the client, if the kernel's tables know it at once.
#[inline(always)]
fn next_hop(frame: &Frame, packet: &Plain, to: &Translation) -> Option<Hop> {
    let fib = &mut Packet::current()?.fib;
    transmit::clear(fib);
    fib.l4_protocol = packet.transport.protocol as u8;
    fib.sport = u16::from_ne_bytes(to.source_port.to_wire());
    fib.dport = u16::from_ne_bytes(to.destination_port.to_wire());
    fib.__bindgen_anon_1 = bpf_fib_lookup__bindgen_ty_1 { tot_len: packet.transport.packet_len };
    fib.ifindex = frame.ifindex();
    transmit::between(fib, &to.source, &to.destination);
    // SAFETY: context and request are valid, and the size is the request's.
    let answer = unsafe { fib_lookup(frame.md().cast(), fib, size_of::<bpf_fib_lookup>() as i32, 0) };
    let hop = Hop { ifindex: fib.ifindex, source: fib.smac, destination: fib.dmac };
    let plain = hop.ifindex == frame.ifindex() || !tagged::may_be_vlan(hop.ifindex);
    (answer as u32 == BPF_FIB_LKUP_RET_SUCCESS && plain).then_some(hop)
}
