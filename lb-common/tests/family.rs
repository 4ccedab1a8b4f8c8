//! Translation between IPv4 and IPv6: headers against another implementation, ICMP against the tables
//! of RFC 7915.

mod frames;

use frames::{ETHERNET, Packet, Segment, authentication, extension, fragment, mark, parse, translation, verified};
use lb_common::{
    family::{
        self,
        icmp::{Message, Mtus},
    },
    parse::Transport,
};

const ID: u16 = 0x4711;

/// The frame after its translation; link-layer addresses are left to the caller, and are nothing.
fn translated(frame: &[u8], source: (&str, u16), destination: (&str, u16)) -> Option<Vec<u8>> {
    let mut frame = frame.to_vec();
    let (network, transport) = parse(&mut frame);
    let header = family::read(&frame.as_mut_slice(), &network, &transport, ID)?;
    let growth = header.growth();
    let mut new = if growth >= 0 {
        [vec![0; growth as usize], frame].concat()
    } else {
        frame[growth.unsigned_abs() as usize..].to_vec()
    };
    let to = translation(source, destination);
    family::write(&mut new.as_mut_slice(), &header, &network, &transport, &to).unwrap();
    new[..12].fill(0);
    Some(new)
}

fn plain(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..12].fill(0);
    frame
}

#[test]
fn both_transports_are_translated_in_both_directions() {
    let segments =
        |from, to| [Segment::tcp(from, to, 0x18, b"odd"), Segment::udp(from, to, b"even"), Segment::udp(from, to, b"")];
    for (before, after) in segments(40_000, 80).into_iter().zip(segments(1030, 8080)) {
        let v6 = Packet::v6(before.clone()).padded(3);
        let got = translated(&v6.frame(), ("10.0.0.1", 1030), ("10.0.0.11", 8080)).unwrap();
        let mut wanted = Packet::new("10.0.0.1", "10.0.0.11", after.clone()).padded(3);
        wanted.ttl = 63;
        let mut wanted = plain(&wanted);
        mark(&mut wanted, 0, ID, false);
        assert_eq!(got, wanted);

        let v4 = Packet::v4(before).padded(3);
        let got = translated(&v4.frame(), ("2001:db8:2::1", 1030), ("2001:db8:2::11", 8080)).unwrap();
        let mut wanted = Packet::new("2001:db8:2::1", "2001:db8:2::11", after).padded(3);
        wanted.ttl = 63;
        assert_eq!(got, plain(&wanted));
    }
}

#[test]
fn the_traffic_class_is_copied_whole() {
    for class in [0, 1, 0x2e << 2, 0xff] {
        let mut frame = Packet::v6(Segment::udp(1, 2, b"x")).frame();
        mark(&mut frame, class, 0, false);
        assert_eq!(translated(&frame, ("10.0.0.1", 3), ("10.0.0.2", 4)).unwrap()[ETHERNET + 1], class);
        let mut frame = Packet::v4(Segment::udp(1, 2, b"x")).frame();
        mark(&mut frame, class, 0, true);
        let got = translated(&frame, ("fd00::1", 3), ("fd00::2", 4)).unwrap();
        assert_eq!(got[ETHERNET..ETHERNET + 4], [0x60 | class >> 4, class << 4, 0, 0]);
    }
}

#[test]
fn ipv4_packets_of_up_to_1260_bytes_may_be_fragmented() {
    for (length, dont_fragment) in [(29, false), (1260, false), (1261, true), (1480, true)] {
        let frame = Packet::v6(Segment::udp(1, 2, &vec![0; length - 28])).frame();
        let got = translated(&frame, ("10.0.0.1", 3), ("10.0.0.2", 4)).unwrap();
        assert_eq!((got.len() - ETHERNET, got[ETHERNET + 6] & 0x40 != 0), (length, dont_fragment));
        assert_eq!(got[ETHERNET + 4..ETHERNET + 6], ID.to_be_bytes());
        verified(&got);
    }
}

#[test]
fn headers_that_the_other_family_ignores_are_left_out() {
    let packet = Packet::v6(Segment::tcp(1, 2, 0x10, b"x")).extension(extension(0, 2)).extension(extension(60, 1));
    let got = translated(&packet.frame(), ("10.0.0.1", 3), ("10.0.0.2", 4)).unwrap();
    assert_eq!(got.len(), ETHERNET + 20 + 20 + 1);
    verified(&got);
    let packet = Packet::v6(Segment::udp(1, 2, b"x")).extension(fragment(0, false));
    let got = translated(&packet.frame(), ("10.0.0.1", 3), ("10.0.0.2", 4)).unwrap();
    assert_eq!(got[ETHERNET + 4..ETHERNET + 8], [0, 1, 0, 0], "an atomic fragment has an identification");
    let packet = Packet::v4(Segment::udp(1, 2, b"x")).options(&[1, 1, 1, 0]);
    let got = translated(&packet.frame(), ("fd00::1", 3), ("fd00::2", 4)).unwrap();
    assert_eq!(got.len(), ETHERNET + 40 + 8 + 1);
    verified(&got);
}

#[test]
fn what_cannot_be_said_in_the_other_family_is_refused() {
    let udp = || Segment::udp(1, 2, b"x");
    for options in [[131, 7, 4, 10, 0, 0, 1, 0], [1, 1, 137, 4, 4, 0, 0, 0], [131, 7, 7, 10, 0, 0, 1, 0]] {
        assert_eq!(translated(&Packet::v4(udp()).options(&options).frame(), ("fd00::1", 3), ("fd00::2", 4)), None);
    }
    let used_up = Packet::v4(udp()).options(&[131, 7, 8, 10, 0, 0, 1, 0]);
    assert!(translated(&used_up.frame(), ("fd00::1", 3), ("fd00::2", 4)).is_some());
    for header in [authentication(4), extension(135, 1)] {
        let packet = Packet::v6(udp()).extension(extension(0, 1)).extension(header);
        assert_eq!(translated(&packet.frame(), ("10.0.0.1", 3), ("10.0.0.2", 4)), None);
    }
}

#[test]
fn only_udp_over_ipv4_lacks_a_checksum() {
    let without = |checksum| Segment::Udp { source: 1, destination: 2, checksum, payload: b"x".to_vec() };
    let lacks = |packet: &Packet| {
        let mut frame = packet.frame();
        let (network, transport): (_, Transport) = parse(&mut frame);
        family::lacks_checksum(&frame.as_mut_slice(), &network, &transport)
    };
    assert!(lacks(&Packet::v4(without(false))));
    assert!(!lacks(&Packet::v4(without(true))) && !lacks(&Packet::v6(without(false))));
    assert!(!lacks(&Packet::v4(Segment::tcp(1, 2, 2, b""))));
}

const MTUS: Mtus = Mtus { v4: 1500, v6: 1500 };

const fn message(kind: u8, code: u8, rest: u32) -> Message {
    Message { kind, code, rest: rest.to_be_bytes() }
}

/// RFC 7915, 4.2; what is not listed is dropped.
#[test]
fn icmp_becomes_icmpv6_as_in_the_table() {
    let table = [
        ((8, 0), Some((128, 0))),
        ((0, 0), Some((129, 0))),
        ((3, 0), Some((1, 0))),
        ((3, 1), Some((1, 0))),
        ((3, 2), Some((4, 1))),
        ((3, 3), Some((1, 4))),
        ((3, 4), Some((2, 0))),
        ((3, 5), Some((1, 0))),
        ((3, 6), Some((1, 0))),
        ((3, 7), Some((1, 0))),
        ((3, 8), Some((1, 0))),
        ((3, 9), Some((1, 1))),
        ((3, 10), Some((1, 1))),
        ((3, 11), Some((1, 0))),
        ((3, 12), Some((1, 0))),
        ((3, 13), Some((1, 1))),
        ((3, 14), None),
        ((3, 15), Some((1, 1))),
        ((3, 16), None),
        ((11, 0), Some((3, 0))),
        ((11, 1), Some((3, 1))),
        ((12, 0), Some((4, 0))),
        ((12, 1), None),
        ((12, 2), Some((4, 0))),
    ];
    for ((kind, code), wanted) in table {
        let got = message(kind, code, 0).to_v6(&MTUS, 1500).map(|new| (new.kind, new.code));
        assert_eq!(got, wanted, "type {kind} code {code}");
    }
    // Source quench, redirect, router discovery, timestamps, address masks, and whatever is not known.
    for kind in [1, 2, 4, 5, 6, 7, 9, 10, 13, 14, 15, 16, 17, 18, 30, 42, 255] {
        assert_eq!(message(kind, 0, 0).to_v6(&MTUS, 1500), None, "type {kind}");
    }
    assert_eq!(message(3, 2, 0).to_v6(&MTUS, 1500).unwrap().rest, [0, 0, 0, 6], "points at the next header");
    assert_eq!(message(8, 0, 0x1234_5678).to_v6(&MTUS, 0).unwrap().rest, [0x12, 0x34, 0x56, 0x78]);
}

/// RFC 7915, 5.2.
#[test]
fn icmpv6_becomes_icmp_as_in_the_table() {
    let table = [
        ((128, 0), Some((8, 0))),
        ((129, 0), Some((0, 0))),
        ((1, 0), Some((3, 1))),
        ((1, 1), Some((3, 10))),
        ((1, 2), Some((3, 1))),
        ((1, 3), Some((3, 1))),
        ((1, 4), Some((3, 3))),
        ((1, 5), None),
        ((1, 6), None),
        ((2, 0), Some((3, 4))),
        ((3, 0), Some((11, 0))),
        ((3, 1), Some((11, 1))),
        ((4, 0), Some((12, 0))),
        ((4, 1), Some((3, 2))),
        ((4, 2), None),
        ((4, 3), None),
    ];
    for ((kind, code), wanted) in table {
        let got = message(kind, code, 0).to_v4(&MTUS).map(|new| (new.kind, new.code));
        assert_eq!(got, wanted, "type {kind} code {code}");
    }
    // Multicast listeners and neighbour discovery are of one link; others are not known.
    for kind in [0, 5, 100, 127, 130, 131, 132, 133, 134, 135, 136, 137, 143, 200, 255] {
        assert_eq!(message(kind, 0, 0).to_v4(&MTUS), None, "type {kind}");
    }
}

#[test]
fn pointers_point_at_the_same_field() {
    // RFC 7915, figure 3: from each byte of the IPv4 header, to.
    const NONE: i16 = -1;
    const FIGURE_3: [i16; 20] = [0, 1, 4, 4, NONE, NONE, NONE, NONE, 7, 6, NONE, NONE, 8, 8, 8, 8, 24, 24, 24, 24];
    for pointer in 0..=255u8 {
        let got = message(12, 0, u32::from(pointer) << 24).to_v6(&MTUS, 0).map(|new| u32::from_be_bytes(new.rest));
        let wanted = FIGURE_3.get(usize::from(pointer)).copied().unwrap_or(NONE);
        assert_eq!(got.map_or(NONE, |pointer| pointer as i16), wanted, "{pointer}");
    }
    // Figure 6: from the first bytes of the IPv6 header, to; then its addresses.
    const FIGURE_6: [i16; 8] = [0, 1, NONE, NONE, 2, 2, 9, 8];
    for pointer in (0..=255).chain([1 << 16, 1 << 31]) {
        let got = message(4, 0, pointer).to_v4(&MTUS).map(|new| new.rest);
        let wanted = match pointer {
            0..8 => FIGURE_6[pointer as usize],
            8..24 => 12,
            24..40 => 16,
            _ => NONE,
        };
        assert_eq!(got.map_or(NONE, |rest| i16::from(rest[0])), wanted, "{pointer}");
        assert!(got.is_none_or(|rest| rest[1..] == [0; 3]));
    }
}

#[test]
fn mtus_are_told_in_the_size_of_the_other_family() {
    let to_v6 = |told: u16, quoted, v4, v6| {
        let new = message(3, 4, told.into()).to_v6(&Mtus { v4, v6 }, quoted).unwrap();
        u32::from_be_bytes(new.rest)
    };
    assert_eq!(to_v6(1400, 1500, 1500, 1500), 1420);
    assert_eq!(to_v6(1500, 1500, 1500, 1500), 1500, "not more than the way to the sender takes");
    assert_eq!(to_v6(9000, 9000, 1400, 9000), 1420, "nor than the way on");
    assert_eq!(to_v6(576, 1500, 1500, 1500), 1280, "never less than every IPv6 link takes");
    assert_eq!(to_v6(0, 1500, 1500, 1600), 1512, "an old router: the plateau below the packet");
    let to_v4 = |told, v4, v6| {
        let new = message(2, 0, told).to_v4(&Mtus { v4, v6 }).unwrap();
        u32::from_be_bytes(new.rest)
    };
    assert_eq!(to_v4(1280, 1500, 1500), 1260);
    assert_eq!(to_v4(1500, 1400, 1500), 1400);
    assert_eq!(to_v4(9000, 9000, 1480), 1460);
    assert_eq!(to_v4(u32::MAX, u32::MAX, u32::MAX), 65_535);
    assert_eq!(to_v4(7, 1500, 1500), 0, "contradictory, but no wrap");
}
