//! Flows with an entry in the flow table, from client to backend: found, and found to go on as before.

use lb_common::{
    abi::{Address, BackendState, Flow, Granularity, Mode, Protocol, ServiceValue, limits::WAYS},
    flow::{Seen, State, TCP_FIN, TCP_RST, TCP_SYN, Word},
    hash::tuple_hash,
    rewrite::Translation,
    verdict::{Reason, Verdict},
};

use super::{LONGER, Plain, sent, tags::tagged_flow};
use crate::{
    atomic::compare_exchange,
    ctx::Frame,
    maps::{BACKENDS, FLOW_WORDS, FLOWS, SERVICE_INFO},
    pipeline::now,
    settings::hash_seed,
    stages::table,
    stats, tunnel,
};

/// Whether the service's flows are found by their tuple alone.
#[inline(always)]
pub fn fits(packet: &Plain, service: &ServiceValue) -> bool {
    service.flags & ServiceValue::TRACKED == 0
        && service.granularity != Granularity::Packet as u8
        && service.quic_server_id == 0
        && packet.transport.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0
}

#[inline(always)]
pub fn run(frame: &mut Frame, packet: &Plain, service: &ServiceValue) -> Verdict {
    let (network, transport) = (&packet.network, &packet.transport);
    let (from, to, protocol) = (transport.source_port, transport.destination_port, transport.protocol as u8);
    let hash = tuple_hash(hash_seed(), &network.source, &network.destination, from, to, protocol, 0);
    step!(Hash, hash);
    let Some(found) = Found::at(tagged_flow(hash)) else { return LONGER };
    let flow = &found.copy();
    if !asks(flow, packet, service.id) {
        return LONGER;
    }
    step!(Place, flow.backend_id, flow.source_port.get());
    let Some(backend) = BACKENDS.get(flow.backend_id) else { return LONGER };
    let lives = backend.generation == flow.backend_generation && backend.state == BackendState::Live as u8;
    let Some(info) = SERVICE_INFO.get(service.id) else { return LONGER };
    let now = now();
    let seen = Seen { tcp: transport.protocol == Protocol::Tcp, reply: false, tcp_flags: transport.tcp_flags };
    let Some(after) = found.word.goes_on(seen, now, &info.timeouts) else { return LONGER };
    if !lives || flow.flags & Flow::ACROSS_FAMILIES != 0 || !found.is_whole() {
        return LONGER;
    }
    step!(Backend, backend.port.get(), after.0);
    if flow.mode == Mode::DsrGre as u8 {
        return LONGER;
    }
    let on = OnItsWay { packet, found: &found, flow, after };
    if !Mode::is_one_sided(flow.mode) {
        let Some(hop) = sent::hop(frame, packet, flow.backend_id, None) else { return LONGER };
        step!(Hop, hop.ifindex);
        on.departs(frame);
        step!(Count);
        let to = Translation {
            source: flow.source,
            destination: backend.address,
            source_port: flow.source_port,
            destination_port: backend.port_for(flow.service_port),
        };
        return sent::translated(frame, packet, service.id, Reason::ToBackend, &to, hop);
    }
    // Code of its own, so that translated packets carry no tunnel that they do not have.
    let tunnel = Mode::is_tunnel(flow.mode).then(|| tunnel::without_gre(backend, hash));
    let Some(hop) = sent::hop(frame, packet, flow.backend_id, tunnel.as_ref()) else { return LONGER };
    step!(Hop, hop.ifindex);
    on.departs(frame);
    step!(Count);
    sent::one_sided(frame, packet, service.id, tunnel.as_ref(), hop)
}

/// A packet whose flow goes on.
struct OnItsWay<'a> {
    packet: &'a Plain,
    found: &'a Found,
    flow: &'a Flow,
    /// The flow's word from now on.
    after: Word,
}

impl OnItsWay<'_> {
    /// Notes and counts the packet, whose next hop is known.
    #[inline(always)]
    fn departs(&self, frame: &Frame) {
        if self.after != self.found.word && self.found.touch(self.after) {
            table::remember_mac(self.found.index, frame.sender());
        }
        stats::sent(self.flow.service_id, self.flow.backend_id, false, self.packet.bytes);
    }
}

/// Whether the packet is one that the flow's client sends.
#[inline(always)]
fn asks(flow: &Flow, packet: &Plain, service: u32) -> bool {
    let transport = &packet.transport;
    same(&flow.client, &packet.network.source)
        && flow.client_port == transport.source_port
        && flow.service_port == transport.destination_port
        && flow.protocol == transport.protocol as u8
        && flow.service_id == service
        && flow.granularity == Granularity::Flow as u8
}

/// Without a branch for each word.
#[inline(always)]
pub fn same(one: &Address, other: &Address) -> bool {
    let ([a, b, c, d], [e, f, g, h]) = (one.words(), other.words());
    (a ^ e | b ^ f | c ^ g | d ^ h) == 0
}

/// A place in the flow table that may be the packet's.
pub struct Found {
    pub index: u32,
    pub word: Word,
    place: *mut u64,
    flow: *const Flow,
}

impl Found {
    /// The place of this index; `None`: there is no such place.
    #[inline(always)]
    pub fn at(index: u32) -> Option<Self> {
        let words = FLOW_WORDS.get_ptr_mut(index / WAYS as u32)?;
        // SAFETY: the remainder is below the bucket's length; the word may change, so it is read once.
        let place = unsafe { &raw mut (*words).words[index as usize % WAYS] };
        // SAFETY: as above.
        let word = Word(unsafe { place.read_volatile() });
        Some(Self { index, word, place, flow: FLOWS.get_ptr_mut(index)? })
    }

    /// The flow, read once.
    #[inline(always)]
    pub fn copy(&self) -> Flow {
        let mut copy = [0u64; size_of::<Flow>() / 8];
        for (at, word) in copy.iter_mut().enumerate() {
            // SAFETY: within the element, which is aligned to its size; every bit pattern is a Flow.
            *word = unsafe { self.flow.cast::<u64>().add(at).read_volatile() };
        }
        bytemuck::cast(copy)
    }

    /// Whether the flow was read as a whole: its place has not changed hands meanwhile.
    #[inline(always)]
    pub fn is_whole(&self) -> bool {
        // SAFETY: a word of a map value.
        let now = Word(unsafe { self.place.read_volatile() });
        now.tag() == self.word.tag() && now.state() > State::Busy
    }

    /// Notes the time of the packet, unless somebody else was faster.
    #[inline(always)]
    pub fn touch(&self, after: Word) -> bool {
        // SAFETY: an aligned word of a map value.
        unsafe { compare_exchange(self.place, self.word.0, after.0) == self.word.0 }
    }
}
