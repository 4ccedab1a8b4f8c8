//! Resets and port unreachables, read back as their receiver would.
mod frames;

use etherparse::{Icmpv4Type, Icmpv6Type, LinkSlice, NetSlice, TransportSlice, icmpv4, icmpv6};
use frames::{CLIENT_MAC, ETHERNET, OUR_MAC, Packet, Segment, authentication, extension, fragment, parse, verified};
use lb_common::{
    answer::{self, QUOTE_MAX},
    parse as parser,
};
use network_types::eth::EthHdr;

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 0x10;

/// What the data path does: write, then cut.
fn reset(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    let (network, transport) = parse(&mut frame);
    answer::reset(&mut frame.as_mut_slice(), &network, &transport).expect("room for a reset");
    frame.truncate(answer::reset_len(network.v4));
    frame
}

/// What the data path does: grow the head, cut, write.
fn unreachable(packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    let (network, transport) = parse(&mut frame);
    let ethernet =
        EthHdr { dst_addr: OUR_MAC, src_addr: CLIENT_MAC, ether_type: u16::from_ne_bytes([frame[12], frame[13]]) };
    frame.splice(0..0, vec![0xee; answer::unreachable_growth(network.v4)]);
    let len = answer::unreachable_len(&network, &transport);
    assert!(len <= frame.len(), "the frame would have to grow at its end");
    frame.truncate(len);
    answer::unreachable(&mut frame.as_mut_slice(), &ethernet, &network, &transport).expect("room for the answer");
    frame
}

fn assert_turned_round(packet: &Packet, answer: &etherparse::SlicedPacket<'_>) {
    let Some(LinkSlice::Ethernet2(ethernet)) = &answer.link else { panic!("no Ethernet header") };
    assert_eq!((ethernet.source(), ethernet.destination()), (OUR_MAC, CLIENT_MAC));
    let (source, destination, ttl): (std::net::IpAddr, std::net::IpAddr, u8) = match answer.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => (ip.header().source().into(), ip.header().destination().into(), ip.header().ttl()),
        NetSlice::Ipv6(ip) => (ip.header().source().into(), ip.header().destination().into(), ip.header().hop_limit()),
        other => panic!("unexpected {other:?}"),
    };
    assert_eq!((source, destination, ttl), (packet.destination, packet.source, 64));
}

/// Flags and payload of the packet; sequence number, acknowledgement number and ACK of its reset.
/// The builder's packets have sequence 0x12345678 and, with ACK, acknowledge 0x9abcdef0.
const RESETS: &[(u8, &[u8], u32, u32, bool)] = &[
    // RFC 9293, 3.10.7.1: without ACK, sequence 0 and everything acknowledged, SYN and FIN too.
    (SYN, b"", 0, 0x1234_5679, true),
    (SYN, b"fast open", 0, 0x1234_5682, true),
    (SYN | FIN, b"x", 0, 0x1234_567b, true),
    (FIN, b"", 0, 0x1234_5679, true),
    (0, b"data", 0, 0x1234_567c, true),
    (0, b"", 0, 0x1234_5678, true),
    // With ACK: from where the peer expects it.
    (ACK, b"", 0x9abc_def0, 0, false),
    (ACK | PSH, b"data", 0x9abc_def0, 0, false),
    (ACK | FIN, b"", 0x9abc_def0, 0, false),
    (ACK | SYN, b"", 0x9abc_def0, 0, false),
];

#[test]
fn a_reset_has_the_numbers_of_rfc_9293() {
    for v4 in [true, false] {
        for &(flags, payload, sequence, acknowledgement, ack) in RESETS {
            let packet = Packet::of_family(v4, Segment::tcp(40_000, 443, flags, payload)).padded(6);
            let frame = reset(&packet);
            let answer = verified(&frame);
            assert_turned_round(&packet, &answer);
            let Some(TransportSlice::Tcp(tcp)) = &answer.transport else { panic!("no TCP header") };
            assert_eq!((tcp.source_port(), tcp.destination_port()), (443, 40_000));
            assert_eq!((tcp.sequence_number(), tcp.acknowledgment_number()), (sequence, acknowledgement), "{flags:#x}");
            assert_eq!((tcp.rst(), tcp.ack(), tcp.syn(), tcp.fin(), tcp.psh()), (true, ack, false, false, false));
            assert_eq!((tcp.data_offset(), tcp.payload(), tcp.window_size()), (5, &[][..], 0));
        }
    }
}

#[test]
fn options_and_extension_headers_do_not_count_as_data() {
    let Segment::Tcp { mut header, .. } = Segment::tcp(1, 2, SYN, b"") else { unreachable!("it is TCP") };
    header.set_options_raw(&[1; 40]).unwrap();
    let segment = Segment::Tcp { header, payload: b"abc".to_vec() };
    let packets = [
        Packet::v4(segment.clone()).options(&[1; 40]),
        Packet::v6(segment).extension(extension(0, 2)).extension(authentication(7)),
    ];
    for packet in packets {
        let frame = reset(&packet);
        let Some(TransportSlice::Tcp(tcp)) = verified(&frame).transport else { panic!("no TCP header") };
        assert_eq!(tcp.acknowledgment_number(), 0x1234_5678 + 1 + 3);
    }
}

#[test]
fn an_acknowledgement_wraps() {
    let Segment::Tcp { mut header, .. } = Segment::tcp(1, 2, SYN, b"") else { unreachable!("it is TCP") };
    header.sequence_number = u32::MAX - 1;
    let frame = reset(&Packet::v4(Segment::Tcp { header, payload: b"ab".to_vec() }));
    let Some(TransportSlice::Tcp(tcp)) = verified(&frame).transport else { panic!("no TCP header") };
    assert_eq!(tcp.acknowledgment_number(), 1);
}

#[test]
fn port_unreachable_over_ipv4_quotes_the_header_with_its_options() {
    for words in 0..=10 {
        for payload in [&b""[..], b"a query that is longer than what is quoted of it"] {
            let packet = Packet::v4(Segment::udp(40_000, 53, payload)).options(&vec![1; words * 4]).padded(3);
            let frame = unreachable(&packet);
            let answer = verified(&frame);
            assert_turned_round(&packet, &answer);
            let Some(TransportSlice::Icmpv4(icmp)) = &answer.transport else { panic!("no ICMP header") };
            assert_eq!(icmp.icmp_type(), Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port));
            assert_eq!(icmp.payload(), &packet.frame()[ETHERNET..ETHERNET + 20 + words * 4 + 8]);
            // Nothing behind the packet.
            assert_eq!(frame.len(), ETHERNET + 20 + 8 + icmp.payload().len());
        }
    }
}

#[test]
fn port_unreachable_over_ipv6_quotes_the_extension_headers() {
    let chains = [
        vec![],
        vec![extension(0, 1)],
        vec![fragment(0, false), extension(60, 2)],
        vec![authentication(7)],
        // 40 + 80 + 8 is the limit.
        vec![extension(60, 10)],
    ];
    for chain in chains {
        let mut packet = Packet::v6(Segment::udp(40_000, 53, b"query"));
        packet.extensions = chain;
        let frame = unreachable(&packet);
        let answer = verified(&frame);
        assert_turned_round(&packet, &answer);
        let Some(TransportSlice::Icmpv6(icmp)) = &answer.transport else { panic!("no ICMPv6 header") };
        assert_eq!(icmp.icmp_type(), Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port));
        assert_eq!(icmp.payload(), &packet.frame()[ETHERNET..packet.transport_offset() + 8]);
    }
}

#[test]
fn a_quotation_ends_at_its_limit() {
    for units in [11, 12, 50, 110] {
        let packet = Packet::v6(Segment::udp(40_000, 53, b"query")).extension(extension(60, units));
        let frame = unreachable(&packet);
        let Some(TransportSlice::Icmpv6(icmp)) = verified(&frame).transport else { panic!("no ICMPv6 header") };
        assert_eq!(icmp.payload(), &packet.frame()[ETHERNET..ETHERNET + QUOTE_MAX]);
    }
}

#[test]
fn groups_loopback_and_reserved_sources_are_never_answered() {
    let ethernet = |dst_addr, src_addr| EthHdr { dst_addr, src_addr, ether_type: 0 };
    let unicast = ethernet(OUR_MAC, CLIENT_MAC);
    let answerable = |source: &str, ethernet: &EthHdr| {
        let destination = if source.contains(':') { "2001:db8::10" } else { "203.0.113.10" };
        let mut frame = Packet::new(source, destination, Segment::udp(1, 2, b"")).frame();
        let network = parser::network(&frame.as_mut_slice()).unwrap();
        answer::answerable(ethernet, &network)
    };
    for source in ["198.51.100.7", "10.0.0.1", "1.0.0.0", "223.255.255.255", "2001:db8::1", "fe80::1", "64:ff9b::1"] {
        assert!(answerable(source, &unicast), "{source}");
        assert!(!answerable(source, &ethernet([0xff; 6], CLIENT_MAC)), "to the broadcast address");
        assert!(!answerable(source, &ethernet([1, 0, 0x5e, 0, 0, 1], CLIENT_MAC)), "to a group");
        assert!(!answerable(source, &ethernet(OUR_MAC, [3, 0, 0, 0, 0, 1])), "from a group");
    }
    for source in
        ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "ff02::1"]
    {
        assert!(!answerable(source, &unicast), "{source}");
    }
}
