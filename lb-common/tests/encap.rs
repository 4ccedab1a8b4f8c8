//! Tunnelled frames against frames that another implementation built.
mod frames;

use std::net::IpAddr;

use etherparse::{Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, icmpv4};

use frames::{Packet, Segment, authentication, extension, in_gre, mark, parse, routing, tunnelled};
use lb_common::{
    abi::{Address, DontFragment, Port, Protocol},
    encap::{Tunnel, encapsulate, encapsulate_icmp},
    parse::{Part, Transport},
};
use proptest::{collection::vec, prelude::*, strategy::BoxedStrategy};

const ENDS: [(&str, &str); 2] = [("10.0.0.1", "10.0.0.11"), ("2001:db8:2::1", "2001:db8:2::11")];

fn tunnel(ends: (&str, &str), gue_port: u16, entropy: u32) -> Tunnel {
    let (source, destination) = (frames::address(ends.0), frames::address(ends.1));
    Tunnel { source, destination, gue_port: Port::new(gue_port), gre: 0, entropy, dont_fragment: 0, id: 0 }
}

/// Grows the frame at its start and encapsulates.
fn wrapped(frame: &[u8], tunnel: &Tunnel) -> Option<Vec<u8>> {
    let (network, transport) = parse(&mut frame.to_vec());
    let mut out = vec![0xee; tunnel.growth()];
    out.extend_from_slice(frame);
    encapsulate(&mut out.as_mut_slice(), &network, &transport, tunnel)?;
    out[..12].copy_from_slice(&frame[..12]);
    Some(out)
}

fn expected(frame: &[u8], ends: (&str, &str), tunnel: &Tunnel, checksum: bool) -> Vec<u8> {
    let port = tunnel.gue_port.get();
    let gue = (port != 0).then(|| (tunnel.source_port().get(), port, checksum));
    tunnelled(frame, ends.0.parse().unwrap(), ends.1.parse().unwrap(), tunnel.entropy & 0xf_ffff, gue)
}

fn segment() -> BoxedStrategy<Segment> {
    let payload = || vec(any::<u8>(), 0..80);
    prop_oneof![
        (any::<u16>(), any::<u16>(), 0..0x20u8, payload()).prop_map(|(s, d, f, p)| Segment::tcp(s, d, f, &p)),
        (any::<u16>(), any::<u16>(), any::<bool>(), payload()).prop_map(|(source, destination, checksum, payload)| {
            Segment::Udp { source, destination, checksum, payload }
        }),
    ]
    .boxed()
}

fn frame() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let extensions =
        prop_oneof![Just(extension(0, 1)), Just(extension(60, 3)), Just(routing(0)), Just(authentication(6))];
    let marks = (any::<u8>(), any::<u16>(), any::<bool>());
    (any::<bool>(), vec(any::<u32>(), 0..=10), vec(extensions, 0..=6), segment(), 0..20usize, marks).prop_map(
        |(v4, options, extensions, segment, padding, (class, id, dont_fragment))| {
            let checksum = !matches!(segment, Segment::Udp { checksum: false, .. });
            let mut packet = Packet::of_family(v4, segment).padded(padding);
            if v4 {
                let options: Vec<u8> = options.iter().flat_map(|word| word.to_be_bytes()).collect();
                packet = packet.options(&options);
            } else {
                packet.extensions = extensions;
            }
            let mut frame = packet.frame();
            mark(&mut frame, class, id, dont_fragment);
            (frame, checksum)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    #[test]
    fn every_family_travels_in_every_other((frame, checksum) in frame(), entropy in any::<u32>(), port in any::<u16>()) {
        for ends in ENDS {
            for gue_port in [0, port] {
                let tunnel = tunnel(ends, gue_port, entropy);
                prop_assert_eq!(wrapped(&frame, &tunnel).unwrap(), expected(&frame, ends, &tunnel, checksum));
            }
            let tunnel = Tunnel { gre: 1, ..tunnel(ends, 0, entropy) };
            let (source, destination) = (ends.0.parse().unwrap(), ends.1.parse().unwrap());
            let expected = in_gre(&frame, source, destination, entropy & 0xf_ffff);
            prop_assert_eq!(wrapped(&frame, &tunnel).unwrap(), expected);
        }
    }
}

#[test]
fn a_damaged_packet_has_a_wrong_outer_checksum() {
    for v4 in [true, false] {
        for ends in ENDS {
            let mut frame = Packet::of_family(v4, Segment::tcp(1, 2, 0x10, b"data")).frame();
            let last = frame.len() - 1;
            frame[last] ^= 1;
            let tunnel = tunnel(ends, 6080, 7);
            assert_ne!(wrapped(&frame, &tunnel).unwrap(), expected(&frame, ends, &tunnel, true));
        }
    }
}

/// An ICMP message's checksum covers all of it, of IPv6 with a pseudo-header; whoever it is about.
#[test]
fn gue_around_icmp_has_a_right_checksum() {
    for (v4, ends) in [true, false].into_iter().flat_map(|v4| ENDS.map(|ends| (v4, ends))) {
        let quoted = Packet::of_family(v4, Segment::tcp(1, 2, 0x10, b"")).frame();
        let error = icmp_error(v4, &quoted[frames::ETHERNET..]);
        let mut frame = error.frame();
        mark(&mut frame, 0xb9, 0x1234, true);
        let tunnel = tunnel(ends, 6080, 0x1234_5678);
        let (network, _) = parse(&mut Packet::of_family(v4, Segment::udp(1, 2, b"")).frame());
        let transport = Transport {
            protocol: Protocol::Tcp,
            source_port: Port::new(80),
            destination_port: Port::new(40_000),
            tcp_flags: 0,
            ttl: 64,
            part: Part::Whole,
            offset: error.transport_offset() as u16,
            packet_len: (frame.len() - frames::ETHERNET) as u16,
        };
        let mut out = vec![0xee; tunnel.growth()];
        out.extend_from_slice(&frame);
        encapsulate_icmp(&mut out.as_mut_slice(), &network, &transport, &tunnel).unwrap();
        out[..12].copy_from_slice(&frame[..12]);
        assert_eq!(out, expected(&frame, ends, &tunnel, true));
    }
}

/// "Fragmentation needed" or "packet too big".
fn icmp_error(v4: bool, quoted: &[u8]) -> Packet {
    let plain = Packet::of_family(v4, Segment::udp(1, 2, b""));
    let (protocol, header) = match (plain.source, plain.destination) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = Icmpv6Type::PacketTooBig { mtu: 1400 };
            (58, Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quoted).unwrap().to_bytes().to_vec())
        }
        _ => {
            let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
            let kind = Icmpv4Type::DestinationUnreachable(needed);
            (1, Icmpv4Header::with_checksum(kind, quoted).to_bytes().to_vec())
        }
    };
    Packet::of_family(v4, Segment::Other { protocol, bytes: [header.as_slice(), quoted].concat() })
}

#[test]
fn the_source_port_is_a_dynamic_one_and_follows_the_entropy() {
    let port = |entropy| tunnel(ENDS[0], 6080, entropy).source_port().get();
    assert_eq!((port(0), port(1), port(0x3fff), port(u32::MAX)), (49_152, 49_153, 65_535, 65_535));
}

#[test]
fn the_outer_header_asks_not_to_be_fragmented_as_the_policy_says() {
    const ID: u16 = 0x4242;
    let v4 = |dont_fragment| {
        let mut frame = Packet::v4(Segment::udp(1, 2, b"data")).frame();
        mark(&mut frame, 0, 0x1234, dont_fragment);
        frame
    };
    let v6 = Packet::v6(Segment::udp(1, 2, b"data")).frame();
    for (frame, policy, id, dont_fragment) in [
        (v4(true), DontFragment::Copy, 0, true),
        (v4(false), DontFragment::Copy, 0x1234, false),
        (v6.clone(), DontFragment::Copy, 0, true),
        (v4(true), DontFragment::Set, 0, true),
        (v4(false), DontFragment::Set, 0, true),
        (v6.clone(), DontFragment::Set, 0, true),
        (v4(true), DontFragment::Clear, ID, false),
        (v4(false), DontFragment::Clear, 0x1234, false),
        (v6.clone(), DontFragment::Clear, ID, false),
    ] {
        let tunnel = Tunnel { dont_fragment: policy as u8, id: ID, ..tunnel(ENDS[0], 0, 7) };
        let mut expected = expected(&frame, ENDS[0], &tunnel, true);
        mark(&mut expected, 0, id, dont_fragment);
        assert_eq!(wrapped(&frame, &tunnel).unwrap(), expected, "{policy:?}");
    }
}

#[test]
fn a_chosen_source_stays_in_its_prefix_and_takes_the_entropys_last_bits() {
    let chosen = |prefix: &str, bits, entropy| Tunnel::chosen_source(&frames::address(prefix), bits, entropy);
    assert_eq!(chosen("10.0.0.0", 16, 0xabcd_1234), frames::address("10.0.18.52"));
    assert_eq!(chosen("10.0.0.0", 24, 0xffff_ffff), frames::address("10.255.255.255"));
    assert_eq!(chosen("10.0.0.1", 0, 0xffff_ffff), frames::address("10.0.0.1"));
    assert_eq!(chosen("2001:db8::", 32, 0xabcd_1234), frames::address("2001:db8::abcd:1234"));
    assert_eq!(chosen("2001:db8::", 2, 0xffff_ffff), frames::address("2001:db8::3"));
    assert_eq!(chosen("0.0.0.0", 32, 7), Address::v4([0, 0, 0, 7]));
}

#[test]
fn a_packet_too_long_for_the_outer_header_is_refused() {
    let frame = Packet::v4(Segment::udp(1, 2, &vec![0; 65_535 - 28 - 30])).frame();
    for (ends, gue_port, fits) in [(ENDS[0], 0, true), (ENDS[0], 6080, true), (ENDS[1], 6080, true)] {
        assert_eq!(wrapped(&frame, &tunnel(ends, gue_port, 0)).is_some(), fits);
    }
    let frame = Packet::v4(Segment::udp(1, 2, &vec![0; 65_535 - 28])).frame();
    for (ends, gue_port, fits) in [(ENDS[0], 0, false), (ENDS[1], 0, true), (ENDS[1], 6080, false)] {
        assert_eq!(wrapped(&frame, &tunnel(ends, gue_port, 0)).is_some(), fits);
    }
}
