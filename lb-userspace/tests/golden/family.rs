//! Between IPv4 and IPv6 in `full-nat` (RFC 7915): every pair of families, transport and direction.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Mode, Protocol},
    flow::{State, TCP_ACK, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::{ETHERNET, Packet, Segment, authentication, extension, fragment, mark, verified},
    lab::{
        BACK_MAC, FRONT_MAC, KINDS, Lab, ROUTER_MAC, Served, Side, Spec, assert_frame, backend, backend_mac, client,
        from_backend, from_client, ip_batch, lab, packet, request, source, vip,
    },
};

/// Offset of the UDP checksum in an IPv4 packet without options.
const UDP_CHECK: usize = ETHERNET + 20 + 6;

/// A service of one family with backends of the other.
fn serve(lab: &mut Lab, v4: bool, protocol: Protocol) -> Served {
    lab.serve(Spec { backends_v4: !v4, ..Spec::new(v4, protocol, Mode::FullNat) })
}

/// Sets what the translation sets: the traffic class travels, IPv4 packets of up to 1,260 bytes may be
/// fragmented and have an identification, which is random.
fn marked(mut frame: Vec<u8>, got: &[u8], class: u8) -> Vec<u8> {
    let id = u16::from_be_bytes([got[ETHERNET + 4], got[ETHERNET + 5]]);
    let small = frame.len() - ETHERNET <= 1260;
    mark(&mut frame, class, id, !small);
    frame
}

fn framed(to: [u8; 6], from: [u8; 6], packet: &Packet) -> Vec<u8> {
    let mut frame = packet.frame();
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    frame
}

/// The flow's packet as backend 1 is to get it.
fn at_backend(lab: &Lab, served: &Served, got: &[u8], flags: u8, class: u8) -> Vec<u8> {
    let Spec { backends_v4, protocol, .. } = served.spec;
    let to = (backend(backends_v4, 1), 8080).into();
    let wanted = packet(lab.flow().source, to, 63, protocol, flags);
    marked(framed(backend_mac(1), BACK_MAC, &wanted), got, class)
}

fn classed(mut frame: Vec<u8>, class: u8) -> Vec<u8> {
    mark(&mut frame, class, 0x1234, true);
    frame
}

#[test]
fn full_nat_translates_between_the_families_both_ways() {
    for (v4, protocol) in KINDS {
        lab(move |lab| {
            let served = serve(lab, v4, protocol);
            let Spec { backends_v4, .. } = served.spec;
            for (nth, flags) in [TCP_SYN, TCP_ACK].into_iter().enumerate() {
                let frame = classed(from_client(&request(&served, 40_000, flags)), 0xb9);
                let n = frame.len();
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
                verified(&sent.frame);
                assert_frame(&sent.frame, &at_backend(lab, &served, &sent.frame, flags, 0xb9));
                let counted = [
                    format!("service 0 forward 1 x {n}"),
                    format!("backend 0 forward 1 x {n}"),
                    format!("to_backend 1 x {n}"),
                ];
                let mut counted: Vec<&str> = counted.iter().map(String::as_str).collect();
                if nth == 0 {
                    counted.extend(["service 0 flows 1", "backend 0 flows 1"]);
                }
                assert_counted(&sent, &counted);
            }
            let flow = lab.flow();
            assert_eq!(flow.source.ip(), source(backends_v4));
            assert_eq!(flow.client, SocketAddr::new(client(v4), 40_000));

            let server: SocketAddr = (backend(backends_v4, 1), 8080).into();
            for flags in [TCP_SYN | TCP_ACK, TCP_ACK] {
                let reply = classed(from_backend(1, &packet(server, flow.source, 64, protocol, flags)), 0x2e);
                let n = reply.len();
                let sent = lab.send(Side::Back, &reply);
                assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
                verified(&sent.frame);
                let wanted = packet((vip(v4), 80).into(), (client(v4), 40_000).into(), 63, protocol, flags);
                let wanted = marked(framed(ROUTER_MAC, FRONT_MAC, &wanted), &sent.frame, 0x2e);
                assert_frame(&sent.frame, &wanted);
                let counted = [
                    format!("to_client 1 x {n}"),
                    format!("service 0 reply 1 x {n}"),
                    format!("backend 0 reply 1 x {n}"),
                ];
                assert_counted(&sent, &counted.each_ref().map(String::as_str));
            }
            lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_ACK)));
            let wanted = if protocol == Protocol::Tcp { State::Established } else { State::BothWays };
            assert_eq!(lab.flow().state, wanted);
        });
    }
}

#[test]
fn one_service_may_have_backends_of_both_families() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(false, Protocol::Udp, Mode::FullNat) });
        let mut entry = lb_userspace::dataplane::Dataplane::read(&mut lab.data).unwrap().backends[&served.backends[1]];
        (entry.address, entry.source) = (backend(true, 2).into(), source(true).into());
        lab.apply(lb_userspace::dataplane::Op::SetBackend { id: served.backends[1], backend: entry });
        lab.apply(lb_userspace::dataplane::Op::SetAddress {
            address: source(true).into(),
            roles: lb_common::abi::AddressRoles(lb_common::abi::AddressRoles::SOURCE),
        });
        let mut ethertypes = std::collections::BTreeSet::new();
        for port in 40_000..40_004 {
            let sent = lab.send(Side::Front, &from_client(&request(&served, port, 0)));
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            verified(&sent.frame);
            ethertypes.insert((sent.frame[12], sent.frame[13]));
        }
        assert_eq!(ethertypes.into_iter().collect::<Vec<_>>(), [(0x08, 0x00), (0x86, 0xdd)]);
    });
}

#[test]
fn a_udp_checksum_that_was_left_out_is_made_on_the_way_to_ipv6() {
    lab(|lab| {
        serve(lab, true, Protocol::Udp);
        for length in [0, 1, 5, 7, 511, 503, 504, 505, 1023, 1452] {
            let payload: Vec<u8> = (0..length).map(|n| (n * 7 + 3) as u8).collect();
            let client: SocketAddr = (client(true), 40_000).into();
            let asked = Packet::new(
                &client.ip().to_string(),
                &vip(true).to_string(),
                Segment::Udp { source: 40_000, destination: 80, checksum: false, payload: payload.clone() },
            );
            // What lies behind the packet is no part of it.
            let mut frame = from_client(&asked);
            frame.extend([0xaa; 6]);
            assert_eq!(frame[UDP_CHECK..UDP_CHECK + 2], [0, 0]);
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "redirect", "{length}: {:?}", sent.counted);
            let from = lab.flow().source;
            let segment = Segment::udp(from.port(), 8080, &payload);
            let mut wanted = Packet::new(&from.ip().to_string(), &backend(false, 1).to_string(), segment);
            wanted.ttl = 63;
            let wanted = [framed(backend_mac(1), BACK_MAC, &wanted), vec![0xaa; 6]].concat();
            assert_frame(&sent.frame, &wanted);
        }
    });
}

#[test]
fn a_udp_packet_without_checksum_from_ipv6_stays_without() {
    lab(|lab| {
        serve(lab, false, Protocol::Udp);
        let segment = Segment::Udp { source: 40_000, destination: 80, checksum: false, payload: b"hello".to_vec() };
        let asked = Packet::new(&client(false).to_string(), &vip(false).to_string(), segment);
        let sent = lab.send(Side::Front, &from_client(&asked));
        assert_eq!(sent.exit, "redirect");
        assert_eq!(sent.frame[UDP_CHECK..UDP_CHECK + 2], [0, 0]);
    });
}

/// A client's packet with more headers in it.
fn with(packet: Packet, options: &[u8], extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let packet = packet.options(options);
    from_client(&extensions.iter().cloned().fold(packet, Packet::extension))
}

#[test]
fn options_and_extension_headers_end_where_the_family_does() {
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        lab(move |lab| {
            let served = serve(lab, true, protocol);
            // Record route with nothing recorded yet, padding, a source route that is used up.
            let options = [7, 7, 4, 0, 0, 0, 0, 1, 131, 3, 4, 0];
            let sent = lab.send(Side::Front, &with(request(&served, 40_000, TCP_SYN), &options, &[]));
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            assert_frame(&sent.frame, &at_backend(lab, &served, &sent.frame, TCP_SYN, 0));
        });
        lab(move |lab| {
            let served = serve(lab, false, protocol);
            let headers = [extension(0, 1), extension(60, 3), crate::frames::routing(0)];
            let sent = lab.send(Side::Front, &with(request(&served, 40_000, TCP_SYN), &[], &headers));
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            assert_frame(&sent.frame, &at_backend(lab, &served, &sent.frame, TCP_SYN, 0));
        });
    }
}

#[test]
fn an_atomic_fragment_keeps_its_identification() {
    lab(|lab| {
        let served = serve(lab, false, Protocol::Udp);
        let (kind, mut header) = fragment(0, false);
        header[4..8].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
        let sent = lab.send(Side::Front, &with(request(&served, 40_000, 0), &[], &[(kind, header)]));
        assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
        assert_eq!(sent.frame[ETHERNET + 4..ETHERNET + 8], [0xbe, 0xef, 0, 0]);
        verified(&sent.frame);
    });
}

#[test]
fn what_the_other_family_cannot_say_is_dropped_whole() {
    let source_route: &[u8] = &[131, 7, 4, 10, 0, 0, 9, 0];
    let strict: &[u8] = &[1, 137, 7, 4, 10, 0, 0, 9];
    let broken: &[u8] = &[7, 1, 0, 0];
    for (v4, options, headers) in [
        (true, source_route, vec![]),
        (true, strict, vec![]),
        (true, broken, vec![]),
        (false, &[], vec![authentication(4)]),
        (false, &[], vec![extension(0, 1), authentication(6)]),
        (false, &[], vec![extension(135, 1)]),
    ] {
        lab(move |lab| {
            let served = serve(lab, v4, Protocol::Tcp);
            let frame = with(request(&served, 40_000, TCP_SYN), options, &headers);
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "drop", "{options:?} {headers:?}");
            assert_frame(&sent.frame, &frame);
            assert!(sent.counted.contains(&format!("not_translatable 1 x {}", frame.len())), "{:?}", sent.counted);
            assert!(sent.counted.contains(&"service 0 dropped 1".to_owned()), "{:?}", sent.counted);
        });
    }
}

/// A UDP packet of the client that is `length` bytes long.
fn of_length(v4: bool, length: usize) -> Vec<u8> {
    let payload = vec![0x5a; length - if v4 { 28 } else { 48 }];
    let segment = Segment::udp(40_000, 80, &payload);
    from_client(&Packet::new(&client(v4).to_string(), &vip(v4).to_string(), segment))
}

#[test]
fn a_packet_fits_with_its_new_header_or_is_answered() {
    lab(|lab| {
        serve(lab, true, Protocol::Udp);
        for (length, exit) in [(1480, "redirect"), (1481, "tx")] {
            let sent = lab.send(Side::Front, &of_length(true, length));
            assert_eq!(sent.exit, exit, "{length}: {:?}", sent.counted);
            assert_eq!(sent.frame.len(), ETHERNET + if exit == "tx" { 576 } else { 1500 });
            verified(&sent.frame);
        }
    });
    lab(|lab| {
        serve(lab, false, Protocol::Udp);
        for (length, dont_fragment) in [(1280, false), (1281, true), (1500, true)] {
            let sent = lab.send(Side::Front, &of_length(false, length));
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            assert_eq!(sent.frame.len(), ETHERNET + length - 20);
            assert_eq!(sent.frame[ETHERNET + 6] & 0x40 != 0, dont_fragment, "{length}");
            verified(&sent.frame);
        }
    });
}

#[test]
fn refusals_and_expired_packets_are_of_the_clients_family() {
    lab(|lab| {
        let served = serve(lab, false, Protocol::Tcp);
        let mut frame = from_client(&request(&served, 40_000, TCP_ACK));
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "tx", "a reset: the flow is not known");
        assert_eq!(sent.frame[12..14], [0x86, 0xdd]);
        frame[ETHERNET + 7] = 1;
        assert_eq!(lab.send(Side::Front, &frame).exit, "pass", "the kernel says that the hop limit is used up");
    });
}

#[test]
fn one_arm_goes_back_out_of_the_interface_it_came_from() {
    lab(|lab| {
        let served = serve(lab, false, Protocol::Udp);
        let backend: IpAddr = backend(true, 1);
        ip_batch(&format!("route add {backend} via 192.0.2.254 src 10.0.0.1\n"));
        let sent = lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
        assert_eq!(sent.exit, "tx", "{:?}", sent.counted);
        verified(&sent.frame);
        assert_eq!((&sent.frame[..6], &sent.frame[6..12]), (&ROUTER_MAC[..], &FRONT_MAC[..]));
    });
}
