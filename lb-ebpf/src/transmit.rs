//! The last step: the next hop, the link-layer header, the exit.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup,
        bpf_fib_lookup__bindgen_ty_1, bpf_fib_lookup__bindgen_ty_3, bpf_fib_lookup__bindgen_ty_4, xdp_md,
    },
    helpers::generated::bpf_fib_lookup as fib_lookup,
};
use lb_common::{
    abi::{Address, Flow, Mode},
    encap::{Tunnel, encapsulate, encapsulate_icmp},
    flow::TCP_SYN,
    packet::PacketAccess,
    parse::{Network, Part, Transport},
    rewrite::{lower_ttl, translate},
    verdict::{Action, Reason, Stage, Verdict},
};

use crate::{
    ctx::Frame,
    events, hops,
    maps::INTERFACES,
    packet::{Hop, Packet},
    stages::{
        mss,
        table::{self, NO_PLACE},
    },
    stats,
};

/// AF_INET and AF_INET6.
const INET: u8 = 2;
const INET6: u8 = 10;

/// Sends the packet on to where it goes; for `reason`, or for another why it cannot go, and then it
/// is left whole.
#[inline(always)]
pub fn send(md: *mut xdp_md, packet: &mut Packet, reason: Reason) -> Verdict {
    if packet.flow.flags & Flow::ACROSS_FAMILIES != 0 {
        packet.reply = (reason == Reason::ToClient) as u32;
        return Verdict::go_on(Stage::Family);
    }
    let reason = rewrite(md, packet, reason);
    if reason == Reason::TooBig {
        return Verdict::go_on(Stage::TooBig);
    }
    conclude(packet, reason)
}

/// The verdict of a packet that was written for its hop, or could not be.
#[inline(always)]
pub fn conclude(packet: &Packet, reason: Reason) -> Verdict {
    if reason.action() != Action::Forward {
        stats::dropped(packet.flow.service_id);
        return Verdict::of(reason);
    }
    leave(packet, reason)
}

/// The frame is as it should be: out of the interface of its next hop.
#[inline(always)]
pub fn leave(packet: &Packet, reason: Reason) -> Verdict {
    let ifindex = packet.hop.ifindex;
    if ifindex == packet.ingress { Verdict::transmit(reason) } else { Verdict::redirect(reason, ifindex) }
}

/// A function of its own, so that what it needs does not lie on the stack of all others.
#[inline(never)]
fn rewrite(md: *mut xdp_md, packet: &mut Packet, reason: Reason) -> Reason {
    let departs = depart(md, packet, reason);
    if departs != reason {
        return departs;
    }
    let mut frame = Frame::of(md);
    if Mode::is_one_sided(packet.flow.mode) {
        return if hand_on(md) != 0 { reason } else { Reason::Internal };
    }
    let written = translate(&mut frame, &packet.network, &packet.transport, &packet.to)
        .and_then(|()| link_layer(&mut frame, &packet.hop));
    if written.is_some() { reason } else { Reason::Internal }
}

/// Finds the next hop, and notes and counts a packet that has one: `reason`, or why it cannot go.
#[inline(always)]
pub fn depart(md: *mut xdp_md, packet: &mut Packet, reason: Reason) -> Reason {
    let frame = Frame::of(md);
    let reply = reason == Reason::ToClient;
    let hop = next_hop(md, packet, reply);
    if hop != reason {
        return hop;
    }
    if packet.transport.tcp_flags & TCP_SYN != 0 && packet.transport.part != Part::Later {
        mss::clamp(md, reply as u32);
    }
    if packet.place.index != NO_PLACE && table::touch(reply as u32) != 0 && !reply {
        table::remember_mac(packet.place.index, frame.sender());
    }
    stats::sent(packet.flow.service_id, packet.flow.backend_id, reply, frame.bytes_of(&packet.transport));
    reason
}

/// Direct server return: the packet as it is, with another TTL, and in its tunnel if it takes one. 0:
/// it cannot be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hand_on(md: *mut xdp_md) -> u32 {
    hand_on_as(md, encapsulate::<Frame>)
}

/// The same for ICMP, with what is known of it in the places of a transport header.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn hand_on_icmp(md: *mut xdp_md) -> u32 {
    hand_on_as(md, encapsulate_icmp::<Frame>)
}

#[inline(always)]
fn hand_on_as(md: *mut xdp_md, wrap: impl Fn(&mut Frame, &Network, &Transport, &Tunnel) -> Option<()>) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let mut frame = Frame::of(md);
    if lower_ttl(&mut frame, &packet.network, &packet.transport).is_none() {
        return 0;
    }
    if Mode::is_tunnel(packet.flow.mode) {
        let wrapped = frame
            .adjust_head(-(packet.tunnel.growth() as i32))
            .and_then(|()| wrap(&mut frame, &packet.network, &packet.transport, &packet.tunnel));
        if wrapped.is_none() {
            return 0;
        }
    }
    link_layer(&mut frame, &packet.hop).is_some() as u32
}

#[inline(always)]
pub fn link_layer(frame: &mut Frame, hop: &Hop) -> Option<()> {
    frame.write(0, hop.destination)?;
    frame.write(6, hop.source)
}

/// Asks the kernel's routing and neighbour tables for the way of the translated packet, and sets
/// its hop. Of the way to a backend the answer holds for the rest of the tick.
#[inline(always)]
pub fn next_hop(md: *mut xdp_md, packet: &mut Packet, reply: bool) -> Reason {
    if !reply && hops::recall(packet) {
        return Reason::ToBackend;
    }
    look_up(md, packet, reply)
}

/// The same without what is kept of the way.
#[inline(never)]
pub fn look_up(md: *mut xdp_md, packet: &mut Packet, reply: bool) -> Reason {
    request(packet);
    // SAFETY: context and request are valid, and the size is the request's.
    let answer = unsafe { fib_lookup(md.cast(), &mut packet.fib, size_of::<bpf_fib_lookup>() as i32, 0) };
    let found = matches!(answer as u32, BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH);
    if found && packet.flow.mode == Mode::DsrL2 as u8 && gateway(packet) != packet.to.destination {
        return Reason::NotOnSegment;
    }
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS => {
            packet.hop = Hop { ifindex: packet.fib.ifindex, source: packet.fib.smac, destination: packet.fib.dmac };
            if reply {
                return Reason::ToClient;
            }
            hops::keep(packet);
            Reason::ToBackend
        }
        BPF_FIB_LKUP_RET_NO_NEIGH => {
            events::neighbour_missing(packet.fib.ifindex, gateway(packet));
            if reply { back_to_client(packet) } else { Reason::NeighbourMissing }
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => Reason::TooBig,
        _ => Reason::NoRoute,
    }
}

#[inline(always)]
fn request(packet: &mut Packet) {
    clear(&mut packet.fib);
    let tot_len = length(packet);
    let (fib, to) = (&mut packet.fib, &packet.to);
    fib.l4_protocol = packet.transport.protocol as u8;
    fib.sport = u16::from_ne_bytes(to.source_port.to_wire());
    fib.dport = u16::from_ne_bytes(to.destination_port.to_wire());
    if Mode::is_tunnel(packet.flow.mode) {
        fib.l4_protocol = packet.tunnel.protocol(&packet.network);
        let [source_port, port] = packet.tunnel.ports();
        (fib.sport, fib.dport) = (u16::from_ne_bytes(source_port.to_wire()), u16::from_ne_bytes(port.to_wire()));
    }
    fib.__bindgen_anon_1 = bpf_fib_lookup__bindgen_ty_1 { tot_len };
    fib.ifindex = packet.ingress;
    between(fib, &to.source, &to.destination);
}

/// As a whole it would be cleared byte by byte.
#[inline(always)]
pub fn clear(fib: &mut bpf_fib_lookup) {
    let words: *mut u32 = (&raw mut *fib).cast();
    for word in 0..size_of::<bpf_fib_lookup>() / size_of::<u32>() {
        // SAFETY: within the request, of which all-zero bytes are valid.
        unsafe { words.add(word).write_volatile(0) };
    }
}

/// Asks for the way between two addresses.
#[inline(always)]
pub fn between(fib: &mut bpf_fib_lookup, source: &Address, destination: &Address) {
    if destination.is_v4() {
        fib.family = INET;
        fib.__bindgen_anon_3 = bpf_fib_lookup__bindgen_ty_3 { ipv4_src: source.words()[3] };
        fib.__bindgen_anon_4 = bpf_fib_lookup__bindgen_ty_4 { ipv4_dst: destination.words()[3] };
    } else {
        fib.family = INET6;
        fib.__bindgen_anon_3 = bpf_fib_lookup__bindgen_ty_3 { ipv6_src: source.words() };
        fib.__bindgen_anon_4 = bpf_fib_lookup__bindgen_ty_4 { ipv6_dst: destination.words() };
    }
}

/// Bytes of the IP packet as it will leave.
#[inline(always)]
pub fn length(packet: &Packet) -> u16 {
    let growth = if Mode::is_tunnel(packet.flow.mode) { packet.tunnel.growth() } else { 0 };
    packet.transport.packet_len.saturating_add(growth as u16)
}

/// The next hop that the lookup found no link-layer address for: it has put the gateway, or the
/// receiver itself, in the place of the destination.
#[inline(always)]
fn gateway(packet: &Packet) -> Address {
    // SAFETY: plain integers of either family.
    unsafe {
        if packet.to.destination.is_v4() {
            Address::v4(packet.fib.__bindgen_anon_4.ipv4_dst.to_ne_bytes())
        } else {
            Address::from_words(packet.fib.__bindgen_anon_4.ipv6_dst)
        }
    }
}

/// The neighbour table does not know the client: the answer goes back the way the question came.
#[inline(always)]
fn back_to_client(packet: &mut Packet) -> Reason {
    let ifindex = packet.fib.ifindex;
    if packet.flow.flags & Flow::CLIENT_MAC_KNOWN == 0 {
        return Reason::NeighbourMissing;
    }
    // SAFETY: values of this map are written once, when the program is attached.
    let Some(interface) = (unsafe { INTERFACES.get(ifindex) }) else { return Reason::NeighbourMissing };
    packet.hop = Hop { ifindex, source: interface.mac, destination: packet.flow.client_mac };
    Reason::ToClient
}
