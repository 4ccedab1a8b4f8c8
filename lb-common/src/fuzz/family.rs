//! Translation between the families: whatever is translated is a whole packet of the other family, and
//! as right as it was.

use super::{Arena, PREFIX, checksums_are_right, make_right, sum};
use crate::{
    abi::{Address, Port, Protocol},
    checksum::Sum,
    family::{self, error, icmp::Mtus},
    icmp::quote::{IcmpError, Quoted},
    parse::{self, NETWORK_OFFSET, Network, Transport},
    rewrite::Translation,
};

pub(super) fn check(original: &[u8], network: &Network, transport: &Transport, prefix: &[u8; PREFIX]) {
    let id = u16::from_be_bytes([prefix[0], prefix[1]]);
    let Some(header) = family::read(&Arena::new(original, 0).frame(), network, transport, id) else { return };
    assert_eq!(header.v4, !network.v4);
    if transport.packet_len as usize - (transport.offset as usize - NETWORK_OFFSET) + header.len() as usize > 0xffff {
        return;
    }
    let to = translation(header.v4, prefix);
    let mut right = original.to_vec();
    make_right(&mut right, network, transport);
    for before in [original, &right] {
        let mut before = before.to_vec();
        complete(&mut before, network, transport);
        let segment_was_right = checksums_are_right(&before, network, transport)[1];
        let after = translated(&before, &header, network, transport, &to);
        let expected = Network { v4: header.v4, source: to.source, destination: to.destination };
        assert_eq!(parse::network(&after.clone().as_mut_slice()), Ok(expected));
        let expected_transport = Transport {
            source_port: to.source_port,
            destination_port: to.destination_port,
            ttl: transport.ttl.wrapping_sub(1),
            offset: NETWORK_OFFSET as u16 + header.len(),
            packet_len: header.packet_len(),
            ..*transport
        };
        assert_eq!(parse::transport(&after.clone().as_mut_slice(), &expected), Ok(expected_transport));
        let [network_right, segment_right] = checksums_are_right(&after, &expected, &expected_transport);
        assert!(network_right, "a header that was written anew");
        assert_eq!(segment_right, segment_was_right, "the checksum of the segment");
        let (old, new) = (transport.offset as usize, expected_transport.offset as usize);
        // Behind ports and checksum nothing changes, padding included.
        let behind = if transport.protocol == Protocol::Tcp { 18 } else { 8 };
        assert_eq!(before[old + behind..], after[new + behind..]);
    }
}

/// The translation before the frame, in a family.
fn translation(v4: bool, prefix: &[u8; PREFIX]) -> Translation {
    let address = |octets: &[u8]| {
        if v4 {
            Address::v4([octets[0], octets[1], octets[2], octets[3]])
        } else {
            // No mapped IPv4 address, whatever the input says.
            Address::v6([&[0x20], &octets[1..16]].concat().try_into().expect("sixteen bytes"))
        }
    };
    Translation {
        source: address(&prefix[..16]),
        destination: address(&prefix[16..32]),
        source_port: Port::from_wire([prefix[32], prefix[33]]),
        destination_port: Port::from_wire([prefix[34], prefix[35]]),
    }
}

/// An error that is translated is a whole error of the other family, about the translated packet.
pub(super) fn check_error(original: &[u8], icmp: &IcmpError, quoted: &Quoted, prefix: &[u8; PREFIX]) {
    let Some(headers) = error::read(&Arena::new(original, 0).frame(), icmp, quoted, 0x4711) else { return };
    let v4 = !icmp.outer.v4;
    let to = translation(v4, prefix);
    let mtus = Mtus { v4: u32::from(prefix[0]) << 8, v6: u32::from(prefix[1]) << 8 };
    let mut arena = moved(original, headers.growth(quoted));
    let len = NETWORK_OFFSET + headers.packet_len() as usize;
    assert!(len <= arena.frame().len() && len - NETWORK_OFFSET <= if v4 { 576 } else { 1280 });
    let behind = arena.frame()[len..].to_vec();
    let (source, destination) = (to.destination, to.source);
    error::write(&mut &mut arena.frame()[..len], &headers, quoted, &mtus, &source, &destination, &to)
        .expect("all was read");
    let mut after = arena.into_frame();
    assert_eq!(after.split_off(len), behind, "a write behind the cut");

    let outer = Network { v4, source, destination };
    assert_eq!(parse::network(&after.as_mut_slice()), Ok(outer));
    let told = IcmpError::of(&after.as_mut_slice(), &outer).expect("an error");
    assert_eq!((told.ttl, told.too_big, told.end as usize), (icmp.ttl.wrapping_sub(1), icmp.too_big, len));
    let about = Quoted::at(&after.as_mut_slice(), v4, told.quotation(), len).expect("a packet");
    let network = Network { v4, source: to.source, destination: to.destination };
    assert_eq!((about.network, about.protocol), (network, quoted.protocol));
    assert_eq!((about.source_port, about.destination_port), (to.source_port, to.destination_port));
    let message = &after[told.offset as usize..];
    let length = (message.len() as u16).to_be_bytes();
    if v4 {
        assert_eq!(sum(&[message]), 0xffff, "ICMP checksum");
        for at in [NETWORK_OFFSET, told.quotation()] {
            assert_eq!(sum(&[&after[at..at + 20]]), 0xffff, "header checksum");
        }
    } else {
        let addresses = &after[NETWORK_OFFSET + 8..NETWORK_OFFSET + 40];
        assert_eq!(sum(&[addresses, &[0, 0], &length, &[0, 0, 0, 58], message]), 0xffff, "ICMPv6 checksum");
    }
    // Of the segment nothing differs but ports and checksum.
    let mut wanted = original[quoted.transport as usize..][..len - about.transport as usize].to_vec();
    let got = &after[about.transport as usize..];
    let check = if quoted.protocol == Protocol::Tcp as u8 { 16 } else { 6 };
    for at in (0..4).chain(check..check + 2).filter(|at| *at < got.len()) {
        if at < 4 || check + 2 <= got.len() {
            wanted[at] = got[at];
        }
    }
    assert_eq!(got, wanted);
}

/// The frame with another start, between guards.
fn moved(frame: &[u8], growth: i32) -> Arena {
    if growth >= 0 {
        Arena::new(frame, growth as usize)
    } else {
        Arena::new(&frame[growth.unsigned_abs() as usize..], 0)
    }
}

/// Gives a UDP packet over IPv4 the checksum that it lacks, and looks whether it is right.
fn complete(frame: &mut Vec<u8>, network: &Network, transport: &Transport) {
    if !family::lacks_checksum(&frame.as_mut_slice(), network, transport) {
        return;
    }
    let offset = transport.offset as usize;
    let length = u16::from_be_bytes([frame[offset + 4], frame[offset + 5]]);
    let mut sum = Sum::ZERO;
    for pair in frame[offset..offset + length as usize].chunks(2) {
        sum = sum.pair([pair[0], *pair.get(1).unwrap_or(&0)]);
    }
    family::complete_checksum(&mut frame.as_mut_slice(), network, transport, sum, length).expect("the field is there");
    assert!(!family::lacks_checksum(&frame.as_mut_slice(), network, transport));
    assert!(checksums_are_right(frame, network, transport)[1], "the checksum that was left out");
}

fn translated(
    frame: &[u8],
    header: &family::Header,
    network: &Network,
    transport: &Transport,
    to: &Translation,
) -> Vec<u8> {
    let mut arena = moved(frame, header.growth());
    family::write(&mut arena.frame(), header, network, transport, to).expect("the parser saw every field");
    arena.into_frame()
}
