//! Incremental updates against sums over all bytes, and the corners where 0x0000 meets 0xffff.
mod frames;

use frames::{Packet, Segment, parse, translation, verified};
use lb_common::{
    abi::{Address, Port},
    checksum::{Delta, Sum},
    rewrite,
};
use proptest::prelude::*;

/// RFC 1071, 4.1, as it stands there: 16-bit words in network order.
fn slow_sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[test]
fn the_example_of_rfc_1624_comes_out_right() {
    // Section 4: header checksum 0xdd2f, a field from 0x5555 to 0x3285, gives 0x0000.
    let delta = Delta::ZERO.field(0x5555u16.to_be(), 0x3285u16.to_be());
    assert_eq!(delta.apply(0xdd2fu16.to_be_bytes()), [0, 0]);
}

#[test]
fn a_udp_checksum_of_zero_stays_and_a_sum_of_zero_is_sent_as_ones() {
    let delta = Delta::ZERO.field(0x5555u16.to_be(), 0x3285u16.to_be());
    assert_eq!(delta.apply_udp([0, 0]), [0, 0]);
    assert_eq!(delta.apply_udp(0xdd2fu16.to_be_bytes()), [0xff, 0xff]);
    // From ones, which stand for zero: as any other value.
    let back = Delta::ZERO.field(0x3285u16.to_be(), 0x5555u16.to_be());
    assert_eq!(back.apply_udp([0xff, 0xff]), 0xdd2fu16.to_be_bytes());
}

#[test]
fn a_change_of_nothing_changes_nothing() {
    let address = frames::address("2001:db8::1");
    let delta = Delta::ZERO.address(&address, &address).port(Port::new(80), Port::new(80)).word(7, 7);
    for check in 0..=u16::MAX {
        // 0xffff is what no sender of TCP or IP writes: it comes out as its equal.
        let right = if check == 0xffff { 0 } else { check };
        assert_eq!(delta.apply(check.to_be_bytes()), right.to_be_bytes());
    }
}

/// Every checksum that a TCP or UDP packet can carry, before and after: one word of the payload
/// takes all values.
#[test]
fn all_checksums_before_and_after_a_translation_are_right() {
    let to_v4 = translation(("192.0.2.1", 61_000), ("10.0.0.11", 8080));
    let to_v6 = translation(("2001:db8:2::1", 61_000), ("2001:db8:2::11", 8080));
    for v4 in [true, false] {
        for tcp in [true, false] {
            let (mut zero_before, mut zero_after) = (0, 0);
            for word in 0..=u16::MAX {
                let payload = word.to_be_bytes();
                let segment =
                    if tcp { Segment::tcp(1024, 80, 0x10, &payload) } else { Segment::udp(1024, 80, &payload) };
                let packet = Packet::of_family(v4, segment);
                let check = packet.transport_offset() + if tcp { 16 } else { 6 };
                let zero: [u8; 2] = if tcp { [0, 0] } else { [0xff, 0xff] };
                let mut frame = packet.frame();
                zero_before += usize::from(frame[check..check + 2] == zero);
                let (network, transport) = parse(&mut frame);
                rewrite::translate(&mut frame.as_mut_slice(), &network, &transport, if v4 { &to_v4 } else { &to_v6 })
                    .unwrap();
                zero_after += usize::from(frame[check..check + 2] == zero);
                verified(&frame);
            }
            // The 65,536 words make each of the 65,535 sums once, and one of them twice.
            assert!((1..=2).contains(&zero_before) && (1..=2).contains(&zero_after));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_sum_over_bytes_is_the_sum_over_words(bytes in any::<[u8; 60]>(), odd in any::<[u8; 33]>()) {
        prop_assert_eq!(Sum::ZERO.bytes(&bytes).finish(), slow_sum(&bytes).to_be_bytes());
        prop_assert_eq!(Sum::ZERO.bytes(&odd).finish(), slow_sum(&odd).to_be_bytes());
        let words = bytes.chunks(4).fold(Sum::ZERO, |sum, w| sum.word(u32::from_ne_bytes(w.try_into().unwrap())));
        prop_assert_eq!(words.finish(), slow_sum(&bytes).to_be_bytes());
    }

    #[test]
    fn a_pseudo_header_is_summed_as_the_rfcs_lay_it_out(
        s in any::<[u8; 16]>(), d in any::<[u8; 16]>(), protocol in any::<u8>(), length in any::<u16>(),
    ) {
        let [l0, l1] = length.to_be_bytes();
        // RFC 8200, 8.1.
        let v6 = [s.as_slice(), &d, &[0, 0, l0, l1, 0, 0, 0, protocol]].concat();
        let sum = Sum::ZERO.pseudo_header(&Address::v6(s), &Address::v6(d), protocol, length);
        prop_assert_eq!(sum.finish(), slow_sum(&v6).to_be_bytes());
        // RFC 9293, 3.1.
        let (s, d): ([u8; 4], [u8; 4]) = (s[..4].try_into().unwrap(), d[..4].try_into().unwrap());
        let v4 = [s.as_slice(), &d, &[0, protocol, l0, l1]].concat();
        let sum = Sum::ZERO.pseudo_header(&Address::v4(s), &Address::v4(d), protocol, length);
        prop_assert_eq!(sum.finish(), slow_sum(&v4).to_be_bytes());
    }

    #[test]
    fn an_update_is_the_sum_of_the_new_bytes(
        before in any::<[u8; 40]>(), after in any::<[u8; 40]>(), rest in any::<[u8; 20]>(),
    ) {
        let whole = |changed: &[u8; 40]| [changed.as_slice(), &rest].concat();
        let (old, new) = (whole(&before), whole(&after));
        let word = |bytes: &[u8; 40], i: usize| u32::from_ne_bytes(bytes[i..i + 4].try_into().unwrap());
        let half = |bytes: &[u8; 40], i: usize| u16::from_ne_bytes(bytes[i..i + 2].try_into().unwrap());
        let address = |bytes: &[u8; 40], i: usize| Address::v6(bytes[i..i + 16].try_into().unwrap());
        let port = |bytes: &[u8; 40], i: usize| Port::from_wire([bytes[i], bytes[i + 1]]);
        let delta = Delta::ZERO
            .address(&address(&before, 0), &address(&after, 0))
            .address(&address(&before, 16), &address(&after, 16))
            .word(word(&before, 32), word(&after, 32))
            .field(half(&before, 36), half(&after, 36))
            .port(port(&before, 38), port(&after, 38));
        prop_assert_eq!(delta.apply(slow_sum(&old).to_be_bytes()), slow_sum(&new).to_be_bytes());
    }
}
