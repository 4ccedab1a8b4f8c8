//! Server ids in QUIC connection IDs.

mod frames;

use frames::{Packet, Segment, extension, parse};
use lb_common::quic::{SERVER_ID_MAX, ServerId, server_id};
use proptest::prelude::*;

const ID: [u8; 20] = [0x0f, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19];

fn short(id: &[u8]) -> Vec<u8> {
    [&[0x40], id, &[0xee; 20]].concat()
}

fn long(id: &[u8]) -> Vec<u8> {
    [&[0xc0, 0, 0, 0, 1, id.len() as u8], id, &[0], &[0xee; 30]].concat()
}

fn of(payload: &[u8], length: u8) -> Option<ServerId> {
    let ids = [true, false].map(|v4| {
        let mut packet = Packet::of_family(v4, Segment::udp(40_000, 443, payload)).padded(40);
        if !v4 {
            packet = packet.extension(extension(0, 1));
        }
        let mut frame = packet.frame();
        let (_, transport) = parse(&mut frame);
        server_id(&frame.as_mut_slice(), &transport, length)
    });
    assert_eq!(ids[0], ids[1]);
    ids[0]
}

/// The first `length` bytes behind the first octet, and zeros.
fn wanted(id: &[u8], length: u8) -> Option<ServerId> {
    let mut wanted = [0; 16];
    wanted[..length.into()].copy_from_slice(&id[1..=length.into()]);
    Some(wanted)
}

#[test]
fn both_forms_of_header_tell_the_server_id_of_every_length() {
    for length in 1..=SERVER_ID_MAX {
        assert_eq!(of(&short(&ID), length), wanted(&ID, length), "{length}");
        assert_eq!(of(&long(&ID), length), wanted(&ID, length), "{length}");
    }
}

#[test]
fn every_configuration_counts_but_the_one_that_says_there_is_no_server_id() {
    for config in 0..8 {
        let mut id = ID;
        id[0] = config << 5 | 19;
        let wanted = if config == 7 { None } else { wanted(&ID, 8) };
        assert_eq!(of(&short(&id), 8), wanted);
        assert_eq!(of(&long(&id), 8), wanted);
    }
}

#[test]
fn a_connection_id_that_is_too_short_has_no_server_id() {
    for length in 0..=4 {
        assert_eq!(of(&long(&ID[..length]), 4), None);
    }
    assert_eq!(of(&long(&ID[..5]), 4), wanted(&ID, 4));
}

#[test]
fn what_is_too_short_for_a_packet_with_such_an_id_has_none() {
    for payload in [vec![], vec![0x40], vec![0xc0, 0, 0, 0, 1], short(&ID)[..17].to_vec(), long(&ID)[..22].to_vec()] {
        assert_eq!(of(&payload, 4), None, "{payload:02x?}: padding behind the packet does not count");
    }
    assert_eq!(of(&short(&ID)[..18], 4), wanted(&ID, 4));
}

proptest! {
    #[test]
    fn whatever_arrives_a_server_id_is_what_stands_there(payload in prop::collection::vec(any::<u8>(), 0..64), length in 1u8..=15) {
        if let Some(id) = of(&payload, length) {
            let at = if payload[0] & 0x80 == 0 { 1 } else { 6 };
            prop_assert_eq!(Some(id), wanted(&payload[at..], length));
        }
    }
}
