//! ICMP errors about flows reach whom they are for, and say what that one can understand.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{BackendState, Granularity, Mode, Protocol},
    flow::{TCP_ACK, TCP_RST, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, extension, fragment, tunnelled},
    icmp_wire::{KINDS as ERRORS, Kind, WHOLE, error, quote},
    lab::{
        KINDS, Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, request,
        source, vip,
    },
};

/// How much of the quoted packet's segment routers send: what RFC 792 asks for, and all of it.
const QUOTED: [usize; 3] = [8, 20, WHOLE];

/// A router between the balancer and the clients, and one on the side of the backends.
fn far_router(v4: bool) -> IpAddr {
    if v4 { "198.51.100.254" } else { "2001:db8:c::fe" }.parse().unwrap()
}

fn near_router(v4: bool) -> IpAddr {
    if v4 { "10.0.0.254" } else { "2001:db8:2::fe" }.parse().unwrap()
}

fn service(v4: bool) -> SocketAddr {
    (vip(v4), 80).into()
}

fn asker(v4: bool) -> SocketAddr {
    (client(v4), 40_000).into()
}

/// What a router on the clients' side says about a reply, of which it quotes so many bytes behind the IP
/// headers.
fn about_reply(v4: bool, protocol: Protocol, kind: Kind, behind: usize) -> Packet {
    let reply = packet(service(v4), asker(v4), 57, protocol, TCP_ACK);
    error(far_router(v4), vip(v4), kind, &quote(&reply, behind))
}

/// A packet with everything between the addresses and the ports that a packet may have.
fn laden(packet: Packet, v4: bool) -> Packet {
    if v4 {
        packet.options(&[1, 1, 1, 0])
    } else {
        packet.extension(extension(0, 1)).extension(fragment(0, true)).extension(extension(60, 3))
    }
}

/// Begins a flow, and tells whom the backend answers.
fn begin(lab: &mut Lab, served: &Served) -> SocketAddr {
    assert_eq!(lab.send(Side::Front, &from_client(&request(served, 40_000, TCP_SYN))).exit, "redirect");
    lab.flow().source
}

fn lowered(packet: Packet) -> Packet {
    Packet { ttl: packet.ttl - 1, ..packet }
}

/// Sends an error about a reply and compares what comes out.
#[track_caller]
fn assert_brought(lab: &mut Lab, side: Side, frame: &[u8], wanted: &[u8], reason: &str) {
    let before = lab.flow();
    let sent = lab.send(side, frame);
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    assert_frame(&sent.frame, wanted);
    assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
    assert_eq!(lab.flow().state, before.state, "an error changes no flow");
}

#[test]
fn errors_about_replies_reach_the_backend_that_sent_them() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = lab.serve(Spec::new(v4, protocol, mode));
                let seen_as = begin(lab, &served);
                let server: SocketAddr = (backend(v4, 1), 8080).into();
                let sender = if mode == Mode::Nat { far_router(v4) } else { source(v4) };
                for (kind, behind) in ERRORS.iter().flat_map(|kind| QUOTED.map(|behind| (*kind, behind))) {
                    for with_more in [false, true] {
                        let of = |from, to| {
                            let reply = packet(from, to, 57, protocol, TCP_ACK);
                            quote(&if with_more { laden(reply, v4) } else { reply }, behind)
                        };
                        let told = error(far_router(v4), vip(v4), kind, &of(service(v4), asker(v4)));
                        let wanted = lowered(error(sender, server.ip(), kind, &of(server, seen_as)));
                        let wanted = lab.to_backend(1, &wanted);
                        assert_brought(lab, Side::Front, &from_client(&told), &wanted, "error_to_backend");
                    }
                }
            });
        }
    }
}

#[test]
fn errors_about_clients_packets_reach_the_client_in_the_services_name() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = lab.serve(Spec::new(v4, protocol, mode));
                let seen_as = begin(lab, &served);
                let server: SocketAddr = (backend(v4, 1), 8080).into();
                for (kind, behind) in ERRORS.iter().flat_map(|kind| QUOTED.map(|behind| (*kind, behind))) {
                    for from in [backend(v4, 1), near_router(v4)] {
                        let of = |from, to| quote(&laden(packet(from, to, 63, protocol, TCP_ACK), v4), behind);
                        let told = error(from, seen_as.ip(), kind, &of(seen_as, server));
                        let wanted = lowered(error(vip(v4), client(v4), kind, &of(asker(v4), service(v4))));
                        let wanted = lab.to_client(&wanted);
                        assert_brought(lab, Side::Back, &from_backend(1, &told), &wanted, "error_to_client");
                    }
                }
            });
        }
    }
}

#[test]
fn errors_about_replies_travel_to_backends_that_answer_themselves_as_packets_do() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::DsrL2, Mode::DsrIpip] {
            lab(move |lab| {
                let served = lab.serve(Spec { backend_port: 0, ..Spec::new(v4, protocol, mode) });
                begin(lab, &served);
                for (kind, behind) in ERRORS.iter().flat_map(|kind| QUOTED.map(|behind| (*kind, behind))) {
                    let told = about_reply(v4, protocol, kind, behind);
                    let onward = lab.to_backend(1, &lowered(told.clone()));
                    let frame = from_client(&told);
                    let sent = lab.send(Side::Front, &frame);
                    assert_eq!(sent.exit, "redirect");
                    let wanted = if mode == Mode::DsrL2 {
                        onward
                    } else {
                        // The flow label of IPv6 is random, and in the frame.
                        let at = &sent.frame[14..18];
                        let label = if v4 { 0 } else { u32::from_be_bytes(at.try_into().unwrap()) & 0xf_ffff };
                        tunnelled(&onward, source(v4), backend(v4, 1), label, None)
                    };
                    assert_frame(&sent.frame, &wanted);
                    assert_counted(&sent, &[&format!("error_to_backend 1 x {}", frame.len())]);
                }
            });
        }
    }
}

#[test]
fn an_error_about_a_udp_packet_without_checksum_leaves_it_without() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        let seen_as = begin(lab, &served);
        let of = |from: SocketAddr, to: SocketAddr| {
            let mut reply = packet(from, to, 57, Protocol::Udp, 0);
            if let Segment::Udp { checksum, .. } = &mut reply.segment {
                *checksum = false;
            }
            quote(&reply, WHOLE)
        };
        let server: SocketAddr = (backend(true, 1), 8080).into();
        let told = error(far_router(true), vip(true), Kind::PortUnreachable, &of(service(true), asker(true)));
        let wanted = lowered(error(source(true), server.ip(), Kind::PortUnreachable, &of(server, seen_as)));
        let wanted = lab.to_backend(1, &wanted);
        assert_brought(lab, Side::Front, &from_client(&told), &wanted, "error_to_backend");
    });
}

#[test]
fn a_damaged_error_stays_damaged() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        begin(lab, &served);
        let mut frame = from_client(&about_reply(true, Protocol::Tcp, Kind::TimeExceeded, 20));
        // The ICMP checksum.
        frame[36] ^= 0x40;
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "redirect");
        let server = SocketAddr::from((backend(true, 1), 8080));
        let quoted = quote(&packet(server, asker(true), 57, Protocol::Tcp, TCP_ACK), 20);
        let mut wanted = lab.to_backend(1, &lowered(error(far_router(true), server.ip(), Kind::TimeExceeded, &quoted)));
        assert_ne!(sent.frame[36..38], wanted[36..38]);
        wanted[36..38].copy_from_slice(&sent.frame[36..38]);
        assert_frame(&sent.frame, &wanted);
    });
}

#[test]
fn what_follows_the_quotation_travels_along() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        begin(lab, &served);
        let of = |from, to| {
            // RFC 4884: 128 bytes of the packet, and an extension.
            let mut quoted = quote(&packet(from, to, 57, Protocol::Udp, 0), WHOLE);
            quoted.resize(128, 0);
            quoted.extend([0x20, 0, 0xdf, 0xff]);
            quoted
        };
        let server: SocketAddr = (backend(true, 1), 8080).into();
        let told = error(far_router(true), vip(true), Kind::TimeExceeded, &of(service(true), asker(true)));
        let wanted = lowered(error(far_router(true), server.ip(), Kind::TimeExceeded, &of(server, asker(true))));
        let (told, wanted) = (with_length(from_client(&told)), with_length(lab.to_backend(1, &wanted)));
        assert_brought(lab, Side::Front, &told, &wanted, "error_to_backend");
    });
}

/// Says how long the quotation of an error over IPv4 is: 32 words.
fn with_length(mut frame: Vec<u8>) -> Vec<u8> {
    frame[39] = 32;
    frame[36..38].fill(0);
    let sum: u32 = frame[34..].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let check = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[36..38].copy_from_slice(&check.to_be_bytes());
    frame
}

#[test]
fn errors_about_packets_scheduled_one_by_one_go_to_a_backend_of_the_client() {
    lab(|lab| {
        let spec = Spec { backends: 2, granularity: Granularity::Packet, ..Spec::new(true, Protocol::Udp, Mode::Nat) };
        let served = lab.serve(spec);
        for _ in 0..2 {
            lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
        }
        assert_eq!(lab.flows().len(), 2);
        let frame = from_client(&about_reply(true, Protocol::Udp, Kind::TooBig(1400), 8));
        let told: std::collections::BTreeSet<Vec<u8>> = (0..2)
            .map(|_| {
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
                sent.frame[..6].to_vec()
            })
            .collect();
        assert_eq!(told.len(), 2, "in turn, both learn");
    });
}

/// Sends an error that is nobody's, or should be dropped.
#[track_caller]
fn assert_untouched(lab: &mut Lab, side: Side, frame: &[u8], exit: &str, reason: &str) {
    let sent = lab.send(side, frame);
    assert_eq!(sent.exit, exit, "{:?}", sent.counted);
    assert_frame(&sent.frame, frame);
    assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
}

#[test]
fn errors_about_no_flow_are_dropped_or_the_hosts() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat, Mode::DsrL2] {
            lab(move |lab| {
                let served = lab.serve(Spec { backend_port: 0, ..Spec::new(v4, protocol, mode) });
                let seen_as = begin(lab, &served);
                let of = |from: SocketAddr, to: SocketAddr| quote(&packet(from, to, 57, protocol, TCP_ACK), 8);
                let from_far =
                    |to, quoted: &[u8]| from_client(&error(far_router(v4), to, Kind::PortUnreachable, quoted));
                let other = (client(v4), 40_001).into();
                let forged = from_far(vip(v4), &of(service(v4), other));
                assert_untouched(lab, Side::Front, &forged, "drop", "error_of_no_flow");
                // About a connection of the host itself from the service's address.
                let ssh = from_far(vip(v4), &of((vip(v4), 22).into(), other));
                assert_untouched(lab, Side::Front, &ssh, "pass", "no_service");
                // Quoting what nobody there can have sent.
                let other_sender = from_far(vip(v4), &of((far_router(v4), 80).into(), asker(v4)));
                assert_untouched(lab, Side::Front, &other_sender, "drop", "malformed");
                let short = from_client(&about_reply(v4, protocol, Kind::PortUnreachable, 7));
                assert_untouched(lab, Side::Front, &short, "drop", "malformed");
                // About our own answer to a ping.
                let kind = if v4 { 1 } else { 58 };
                let pong = Segment::Other { protocol: kind, bytes: vec![0; 16] };
                let pong = quote(&Packet::new(&vip(v4).to_string(), &client(v4).to_string(), pong), 8);
                assert_untouched(lab, Side::Front, &from_far(vip(v4), &pong), "pass", "not_transport");

                if mode != Mode::DsrL2 {
                    let other: SocketAddr = (backend(v4, 2), 80).into();
                    let told = error(backend(v4, 1), seen_as.ip(), Kind::PortUnreachable, &of(seen_as, other));
                    assert_untouched(lab, Side::Back, &from_backend(1, &told), "pass", "no_flow");
                }
                let host: IpAddr = if v4 { "192.0.2.1" } else { "2001:db8:1::1" }.parse().unwrap();
                let about_host = from_far(host, &of((host, 22).into(), other));
                assert_untouched(lab, Side::Front, &about_host, "pass", "not_for_us");
                let broken = from_far(host, &[0x45; 9]);
                assert_untouched(lab, Side::Front, &broken, "pass", "not_for_us");
                assert_eq!(lab.flows().len(), 1);
            });
        }
    }
}

#[test]
fn errors_about_fragments_without_ports_are_left_to_the_host() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, Protocol::Udp, Mode::Nat));
            begin(lab, &served);
            let reply = packet(service(v4), asker(v4), 57, Protocol::Udp, 0);
            let quoted = if v4 {
                let mut quoted = quote(&reply, 8);
                quoted[7] = 0xb9;
                quoted
            } else {
                quote(&reply.extension(fragment(185, false)), 8)
            };
            let told = from_client(&error(far_router(v4), vip(v4), Kind::TimeExceeded, &quoted));
            assert_untouched(lab, Side::Front, &told, "pass", "not_transport");
        });
    }
}

#[test]
fn errors_about_flows_of_dead_backends_end_here() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        begin(lab, &served);
        lab.set_state(&served, 1, BackendState::Dead);
        let told = from_client(&about_reply(true, Protocol::Tcp, Kind::TooBig(1400), 8));
        assert_untouched(lab, Side::Front, &told, "drop", "error_of_no_flow");
    });
}

#[test]
fn an_error_neither_ends_nor_prolongs_a_flow() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        begin(lab, &served);
        lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_RST)));
        let before = lab.flow();
        std::thread::sleep(std::time::Duration::from_millis(300));
        let told = from_client(&about_reply(true, Protocol::Tcp, Kind::PortUnreachable, 8));
        assert_eq!(lab.send(Side::Front, &told).exit, "redirect");
        let after = lab.flow();
        assert_eq!((after.state, after.client), (before.state, before.client));
        assert!(after.idle > before.idle, "{before:?} {after:?}");
    });
}

#[test]
fn redirects_and_other_icmp_are_the_hosts() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, Protocol::Tcp, Mode::Nat));
            begin(lab, &served);
            let reply = quote(&packet(service(v4), asker(v4), 57, Protocol::Tcp, TCP_ACK), 8);
            // Redirect and source quench; redirect and a type that nobody has given a meaning.
            for kind in if v4 { [5, 4] } else { [137, 100] } {
                let bytes = [&[kind, 1, 0, 0, 0, 0, 0, 0], reply.as_slice()].concat();
                let segment = Segment::Other { protocol: if v4 { 1 } else { 58 }, bytes };
                let frame = from_client(&Packet::new(&far_router(v4).to_string(), &vip(v4).to_string(), segment));
                assert_untouched(lab, Side::Front, &frame, "pass", "not_transport");
            }
        });
    }
}

#[test]
fn an_error_on_its_last_hop_is_the_kernels() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        begin(lab, &served);
        let mut told = about_reply(true, Protocol::Tcp, Kind::TooBig(1400), 8);
        told.ttl = 1;
        assert_untouched(lab, Side::Front, &from_client(&told), "pass", "ttl_expired");
    });
}
