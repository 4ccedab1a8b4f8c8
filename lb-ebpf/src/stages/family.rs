//! Packets of flows between IPv4 and IPv6: a program of its own, see `lb_family`. The main program
//! has found the flow and where the packet goes; here it gets a header of the other family.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_get_prandom_u32};
use lb_common::{
    family,
    packet::PacketAccess,
    parse::Part,
    verdict::{Action, Reason, Stage, Verdict},
};

use crate::{ctx::Frame, packet::Packet, sum, transmit};

/// Offset of the length in the UDP header (RFC 768).
const UDP_LENGTH: usize = 4;

/// Sends the packet on to where it goes, or says why it cannot go; then it is left whole.
#[inline(always)]
pub fn run(md: *mut xdp_md) -> Verdict {
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    let wanted = if packet.reply != 0 { Reason::ToClient } else { Reason::ToBackend };
    let mut reason = Reason::NotTranslatable;
    if prepare(md) != 0 {
        reason = transmit::depart(md, packet, wanted);
        if reason.action() == Action::Forward && (complete(md) == 0 || translate(md) == 0) {
            reason = Reason::Internal;
        }
    }
    if reason == Reason::TooBig {
        // Its sender knows it as it came.
        packet.transport.packet_len = packet.header.replaced_len();
        return Verdict::go_on(Stage::TooBig);
    }
    transmit::conclude(packet, reason)
}

/// Reads the packet's new header. From here on the packet's length is what it will be. 0: it has none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn prepare(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    // A fragment's header would need another length and checksum than the whole datagram's.
    if packet.transport.part != Part::Whole {
        return 0;
    }
    // SAFETY: has no arguments.
    let id = unsafe { bpf_get_prandom_u32() } as u16;
    let Some(header) = family::read(&Frame::of(md), &packet.network, &packet.transport, id) else { return 0 };
    packet.header = header;
    packet.transport.packet_len = header.packet_len();
    1
}

/// Gives a UDP packet the checksum that its sender left out. 0: it cannot be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn complete(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let mut frame = Frame::of(md);
    if !family::lacks_checksum(&frame, &packet.network, &packet.transport) {
        return 1;
    }
    let offset = packet.transport.offset;
    let Some(length) = frame.read::<[u8; 2]>(offset as usize + UDP_LENGTH) else { return 0 };
    let length = u16::from_be_bytes(length);
    let Some(datagram) = sum::of_bytes(md, offset as u32, length as u32) else { return 0 };
    let (network, transport) = (&packet.network, &packet.transport);
    family::complete_checksum(&mut frame, network, transport, datagram, length).is_some() as u32
}

/// Exchanges the headers. 0: it cannot be; the frame is then to be dropped.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn translate(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let mut frame = Frame::of(md);
    let written = frame
        .adjust_head(-packet.header.growth())
        .and_then(|()| family::write(&mut frame, &packet.header, &packet.network, &packet.transport, &packet.to))
        .and_then(|()| transmit::link_layer(&mut frame, &packet.hop));
    written.is_some() as u32
}
