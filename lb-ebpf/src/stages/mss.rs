//! MSS clamping: SYNs of services that ask for it announce no larger segments than fit.

use aya_ebpf::{
    bindings::{bpf_fib_lookup, bpf_fib_lookup__bindgen_ty_1, xdp_md},
    helpers::generated::bpf_fib_lookup as fib_lookup,
};
use lb_common::{
    abi::{Address, Mode, Port, ServiceKey, ServiceValue},
    mss,
};

use crate::{ctx::Frame, maps::SERVICES, packet::Packet, transmit};

/// Clamps the MSS of the SYN under way, whose translation is known and not written yet. `reply`: it is a
/// backend's SYN-ACK.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn clamp(md: *mut xdp_md, reply: u32) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let setting = if reply == 0 { packet.service.mss } else { of_flow(packet) };
    let most = match setting {
        0 => return 0,
        ServiceValue::MSS_AUTO => of_ways(md, packet),
        fixed => fixed,
    };
    if most != 0 {
        // Where the header is not all there, writing the translation will say so.
        let _ = mss::clamp(&mut Frame::of(md), &packet.transport, most, &mut packet.cursor);
    }
    0
}

/// What the service of the packet's flow says now; 0 where it is not found.
#[inline(always)]
fn of_flow(packet: &Packet) -> u16 {
    let flow = &packet.flow;
    let mut key = ServiceKey::new(packet.to.source, flow.service_port, flow.protocol);
    // SAFETY: one number is read, of a value that is replaced as a whole.
    let mut found = unsafe { SERVICES.get(key) };
    if found.is_none() {
        key.port = Port::ANY;
        // SAFETY: as above.
        found = unsafe { SERVICES.get(key) };
    }
    found.map_or(0, |service| service.mss)
}

/// What fits both ways: where the SYN goes, less the tunnel, and where segments for its sender will go;
/// 0 where neither is known.
#[inline(always)]
fn of_ways(md: *mut xdp_md, packet: &mut Packet) -> u16 {
    let (to, network) = (packet.to, packet.network);
    let mut mtu = way(md, packet, &to.source, &to.destination);
    if Mode::is_tunnel(packet.flow.mode) {
        mtu = mtu.saturating_sub(packet.tunnel.growth() as u32);
    }
    if !Mode::is_one_sided(packet.flow.mode) {
        let back = way(md, packet, &network.destination, &network.source);
        if mtu == 0 || back != 0 && back < mtu {
            mtu = back;
        }
    }
    let headers = if network.v4 { mss::HEADERS_V4 } else { mss::HEADERS_V6 };
    mtu.saturating_sub(headers) as u16
}

/// The MTU between two addresses; 0: not known.
#[inline(always)]
fn way(md: *mut xdp_md, packet: &mut Packet, source: &Address, destination: &Address) -> u32 {
    // SAFETY: all-zero bytes are a valid request.
    packet.fib = unsafe { core::mem::zeroed() };
    packet.fib.ifindex = packet.ingress;
    transmit::between(&mut packet.fib, source, destination);
    // The MTU comes to where the length is asked for; without a way there stays 0.
    packet.fib.__bindgen_anon_1 = bpf_fib_lookup__bindgen_ty_1 { tot_len: 0 };
    // SAFETY: context and request are valid, and the size is the request's; plain integers are read.
    unsafe {
        fib_lookup(md.cast(), &mut packet.fib, size_of::<bpf_fib_lookup>() as i32, 0);
        packet.fib.__bindgen_anon_1.mtu_result as u32
    }
}
