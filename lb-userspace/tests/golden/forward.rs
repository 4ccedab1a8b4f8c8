//! Packets of clients and of backends, translated: every family, transport, mode and direction.

use std::net::SocketAddr;

use lb_common::{
    abi::{Mode, Protocol},
    flow::{TCP_ACK, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::Segment,
    lab::{
        KINDS, Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, request,
        source, vip,
    },
};

/// The first packet, a second one and two replies of one flow.
fn conversation(lab: &mut Lab, served: &Served) {
    let Spec { v4, protocol, mode, .. } = served.spec;
    let (id, b) = (served.id, served.backends[0]);
    let us = |port| -> SocketAddr { (vip(v4), port).into() };
    let them = |port| -> SocketAddr { (client(v4), port).into() };
    let server: SocketAddr = (backend(v4, 1), 8080).into();

    let first = from_client(&request(served, 40_000, TCP_SYN));
    let sent = lab.send(Side::Front, &first);
    let flow = lab.flow();
    let seen_as: SocketAddr = match mode {
        Mode::Nat => them(40_000),
        Mode::FullNat => {
            assert!(flow.source.port() >= 1024, "{flow:?}");
            (source(v4), flow.source.port()).into()
        }
        other => panic!("{} is not translated", other.name()),
    };
    let n = first.len();
    assert_eq!(sent.exit, "redirect");
    assert_frame(&sent.frame, &lab.to_backend(1, &packet(seen_as, server, 63, protocol, TCP_SYN)));
    let forward = [format!("service {id} forward 1 x {n}"), format!("backend {b} forward 1 x {n}")];
    let begun = [format!("service {id} flows 1"), format!("backend {b} flows 1"), format!("to_backend 1 x {n}")];
    assert_counted(&sent, &[&forward[0], &forward[1], &begun[0], &begun[1], &begun[2]]);

    let sent = lab.send(Side::Front, &from_client(&request(served, 40_000, TCP_ACK)));
    assert_eq!(sent.exit, "redirect");
    assert_frame(&sent.frame, &lab.to_backend(1, &packet(seen_as, server, 63, protocol, TCP_ACK)));
    assert_counted(&sent, &[&forward[0], &forward[1], &begun[2]]);

    for flags in [TCP_SYN | TCP_ACK, TCP_ACK] {
        let reply = from_backend(1, &packet(server, seen_as, 64, protocol, flags));
        let sent = lab.send(Side::Back, &reply);
        assert_eq!(sent.exit, "redirect");
        assert_frame(&sent.frame, &lab.to_client(&packet(us(80), them(40_000), 63, protocol, flags)));
        assert_counted(
            &sent,
            &[
                &format!("to_client 1 x {n}"),
                &format!("service {id} reply 1 x {n}"),
                &format!("backend {b} reply 1 x {n}"),
            ],
        );
    }
    assert_eq!(lab.flows().len(), 1, "all four packets are of one flow");
}

fn conversations(mode: Mode) {
    for (v4, protocol) in KINDS {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, protocol, mode));
            conversation(lab, &served);
        });
    }
}

#[test]
fn nat_translates_both_ways_and_keeps_the_client_visible() {
    conversations(Mode::Nat);
}

#[test]
fn full_nat_translates_both_ways_and_hides_the_client() {
    conversations(Mode::FullNat);
}

#[test]
fn any_port_services_keep_the_port_that_was_asked_for() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = lab.serve(Spec { port: 0, backend_port: 0, ..Spec::new(v4, protocol, mode) });
                let ask = |port| packet((client(v4), 40_000).into(), (vip(v4), port).into(), 64, protocol, TCP_SYN);
                for port in [80, 8443] {
                    let sent = lab.send(Side::Front, &from_client(&ask(port)));
                    assert_eq!(sent.exit, "redirect");
                    let flow = lab.flows().into_iter().find(|flow| flow.service_port == port).expect("a flow each");
                    let to = (backend(v4, 1), port).into();
                    assert_frame(&sent.frame, &lab.to_backend(1, &packet(flow.source, to, 63, protocol, TCP_SYN)));
                    let reply = from_backend(1, &packet(to, flow.source, 64, protocol, TCP_ACK));
                    let sent = lab.send(Side::Back, &reply);
                    let wanted = packet((vip(v4), port).into(), (client(v4), 40_000).into(), 63, protocol, TCP_ACK);
                    assert_frame(&sent.frame, &lab.to_client(&wanted));
                }
                assert_eq!(lab.flows().len(), 2);
                assert_eq!(served.backends.len(), 1);
            });
        }
    }
}

#[test]
fn an_exact_port_goes_before_any_port() {
    lab(|lab| {
        let any = Spec { port: 0, backend_port: 0, ..Spec::new(true, Protocol::Tcp, Mode::Nat) };
        lab.serve(any);
        let exact = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        // The second service has replaced the role of the address.
        let roles = lb_common::abi::AddressRoles(
            lb_common::abi::AddressRoles::SERVICE | lb_common::abi::AddressRoles::ANY_PORT,
        );
        lab.apply(lb_userspace::dataplane::Op::SetAddress { address: vip(true).into(), roles });
        lab.send(Side::Front, &from_client(&request(&exact, 40_000, TCP_SYN)));
        assert_eq!(lab.flow().service_id, exact.id);
    });
}

#[test]
fn ipv4_options_and_ipv6_extension_headers_travel_along() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, Protocol::Tcp, Mode::Nat));
            let with_extras = |packet: crate::frames::Packet| {
                if v4 {
                    packet.options(&[1, 1, 1, 0])
                } else {
                    packet.extension(crate::frames::extension(0, 1)).extension(crate::frames::extension(60, 3))
                }
            };
            let sent = lab.send(Side::Front, &from_client(&with_extras(request(&served, 40_000, TCP_SYN))));
            assert_eq!(sent.exit, "redirect");
            let to = (backend(v4, 1), 8080).into();
            let wanted = with_extras(packet((client(v4), 40_000).into(), to, 63, Protocol::Tcp, TCP_SYN));
            assert_frame(&sent.frame, &lab.to_backend(1, &wanted));
        });
    }
}

#[test]
fn udp_without_checksum_stays_without() {
    for mode in [Mode::Nat, Mode::FullNat] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(true, Protocol::Udp, mode));
            let bare = |mut packet: crate::frames::Packet| {
                if let Segment::Udp { checksum, .. } = &mut packet.segment {
                    *checksum = false;
                }
                packet
            };
            let sent = lab.send(Side::Front, &from_client(&bare(request(&served, 40_000, 0))));
            let flow = lab.flow();
            let to = (backend(true, 1), 8080).into();
            assert_frame(&sent.frame, &lab.to_backend(1, &bare(packet(flow.source, to, 63, Protocol::Udp, 0))));
        });
    }
}

#[test]
fn ethernet_padding_travels_along() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let sent = lab.send(Side::Front, &from_client(&request(&served, 40_000, 0).padded(13)));
        let wanted = packet((client(true), 40_000).into(), (backend(true, 1), 8080).into(), 63, Protocol::Udp, 0);
        assert_frame(&sent.frame, &lab.to_backend(1, &wanted.padded(13)));
    });
}

#[test]
fn one_arm_goes_back_out_of_the_interface_it_came_from() {
    for mode in [Mode::Nat, Mode::FullNat] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(true, Protocol::Tcp, mode));
            // The client stands in the backends' network.
            let near: SocketAddr = "10.0.0.12:40000".parse().unwrap();
            let mut frame = packet(near, (vip(true), 80).into(), 64, Protocol::Tcp, TCP_SYN).frame();
            frame[6..12].copy_from_slice(&crate::lab::backend_mac(2));
            let sent = lab.send(Side::Back, &frame);
            assert_eq!(sent.exit, "tx");
            let flow = lab.flow();
            let server = (backend(true, 1), 8080).into();
            assert_frame(&sent.frame, &lab.to_backend(1, &packet(flow.source, server, 63, Protocol::Tcp, TCP_SYN)));
            let reply = packet(server, flow.source, 64, Protocol::Tcp, TCP_SYN | TCP_ACK);
            let sent = lab.send(Side::Back, &from_backend(1, &reply));
            assert_eq!(sent.exit, "tx");
            let wanted = packet((vip(true), 80).into(), near, 63, Protocol::Tcp, TCP_SYN | TCP_ACK);
            assert_frame(&sent.frame, &lab.to_backend(2, &wanted));
            assert_eq!(served.id, 0);
        });
    }
}

#[test]
fn a_client_without_neighbour_entry_is_answered_the_way_it_came() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, Protocol::Tcp, Mode::FullNat));
            let near: SocketAddr = if v4 { "192.0.2.77:40000" } else { "[2001:db8:1::77]:40000" }.parse().unwrap();
            let mac = [2, 0, 0, 0, 1, 0x77];
            let mut frame = packet(near, (vip(v4), 80).into(), 64, Protocol::Tcp, TCP_SYN).frame();
            frame[6..12].copy_from_slice(&mac);
            assert_eq!(lab.send(Side::Front, &frame).exit, "redirect");
            let flow = lab.flow();
            let server = (backend(v4, 1), 8080).into();
            let reply = packet(server, flow.source, 64, Protocol::Tcp, TCP_SYN | TCP_ACK);
            let sent = lab.send(Side::Back, &from_backend(1, &reply));
            assert_eq!(sent.exit, "redirect");
            let mut wanted = packet((vip(v4), 80).into(), near, 63, Protocol::Tcp, TCP_SYN | TCP_ACK).frame();
            wanted[..6].copy_from_slice(&mac);
            wanted[6..12].copy_from_slice(&crate::lab::FRONT_MAC);
            assert_frame(&sent.frame, &wanted);
            assert_eq!(served.id, 0);
        });
    }
}
