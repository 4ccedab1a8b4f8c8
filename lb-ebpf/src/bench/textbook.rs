//! The textbook balancer: direct server return through IP in IP, as Katran and its relatives do it. Per
//! packet: a total; the service in a hash map; the flow in the kernel's LRU hash, but for a SYN, or
//! else a slot of a Maglev table and a new entry; the backend; the next hop; a counter for the service
//! and one for the backend. Nothing in it is slower than it has to be: the clock is the coarse one, and
//! parser, hash, headers and checksums are the data path's own.

use aya_ebpf::{bindings::xdp_action, helpers::generated::bpf_ktime_get_coarse_ns, macros::xdp, programs::XdpContext};
use lb_common::{
    abi::{DirectionCounters, DontFragment, Port, Protocol, ServiceKey},
    bench::{TextbookBackend, TextbookFlow, TextbookVip, TupleKey},
    encap::{Tunnel, encapsulate},
    flow::{TCP_ACK, TCP_SYN, ticks},
    hash::{selection_hash, selection_slot},
    packet::PacketAccess,
    parse::{self, Network, Transport},
};

use crate::{
    ctx::Frame,
    maps::{BACKENDS, FLOWS, HOP, REAL_STATS, RING, TOTAL, VIP_STATS, VIPS},
};

#[xdp(frags)]
pub fn textbook(ctx: XdpContext) -> u32 {
    run(&ctx, |frame, network, transport, bytes| {
        let Some(vip) = vip(network, transport) else { return Some(xdp_action::XDP_PASS) };
        let id = known(network, transport).or_else(|| begin(vip, network, transport))?;
        let tunnel = tunnel(BACKENDS.get(id)?);
        count_sent(vip.id, id, bytes);
        frame.adjust_head(-(tunnel.growth() as i32))?;
        encapsulate(frame, network, transport, &tunnel)?;
        transmit(frame, bytes)
    })
}

/// Counts and parses a packet and has it balanced; what cannot be is dropped.
#[inline(always)]
pub fn run(ctx: &XdpContext, balance: impl Fn(&mut Frame, &Network, &Transport, u64) -> Option<u32>) -> u32 {
    let mut frame = Frame::new(ctx);
    let bytes = frame.bytes();
    count(TOTAL.get_ptr_mut(0), bytes);
    let Ok(network) = parse::network(&frame) else { return xdp_action::XDP_PASS };
    let Ok(transport) = parse::transport(&frame, &network) else { return xdp_action::XDP_PASS };
    match balance(&mut frame, &network, &transport, bytes) {
        Some(action) => action,
        None => xdp_action::XDP_DROP,
    }
}

/// Counts a packet for its service and its backend.
#[inline(always)]
pub fn count_sent(vip: u32, backend: u32, bytes: u64) {
    count(VIP_STATS.get_ptr_mut(vip), bytes);
    count(REAL_STATS.get_ptr_mut(backend), bytes);
}

/// To the one next hop.
#[inline(always)]
pub fn transmit(frame: &mut Frame, bytes: u64) -> Option<u32> {
    let hop = HOP.get(0)?;
    frame.write(0, hop.destination)?;
    frame.write(6, hop.source)?;
    count(TOTAL.get_ptr_mut(1), bytes);
    Some(xdp_action::XDP_TX)
}

#[inline(always)]
pub fn vip(network: &Network, transport: &Transport) -> Option<&'static TextbookVip> {
    let key = ServiceKey::new(network.destination, transport.destination_port, transport.protocol as u8);
    // SAFETY: values are written once, before the first packet.
    unsafe { VIPS.get(key) }
}

/// The packet's 5-tuple.
#[inline(always)]
pub fn key(network: &Network, transport: &Transport) -> TupleKey {
    TupleKey {
        source: network.source,
        destination: network.destination,
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: transport.protocol as u8,
        zero: [0; 3],
    }
}

/// What a new flow's backend, and its first source port, follow from.
#[inline(always)]
pub fn hash(network: &Network, transport: &Transport) -> u64 {
    let (from, to) = (transport.source_port, transport.destination_port);
    selection_hash(&network.source, &network.destination, from, to, transport.protocol as u8)
}

/// The backend that the Maglev table of the service has for a hash.
#[inline(always)]
pub fn select(vip: &TextbookVip, hash: u64) -> Option<u32> {
    RING.get(vip.ring_base + selection_slot(hash, 0, vip.ring_len)).copied()
}

#[inline(always)]
pub fn is_syn(transport: &Transport) -> bool {
    transport.protocol == Protocol::Tcp && transport.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: has no arguments.
    ticks(unsafe { bpf_ktime_get_coarse_ns() })
}

#[inline(always)]
fn count(counters: Option<*mut DirectionCounters>, bytes: u64) {
    if let Some(counters) = counters {
        // SAFETY: this CPU's element.
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += bytes;
        }
    }
}

/// Ticks after which a flow without a connection is no longer believed: thirty seconds.
const UDP_TICKS: u32 = 224;

#[inline(always)]
fn known(network: &Network, transport: &Transport) -> Option<u32> {
    if is_syn(transport) {
        return None;
    }
    let flow = FLOWS.get_ptr_mut(key(network, transport))?;
    // SAFETY: an entry that gives way meanwhile is still memory of the map.
    unsafe {
        if transport.protocol == Protocol::Udp {
            let now = now();
            if now.wrapping_sub((*flow).seen) > UDP_TICKS {
                return None;
            }
            (*flow).seen = now;
        }
        Some((*flow).backend)
    }
}

#[inline(always)]
fn begin(vip: &TextbookVip, network: &Network, transport: &Transport) -> Option<u32> {
    let backend = select(vip, hash(network, transport))?;
    // As its peers do: a table that cannot take the flow loses nothing but the memory of it.
    let _ = FLOWS.insert(key(network, transport), TextbookFlow { backend, seen: now() }, 0);
    Some(backend)
}

#[inline(always)]
fn tunnel(backend: &TextbookBackend) -> Tunnel {
    Tunnel {
        source: backend.source,
        destination: backend.address,
        gue_port: Port::ANY,
        gre: 0,
        entropy: 0,
        dont_fragment: DontFragment::Copy as u8,
        id: 0,
    }
}
