//! A packet that does not fit: its sender learns what does. A program of its own, see `lb_too_big`.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{Address, AddressRoles, Flow, Mode},
    answer::answerable,
    family::icmp::DIFFERENCE,
    icmp::too_big,
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Part},
    verdict::{Action, Reason, Verdict},
};
use network_types::eth::EthHdr;

use super::{
    admit,
    refuse::{cut, icmp_allowed},
};
use crate::{ctx::Frame, maps::SERVICE_INFO, packet::Packet, stats};

/// Answers the packet under way, whose next hop was looked up and takes less, and which is whole.
///
/// IPv4 packets without "don't fragment" are answered too: they are not fragmented here, and without an
/// answer their sender would never know. Linux then fragments them itself.
#[inline(always)]
pub fn run(md: *mut xdp_md) -> Verdict {
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    let reason = answer(md, packet);
    if reason.action() == Action::Refuse {
        stats::refused(packet.flow.service_id);
        Verdict::transmit(reason)
    } else {
        stats::dropped(packet.flow.service_id);
        Verdict::of(reason)
    }
}

#[inline(always)]
fn answer(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    let mut frame = Frame::of(md);
    let Some(ethernet) = frame.read::<EthHdr>(0) else { return Reason::Internal };
    // RFC 1812, 4.3.2.7: of IPv4 datagrams in fragments only the first is answered.
    let later = packet.network.v4 && packet.transport.part == Part::Later;
    if later || !answerable(&ethernet, &packet.network) {
        return Reason::Unanswerable;
    }
    if !icmp_allowed(packet) {
        return Reason::AnswerLimited;
    }
    let v4 = packet.network.v4;
    let (headers, quotation) = (too_big::headers(v4), too_big::quotation(v4, packet.transport.packet_len as usize));
    let ethernet = EthHdr { dst_addr: ethernet.src_addr, src_addr: ethernet.dst_addr, ether_type: ethernet.ether_type };
    let (source, mtu) = (sender(packet), mtu(packet));
    let written = frame
        .adjust_head(-(headers as i32))
        .and_then(|()| cut(&mut frame, NETWORK_OFFSET + headers + quotation))
        .and_then(|()| frame.write(0, ethernet))
        .and_then(|()| too_big::write(&mut frame, &source, &packet.network.source, quotation, mtu));
    if written.is_some() { Reason::TooBig } else { Reason::Internal }
}

/// What the way takes, less the headers of the tunnel, or with the sender's header instead of the other
/// family's (RFC 7915, 1.4). The lookup has left it where the length was.
#[inline(always)]
fn mtu(packet: &Packet) -> u32 {
    // SAFETY: plain integers, both of the same size.
    let mtu = unsafe { packet.fib.__bindgen_anon_1.mtu_result } as u32;
    if packet.flow.flags & Flow::ACROSS_FAMILIES != 0 {
        return if packet.network.v4 { too_big::within(mtu, DIFFERENCE) } else { mtu + DIFFERENCE };
    }
    let tunnel = if Mode::is_tunnel(packet.flow.mode) { packet.tunnel.growth() as u32 } else { 0 };
    too_big::within(mtu, tunnel)
}

/// Who answers: whom the packet was sent to, if that is us; a backend of a `nat` service, which sends to
/// the client, hears from the service.
#[inline(always)]
fn sender(packet: &Packet) -> Address {
    let to = admit::roles(&packet.network.destination);
    if to.has(AddressRoles::SERVICE) || to.has(AddressRoles::SOURCE) {
        return packet.network.destination;
    }
    SERVICE_INFO.get(packet.flow.service_id).map_or(packet.network.destination, |info| info.address)
}
