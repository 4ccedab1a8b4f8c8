//! ICMP errors, read and translated, against frames of another implementation.
mod frames;

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, TransportSlice, icmpv4};
use frames::{ETHERNET, Packet, Segment, address, extension, fragment, translation, verified};
use lb_common::{
    abi::Port,
    icmp::{
        error::translate,
        quote::{IcmpError, NoError, Quoted},
        too_big,
    },
    packet::PacketAccess as _,
    parse,
};

const MTU: u16 = 1400;

/// An error that quotes these bytes: "too big", from a router to the source of [`reply`].
fn told(v4: bool, quoted: &[u8]) -> Packet {
    if v4 {
        let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: MTU };
        let header = Icmpv4Header::with_checksum(Icmpv4Type::DestinationUnreachable(kind), quoted);
        let bytes = [&header.to_bytes()[..], quoted].concat();
        Packet::new("192.0.2.254", "203.0.113.10", Segment::Other { protocol: 1, bytes })
    } else {
        let ip = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        let kind = Icmpv6Type::PacketTooBig { mtu: MTU.into() };
        let header = Icmpv6Header::with_checksum(kind, ip("2001:db8:1::fe"), ip("2001:db8::10"), quoted).unwrap();
        let bytes = [&header.to_bytes()[..], quoted].concat();
        Packet::new("2001:db8:1::fe", "2001:db8::10", Segment::Other { protocol: 58, bytes })
    }
}

/// What the service sent to its client.
fn reply(v4: bool, segment: Segment) -> Packet {
    if v4 {
        Packet::new("203.0.113.10", "198.51.100.7", segment)
    } else {
        Packet::new("2001:db8::10", "2001:db8:1::7", segment)
    }
}

fn quote(packet: &Packet) -> Vec<u8> {
    packet.frame()[ETHERNET..].to_vec()
}

fn read(frame: &mut [u8]) -> (IcmpError, Quoted) {
    let network = parse::network(&&mut *frame).unwrap();
    let error = IcmpError::of(&&mut *frame, &network).unwrap();
    let quoted = Quoted::at(&&mut *frame, network.v4, error.quotation(), error.end as usize).unwrap();
    (error, quoted)
}

#[test]
fn an_error_and_its_quotation_are_read() {
    for v4 in [true, false] {
        let mut frame = told(v4, &quote(&reply(v4, Segment::udp(53, 40_000, b"answer")))).padded(7).frame();
        let (error, quoted) = read(&mut frame);
        assert!(error.too_big && error.mtu == MTU.into());
        assert_eq!(error.end as usize, frame.len() - 7);
        assert_eq!(error.packet_len as usize, frame.len() - 7 - ETHERNET);
        assert_eq!(quoted.network.source, address(if v4 { "203.0.113.10" } else { "2001:db8::10" }));
        assert_eq!((quoted.source_port, quoted.destination_port), (Port::new(53), Port::new(40_000)));
        assert_eq!(quoted.protocol, 17);
    }
}

#[test]
fn ports_are_found_behind_options_and_extension_headers() {
    let options = reply(true, Segment::udp(53, 40_000, b"")).options(&[1; 40]);
    let mut frame = told(true, &quote(&options)).options(&[1; 12]).frame();
    assert_eq!(read(&mut frame).1.destination_port, Port::new(40_000));
    let extended = reply(false, Segment::udp(53, 40_000, b""))
        .extension(extension(0, 2))
        .extension(frames::authentication(5))
        .extension(frames::routing(1))
        .extension(fragment(0, true));
    let mut frame = told(false, &quote(&extended)).frame();
    let quoted = read(&mut frame).1;
    assert_eq!((quoted.protocol, quoted.destination_port), (17, Port::new(40_000)));
    assert_eq!(quoted.transport as usize, ETHERNET + 48 + 40 + 16 + 20 + 8 + 8);
}

#[test]
fn later_fragments_and_other_protocols_have_no_ports() {
    let other = reply(true, Segment::Other { protocol: 47, bytes: vec![9; 16] });
    let quoted = read(&mut told(true, &quote(&other)).frame()).1;
    assert_eq!((quoted.protocol, quoted.source_port, quoted.destination_port), (47, Port::ANY, Port::ANY));
    let mut later = quote(&reply(true, Segment::udp(53, 40_000, b"x")));
    later[7] = 1;
    let quoted = read(&mut told(true, &later).frame()).1;
    assert_eq!((quoted.protocol, quoted.source_port), (44, Port::ANY));
    let later = reply(false, Segment::udp(53, 40_000, b"x")).extension(fragment(1, false));
    let quoted = read(&mut told(false, &quote(&later)).frame()).1;
    assert_eq!((quoted.protocol, quoted.source_port), (44, Port::ANY));
}

#[test]
fn what_is_cut_short_or_contradictory_is_no_error() {
    for v4 in [true, false] {
        let whole = told(v4, &quote(&reply(v4, Segment::udp(53, 40_000, b"")))).frame();
        let header = ETHERNET + if v4 { 20 } else { 40 } + 8;
        for len in ETHERNET + if v4 { 20 } else { 40 }..whole.len() {
            let mut frame = whole[..len].to_vec();
            let network = parse::network(&frame.as_mut_slice()).unwrap();
            assert_eq!(IcmpError::of(&frame.as_mut_slice(), &network), Err(NoError::Malformed), "{len}");
        }
        let mut frame = whole.clone();
        for end in header..whole.len() {
            assert_eq!(Quoted::at(&frame.as_mut_slice(), v4, header, end), None, "{end}");
        }
        assert_eq!(Quoted::at(&frame.as_mut_slice(), !v4, header, whole.len()), None, "of another version");
        frame[header - 8] = if v4 { 8 } else { 128 };
        let network = parse::network(&frame.as_mut_slice()).unwrap();
        assert_eq!(IcmpError::of(&frame.as_mut_slice(), &network), Err(NoError::Other));
    }
}

#[test]
fn extensions_are_not_part_of_the_quotation() {
    for v4 in [true, false] {
        let mut quoted = quote(&reply(v4, Segment::udp(53, 40_000, b"")));
        quoted.resize(136, 0);
        let mut frame = told(v4, &quoted).frame();
        let icmp = ETHERNET + if v4 { 20 } else { 40 };
        // Time exceeded; 128 bytes, in units of four and of eight.
        (frame[icmp], frame[icmp + if v4 { 5 } else { 4 }]) = if v4 { (11, 32) } else { (3, 16) };
        let network = parse::network(&frame.as_mut_slice()).unwrap();
        let error = IcmpError::of(&frame.as_mut_slice(), &network).unwrap();
        assert_eq!(error.end as usize, icmp + 8 + 128);
        assert!(!error.too_big && error.mtu == 0);
        // Shorter than any that the standard allows: old routers left something there.
        frame[icmp + if v4 { 5 } else { 4 }] = 3;
        let error = IcmpError::of(&frame.as_mut_slice(), &network).unwrap();
        assert_eq!(error.end as usize, frame.len());
    }
}

#[test]
fn a_translated_error_is_the_one_about_the_translated_packet() {
    let segments = [
        Segment::tcp(80, 40_000, 0x10, b"data"),
        Segment::udp(80, 40_000, b"data"),
        Segment::Udp { source: 80, destination: 40_000, checksum: false, payload: b"data".to_vec() },
    ];
    for (v4, segment) in segments.iter().flat_map(|segment| [(true, segment), (false, segment)]) {
        let (server, router, us) = if v4 {
            ("10.0.0.11", "192.0.2.254", "10.0.0.1")
        } else {
            ("2001:db8:2::11", "2001:db8:1::fe", "2001:db8:2::1")
        };
        let mut frame = told(v4, &quote(&reply(v4, segment.clone()))).frame();
        let (error, quoted) = read(&mut frame);
        let to = translation((server, 8080), (us, 1234));
        let (from, receiver) = (address(router), address(server));
        translate(&mut frame.as_mut_slice(), &error, &quoted, &from, &receiver, &to).unwrap();

        let mut sent = reply(v4, segment.clone());
        (sent.source, sent.destination) = (server.parse().unwrap(), us.parse().unwrap());
        match &mut sent.segment {
            Segment::Tcp { header, .. } => (header.source_port, header.destination_port) = (8080, 1234),
            Segment::Udp { source, destination, .. } => (*source, *destination) = (8080, 1234),
            Segment::Other { .. } => unreachable!(),
        }
        verified(&frame);
        let message = ETHERNET + if v4 { 20 } else { 40 };
        assert_eq!(frame[message + 8..], quote(&sent));
    }
}

#[test]
fn what_does_not_fit_is_told_in_an_error_that_others_read() {
    for (v4, mtu, told) in [(true, 1480, 1480), (true, 70_000, 65_535), (false, 1480, 1480), (false, 1000, 1280)] {
        let payload: Vec<u8> = (0..1400u32).map(|n| (n * 5) as u8).collect();
        let packet = reply(v4, Segment::udp(1, 2, &payload)).frame();
        let quotation = too_big::quotation(v4, packet.len() - ETHERNET);
        let headers = too_big::headers(v4);
        let mut frame = vec![0; ETHERNET + headers];
        frame[12..14].copy_from_slice(&packet[12..14]);
        frame.extend_from_slice(&packet[ETHERNET..ETHERNET + quotation]);
        let (from, to) = if v4 { ("203.0.113.10", "198.51.100.7") } else { ("2001:db8::10", "2001:db8:1::7") };
        too_big::write(&mut frame.as_mut_slice(), &address(from), &address(to), quotation, mtu).unwrap();
        assert_eq!(frame.len() - ETHERNET, if v4 { 576 } else { 1280 });
        match verified(&frame).transport.unwrap() {
            TransportSlice::Icmpv4(icmp) => {
                let kind = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: told as u16 };
                assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(kind));
                assert_eq!(icmp.payload(), &packet[ETHERNET..ETHERNET + quotation]);
            }
            TransportSlice::Icmpv6(icmp) => {
                assert_eq!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu: told });
                assert_eq!(icmp.payload(), &packet[ETHERNET..ETHERNET + quotation]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn sums_are_of_any_part_up_to_their_limit() {
    let mut frame: Vec<u8> = (0..4096u32).map(|n| (n * 31 % 251) as u8).collect();
    let sum = |frame: &mut Vec<u8>, from, len| frame.as_mut_slice().sum(from, len).map(|sum| sum.finish());
    assert_eq!(sum(&mut frame, 0, 0), Some([0xff, 0xff]));
    assert_eq!(sum(&mut frame, 3, 1), Some([!frame[3], 0xff]));
    assert!(sum(&mut frame, 1023, 2047).is_some());
    assert_eq!(sum(&mut frame, 1024, 4), None);
    assert_eq!(sum(&mut frame, 0, 2048), None);
    frame.truncate(100);
    assert_eq!(sum(&mut frame, 90, 11), None);
}
