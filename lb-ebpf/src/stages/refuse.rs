//! Answering instead of forwarding: the client learns at once that there is nothing to wait for.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{Protocol, limits::ICMP_PER_TICK},
    answer,
    flow::TCP_RST,
    packet::PacketAccess,
    parse::Part,
    verdict::{Action, Reason, Verdict},
};
use network_types::eth::EthHdr;

use crate::{ctx::Frame, packet::Packet, stats};

/// Sends a TCP reset or, for UDP and SCTP, an ICMP "port unreachable" back to the client. Returns the reason that it
/// was done for, or why it was not.
#[inline(always)]
pub fn refuse(md: *mut xdp_md, packet: &mut Packet, reason: Reason) -> Verdict {
    let reason = answer(md, packet, reason);
    if reason.action() == Action::Refuse {
        stats::refused(packet.service.id);
        Verdict::transmit(reason)
    } else {
        stats::dropped(packet.service.id);
        Verdict::of(reason)
    }
}

/// A function of its own, so that the headers it builds do not lie on the stack of all others.
#[inline(never)]
fn answer(md: *mut xdp_md, packet: &mut Packet, reason: Reason) -> Reason {
    // RFC 1122, 3.2.2: nothing is said about a fragment behind the first.
    if packet.transport.part == Part::Later {
        return Reason::FragmentEarly;
    }
    let mut frame = Frame::of(md);
    let Some(ethernet) = frame.read::<EthHdr>(0) else { return Reason::Internal };
    if !answer::answerable(&ethernet, &packet.network) {
        return Reason::Unanswerable;
    }
    let protocol = packet.transport.protocol;
    let sent = match protocol {
        // RFC 9293, 3.5.2: a reset is never answered with a reset.
        Protocol::Tcp if packet.transport.tcp_flags & TCP_RST != 0 => return Reason::UnknownReset,
        Protocol::Tcp if cfg!(feature = "fixture-changed") => return Reason::Unanswerable,
        Protocol::Tcp => reset(&mut frame, packet),
        Protocol::Udp | Protocol::Sctp if !icmp_allowed(packet) => return Reason::AnswerLimited,
        Protocol::Udp | Protocol::Sctp => unreachable(&mut frame, packet, &ethernet),
    };
    if sent.is_some() { reason } else { Reason::Internal }
}

/// Counts an ICMP error against this CPU's limit.
#[inline(always)]
pub fn icmp_allowed(packet: &mut Packet) -> bool {
    if packet.icmp_tick != packet.now {
        packet.icmp_tick = packet.now;
        packet.icmp_sent = 0;
    }
    packet.icmp_sent += 1;
    packet.icmp_sent <= ICMP_PER_TICK
}

#[inline(always)]
fn reset(frame: &mut Frame, packet: &Packet) -> Option<()> {
    answer::reset(frame, &packet.network, &packet.transport)?;
    cut(frame, answer::reset_len(packet.network.v4))
}

#[inline(always)]
fn unreachable(frame: &mut Frame, packet: &Packet, ethernet: &EthHdr) -> Option<()> {
    frame.adjust_head(-(answer::unreachable_growth(packet.network.v4) as i32))?;
    cut(frame, answer::unreachable_len(&packet.network, &packet.transport))?;
    answer::unreachable(frame, ethernet, &packet.network, &packet.transport)
}

/// Cuts the frame to `len` bytes.
#[inline(always)]
pub fn cut(frame: &mut Frame, len: usize) -> Option<()> {
    let excess = frame.len() as i32 - len as i32;
    if excess == 0 {
        return Some(());
    }
    frame.adjust_tail(-excess)
}
