//! ICMP (RFC 792) and ICMPv6 (RFC 4443): echo requests here, errors in the modules.

pub mod error;
pub(crate) mod kinds;
pub mod quote;
pub mod too_big;

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use kinds::{V4_ECHO_REPLY, V4_ECHO_REQUEST, V6_ECHO_REPLY, V6_ECHO_REQUEST};

use crate::{
    answer::swap_ethernet,
    checksum::Delta,
    numbers::{self, ICMP, ICMPV6},
    packet::{Field, PacketAccess},
    parse::{NETWORK_OFFSET, Network},
    rewrite::words,
};

/// TTL and hop limit of our own packets.
const TTL: u8 = 64;

/// Whether the packet says that it carries ICMP of its family, behind no extension header.
#[inline(always)]
pub fn is_icmp<P: PacketAccess>(frame: &P, network: &Network) -> bool {
    let at = NETWORK_OFFSET + if network.v4 { 9 } else { 6 };
    frame.read::<u8>(at) == Some(numbers::icmp(network.v4))
}

/// Whether the frame is a whole echo request that [`echo`] can answer: of IPv4 without options and
/// of IPv6 without extension headers, which the kernel answers.
#[inline(always)]
pub fn is_echo_request<P: PacketAccess>(frame: &P, network: &Network) -> bool {
    let Some((offset, wanted)) = header(frame, network) else { return false };
    frame.read::<[u8; 2]>(offset).is_some_and(|[kind, code]| kind == wanted && code == 0)
}

/// Offset of the ICMP header and the type of an echo request.
#[inline(always)]
fn header<P: PacketAccess>(frame: &P, network: &Network) -> Option<(usize, u8)> {
    if network.v4 {
        let header: Ipv4Hdr = frame.read(NETWORK_OFFSET)?;
        let plain = header.vihl == 0x45 && header.proto == ICMP;
        plain.then_some((NETWORK_OFFSET + size_of::<Ipv4Hdr>(), V4_ECHO_REQUEST))
    } else {
        let header: Ipv6Hdr = frame.read(NETWORK_OFFSET)?;
        (header.next_hdr == ICMPV6).then_some((NETWORK_OFFSET + size_of::<Ipv6Hdr>(), V6_ECHO_REQUEST))
    }
}

/// Turns an echo request into its reply, in place: addresses swapped, type and TTL new, identifier,
/// sequence number and data as they were. `None` when the frame is shorter than its headers say.
#[inline(always)]
pub fn echo<P: PacketAccess>(frame: &mut P, network: &Network) -> Option<()> {
    swap_ethernet(frame)?;
    if network.v4 {
        let header: [u8; 12] = frame.read(NETWORK_OFFSET)?;
        // Swapped addresses sum up to the same; only the TTL counts.
        let (was, is) = (u16::from_ne_bytes([header[8], header[9]]), u16::from_ne_bytes([TTL, header[9]]));
        let check = Delta::ZERO.field(was, is).apply([header[10], header[11]]);
        frame.write(NETWORK_OFFSET + 8, [TTL, header[9], check[0], check[1]])?;
        swap(frame, NETWORK_OFFSET + 12, network.source.words()[3], network.destination.words()[3])?;
        retype(frame, NETWORK_OFFSET + size_of::<Ipv4Hdr>(), V4_ECHO_REQUEST, V4_ECHO_REPLY)
    } else {
        frame.write(NETWORK_OFFSET + 7, TTL)?;
        swap(frame, NETWORK_OFFSET + 8, words(&network.source), words(&network.destination))?;
        // The pseudo-header sums up to the same too.
        retype(frame, NETWORK_OFFSET + size_of::<Ipv6Hdr>(), V6_ECHO_REQUEST, V6_ECHO_REPLY)
    }
}

/// Writes the destination where the source was, and the source behind it.
#[inline(always)]
fn swap<P: PacketAccess, T: Field>(frame: &mut P, at: usize, source: T, destination: T) -> Option<()> {
    frame.write(at, destination)?;
    frame.write(at + size_of::<T>(), source)
}

#[inline(always)]
fn retype<P: PacketAccess>(frame: &mut P, at: usize, from: u8, to: u8) -> Option<()> {
    let [_, code, c0, c1]: [u8; 4] = frame.read(at)?;
    let delta = Delta::ZERO.field(u16::from_ne_bytes([from, code]), u16::from_ne_bytes([to, code]));
    let [c0, c1] = delta.apply([c0, c1]);
    frame.write(at, [to, code, c0, c1])
}
