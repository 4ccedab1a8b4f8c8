//! ICMP errors about flows between IPv4 and IPv6: they become errors of the receiver's family, about the
//! packet that it once sent. Whose they are is found before, as for other flows (`errors.rs`).

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_get_prandom_u32};
use lb_common::{
    family::{error, icmp::Mtus},
    parse::NETWORK_OFFSET,
    rewrite::Translation,
    verdict::{Action, Reason},
};

use super::{refuse::cut, tunnel_error::is_right};
use crate::{ctx::Frame, packet::Packet, transmit};

/// Finds the next hop of what the error will be, and whether it may be that at all: damage must not be
/// hidden by a new checksum.
#[inline(always)]
pub fn prepare(md: *mut xdp_md, packet: &mut Packet, reply: bool) -> Reason {
    if read_across(md) == 0 {
        return Reason::NotTranslatable;
    }
    if is_right(md) == 0 {
        return Reason::Malformed;
    }
    // What is kept of the way would not tell its MTU.
    let hop = transmit::look_up(md, packet, reply);
    if hop.action() == Action::Forward {
        packet.mtu = mtu(packet);
    }
    hop
}

/// Reads the error's new headers. From here on the packet's length is what it will be. 0: it has none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_across(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    // SAFETY: has no arguments.
    let id = unsafe { bpf_get_prandom_u32() } as u16;
    let Some(headers) = error::read(&Frame::of(md), &packet.error, &packet.quoted, id) else { return 0 };
    packet.transport.packet_len = headers.packet_len();
    packet.error_headers = headers;
    1
}

/// The MTU of the way that was just looked up. A lookup that found no neighbour has left the packet's length
/// in its place.
#[inline(always)]
fn mtu(packet: &Packet) -> u32 {
    // SAFETY: plain integers, both of the same size.
    let mtu = unsafe { packet.fib.__bindgen_anon_1.mtu_result };
    if mtu == packet.transport.packet_len { u32::MAX } else { mtu as u32 }
}

/// Writes the error for its hop: from the balancer to the backend, or from the service to the client. 0: it
/// cannot be; the frame is then to be dropped.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn write_across(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let mut frame = Frame::of(md);
    let to = &packet.to;
    packet.quoted_to = Translation {
        source: to.destination,
        destination: to.source,
        source_port: to.destination_port,
        destination_port: to.source_port,
    };
    // Of the way that the error came by, it has told more than is known here.
    let mtus =
        if packet.error.outer.v4 { Mtus { v6: packet.mtu, ..Mtus::ANY } } else { Mtus { v4: packet.mtu, ..Mtus::ANY } };
    let (headers, quoted) = (&packet.error_headers, &packet.quoted);
    let written = frame
        .adjust_head(-headers.growth(quoted))
        .and_then(|()| cut(&mut frame, NETWORK_OFFSET + headers.packet_len() as usize))
        .and_then(|()| error::write(&mut frame, headers, quoted, &mtus, &to.source, &to.destination, &packet.quoted_to))
        .and_then(|()| transmit::link_layer(&mut frame, &packet.hop));
    written.is_some() as u32
}
