//! ICMP errors about flows between IPv4 and IPv6 (RFC 7915, 4.2 and 5.2): each side hears of its own packets
//! in its own family, in every direction.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Mode, Protocol},
    flow::{TCP_ACK, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::{ETHERNET, Packet, Segment, extension, fragment, mark, verified},
    icmp_wire::{Kind, WHOLE, error, quote},
    lab::{
        KINDS, Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, ip_batch, lab,
        packet, request, source, vip,
    },
};

/// What is told, what becomes of it in IPv6, and what in IPv4. The ways take 1,500 bytes.
const ERRORS: [(Kind, Kind, Kind); 5] = [
    (Kind::PortUnreachable, Kind::PortUnreachable, Kind::PortUnreachable),
    (Kind::TooBig(1400), Kind::TooBig(1420), Kind::TooBig(1380)),
    // Never less than every IPv6 link takes.
    (Kind::TooBig(600), Kind::TooBig(1280), Kind::TooBig(580)),
    // Never more than the way takes that the packets come by.
    (Kind::TooBig(9000), Kind::TooBig(1500), Kind::TooBig(1500)),
    (Kind::TimeExceeded, Kind::TimeExceeded, Kind::TimeExceeded),
];

/// Bytes behind the quoted headers that routers send: what RFC 792 asks for, a whole TCP header, all of it.
const QUOTED: [usize; 3] = [8, 20, WHOLE];

fn far_router(v4: bool) -> IpAddr {
    if v4 { "198.51.100.254" } else { "2001:db8:c::fe" }.parse().unwrap()
}

fn near_router(v4: bool) -> IpAddr {
    if v4 { "10.0.0.254" } else { "2001:db8:2::fe" }.parse().unwrap()
}

/// A service of one family with backends of the other, and a flow: how its backend knows the client.
fn begin(lab: &mut Lab, v4: bool, protocol: Protocol) -> (Served, SocketAddr) {
    let served = lab.serve(Spec { backends_v4: !v4, ..Spec::new(v4, protocol, Mode::FullNat) });
    let sent = lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    (served, lab.flow().source)
}

fn service(v4: bool) -> SocketAddr {
    (vip(v4), 80).into()
}

fn asker(v4: bool) -> SocketAddr {
    (client(v4), 40_000).into()
}

/// A packet of the flow as routers and hosts quote it; its class and, of IPv4, an identification travel.
fn quoted(from: SocketAddr, to: SocketAddr, protocol: Protocol, laden: bool, behind: usize) -> Vec<u8> {
    let mut packet = packet(from, to, 57, protocol, TCP_ACK);
    if laden && from.is_ipv4() {
        packet = packet.options(&[1, 1, 1, 0]);
    } else if laden {
        packet = packet.extension(extension(0, 1)).extension(fragment(0, false)).extension(extension(60, 3));
    }
    let mut frame = packet.frame();
    mark(&mut frame, 0xb9, 0x1234, false);
    frame[ETHERNET..(packet.transport_offset() + behind).min(frame.len())].to_vec()
}

/// The same as its sender is told of it: without what the translation left out, and never fragmented.
fn plain(from: SocketAddr, to: SocketAddr, protocol: Protocol, behind: usize) -> Vec<u8> {
    let packet = packet(from, to, 57, protocol, TCP_ACK);
    let mut frame = packet.frame();
    mark(&mut frame, 0xb9, 0, true);
    frame[ETHERNET..(packet.transport_offset() + behind).min(frame.len())].to_vec()
}

/// What is sent on: with a lower TTL, and of IPv4 the identification that the frame has.
fn onward(got: &[u8], mut frame: Vec<u8>) -> Vec<u8> {
    if frame[ETHERNET] >> 4 == 4 {
        mark(&mut frame, 0, u16::from_be_bytes([got[ETHERNET + 4], got[ETHERNET + 5]]), false);
    }
    frame
}

fn lowered(packet: Packet) -> Packet {
    Packet { ttl: packet.ttl - 1, ..packet }
}

/// Sends an error and compares what comes out.
#[track_caller]
fn assert_brought(lab: &mut Lab, side: Side, frame: &[u8], wanted: Vec<u8>, reason: &str) {
    let before = lab.flow();
    let sent = lab.send(side, frame);
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    assert_frame(&sent.frame, &onward(&sent.frame, wanted));
    verified(&sent.frame);
    assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
    assert_eq!(lab.flow().state, before.state, "an error changes no flow");
}

fn in_family(v4: bool, (_, v6_kind, v4_kind): (Kind, Kind, Kind)) -> Kind {
    if v4 { v4_kind } else { v6_kind }
}

#[test]
fn errors_about_replies_reach_the_backend_in_its_family() {
    for (v4, protocol) in KINDS {
        lab(move |lab| {
            let (_, seen_as) = begin(lab, v4, protocol);
            let server: SocketAddr = (backend(!v4, 1), 8080).into();
            for (kinds, behind) in ERRORS.iter().flat_map(|kinds| QUOTED.map(|behind| (*kinds, behind))) {
                for laden in [false, true] {
                    let about = quoted(service(v4), asker(v4), protocol, laden, behind);
                    let told = error(far_router(v4), vip(v4), kinds.0, &about);
                    let about = plain(server, seen_as, protocol, behind);
                    let wanted = lowered(error(source(!v4), server.ip(), in_family(!v4, kinds), &about));
                    let wanted = lab.to_backend(1, &wanted);
                    assert_brought(lab, Side::Front, &from_client(&told), wanted, "error_to_backend");
                }
            }
        });
    }
}

#[test]
fn errors_about_clients_packets_reach_the_client_in_its_family() {
    for (v4, protocol) in KINDS {
        lab(move |lab| {
            let (_, seen_as) = begin(lab, v4, protocol);
            let server: SocketAddr = (backend(!v4, 1), 8080).into();
            for (kinds, behind) in ERRORS.iter().flat_map(|kinds| QUOTED.map(|behind| (*kinds, behind))) {
                for (from, laden) in [(backend(!v4, 1), false), (near_router(!v4), true)] {
                    let about = quoted(seen_as, server, protocol, laden, behind);
                    let told = error(from, seen_as.ip(), kinds.0, &about);
                    let about = plain(asker(v4), service(v4), protocol, behind);
                    let wanted = lowered(error(vip(v4), client(v4), in_family(v4, kinds), &about));
                    let wanted = lab.to_client(&wanted);
                    assert_brought(lab, Side::Back, &from_backend(1, &told), wanted, "error_to_client");
                }
            }
        });
    }
}

/// A reply of so many bytes to the client, quoted whole.
fn sized(from: SocketAddr, to: SocketAddr, payload: usize) -> Packet {
    let payload: Vec<u8> = (0..payload).map(|n| (n * 7 + n / 256) as u8).collect();
    Packet { ttl: 57, ..Packet::new(&from.ip().to_string(), &to.ip().to_string(), Segment::udp(80, 40_000, &payload)) }
}

#[test]
fn an_error_quotes_no_more_than_errors_of_its_family_do() {
    for (v4, most) in [(true, 1280), (false, 576)] {
        lab(move |lab| {
            let (_, seen_as) = begin(lab, v4, Protocol::Udp);
            let server: SocketAddr = (backend(!v4, 1), 8080).into();
            // Around what just fits, odd lengths too.
            for payload in [479, 480, 481, 520, 521, 1100, 1143, 1144, 1145, 1180] {
                let reply = sized(service(v4), asker(v4), payload);
                let told = error(far_router(v4), vip(v4), Kind::TooBig(1400), &quote(&reply, WHOLE));
                let mut reply = sized(server, seen_as, payload);
                reply.segment = Segment::udp(8080, seen_as.port(), payload_of(&reply));
                let mut frame = reply.frame();
                mark(&mut frame, 0, 0, true);
                frame.truncate(ETHERNET + most - if v4 { 48 } else { 28 });
                let kind = Kind::TooBig(if v4 { 1420 } else { 1380 });
                let wanted = lowered(error(source(!v4), server.ip(), kind, &frame[ETHERNET..]));
                let wanted = lab.to_backend(1, &wanted);
                assert_brought(lab, Side::Front, &from_client(&told), wanted, "error_to_backend");
            }
        });
    }
}

fn payload_of(packet: &Packet) -> &[u8] {
    match &packet.segment {
        Segment::Udp { payload, .. } => payload,
        other => panic!("UDP, not {other:?}"),
    }
}

/// Extensions (RFC 4884) and the length that tells where they begin have another form in the other family.
#[test]
fn extensions_end_where_the_family_does() {
    lab(|lab| {
        let (_, seen_as) = begin(lab, true, Protocol::Udp);
        let server: SocketAddr = (backend(false, 1), 8080).into();
        let padded = |mut quoted: Vec<u8>, length| {
            quoted.resize(length, 0);
            quoted
        };
        let about = padded(quoted(service(true), asker(true), Protocol::Udp, false, WHOLE), 128);
        let told =
            error(far_router(true), vip(true), Kind::TimeExceeded, &[&about[..], &[0x20, 0, 0xdf, 0xff]].concat());
        let mut frame = from_client(&told);
        frame[39] = 32;
        frame[36..38].fill(0);
        let sum: u32 = frame[34..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        frame[36..38].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        // The header of IPv6 is longer by 20 bytes; the zeros behind the packet stay.
        let about = padded(plain(server, seen_as, Protocol::Udp, WHOLE), 148);
        let wanted = lab.to_backend(1, &lowered(error(source(false), server.ip(), Kind::TimeExceeded, &about)));
        assert_brought(lab, Side::Front, &frame, wanted, "error_to_backend");
    });
}

#[test]
fn what_the_other_family_cannot_say_ends_here() {
    for v4 in [true, false] {
        lab(move |lab| {
            begin(lab, v4, Protocol::Udp);
            let about = quoted(service(v4), asker(v4), Protocol::Udp, false, WHOLE);
            let mut drops = |frame: Vec<u8>, reason: &str| {
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "drop", "{:?}", sent.counted);
                assert_frame(&sent.frame, &frame);
                assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
            };
            // Points into an option, or says that one is not known.
            drops(from_client(&error(far_router(v4), vip(v4), Kind::ParameterProblem, &about)), "not_translatable");
            let mut damaged = from_client(&error(far_router(v4), vip(v4), Kind::TimeExceeded, &about));
            *damaged.last_mut().unwrap() ^= 1;
            drops(damaged, "malformed");
        });
    }
}

/// A packet of so many bytes from one end of the flow, which the other end's family makes too large.
fn whole(from: SocketAddr, to: SocketAddr, length: usize) -> Packet {
    let payload = length - if from.is_ipv4() { 28 } else { 48 };
    let segment = Segment::udp(from.port(), to.port(), &vec![0x5a; payload]);
    Packet::new(&from.ip().to_string(), &to.ip().to_string(), segment)
}

/// The sender is told what fits, in its own family.
#[track_caller]
fn assert_told(lab: &mut Lab, side: Side, frame: &[u8], from: IpAddr, to: IpAddr, mtu: u16) {
    let sent = lab.send(side, frame);
    assert_eq!(sent.exit, "tx", "{:?}", sent.counted);
    let about = &frame[ETHERNET..ETHERNET + if from.is_ipv4() { 548 } else { 1232 }];
    let mut wanted = error(from, to, Kind::TooBig(mtu), about).frame();
    wanted[..6].copy_from_slice(&frame[6..12]);
    wanted[6..12].copy_from_slice(&frame[..6]);
    assert_frame(&sent.frame, &wanted);
    assert_counted(&sent, &[&format!("too_big 1 x {}", frame.len()), "service 0 refused 1"]);
}

#[test]
fn senders_of_both_families_learn_what_fits_with_the_others_header() {
    for (v4, mtu) in [(true, 1380), (false, 1420)] {
        lab(move |lab| {
            begin(lab, v4, Protocol::Udp);
            ip_batch("link set back mtu 1400\n");
            lab.until_ways_are_asked_for();
            let frame = from_client(&whole(asker(v4), service(v4), usize::from(mtu) + 1));
            assert_told(lab, Side::Front, &frame, vip(v4), client(v4), mtu);
            let fits = from_client(&whole(asker(v4), service(v4), mtu.into()));
            assert_eq!(lab.send(Side::Front, &fits).exit, "redirect");
        });
        lab(move |lab| {
            let (_, seen_as) = begin(lab, !v4, Protocol::Udp);
            ip_batch("link set front mtu 1400\n");
            let server: SocketAddr = (backend(v4, 1), 8080).into();
            let frame = from_backend(1, &whole(server, seen_as, usize::from(mtu) + 1));
            assert_told(lab, Side::Back, &frame, source(v4), server.ip(), mtu);
            let fits = from_backend(1, &whole(server, seen_as, mtu.into()));
            assert_eq!(lab.send(Side::Back, &fits).exit, "redirect");
        });
    }
}
