//! Every branch of the parser.
mod frames;

use frames::{ETHERNET, Packet, Segment, address, authentication, extension, fragment, parse as parsed, routing};
use lb_common::{
    abi::{Port, Protocol},
    packet::{HEADERS_MAX, PacketAccess as _},
    parse::{self, Network, NotOurs, Part, Problem, Transport},
    plain::{Head, HeadV4, HeadV6},
    rewrite,
};

const SYN: u8 = 2;

fn tcp() -> Segment {
    Segment::tcp(40_000, 80, SYN, b"hello")
}

fn udp() -> Segment {
    Segment::udp(40_000, 53, b"query")
}

fn network(mut frame: Vec<u8>) -> Result<Network, NotOurs> {
    parse::network(&frame.as_mut_slice())
}

fn problem(mut frame: Vec<u8>) -> Problem {
    let frame = frame.as_mut_slice();
    let network = parse::network(&frame).expect("the addresses");
    parse::transport(&frame, &network).expect_err("a problem")
}

/// Sets one byte of a frame.
fn with(packet: &Packet, offset: usize, value: u8) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[offset] = value;
    frame
}

/// What [`lb_common::plain`] finds in a frame.
fn plain(mut frame: Vec<u8>) -> Option<(Network, Transport)> {
    fn read<H: Head>(frame: &mut [u8]) -> Option<(Network, Transport)> {
        let linear = frame.len();
        let head: H = frame.read(parse::NETWORK_OFFSET)?;
        Some((head.network()?, head.transport(linear)?))
    }
    if frame[12] == 8 { read::<HeadV4>(&mut frame) } else { read::<HeadV6>(&mut frame) }
}

#[test]
fn plain_headers_read_at_once_say_the_same_and_others_are_not_plain() {
    for v4 in [true, false] {
        for segment in [tcp(), Segment::udp(40_000, 53, b"a query")] {
            let packet = Packet::of_family(v4, segment);
            for packet in [packet.clone(), packet.clone().padded(20)] {
                let mut frame = packet.frame();
                assert_eq!(plain(frame.clone()), Some(parsed(&mut frame)));
            }
            let whole = packet.frame();
            assert_eq!(plain(whole[..whole.len() - 1].to_vec()), None, "a packet that ends behind the frame");
            let other = if v4 { packet.options(&[1; 4]) } else { packet.extension(extension(0, 1)) };
            assert_eq!(plain(other.frame()), None);
        }
    }
    let (more, icmp) = (with(&Packet::v4(tcp()), 20, 0x20), with(&Packet::v4(tcp()), 23, 1));
    assert_eq!((plain(more), plain(icmp)), (None, None));
}

#[test]
fn plain_tcp_and_udp_of_both_families_are_read() {
    for v4 in [true, false] {
        for (segment, protocol, flags) in [(tcp(), Protocol::Tcp, SYN), (udp(), Protocol::Udp, 0)] {
            let packet = Packet::of_family(v4, segment);
            let mut frame = packet.frame();
            let (network, transport) = parsed(&mut frame);
            assert_eq!(network, Network { v4, source: packet.source.into(), destination: packet.destination.into() });
            assert_eq!(
                transport,
                Transport {
                    protocol,
                    source_port: Port::new(40_000),
                    destination_port: Port::new(if protocol == Protocol::Tcp { 80 } else { 53 }),
                    tcp_flags: flags,
                    part: Part::Whole,
                    ttl: 64,
                    offset: packet.transport_offset() as u16,
                    packet_len: (frame.len() - ETHERNET) as u16,
                }
            );
        }
    }
}

#[test]
fn padding_behind_the_packet_changes_nothing() {
    for v4 in [true, false] {
        let packet = Packet::of_family(v4, tcp());
        assert_eq!(parsed(&mut packet.frame()), parsed(&mut packet.clone().padded(9).frame()));
    }
}

#[test]
fn every_tcp_flag_is_read() {
    for flags in 0..=0x1f {
        let (_, transport) = parsed(&mut Packet::v4(Segment::tcp(1, 2, flags, b"")).frame());
        assert_eq!(transport.tcp_flags, flags);
    }
}

#[test]
fn what_is_not_ip_is_not_ours() {
    // ARP, MPLS, and a length instead of a type (IEEE 802.3); VLAN tags of both kinds.
    let plain = [0x0806u16, 0x8847, 60].map(|ethertype| (ethertype, NotOurs::NotIp));
    let tagged = [0x8100, 0x88a8].map(|ethertype| (ethertype, NotOurs::Tagged));
    for (ethertype, wanted) in plain.into_iter().chain(tagged) {
        let mut frame = Packet::v4(tcp()).frame();
        frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
        assert_eq!(network(frame), Err(wanted), "{ethertype:#x}");
    }
    for len in 0..ETHERNET {
        assert_eq!(network(Packet::v4(tcp()).frame()[..len].to_vec()), Err(NotOurs::NotIp), "{len} bytes");
    }
}

#[test]
fn a_frame_that_ends_within_the_ip_header_is_short() {
    for (v4, header) in [(true, 20), (false, 40)] {
        let frame = Packet::of_family(v4, tcp()).frame();
        for len in ETHERNET..ETHERNET + header {
            assert_eq!(network(frame[..len].to_vec()), Err(NotOurs::Short), "{len} bytes");
        }
        assert!(network(frame[..ETHERNET + header].to_vec()).is_ok());
    }
}

#[test]
fn ipv6_with_a_mapped_address_is_not_taken_for_ipv4() {
    for (source, destination) in [("2001:db8::1", "::ffff:203.0.113.10"), ("::ffff:198.51.100.7", "2001:db8::10")] {
        assert_eq!(network(Packet::new(source, destination, tcp()).frame()), Err(NotOurs::NotIp));
    }
    // Its neighbours are addresses like others.
    let near = Packet::new("::fffe:198.51.100.7", "::1:ffff:203.0.113.10", tcp());
    assert_eq!(network(near.frame()).unwrap().source, address("::fffe:198.51.100.7"));
}

#[test]
fn a_version_that_contradicts_the_ethertype_is_malformed() {
    for v4 in [true, false] {
        for version in (0..16).filter(|&version| version != if v4 { 4 } else { 6 }) {
            let packet = Packet::of_family(v4, tcp());
            let low = packet.frame()[ETHERNET] & 0xf;
            assert_eq!(problem(with(&packet, ETHERNET, version << 4 | low)), Problem::Malformed);
        }
    }
}

#[test]
fn an_ipv4_header_below_five_words_or_beyond_the_packet_is_malformed() {
    for words in 0..5 {
        assert_eq!(problem(with(&Packet::v4(tcp()), ETHERNET, 0x40 | words)), Problem::Malformed);
    }
    // 15 words are 60 bytes; the packet has 20 + 8 + 5.
    assert_eq!(problem(with(&Packet::v4(udp()), ETHERNET, 0x4f)), Problem::Malformed);
}

#[test]
fn lengths_that_lie_are_malformed() {
    let set = |v4: bool, segment: Segment, length: usize| {
        let mut frame = Packet::of_family(v4, segment).frame();
        let field = ETHERNET + if v4 { 2 } else { 4 };
        frame[field..field + 2].copy_from_slice(&(length as u16).to_be_bytes());
        frame
    };
    // IPv4 counts its header, IPv6 does not; the segments are 25 (TCP) and 13 (UDP) bytes.
    for length in (0..40).chain([46, 100, 65_535]) {
        assert_eq!(problem(set(true, tcp(), length)), Problem::Malformed, "IPv4 {length}");
    }
    for length in (0..20).chain([26, 100, 65_495, 65_496, 65_535]) {
        assert_eq!(problem(set(false, tcp(), length)), Problem::Malformed, "IPv6 {length}");
    }
    // Cutting into TCP's payload is a shorter packet, into UDP's a contradiction to its length.
    assert_eq!(parsed(&mut set(true, tcp(), 40)).1.packet_len, 40);
    for length in 20..33 {
        assert_eq!(problem(set(true, udp(), length)), Problem::Malformed, "UDP {length}");
    }
}

#[test]
fn an_ipv6_packet_longer_than_an_ipv4_one_can_be_is_malformed() {
    // 40 bytes of header and what the length says: 65,535 in all, or one more.
    let packet = |segment: usize| Packet::v6(Segment::tcp(1, 2, SYN, &vec![0; segment - 20]));
    assert_eq!(parsed(&mut packet(65_495).frame()).1.packet_len, u16::MAX);
    assert_eq!(problem(packet(65_496).frame()), Problem::Malformed);
}

#[test]
fn a_frame_cut_anywhere_is_malformed() {
    for v4 in [true, false] {
        for segment in [tcp(), udp()] {
            let frame = Packet::of_family(v4, segment).frame();
            for len in ETHERNET + if v4 { 20 } else { 40 }..frame.len() {
                assert_eq!(problem(frame[..len].to_vec()), Problem::Malformed, "{len} bytes");
            }
        }
    }
}

#[test]
fn ipv4_options_are_skipped() {
    for words in 0..=10 {
        let packet = Packet::v4(tcp()).options(&vec![1; words * 4]);
        let (_, transport) = parsed(&mut packet.frame());
        assert_eq!(transport.offset as usize, ETHERNET + 20 + words * 4);
        assert_eq!(transport.destination_port, Port::new(80));
    }
}

#[test]
fn ipv4_fragments_are_told_first_middle_and_last() {
    let flags = |high: u8, low: u8| {
        let mut frame = Packet::v4(tcp()).frame();
        (frame[ETHERNET + 6], frame[ETHERNET + 7]) = (high, low);
        frame
    };
    for (what, high, low) in [("first", 0x20, 0), ("middle", 0x20, 185), ("last", 0, 185), ("far", 0x1f, 0)] {
        assert_eq!(problem(flags(high, low)), Problem::Fragment, "{what}");
    }
    // "Don't fragment" and the reserved bit are none.
    for high in [0, 0x40, 0x80] {
        parsed(&mut flags(high, 0));
    }
}

#[test]
fn ipv6_fragments_are_told_and_atomic_ones_are_whole() {
    for (what, header) in
        [("first", fragment(0, true)), ("middle", fragment(185, true)), ("last", fragment(185, false))]
    {
        assert_eq!(problem(Packet::v6(tcp()).extension(header).frame()), Problem::Fragment, "{what}");
    }
    let (_, transport) = parsed(&mut Packet::v6(tcp()).extension(fragment(0, false)).frame());
    assert_eq!(transport.offset as usize, ETHERNET + 48);
    // The two reserved bits of the offset's word are to be ignored (RFC 8200, 4.5).
    let (kind, mut bytes) = fragment(0, false);
    bytes[3] |= 6;
    parsed(&mut Packet::v6(tcp()).extension((kind, bytes)).frame());
}

#[test]
fn each_ipv6_extension_header_is_walked() {
    let headers = [
        extension(0, 1),
        extension(0, 5),
        extension(60, 1),
        extension(60, 33),
        extension(135, 2),
        routing(0),
        fragment(0, false),
        // RFC 4302: three fixed words and an integrity check value.
        authentication(6),
        authentication(7),
    ];
    for header in headers {
        for segment in [tcp(), udp()] {
            let packet = Packet::v6(segment).extension(header.clone());
            let (_, transport) = parsed(&mut packet.frame());
            assert_eq!(transport.offset as usize, packet.transport_offset(), "{header:?}");
            assert_eq!(transport.source_port, Port::new(40_000));
        }
    }
}

#[test]
fn a_routing_header_with_segments_left_is_not_for_us_to_balance() {
    assert_eq!(problem(Packet::v6(tcp()).extension(routing(1)).frame()), Problem::NotTransport);
}

#[test]
fn six_extension_headers_are_walked_and_seven_are_too_many() {
    let all = [extension(0, 1), extension(60, 2), routing(0), fragment(0, false), authentication(6), extension(60, 1)];
    let mut packet = Packet::v6(udp());
    packet.extensions = all.to_vec();
    let (_, transport) = parsed(&mut packet.frame());
    assert_eq!(transport.offset as usize, packet.transport_offset());

    for kind in [0, 43, 44, 51, 60, 135] {
        let mut packet = packet.clone();
        packet.extensions.push((kind, vec![0; 8]));
        assert_eq!(problem(packet.frame()), Problem::Malformed, "{kind}");
    }
}

#[test]
fn an_extension_header_that_leaves_the_packet_is_malformed() {
    // It says 2,048 bytes.
    let (kind, mut bytes) = extension(60, 1);
    bytes[1] = 255;
    assert_eq!(problem(Packet::v6(tcp()).extension((kind, bytes.clone())).frame()), Problem::Malformed);
    // The same before a protocol that is none of ours.
    let other = Segment::Other { protocol: 58, bytes: vec![0; 8] };
    assert_eq!(problem(Packet::v6(other).extension((kind, bytes)).frame()), Problem::Malformed);
    // By little, too: 24 bytes where 16 are left.
    let (kind, mut bytes) = extension(60, 1);
    bytes[1] = 2;
    let other = Segment::Other { protocol: 58, bytes: vec![0; 8] };
    assert_eq!(problem(Packet::v6(other).extension((kind, bytes)).padded(64).frame()), Problem::Malformed);
    // A frame that ends where the extension header should begin.
    let mut frame = with(&Packet::v6(tcp()), ETHERNET + 6, 60);
    frame.truncate(ETHERNET + 40);
    frame[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&[0, 0]);
    assert_eq!(problem(frame), Problem::Malformed);
}

#[test]
fn other_protocols_are_not_transport() {
    // ICMP, IPIP, GRE, ESP, ICMPv6, "no next header", UDP-Lite.
    for protocol in [1, 4, 47, 50, 58, 59, 136] {
        let segment = Segment::Other { protocol, bytes: vec![0; 16] };
        let of = |icmp| if protocol == icmp { Problem::Icmp } else { Problem::NotTransport };
        assert_eq!(problem(Packet::v4(segment.clone()).frame()), of(1));
        assert_eq!(problem(Packet::v6(segment.clone()).frame()), of(58));
        assert_eq!(problem(Packet::v6(segment).extension(extension(60, 1)).frame()), of(58));
    }
    // IPv6 extension headers mean nothing under IPv4.
    let hop_by_hop = Segment::Other { protocol: 0, bytes: vec![6; 16] };
    assert_eq!(problem(Packet::v4(hop_by_hop).frame()), Problem::NotTransport);
}

#[test]
fn a_tcp_header_below_five_words_or_beyond_the_packet_is_malformed() {
    for v4 in [true, false] {
        let packet = Packet::of_family(v4, tcp());
        let data_offset = packet.transport_offset() + 12;
        for words in 0..5 {
            assert_eq!(problem(with(&packet, data_offset, words << 4)), Problem::Malformed);
        }
        // 20 bytes of header and 5 of payload: six words fit.
        parsed(&mut with(&packet, data_offset, 6 << 4));
        for words in 7..16 {
            assert_eq!(problem(with(&packet, data_offset, words << 4)), Problem::Malformed);
            // Nor does padding behind the packet count.
            assert_eq!(problem(with(&packet.clone().padded(60), data_offset, words << 4)), Problem::Malformed);
        }
    }
}

#[test]
fn a_udp_length_below_the_header_or_beyond_the_packet_is_malformed() {
    for v4 in [true, false] {
        let packet = Packet::of_family(v4, udp()).padded(20);
        let length = packet.transport_offset() + 5;
        for lie in (0..8).chain([14, 20, 255]) {
            assert_eq!(problem(with(&packet, length, lie)), Problem::Malformed, "{lie}");
        }
        // Shorter than the packet is allowed: the rest is nobody's (RFC 768).
        for truth in 8..=13 {
            parsed(&mut with(&packet, length, truth));
        }
    }
}

#[test]
fn headers_are_read_up_to_the_limit_and_not_beyond() {
    // 54 bytes of Ethernet and IPv6, 920 of options, four per word: with 7 words TCP is at 1,002.
    let far = |words| Packet::v6(tcp()).extension(extension(60, 115)).extension(authentication(words));
    for (words, fits) in [(7, true), (8, false)] {
        let packet = far(words);
        assert_eq!(packet.transport_offset() + 20 <= HEADERS_MAX, fits);
        if fits {
            let mut frame = packet.frame();
            let (network, transport) = parsed(&mut frame);
            assert_eq!(transport.offset as usize, packet.transport_offset());
            let to = frames::translation(("2001:db8::20", 1), ("2001:db8::21", 2));
            rewrite::translate(&mut frame.as_mut_slice(), &network, &transport, &to).expect("all within reach");
        } else {
            assert_eq!(problem(packet.frame()), Problem::Malformed);
        }
    }
}

#[test]
fn a_large_payload_does_not_matter() {
    for v4 in [true, false] {
        let packet = Packet::of_family(v4, Segment::tcp(1, 2, 0x10, &[7; 8_948]));
        assert_eq!(parsed(&mut packet.frame()).1.offset as usize, packet.transport_offset());
    }
}

/// An SCTP packet: ports, verification tag, checksum (not looked at), one chunk.
fn sctp(chunk: u8) -> Segment {
    let bytes = [&[0x9c, 0x40, 0x0b, 0x59, 1, 2, 3, 4, 0xde, 0xad, 0xbe, 0xef, chunk, 0, 0, 4][..], &[7; 12]].concat();
    Segment::Other { protocol: 132, bytes }
}

#[test]
fn sctp_chunks_say_what_tcp_flags_would() {
    use lb_common::flow::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN};
    let words = [
        (1, TCP_SYN),
        (2, TCP_ACK),
        (0, TCP_ACK),
        (3, TCP_ACK),
        (4, TCP_ACK),
        (5, TCP_ACK),
        (6, TCP_RST),
        (7, TCP_FIN | TCP_ACK),
        (8, TCP_FIN | TCP_ACK),
        (10, TCP_ACK),
        (14, TCP_RST),
        (192, TCP_ACK),
    ];
    for (chunk, wanted) in words {
        for v4 in [true, false] {
            let mut frame = Packet::of_family(v4, sctp(chunk)).padded(5).frame();
            let (_, transport) = parsed(&mut frame);
            assert_eq!((transport.protocol, transport.tcp_flags), (Protocol::Sctp, wanted), "chunk {chunk}");
            assert_eq!((transport.source_port, transport.destination_port), (Port::new(40_000), Port::new(2905)));
        }
    }
}

#[test]
fn an_sctp_packet_without_a_chunk_is_malformed() {
    let Segment::Other { bytes, .. } = sctp(1) else { panic!("bytes") };
    for length in 0..16 {
        let mut frame =
            Packet::v4(Segment::Other { protocol: 132, bytes: bytes[..length].to_vec() }).padded(20).frame();
        let network = parse::network(&frame.as_mut_slice()).unwrap();
        assert_eq!(parse::transport(&frame.as_mut_slice(), &network), Err(Problem::Malformed), "{length}");
    }
}
