//! Translating an ICMP error on its way through (RFC 5508, 4): who gets it is written into its own
//! headers, and what it quotes becomes the packet that the receiver once sent.

use super::quote::{IcmpError, Quoted};
use crate::{
    abi::{Address, Protocol},
    checksum::Delta,
    packet::{PacketAccess, kept},
    rewrite::{self, Translation, words},
};

/// Offsets of the checksum in the ICMP, the IPv4, the TCP and the UDP header.
const ICMP_CHECK: usize = 2;
const IPV4_CHECK: usize = 10;
const TCP_CHECK: usize = 16;
const UDP_CHECK: usize = 6;

/// Writes `source` and `destination` into the error's own header, takes one from its TTL, and makes
/// the packet it quotes the one that `quoted_to` says. Type, code and everything else stay (RFC 5508,
/// REQ-4 and REQ-5). `None` when the frame is shorter than `error` and `quoted` say: it is then to be
/// dropped.
#[inline(always)]
pub fn translate<P: PacketAccess>(
    frame: &mut P,
    error: &IcmpError,
    quoted: &Quoted,
    source: &Address,
    destination: &Address,
    quoted_to: &Translation,
) -> Option<()> {
    let mut change = translate_quoted(frame, quoted, error.end as usize, quoted_to)?;
    let outer = Translation { source: *source, destination: *destination, ..*quoted_to };
    if error.outer.v4 {
        rewrite::network_v4(frame, &error.outer, &outer)?;
    } else {
        // The checksum covers a pseudo-header, unlike that of ICMP over IPv4 (RFC 4443, 2.3).
        change = change.and(rewrite::network_v6(frame, &error.outer, error.ttl, &outer)?);
    }
    let at = kept(error.offset) + ICMP_CHECK;
    let check: [u8; 2] = frame.read(at)?;
    frame.write(at, change.apply(check))
}

/// Writes addresses and ports into the quoted packet, and mends the checksums that it still has.
/// Returns the change of all that, for the checksum of what it is quoted in. Nothing at `end` or
/// behind is touched.
#[inline(always)]
pub fn translate_quoted<P: PacketAccess>(
    frame: &mut P,
    quoted: &Quoted,
    end: usize,
    to: &Translation,
) -> Option<Delta> {
    let (start, transport) = (kept(quoted.start), kept(quoted.transport));
    let addresses =
        Delta::ZERO.address(&quoted.network.source, &to.source).address(&quoted.network.destination, &to.destination);
    let mut change = addresses;
    if quoted.network.v4 {
        let check: [u8; 2] = frame.read(start + IPV4_CHECK)?;
        let mended = addresses.apply(check);
        change = change.field(u16::from_ne_bytes(check), u16::from_ne_bytes(mended));
        frame.write(start + IPV4_CHECK, mended)?;
        frame.write(start + 12, to.source.words()[3])?;
        frame.write(start + 16, to.destination.words()[3])?;
    } else {
        frame.write(start + 8, words(&to.source))?;
        frame.write(start + 24, words(&to.destination))?;
    }
    Some(change.and(translate_segment(frame, quoted, transport, end, addresses, to)?))
}

/// Writes the ports into the quoted segment, which is at `transport` by now, and mends its checksum where
/// that is before `end`, also for addresses that changed by `addresses`. Returns the change.
#[inline(always)]
pub(crate) fn translate_segment<P: PacketAccess>(
    frame: &mut P,
    quoted: &Quoted,
    transport: usize,
    end: usize,
    addresses: Delta,
    to: &Translation,
) -> Option<Delta> {
    let ports = Delta::ZERO.port(quoted.source_port, to.source_port).port(quoted.destination_port, to.destination_port);
    let [a, b] = to.source_port.to_wire();
    let [c, d] = to.destination_port.to_wire();
    frame.write(transport, [a, b, c, d])?;

    let tcp = quoted.protocol == Protocol::Tcp as u8;
    let at = transport + if tcp { TCP_CHECK } else { UDP_CHECK };
    if at + 2 > end {
        return Some(ports);
    }
    let check: [u8; 2] = frame.read(at)?;
    let segment = addresses.and(ports);
    let mended = if tcp { segment.apply(check) } else { segment.apply_udp(check) };
    frame.write(at, mended)?;
    Some(ports.field(u16::from_ne_bytes(check), u16::from_ne_bytes(mended)))
}
