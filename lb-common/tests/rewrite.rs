//! Translated frames against frames that were built with the new addresses from the start.
mod frames;

use frames::{Packet, Segment, authentication, extension, parse, routing};
use lb_common::{
    abi::Port,
    rewrite::{Translation, lower_ttl, translate},
};
use proptest::{collection::vec, prelude::*, strategy::BoxedStrategy};

/// Numbers with the corners of ones' complement among them.
fn number() -> BoxedStrategy<u16> {
    prop_oneof![3 => any::<u16>(), 1 => Just(0), 1 => Just(0xffff), 1 => Just(0xfffe), 1 => Just(0x8000)].boxed()
}

fn address(v4: bool) -> BoxedStrategy<std::net::IpAddr> {
    [number(), number(), number(), number(), number(), number(), number(), number()]
        .prop_filter("a mapped address is not on the wire", |words| words[..5] != [0; 5])
        .prop_map(move |w| {
            if v4 {
                let ([a, b], [c, d]) = (w[0].to_be_bytes(), w[1].to_be_bytes());
                [a, b, c, d].into()
            } else {
                w.into()
            }
        })
        .boxed()
}

fn segment() -> BoxedStrategy<Segment> {
    let payload = vec(any::<u8>(), 0..64);
    prop_oneof![
        (number(), number(), 0..0x20u8, payload.clone()).prop_map(|(s, d, f, p)| Segment::tcp(s, d, f, &p)),
        (number(), number(), any::<bool>(), payload).prop_map(|(source, destination, checksum, payload)| {
            Segment::Udp { source, destination, checksum, payload }
        }),
    ]
    .boxed()
}

fn packet() -> BoxedStrategy<Packet> {
    any::<bool>()
        .prop_flat_map(|v4| {
            let extensions = prop_oneof![
                Just(extension(0, 1)),
                Just(extension(60, 3)),
                Just(routing(0)),
                Just(authentication(6)),
                Just(frames::fragment(0, false)),
            ];
            (
                address(v4),
                address(v4),
                2..=255u8,
                vec(any::<u32>(), 0..=10),
                vec(extensions, 0..=6),
                segment(),
                0..20usize,
            )
                .prop_map(move |(source, destination, ttl, options, extensions, segment, padding)| {
                    Packet {
                        source,
                        destination,
                        ttl,
                        options: if v4 { options.iter().flat_map(|o| o.to_ne_bytes()).collect() } else { vec![] },
                        extensions: if v4 { vec![] } else { extensions },
                        segment,
                        padding,
                    }
                })
        })
        .boxed()
}

fn case() -> BoxedStrategy<(Packet, Packet)> {
    packet()
        .prop_flat_map(|before| {
            let v4 = before.source.is_ipv4();
            (Just(before), address(v4), address(v4), number(), number()).prop_map(|(before, s, d, sp, dp)| {
                let mut after = before.clone();
                (after.source, after.destination, after.ttl) = (s, d, before.ttl - 1);
                match &mut after.segment {
                    Segment::Tcp { header, .. } => (header.source_port, header.destination_port) = (sp, dp),
                    Segment::Udp { source, destination, .. } => (*source, *destination) = (sp, dp),
                    Segment::Other { .. } => unreachable!("no such segment is made"),
                }
                (before, after)
            })
        })
        .boxed()
}

fn ports(packet: &Packet) -> (Port, Port) {
    match &packet.segment {
        Segment::Tcp { header, .. } => (Port::new(header.source_port), Port::new(header.destination_port)),
        Segment::Udp { source, destination, .. } => (Port::new(*source), Port::new(*destination)),
        Segment::Other { .. } => unreachable!("no such segment is made"),
    }
}

/// Offset of the UDP checksum, if it is UDP.
fn udp_check(packet: &Packet) -> Option<usize> {
    matches!(packet.segment, Segment::Udp { .. }).then(|| packet.transport_offset() + 6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_translated_frame_is_the_frame_of_the_new_tuple((before, after) in case()) {
        let mut frame = before.frame();
        let (network, transport) = parse(&mut frame);
        let (source_port, destination_port) = ports(&after);
        let to = Translation {
            source: after.source.into(),
            destination: after.destination.into(),
            source_port,
            destination_port,
        };
        prop_assert_eq!(translate(&mut frame.as_mut_slice(), &network, &transport, &to), Some(()));
        prop_assert_eq!(&frame, &after.frame());
        if let Some(check) = udp_check(&before)
            && let Segment::Udp { checksum, .. } = before.segment
        {
            prop_assert_eq!(frame[check..check + 2] != [0, 0], checksum);
        }
        // And back: only the TTL tells.
        let (network, transport) = parse(&mut frame);
        let (source_port, destination_port) = ports(&before);
        let back = Translation {
            source: before.source.into(),
            destination: before.destination.into(),
            source_port,
            destination_port,
        };
        translate(&mut frame.as_mut_slice(), &network, &transport, &back);
        let original = Packet { ttl: before.ttl.wrapping_sub(2), ..before };
        prop_assert_eq!(frame, original.frame());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn lowering_the_ttl_changes_nothing_else(before in packet()) {
        let mut frame = before.frame();
        let (network, transport) = parse(&mut frame);
        lower_ttl(&mut frame.as_mut_slice(), &network, &transport).unwrap();
        let ttl = before.ttl - 1;
        prop_assert_eq!(frame, Packet { ttl, ..before }.frame());
    }
}

#[test]
fn a_checksum_that_was_wrong_stays_wrong() {
    for v4 in [true, false] {
        for segment in [Segment::tcp(1, 2, 0x10, b"data"), Segment::udp(1, 2, b"data")] {
            let mut frame = Packet::of_family(v4, segment).frame();
            let last = frame.len() - 1;
            frame[last] ^= 1;
            let (network, transport) = parse(&mut frame);
            let to = Translation {
                source: network.destination,
                destination: network.source,
                source_port: Port::new(7),
                destination_port: Port::new(8),
            };
            translate(&mut frame.as_mut_slice(), &network, &transport, &to).unwrap();
            assert!(std::panic::catch_unwind(|| frames::verified(&frame).net.is_some()).is_err());
        }
    }
}

#[test]
fn a_frame_that_shrank_since_it_was_parsed_is_refused() {
    let mut frame = Packet::v4(Segment::tcp(1, 2, 0x10, b"")).frame();
    let (network, transport) = parse(&mut frame);
    let to = Translation {
        source: network.source,
        destination: network.destination,
        source_port: Port::new(1),
        destination_port: Port::new(2),
    };
    for len in 0..52 {
        let mut frame = frame[..len].to_vec();
        assert_eq!(translate(&mut frame.as_mut_slice(), &network, &transport, &to), None, "{len} bytes");
        let lowered = lower_ttl(&mut frame.as_mut_slice(), &network, &transport);
        assert_eq!(lowered.is_none(), len < 26, "{len} bytes");
    }
}
