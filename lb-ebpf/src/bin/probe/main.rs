//! Probes on the way that the packets of clients take: their sockets are connected to a backend's own
//! address, and here their packets get the service's, and the tunnel of its mode; answers of the
//! service's address come back from the backend's. So the kernel routes to the backend, and a service
//! address that this host has too is no trouble. Where service and backend are of two families, packets get a
//! header of the other one too.
//!
//! Which sockets are probes', and whose, the agent says in a value that hangs on the socket itself
//! (`probe_ways`): packets carry no mark that others would have to know of.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod errors;
mod family;
mod maps;
#[path = "../../opaque.rs"]
mod opaque;
mod skb;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_get_prandom_u32,
    macros::classifier,
    programs::TcContext,
};
use lb_common::{
    abi::{
        Address, DontFragment, Mode, Protocol,
        probe::{AnswerKey, Backend, Count, Way},
    },
    encap::{self, Tunnel},
    icmp,
    packet::PacketAccess as _,
    parse::{self, NETWORK_OFFSET, Network, Transport},
};

use crate::{
    maps::{ANSWERS, count},
    skb::{End, Skb},
};

/// What leaves an interface. Others' programs go on with all of it but what could not be sent.
#[classifier]
pub fn lb_probe_out(ctx: TcContext) -> i32 {
    let socket = Skb::socket(&ctx);
    if socket.is_null() {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: this packet's, and not null.
    let Some(way) = (unsafe { maps::way(socket) }) else { return TC_ACT_UNSPEC };
    let mut skb = Skb::new(&ctx);
    let Some((network, transport)) = headers(&skb) else { return TC_ACT_UNSPEC };
    // Not yet on its way, as on an interface on top of this one.
    if network.destination != way.backend || transport.destination_port != way.backend_port {
        return TC_ACT_UNSPEC;
    }
    match send(&mut skb, way, network, &transport) {
        Some(()) => {
            way.sent = way.sent.wrapping_add(1);
            count(Count::Sent);
            TC_ACT_UNSPEC
        }
        None => {
            count(Count::Dropped);
            TC_ACT_SHOT
        }
    }
}

/// What comes to an interface.
#[classifier]
pub fn lb_probe_in(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let Ok(network) = parse::network(&skb) else { return TC_ACT_UNSPEC };
    if icmp::is_icmp(&skb, &network) {
        if errors::turn(&mut skb, &network).is_some() {
            count(Count::Answered);
        }
        return TC_ACT_UNSPEC;
    }
    let Some((network, transport)) = headers(&skb) else { return TC_ACT_UNSPEC };
    let key = AnswerKey {
        local: network.destination,
        service: network.source,
        local_port: transport.destination_port,
        service_port: transport.source_port,
        protocol: transport.protocol as u32,
    };
    // SAFETY: copied at once; the agent never writes here.
    let Some(backend) = (unsafe { ANSWERS.get(key) }).copied() else { return TC_ACT_UNSPEC };
    if receive(&mut skb, &network, &transport, &backend).is_none() {
        count(Count::Dropped);
        return TC_ACT_SHOT;
    }
    count(Count::Answered);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn headers(skb: &Skb) -> Option<(Network, Transport)> {
    let network = parse::network(skb).ok()?;
    let transport = parse::transport(skb, &network).ok()?;
    matches!(transport.protocol, Protocol::Tcp | Protocol::Udp).then_some((network, transport))
}

/// Makes a packet of the service's address one of the backend's own.
#[inline(always)]
fn receive(skb: &mut Skb, network: &Network, transport: &Transport, backend: &Backend) -> Option<()> {
    if backend.address.is_v4() == network.v4 {
        let from = (network.source, transport.source_port);
        return skb.move_end(transport, End::Source, from, (backend.address, backend.port));
    }
    skb.move_port(transport, End::Source, transport.source_port, backend.port)?;
    family::change(skb, network, transport, backend.address, backend.local)
}

#[inline(always)]
fn send(skb: &mut Skb, way: &Way, network: Network, transport: &Transport) -> Option<()> {
    expect_answer(way, &network, transport)?;
    let tunnel = tunnel(way, &network, transport);
    if way.service.is_v4() == network.v4 {
        let from = (way.backend, way.backend_port);
        skb.move_end(transport, End::Destination, from, (way.service, way.service_port))?;
    } else {
        skb.move_port(transport, End::Destination, way.backend_port, way.service_port)?;
        family::change(skb, &network, transport, way.local, way.service)?;
    }
    if way.tunnel == 0 {
        return Some(());
    }
    let (network, transport) = headers(skb)?;
    let (growth, udp) = (tunnel.growth(), way.tunnel == Mode::DsrGue as u8);
    skb.grow(&tunnel)?;
    encap::encapsulate(skb, &network, &transport, &tunnel)?;
    if udp && skb.is_several() {
        // Each segment will have its own length: without a checksum it is right for all.
        skb.write(NETWORK_OFFSET + growth - 2, [0u8; 2])?;
    }
    Some(())
}

/// Has answers of the service's address come to this packet's socket.
#[inline(always)]
fn expect_answer(way: &Way, network: &Network, transport: &Transport) -> Option<()> {
    let across = way.service.is_v4() != network.v4;
    let key = AnswerKey {
        local: if across { way.local } else { network.source },
        service: way.service,
        local_port: transport.source_port,
        service_port: way.service_port,
        protocol: transport.protocol as u32,
    };
    let backend = Backend { address: way.backend, local: network.source, port: way.backend_port, reserved: [0; 2] };
    // SAFETY: compared at once; two packets of one socket write the same.
    if unsafe { ANSWERS.get(key) } == Some(&backend) {
        return Some(());
    }
    ANSWERS.insert(key, backend, 0).ok()
}

/// As the data path's to this backend.
#[inline(always)]
fn tunnel(way: &Way, network: &Network, transport: &Transport) -> Tunnel {
    let [high, low] = transport.source_port.to_wire();
    let mixed = (u32::from_be_bytes([high, low, low, high]) ^ way.service.words()[3]).wrapping_mul(0x9e37_79b1);
    let entropy = mixed ^ mixed >> 15;
    let own = way.source == Address::v6([0; 16]);
    let mut id = 0;
    if way.dont_fragment == DontFragment::Clear as u8 {
        // SAFETY: has no arguments.
        id = unsafe { bpf_get_prandom_u32() } as u16;
    }
    Tunnel {
        source: if own { network.source } else { Tunnel::chosen_source(&way.source, way.source_bits, entropy) },
        destination: way.backend,
        gue_port: way.gue_port,
        gre: (way.tunnel == Mode::DsrGre as u8) as u8,
        entropy,
        dont_fragment: way.dont_fragment,
        id,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Nothing in the programs panics; the verifier would refuse this loop if anything reached it.
    loop {}
}

/// As that of the other programs: one source, one licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
