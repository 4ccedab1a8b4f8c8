//! Rules for ICMP errors: those that come, and those that are written.

use super::{Arena, PREFIX, family, sum, translation};
use crate::{
    abi::Protocol,
    icmp::{
        error,
        quote::{IcmpError, Quoted},
        too_big,
    },
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Network, Transport},
    rewrite::Translation,
};

/// Reads any frame as an error, and translates it if it is one.
pub(super) fn check(original: &[u8], network: &Network, prefix: &[u8; PREFIX]) {
    let mut arena = Arena::new(original, 0);
    check_sum(original, prefix);
    let Ok(icmp) = IcmpError::of(&arena.frame(), network) else { return };
    assert!(icmp.quotation() <= icmp.end as usize && icmp.end as usize <= original.len(), "{icmp:?}");
    assert!(icmp.offset as usize >= NETWORK_OFFSET + if network.v4 { 20 } else { 40 });
    let quoted = Quoted::at(&arena.frame(), network.v4, icmp.quotation(), icmp.end as usize);
    assert_eq!(arena.frame(), original, "the parser writes");
    let Some(quoted) = quoted else { return };
    let (start, transport) = (quoted.start as usize, quoted.transport as usize);
    assert!(start >= icmp.quotation() && transport + 8 <= icmp.end as usize, "{quoted:?}");
    assert!(transport >= start + if network.v4 { 20 } else { 40 });
    if Protocol::from_number(quoted.protocol).is_none() {
        return;
    }
    family::check_error(original, &icmp, &quoted, prefix);
    let to = translation(network.v4, prefix);
    error::translate(&mut arena.frame(), &icmp, &quoted, &to.source, &to.destination, &to).expect("all was read");
    let after = arena.into_frame();
    check_sums(original, &after, &icmp, &quoted);
    check_fields(original, &after, &icmp, &quoted, &to);
    let mut after = after;
    if network.v4 || !to.source.is_v4() && !to.destination.is_v4() {
        let readdressed = Network { v4: network.v4, source: to.source, destination: to.destination };
        let wanted = IcmpError { outer: readdressed, ttl: icmp.ttl.wrapping_sub(1), ..icmp };
        assert_eq!(IcmpError::of(&after.as_mut_slice(), &readdressed), Ok(wanted));
        let wanted = Quoted {
            network: readdressed,
            source_port: to.source_port,
            destination_port: to.destination_port,
            ..quoted
        };
        assert_eq!(Quoted::at(&after.as_mut_slice(), network.v4, start, icmp.end as usize), Some(wanted));
    }
}

/// What a checksum says of what it covers is the same after a translation as before.
fn check_sums(before: &[u8], after: &[u8], icmp: &IcmpError, quoted: &Quoted) {
    let v4 = icmp.outer.v4;
    let (start, transport) = (quoted.start as usize, quoted.transport as usize);
    let of = |frame: &[u8]| {
        let addresses = |at: usize| if v4 { &frame[at + 12..at + 20] } else { &frame[at + 8..at + 40] }.to_vec();
        let message = &frame[icmp.offset as usize..NETWORK_OFFSET + icmp.packet_len as usize];
        let outer = if v4 { vec![] } else { addresses(NETWORK_OFFSET) };
        let headers = |from: usize, to: usize| if v4 { frame[from..to].to_vec() } else { vec![] };
        // The fields of a segment that the translation may touch, its checksum included.
        let tcp = quoted.protocol == Protocol::Tcp as u8;
        let check = transport + if tcp { 16 } else { 6 };
        let absent = !tcp && frame[check..check + 2] == [0, 0];
        let segment = (check + 2 <= icmp.end as usize && !absent)
            .then(|| sum(&[&addresses(start), &frame[transport..transport + 4], &frame[check..check + 2]]));
        [
            Some(sum(&[&headers(NETWORK_OFFSET, icmp.offset as usize)])),
            Some(sum(&[&outer, message])),
            Some(sum(&[&headers(start, transport)])),
            segment,
        ]
        // Both are zero in ones' complement.
        .map(|sum| sum.map(|sum| if sum == 0xffff { 0 } else { sum }))
    };
    assert_eq!(of(before), of(after), "sums of header, message, quoted header and segment");
}

/// Nothing differs but TTL, addresses, ports and the checksums over them.
fn check_fields(before: &[u8], after: &[u8], icmp: &IcmpError, quoted: &Quoted, to: &Translation) {
    let mut wanted = before.to_vec();
    let mut take = |from: usize, len: usize| wanted[from..from + len].copy_from_slice(&after[from..from + len]);
    let (start, transport, offset) = (quoted.start as usize, quoted.transport as usize, icmp.offset as usize);
    take(offset + 2, 2);
    let check = transport + if quoted.protocol == Protocol::Tcp as u8 { 16 } else { 6 };
    if check + 2 <= icmp.end as usize {
        take(check, 2);
    }
    if icmp.outer.v4 {
        take(NETWORK_OFFSET + 10, 2);
        take(start + 10, 2);
    }
    for at in [NETWORK_OFFSET, start] {
        if icmp.outer.v4 {
            wanted[at + 12..at + 16].copy_from_slice(&to.source.v4_octets());
            wanted[at + 16..at + 20].copy_from_slice(&to.destination.v4_octets());
        } else {
            wanted[at + 8..at + 24].copy_from_slice(&to.source.octets());
            wanted[at + 24..at + 40].copy_from_slice(&to.destination.octets());
        }
    }
    wanted[NETWORK_OFFSET + if icmp.outer.v4 { 8 } else { 7 }] = icmp.ttl.wrapping_sub(1);
    wanted[transport..transport + 2].copy_from_slice(&to.source_port.to_wire());
    wanted[transport + 2..transport + 4].copy_from_slice(&to.destination_port.to_wire());
    assert_eq!(after, wanted);
}

/// The answer to a packet that does not fit, with any MTU.
pub(super) fn check_too_big(original: &[u8], network: &Network, transport: &Transport) {
    let v4 = network.v4;
    let (headers, quotation) = (too_big::headers(v4), too_big::quotation(v4, transport.packet_len as usize));
    let len = NETWORK_OFFSET + headers + quotation;
    let mut arena = Arena::new(original, headers);
    assert!(len <= arena.frame().len(), "longer than the grown frame");
    let behind = arena.frame()[len..].to_vec();
    let mtu = u32::from(transport.packet_len) * 3;
    too_big::write(&mut &mut arena.frame()[..len], &network.destination, &network.source, quotation, mtu)
        .expect("room for the answer");
    let frame = arena.into_frame();
    assert_eq!(frame[len..], behind, "a write behind the cut");
    let icmp = NETWORK_OFFSET + headers - 8;
    assert_eq!(frame[icmp + 8..len], original[NETWORK_OFFSET..NETWORK_OFFSET + quotation]);
    let message = &frame[icmp..len];
    let length = (message.len() as u16).to_be_bytes();
    if v4 {
        assert!(len <= NETWORK_OFFSET + 576);
        assert_eq!(sum(&[&frame[NETWORK_OFFSET..icmp]]), 0xffff, "header checksum of the answer");
        assert_eq!(sum(&[message]), 0xffff, "ICMP checksum");
        assert_eq!(u16::from_be_bytes([message[6], message[7]]), mtu.min(65_535) as u16);
    } else {
        assert!(len <= NETWORK_OFFSET + 1280);
        let addresses = &frame[NETWORK_OFFSET + 8..NETWORK_OFFSET + 40];
        assert_eq!(sum(&[addresses, &[0, 0], &length, &[0, 0, 0, 58], message]), 0xffff, "ICMPv6 checksum");
        assert_eq!(message[4..8], mtu.max(1280).to_be_bytes());
    }
}

/// The sum of any part of the frame.
fn check_sum(original: &[u8], prefix: &[u8; PREFIX]) {
    let mut frame = original.to_vec();
    let (from, len) = (prefix[0] as usize, prefix[4] as usize | (prefix[5] as usize) << 8);
    let got = frame.as_mut_slice().sum(from, len);
    let wanted = original.get(from..from + len).filter(|_| len <= crate::packet::SUM_MAX).map(|part| !sum(&[part]));
    assert_eq!(got.map(|sum| u16::from_be_bytes(sum.finish())), wanted, "{from} {len}");
}
