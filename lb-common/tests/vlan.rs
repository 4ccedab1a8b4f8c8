//! VLAN tags are read, taken off and put on again.

mod frames;

use frames::{Packet, Segment};
use lb_common::{
    abi::{VlanTag, VlanTags},
    vlan,
};

fn tags_of(mut frame: Vec<u8>) -> Option<VlanTags> {
    vlan::tags(&frame.as_mut_slice())
}

fn with(tags: &[[u8; 4]]) -> Vec<u8> {
    let frame = Packet::v4(Segment::udp(1, 2, b"hello")).frame();
    [&frame[..12], &tags.concat(), &frame[12..]].concat()
}

const Q: [u8; 4] = [0x81, 0, 0xb0, 100];
const S: [u8; 4] = [0x88, 0xa8, 0x00, 200];

#[test]
fn one_tag_and_two_are_read_and_neither_none_nor_three() {
    let tag = |bytes| VlanTag::from_word(u32::from_ne_bytes(bytes));
    assert_eq!(tags_of(with(&[])), None);
    assert_eq!(tags_of(with(&[Q])), Some(VlanTags { outer: tag(Q), inner: VlanTag::NONE }));
    for (outer, inner) in [(S, Q), (Q, Q), (S, S), (Q, S)] {
        assert_eq!(tags_of(with(&[outer, inner])), Some(VlanTags { outer: tag(outer), inner: tag(inner) }));
    }
    assert_eq!(tags_of(with(&[S, Q, Q])), None);
}

#[test]
fn a_frame_that_ends_within_its_tags_has_none() {
    for (tags, needed) in [(&[Q][..], 20), (&[S, Q], 24)] {
        let frame = with(tags);
        for len in 0..frame.len() {
            assert_eq!(tags_of(frame[..len].to_vec()).is_some(), len >= needed, "{len} bytes");
        }
    }
}

#[test]
fn a_frame_without_its_tags_is_a_plain_one_and_gets_them_back() {
    for tags in [&[Q][..], &[S, Q]] {
        let mut frame = with(tags);
        let found = tags_of(frame.clone()).unwrap();
        assert_eq!(found.bytes(), tags.len() * 4);
        let addresses = vlan::link_addresses(&frame.as_mut_slice()).unwrap();
        let mut plain = frame[found.bytes()..].to_vec();
        vlan::write(&mut plain.as_mut_slice(), addresses, &VlanTags::NONE).unwrap();
        assert_eq!(plain, with(&[]));
        let mut again = [vec![0; found.bytes()], plain].concat();
        vlan::write(&mut again.as_mut_slice(), addresses, &found).unwrap();
        assert_eq!(again, frame);
    }
}
