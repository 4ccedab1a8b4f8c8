//! ICMP and ICMPv6: a program of its own, see `lb_icmp`.

use lb_common::{
    answer::answerable,
    icmp::{echo, is_echo_request},
    packet::PacketAccess,
    parse,
    verdict::{Reason, Verdict},
};
use network_types::eth::EthHdr;

use super::{admit::Directions, errors};
use crate::ctx::Frame;

/// Answers an echo request to a service's address, and brings errors about flows where they belong;
/// the kernel gets everything else.
#[inline(always)]
pub fn run(frame: &mut Frame) -> Verdict {
    let (Ok(network), Some(ethernet)) = (parse::network(frame), frame.read::<EthHdr>(0)) else {
        return Verdict::of(Reason::MalformedPassed);
    };
    let directions = Directions::of(&network);
    if !directions.is_forward() || !is_echo_request(frame, &network) || !answerable(&ethernet, &network) {
        return errors::run(frame.md(), &network, directions);
    }
    match echo(frame, &network) {
        Some(()) => Verdict::transmit(Reason::Echo),
        None => Verdict::of(Reason::Internal),
    }
}
