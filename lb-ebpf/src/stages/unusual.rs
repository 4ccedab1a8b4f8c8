//! What few packets need on their way: a program of its own, see `lb_unusual`, in which the way is
//! the same.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::AddressRoles,
    parse::{self, NotOurs, Part, Problem},
    verdict::{Reason, Stage, Verdict},
};

use super::{admit, fragment, tagged};
use crate::{ctx::Frame, packet::Packet, pipeline};

/// Takes VLAN tags off, finds out where a fragment belongs, and goes the whole way. Sets `bytes` as [`pipeline::run`] does; tags count
/// nowhere, as a card that takes them off would not count them either.
#[inline(always)]
pub fn run(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    tagged::take_off(md);
    let met = meet(md);
    if met & ON_ITS_WAY == 0 {
        return if met == ICMP { Verdict::go_on(Stage::Icmp) } else { Verdict::of(Reason::from_number(met)) };
    }
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    *bytes = Frame::of(md).bytes();
    let verdict = pipeline::go(md, packet, met & TO_SERVICE != 0, met & IS_REPLY != 0);
    if packet.transport.part == Part::Whole {
        return verdict;
    }
    Verdict::from_bits(fragment::settle(md, verdict.bits()))
}

/// In what [`meet`] gives: the packet may be of a flow.
const ON_ITS_WAY: u32 = 1 << 8;
/// With it: the packet is for a service, which was found.
const TO_SERVICE: u32 = 1 << 9;
/// With it: the packet may be a backend's reply.
const IS_REPLY: u32 = 1 << 10;
/// Another stage's.
const ICMP: u32 = 1 << 11;

/// Parses the frame and finds its service; what is found is in the packet. Gives the bits above, or
/// the number of a reason for which the way ends here.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn meet(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return Reason::Internal as u32 };
    let frame = Frame::of(md);
    let network = match parse::network(&frame) {
        Ok(network) => network,
        Err(NotOurs::NotIp | NotOurs::Tagged) => return Reason::NotIp as u32,
        Err(NotOurs::Short) => return Reason::MalformedPassed as u32,
    };
    let to = admit::roles(&network.destination);
    let is_reply = to.has(AddressRoles::SOURCE) || admit::roles(&network.source).has(AddressRoles::NAT_BACKEND);
    if !to.has(AddressRoles::SERVICE) && !is_reply {
        return Reason::NotForUs as u32;
    }
    let transport = match parse::transport(&frame, &network) {
        Ok(transport) => transport,
        Err(Problem::NotTransport) => return Reason::NotTransport as u32,
        Err(Problem::Icmp) => return ICMP,
        Err(Problem::Fragment) => {
            packet.network = network;
            return fragment::meet_fragment(md, to.0, is_reply as u32);
        }
        Err(Problem::Malformed) => return malformed(to) as u32,
    };
    (packet.network, packet.transport) = (network, transport);
    on_its_way(packet, to, is_reply)
}

/// The bits of a packet whose headers are known; finds its service.
#[inline(always)]
pub fn on_its_way(packet: &mut Packet, to: AddressRoles, is_reply: bool) -> u32 {
    let to_service = to.has(AddressRoles::SERVICE) && admit::service(packet, to);
    ON_ITS_WAY | if to_service { TO_SERVICE } else { 0 } | if is_reply { IS_REPLY } else { 0 }
}

/// Why the way of a malformed packet ends.
#[inline(always)]
pub const fn malformed(to: AddressRoles) -> Reason {
    if to.has(AddressRoles::SERVICE) { Reason::Malformed } else { Reason::MalformedPassed }
}
