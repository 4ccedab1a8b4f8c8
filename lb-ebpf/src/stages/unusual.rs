//! What few packets need on their way: a program of its own, see `lb_unusual`, in which the way is
//! the same.

use aya_ebpf::bindings::xdp_md;
use lb_common::{
    icmp,
    parse::{self, NotOurs, Problem},
    verdict::{Reason, Stage, Verdict},
};

use super::{
    admit::{self, Directions},
    fragment, tagged,
};
use crate::{ctx::Frame, packet::Packet, pipeline};

/// Takes VLAN tags off, finds out where a fragment belongs, and goes the whole way. Sets `bytes` as
/// [`pipeline::run`] does; tags count nowhere, as a card that takes them off would not count them either.
#[inline(always)]
pub fn run(md: *mut xdp_md, bytes: &mut u64) -> Verdict {
    tagged::take_off(md);
    let met = meet(md);
    if met & ON_ITS_WAY == 0 {
        return if met == ICMP { Verdict::go_on(Stage::Icmp) } else { Verdict::of(Reason::from_number(met)) };
    }
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    *bytes = Frame::of(md).bytes();
    let mut reason = pipeline::decide(md, packet);
    if fragment::begins_by_guess(packet) {
        (packet.begins, reason) = (0, Reason::FragmentEarly);
    }
    let verdict = pipeline::go(md, packet, reason);
    fragment::settled(md, packet, verdict)
}

/// In what [`meet`] gives: the packet may be of a flow.
pub const ON_ITS_WAY: u32 = 1 << 8;
/// Another stage's.
const ICMP: u32 = 1 << 9;

/// Parses the frame; what is found is in the packet. Gives a bit above, or the number of a reason for
/// which the way ends here.
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
    let directions = Directions::of(&network);
    if directions.is_foreign() {
        // Errors about flows come from anywhere.
        return if icmp::is_icmp(&frame, &network) { ICMP } else { Reason::NotForUs as u32 };
    }
    let transport = match parse::transport(&frame, &network) {
        Ok(transport) => transport,
        Err(Problem::NotTransport) => return Reason::NotTransport as u32,
        Err(Problem::Icmp) => return ICMP,
        Err(Problem::Fragment) => {
            packet.network = network;
            return fragment::meet_fragment(md, directions.to.0);
        }
        Err(Problem::Malformed) => return admit::malformed(directions.to) as u32,
    };
    (packet.network, packet.transport) = (network, transport);
    ON_ITS_WAY
}
