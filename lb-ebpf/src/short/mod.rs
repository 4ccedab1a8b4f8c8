//! The short way, which nearly every packet takes: plain headers, a flow that goes on as it did, a next hop
//! that is known. All of it is one piece of code without working memory, in which nothing is looked up
//! twice. It decides as the whole way does or not at all: before anything is changed it makes sure that
//! there is nothing special about the packet, and otherwise leaves it to [`Stage::Whole`] as it came.
//!
//! ```text
//! headers -> ours? -> service -> hashed (the slot says where the flow is)
//!                             -> listed (the flow table says it) -> sent
//! ```

mod hashed;
mod listed;
mod sent;

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::{ServiceKey, ServiceValue},
    packet::PacketAccess as _,
    parse::{NETWORK_OFFSET, Network, Transport},
    plain::{Head, HeadV4, HeadV6},
    verdict::{Reason, Stage, Verdict},
};

use crate::{ctx::Frame, maps::SERVICES, stages::admit};

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

/// A [`ServiceKey`] on the stack, written in the words in which the kernel reads it at once: what was written
/// in smaller ones would have to reach the cache first.
#[repr(C, align(8))]
struct Key {
    address: [u64; 2],
    rest: u32,
}
const _: () = assert!(size_of::<ServiceKey>() == 20);

impl Key {
    /// The service key of a packet.
    #[inline(always)]
    fn of(network: &Network, transport: &Transport) -> Self {
        let [a, b, c, d] = network.destination.words();
        let join = |low: u32, high: u32| u64::from_ne_bytes(bytemuck::cast([low, high]));
        let [high, low] = transport.destination_port.to_wire();
        let rest = u32::from_ne_bytes([high, low, transport.protocol as u8, 0]);
        Self { address: [join(a, b), join(c, d)], rest }
    }

    #[inline(always)]
    fn get(&self) -> &ServiceKey {
        // SAFETY: at least as large and aligned, and any bytes are a key.
        unsafe { &*(&raw const *self).cast() }
    }
}

/// Not decided here.
const LONGER: Verdict = Verdict::go_on(Stage::Whole);

/// Decides a packet's verdict and carries it out, or leaves it to a stage. Sets `bytes` to the frame's
/// length where that is known.
#[inline(always)]
pub fn run(frame: &Frame, bytes: &mut u64) -> Verdict {
    match frame.read::<u16>(ETHERTYPE) {
        Some(IPV4) => way_v4(frame.md(), bytes),
        Some(IPV6) => way_v6(frame.md(), bytes),
        Some(tag) if TAGGED.contains(&tag) => Verdict::go_on(Stage::Unusual),
        _ => Verdict::of(Reason::NotIp),
    }
}

/// A function of its own for each family: stack and registers are not enough for both together.
#[inline(never)]
fn way_v4(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    way::<HeadV4>(&mut Frame::of(md), bytes)
}

#[inline(never)]
fn way_v6(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    way::<HeadV6>(&mut Frame::of(md), bytes)
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
            return LONGER;
        }
        // ICMP errors come from anywhere on the way, and go to whom a packet said it was from.
        return if head.is_icmp() { Verdict::go_on(Stage::Icmp) } else { Verdict::of(Reason::NotForUs) };
    }
    let Some(transport) = head.transport(linear).filter(|transport| transport.ttl > 1) else { return LONGER };
    let packet = Plain { network, transport, bytes: linear as u64, ttl: head.ttl() };
    let key = Key::of(&network, &transport);
    // SAFETY: an update puts a new element in the place of the old, which stays whole until no program can
    // see it.
    let Some(service) = (unsafe { SERVICES.get(key.get()) }) else { return LONGER };
    const HASHED: u8 = ServiceValue::TRACKED | ServiceValue::PAIRED;
    if service.flags & HASHED == HASHED {
        hashed::run(frame, &packet, service)
    } else if listed::fits(&packet, service) {
        listed::run(frame, &packet, service)
    } else {
        LONGER
    }
}
