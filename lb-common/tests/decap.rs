//! Frames out of tunnels: what another implementation put in comes out, and what is not right stays.
mod frames;

use frames::{Packet, Segment, extension, in_gre, mark, tunnelled};
use lb_common::{
    abi::Port,
    decap::{self, Fate, Inner, Outcome, Outer},
};
use proptest::{collection::vec, prelude::*, strategy::BoxedStrategy};

const ENDS: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.11"), ("2001:db8:2::1", "2001:db8:2::11")];
const GUE_PORT: u16 = 6080;
/// Where the outer IP header begins.
const IP: usize = 14;

/// As the program does it, with addresses of the inner packets as the only service's.
fn strip(frame: &[u8]) -> (Outcome, Vec<u8>) {
    let mut frame = frame.to_vec();
    let len = frame.len();
    let (mut outer, mut inner) = (Outer::EMPTY, Inner::EMPTY);
    if let Err(outcome) = decap::outer(&frame.as_mut_slice(), Port::new(GUE_PORT), &mut outer) {
        return (outcome, frame);
    }
    let vips = ["203.0.113.10", "2001:db8::10"].map(frames::address);
    if let Err(outcome) = decap::inner(&frame.as_mut_slice(), len, &outer, &mut inner, |address| vips.contains(address))
    {
        return (outcome, frame);
    }
    decap::hand_over(&mut frame.as_mut_slice(), &outer, &inner).unwrap();
    let mut left = frame.split_off(outer.growth() as usize);
    if outer.is_gue() && !decap::checksum_fits(&left.as_mut_slice(), &outer, &inner) {
        return (Outcome::BadChecksum, left);
    }
    decap::mark_congestion(&mut left.as_mut_slice(), &outer, &inner).unwrap();
    (outer.stripped(), left)
}

fn wrapped(inner: &[u8], (source, destination): (&str, &str), gue: Option<bool>) -> Vec<u8> {
    let gue = gue.map(|checksum| (50_000, GUE_PORT, checksum));
    tunnelled(inner, source.parse().unwrap(), destination.parse().unwrap(), 7, gue)
}

fn gre(inner: &[u8], (source, destination): (&str, &str)) -> Vec<u8> {
    in_gre(inner, source.parse().unwrap(), destination.parse().unwrap(), 7)
}

fn segment() -> BoxedStrategy<Segment> {
    let payload = || vec(any::<u8>(), 0..80);
    prop_oneof![
        (any::<u16>(), any::<u16>(), 0..0x20u8, payload()).prop_map(|(s, d, f, p)| Segment::tcp(s, d, f, &p)),
        (any::<u16>(), any::<u16>(), any::<bool>(), payload()).prop_map(|(source, destination, checksum, payload)| {
            Segment::Udp { source, destination, checksum, payload }
        }),
        payload().prop_map(|bytes| Segment::Other { protocol: 1, bytes }),
    ]
    .boxed()
}

/// A frame for a service, with ToS or traffic class of any ECT but not-ECT.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    (any::<bool>(), vec(any::<u32>(), 0..=10), 0..3usize, segment(), 0..20usize, 1..=255u8).prop_map(
        |(v4, options, extensions, segment, padding, class)| {
            let mut packet = Packet::of_family(v4, segment).padded(padding);
            if v4 {
                let options: Vec<u8> = options.iter().flat_map(|word| word.to_be_bytes()).collect();
                packet = packet.options(&options);
            } else {
                packet.extensions = vec![extension(60, 1); extensions];
            }
            let mut frame = packet.frame();
            mark(&mut frame, class | u8::from(class & 3 == 0), 0x1234, true);
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn what_went_in_comes_out(frame in frame()) {
        for ends in ENDS {
            for (gue, outcome) in [(None, Outcome::Ipip), (Some(true), Outcome::Gue), (Some(false), Outcome::Gue)] {
                prop_assert_eq!(strip(&wrapped(&frame, ends, gue)), (outcome, frame.clone()));
            }
            prop_assert_eq!(strip(&gre(&frame, ends)), (Outcome::Gre, frame.clone()));
        }
    }
}

fn tcp(v4: bool) -> Vec<u8> {
    Packet::of_family(v4, Segment::tcp(40_000, 80, 2, b"hello")).frame()
}

#[test]
fn every_byte_that_the_udp_checksum_covers_and_the_inner_one_does_not_is_looked_at() {
    for (v4, ends) in [(true, ENDS[0]), (true, ENDS[1]), (false, ENDS[0]), (false, ENDS[1])] {
        let whole = wrapped(&tcp(v4), ends, Some(true));
        let ip = if ends == ENDS[0] { 20 } else { 40 };
        let addresses = if ends == ENDS[0] { IP + 12..IP + 20 } else { IP + 8..IP + 40 };
        let udp = IP + ip..IP + ip + 2;
        // Of IPv6 the flow label, which nothing else covers.
        let label = if v4 { 0..0 } else { IP + ip + 8 + 2..IP + ip + 8 + 4 };
        for at in addresses.clone().chain(udp).chain(label) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            if addresses.contains(&at) && ends == ENDS[0] {
                // Its header checksum finds it first.
                assert_eq!(strip(&damaged).0, Outcome::Malformed, "byte {at}");
            } else {
                assert_eq!(strip(&damaged).0, Outcome::BadChecksum, "byte {at}");
            }
        }
    }
}

#[test]
fn ecn_fields_meet_as_rfc_6040_says() {
    // Rows: not-ECT, ECT(0), ECT(1), CE inside; columns the same outside (figure 4).
    const TABLE: [[Option<u8>; 4]; 4] = [
        [Some(0), Some(0), Some(0), None],
        [Some(2), Some(2), Some(1), Some(3)],
        [Some(1), Some(1), Some(1), Some(3)],
        [Some(3), Some(3), Some(3), Some(3)],
    ];
    const CODES: [u8; 4] = [0, 2, 1, 3];
    for (v4, ends) in [(true, ENDS[0]), (true, ENDS[1]), (false, ENDS[0]), (false, ENDS[1])] {
        for (row, inside) in CODES.into_iter().enumerate() {
            for (column, outside) in CODES.into_iter().enumerate() {
                let of = |ecn: u8| {
                    let mut frame = tcp(v4);
                    mark(&mut frame, 0xb8 | ecn, 0, true);
                    frame
                };
                let mut frame = wrapped(&of(inside), ends, None);
                mark(&mut frame, 0xb8 | outside, 0, true);
                match TABLE[row][column] {
                    Some(ecn) => assert_eq!(strip(&frame), (Outcome::Ipip, of(ecn)), "{inside} in {outside}"),
                    None => assert_eq!(strip(&frame), (Outcome::Congestion, frame.clone())),
                }
            }
        }
    }
}

#[test]
fn what_is_not_for_us_is_told_apart() {
    let stays = |frame: &[u8], outcome: Outcome| {
        assert_eq!(strip(frame), (outcome, frame.to_vec()));
        outcome.fate()
    };
    for ends in ENDS {
        assert_eq!(stays(&tcp(true), Outcome::NotTunnel), Fate::Passed);
        // GUE variant 0, another port, ESP.
        let mut frame = wrapped(&tcp(true), ends, Some(true));
        let udp = IP + if ends == ENDS[0] { 20 } else { 40 };
        frame[udp + 8] = 0x05;
        stays(&frame, Outcome::NotTunnel);
        let mut frame = wrapped(&tcp(true), ends, Some(true));
        frame[udp + 3] ^= 1;
        stays(&frame, Outcome::NotTunnel);
        let mut frame = wrapped(&tcp(true), ends, None);
        frame[IP + if ends == ENDS[0] { 9 } else { 6 }] = 50;
        stays(&frame, Outcome::NotTunnel);
        // GRE with a checksum, a key, a number; of version 1 (PPTP); with Ethernet inside; without its header.
        let whole = gre(&tcp(true), ends);
        let at = udp;
        for (byte, value) in [(0, 0x80), (0, 0x20), (0, 0x10), (1, 1), (2, 0x65)] {
            let mut frame = whole.clone();
            frame[at + byte] = value;
            stays(&frame, Outcome::NotTunnel);
        }
        stays(&whole[..at + 3], Outcome::NotTunnel);
        // Another service.
        let other = Packet::new("198.51.100.7", "203.0.113.11", Segment::udp(1, 2, b"x")).frame();
        assert_eq!(stays(&wrapped(&other, ends, None), Outcome::WrongVip), Fate::Passed);
    }
    for (offset, outcome) in [(0x2000u16, Outcome::Fragment), (0x0001, Outcome::Fragment)] {
        let mut frame = wrapped(&tcp(true), ENDS[0], None);
        frame[IP + 6..IP + 8].copy_from_slice(&offset.to_be_bytes());
        stays(&frame, outcome);
    }
    let mut first = wrapped(&tcp(true), ENDS[0], Some(true));
    first[IP + 6] = 0x20;
    stays(&first, Outcome::Fragment);
    first[IP + 7] = 1;
    stays(&first, Outcome::NotTunnel);
    let mut first = gre(&tcp(true), ENDS[0]);
    first[IP + 6] = 0x20;
    stays(&first, Outcome::Fragment);
    first[IP + 7] = 1;
    stays(&first, Outcome::NotTunnel);
}

#[test]
fn contradictions_of_what_is_for_us_are_malformed() {
    type Change = fn(&mut Vec<u8>);
    let inner = |ends| IP + if ends == ENDS[0] { 20 } else { 40 };
    for ends in ENDS {
        let malformed = |v4, gue, change: &dyn Fn(&mut Vec<u8>)| {
            let mut frame = wrapped(&tcp(v4), ends, gue);
            change(&mut frame);
            let (outcome, left) = strip(&frame);
            assert_eq!((outcome, outcome.fate()), (Outcome::Malformed, Fate::Dropped));
            assert_eq!(left, frame);
        };
        let at = inner(ends);
        // The inner version is not the protocol's; its length is beyond the outer one; it is cut short.
        malformed(true, None, &|frame| frame[at] = 0x65);
        malformed(false, None, &|frame| frame[at] = 0x45);
        malformed(true, None, &|frame| frame[at] = 0x44);
        malformed(true, None, &|frame| frame[at + 3] += 1);
        malformed(false, None, &|frame| frame[at + 5] += 1);
        malformed(true, None, &|frame| frame.truncate(at + 19));
        malformed(false, None, &|frame| frame.truncate(at + 39));
        malformed(true, None, &|frame| frame.truncate(frame.len() - 1));
        // The UDP length is beyond the packet, below its header, or below the packet inside.
        for length in [200, 7, 40] {
            malformed(true, Some(true), &|frame| frame[at + 5] = length);
        }
        // In GRE the version is not the ether type's, and the inner length is beyond the outer one.
        for byte in [at + 4, at + 4 + 3] {
            let mut frame = gre(&tcp(true), ends);
            frame[byte] += 0x21;
            assert_eq!(strip(&frame), (Outcome::Malformed, frame));
        }
        // A mapped IPv4 address inside IPv6.
        malformed(false, None, &|frame| {
            frame[at + 8..at + 24].copy_from_slice(&frames::address("192.0.2.1").octets());
        });
    }
    let outer: [Change; 2] = [|frame| frame[IP + 10] ^= 1, |frame| frame[IP + 2] ^= 0x40];
    for change in outer {
        let mut frame = wrapped(&tcp(true), ENDS[0], None);
        change(&mut frame);
        assert_eq!(strip(&frame).0, Outcome::Malformed);
    }
}

#[test]
fn a_packet_without_a_hop_left_is_not_handed_on() {
    for v4 in [true, false] {
        for ends in ENDS {
            for (ttl, outcome) in [(0, Outcome::TtlExpired), (1, Outcome::Ipip)] {
                let mut packet = Packet::of_family(v4, Segment::udp(1, 2, b"x"));
                packet.ttl = ttl;
                assert_eq!(strip(&wrapped(&packet.frame(), ends, None)).0, outcome);
            }
        }
    }
}

#[test]
fn outer_options_are_taken_off_too() {
    let inner = tcp(true);
    let mut frame = wrapped(&inner, ENDS[0], None);
    frame.splice(IP + 20..IP + 20, [1, 1, 1, 0]);
    frame[IP] = 0x46;
    frame[IP + 3] += 4;
    // Ones' complement: what the version byte, the length and the options add is taken from the sum.
    let check = u16::from_be_bytes([frame[IP + 10], frame[IP + 11]]);
    let sum = u32::from(!check) + 0x100 + 4 + 0x0101 + 0x0100;
    let check = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[IP + 10..IP + 12].copy_from_slice(&check.to_be_bytes());
    assert_eq!(strip(&frame), (Outcome::Ipip, inner));
}
