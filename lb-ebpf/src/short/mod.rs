//! The short way, which nearly every packet takes: plain headers, a flow that goes on as it did, a next hop
//! that is known. All of it is one piece of code without working memory, in which nothing is looked up
//! twice. It decides as the whole way does or not at all: before anything is changed it makes sure that
//! there is nothing special about the packet, and otherwise leaves it to [`Stage::Whole`] as it came.
//!
//! ```text
//! headers -> ours? -> service -> hashed (the slot says where the flow is)
//!                             -> listed (the flow table says it) -> sent
//!               -> no service -> reply (the table of replies says where the flow is) -> sent
//! ```

mod hashed;
mod listed;
mod reply;
mod sent;
mod service;
mod tags;

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::ServiceValue,
    packet::PacketAccess as _,
    parse::{NETWORK_OFFSET, Network, Transport},
    plain::{Head, HeadV4, HeadV6},
    verdict::{Reason, Stage, Verdict},
};

use crate::{ctx::Frame, stages::admit};

/// Ether types (IEEE), as they stand in the frame.
const ETHERTYPE: usize = 12;
const IPV4: u16 = 0x0800_u16.to_be();
const IPV6: u16 = 0x86dd_u16.to_be();
const TAGGED: [u16; 2] = [0x8100_u16.to_be(), 0x88a8_u16.to_be()];

/// A packet under way on the short way, with its frame as it came. Aligned, because the compiler joins
/// words of addresses to larger ones, which the verifier wants aligned on the stack.
#[repr(C, align(8))]
pub struct Plain {
    pub network: Network,
    pub transport: Transport,
    pub bytes: u64,
    /// As [`Head::ttl`] gives it.
    pub ttl: [u8; 4],
}

/// From no client to a service's port: perhaps a backend's reply.
const REPLY: Verdict = Verdict::go_on(Stage::Whole).because(Reason::ToClient);

/// Not decided here.
const LONGER: Verdict = Verdict::go_on(Stage::Whole);

/// Decides a packet's verdict and carries it out, or leaves it to a stage. Sets `bytes` to the frame's
/// length where that is known.
#[inline(always)]
pub fn run(frame: &Frame, bytes: &mut u64) -> Verdict {
    step!(Enter);
    match frame.read::<u16>(ETHERTYPE) {
        Some(IPV4) => match way_v4(frame.md(), bytes) {
            REPLY => reply_v4(frame.md(), bytes),
            verdict => verdict,
        },
        Some(IPV6) => match way_v6(frame.md(), bytes) {
            REPLY => reply_v6(frame.md(), bytes),
            verdict => verdict,
        },
        Some(tag) if TAGGED.contains(&tag) => Verdict::go_on(Stage::Unusual),
        _ => Verdict::of(Reason::NotIp),
    }
}

/// A function of its own for each family, and for replies: stack and registers are not enough for all together.
#[inline(never)]
fn way_v4(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    way::<HeadV4>(&mut Frame::of(md), bytes)
}

#[inline(never)]
fn way_v6(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    way::<HeadV6>(&mut Frame::of(md), bytes)
}

#[inline(never)]
fn reply_v4(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    reply::<HeadV4>(&mut Frame::of(md), bytes)
}

#[inline(never)]
fn reply_v6(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    reply::<HeadV6>(&mut Frame::of(md), bytes)
}

/// Reads once more what [`way`] has read: that costs less than to keep it.
#[inline(always)]
fn reply<H: Head>(frame: &mut Frame, bytes: &mut u64) -> Verdict {
    let Some(head) = frame.read::<H>(NETWORK_OFFSET) else { return LONGER };
    let Some(network) = head.network() else { return LONGER };
    let linear = frame.linear();
    let Some(transport) = head.transport(linear).filter(|transport| transport.ttl > 1) else { return LONGER };
    *bytes = linear as u64;
    reply::run(frame, &Plain { network, transport, bytes: linear as u64, ttl: head.ttl() })
}

#[inline(always)]
fn way<H: Head>(frame: &mut Frame, bytes: &mut u64) -> Verdict {
    let Some(head) = frame.read::<H>(NETWORK_OFFSET) else { return LONGER };
    let Some(network) = head.network() else { return LONGER };
    let linear = frame.linear();
    if NETWORK_OFFSET + head.packet_len() <= linear {
        // The first buffer has the whole packet, so there is no other.
        *bytes = linear as u64;
    }
    if !admit::maybe_ours(&network.destination) {
        if admit::maybe_ours(&network.source) {
            return REPLY;
        }
        // ICMP errors come from anywhere on the way, and go to whom a packet said it was from.
        return if head.is_icmp() { Verdict::go_on(Stage::Icmp) } else { Verdict::of(Reason::NotForUs) };
    }
    step!(Ours, head.packet_len());
    let Some(transport) = head.transport(linear).filter(|transport| transport.ttl > 1) else { return LONGER };
    let packet = Plain { network, transport, bytes: linear as u64, ttl: head.ttl() };
    step!(Parse, transport.source_port.get(), transport.offset, *bytes);
    let Some(service) = service::find(&network, &transport) else { return REPLY };
    step!(Service, service.selection_base, service.flags);
    const HASHED: u8 = ServiceValue::TRACKED | ServiceValue::PAIRED;
    if service.flags & HASHED == HASHED {
        hashed::run(frame, &packet, service)
    } else if listed::fits(&packet, service) {
        listed::run(frame, &packet, service)
    } else {
        LONGER
    }
}
