//! Answering instead of forwarding: the client learns at once that there is nothing to wait for.

use lb_common::{
    abi::Protocol,
    answer,
    flow::TCP_RST,
    packet::PacketAccess,
    verdict::{Reason, Verdict},
};
use network_types::eth::EthHdr;

use crate::{ctx::Frame, packet::Packet, stats};

/// Sends a TCP reset or an ICMP "port unreachable" back to the client.
#[inline(always)]
pub fn refuse(frame: &mut Frame, packet: &mut Packet, reason: Reason) -> Verdict {
    let service_id = packet.service.id;
    let sent = match packet.transport.protocol {
        // RFC 9293, 3.5.2: a reset is never answered with a reset.
        Protocol::Tcp if packet.transport.tcp_flags & TCP_RST != 0 => {
            stats::dropped(service_id);
            return Verdict::of(Reason::UnknownReset);
        }
        Protocol::Tcp => reset(frame, packet),
        Protocol::Udp => unreachable(frame, packet),
    };
    match sent {
        Some(()) => {
            stats::refused(service_id);
            Verdict::transmit(reason)
        }
        None => {
            stats::dropped(service_id);
            Verdict::of(Reason::Internal)
        }
    }
}

#[inline(always)]
fn reset(frame: &mut Frame, packet: &Packet) -> Option<()> {
    answer::reset(frame, &packet.network, &packet.transport)?;
    cut(frame, answer::reset_len(packet.network.v4))
}

#[inline(always)]
fn unreachable(frame: &mut Frame, packet: &Packet) -> Option<()> {
    let ethernet: EthHdr = frame.read(0)?;
    frame.adjust_head(-(answer::unreachable_growth(packet.network.v4) as i32))?;
    cut(frame, answer::unreachable_len(packet.network.v4))?;
    answer::unreachable(frame, &ethernet, &packet.network)
}

/// Cuts the frame to `len` bytes.
#[inline(always)]
fn cut(frame: &mut Frame, len: usize) -> Option<()> {
    let excess = frame.len() as i32 - len as i32;
    if excess == 0 {
        return Some(());
    }
    frame.adjust_tail(-excess)
}
