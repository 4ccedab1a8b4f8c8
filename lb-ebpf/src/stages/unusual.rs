//! What few packets need on their way: a program of its own, see `lb_unusual`, in which the way is
//! the same.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    abi::AddressRoles,
    parse::{self, NotOurs, Problem},
    verdict::{Reason, Stage, Verdict},
};

use super::{admit, tagged};
use crate::{ctx::Frame, packet::Packet, pipeline};

/// Takes VLAN tags off and goes the whole way. Sets `bytes` as [`pipeline::run`] does; tags count
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
    pipeline::go(md, packet, met & TO_SERVICE != 0, met & IS_REPLY != 0)
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
    let is_forward = to.has(AddressRoles::SERVICE);
    let is_reply = to.has(AddressRoles::SOURCE) || admit::roles(&network.source).has(AddressRoles::NAT_BACKEND);
    if !is_forward && !is_reply {
        return Reason::NotForUs as u32;
    }
    let transport = match parse::transport(&frame, &network) {
        Ok(transport) => transport,
        Err(Problem::NotTransport) => return Reason::NotTransport as u32,
        Err(Problem::Icmp) => return ICMP,
        Err(Problem::Fragment) => return Reason::Fragment as u32,
        Err(Problem::Malformed) if is_forward => return Reason::Malformed as u32,
        Err(Problem::Malformed) => return Reason::MalformedPassed as u32,
    };
    (packet.network, packet.transport) = (network, transport);
    let to_service = is_forward && admit::service(packet, to);
    ON_ITS_WAY | if to_service { TO_SERVICE } else { 0 } | if is_reply { IS_REPLY } else { 0 }
}
