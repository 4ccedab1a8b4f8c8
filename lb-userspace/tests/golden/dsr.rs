//! Direct server return: only the client's packets come by, and they reach the backend as they are.

use lb_common::{
    abi::{Address, BackendState, Granularity, Mode, Port, Protocol},
    flow::{State, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, extension},
    lab::{KINDS, Lab, Served, Side, Spec, assert_frame, client, from_client, ip_batch, lab, packet, request, vip},
};

/// A service whose backends listen where it does.
fn dsr(v4: bool, protocol: Protocol) -> Spec {
    Spec { backend_port: 0, ..Spec::new(v4, protocol, Mode::DsrL2) }
}

/// A packet as the balancer hands it on: nothing but the TTL has changed.
fn onward(packet: &Packet) -> Packet {
    Packet { ttl: packet.ttl - 1, ..packet.clone() }
}

fn send(lab: &mut Lab, served: &Served, port: u16, flags: u8) -> crate::lab::Sent {
    lab.send(Side::Front, &from_client(&request(served, port, flags)))
}

#[test]
fn dsr_l2_changes_link_layer_addresses_and_ttl_only() {
    for (v4, protocol) in KINDS {
        lab(move |lab| {
            let served = lab.serve(dsr(v4, protocol));
            let (id, b) = (served.id, served.backends[0]);
            for flags in [TCP_SYN, TCP_ACK] {
                let asked = request(&served, 40_000, flags);
                let frame = from_client(&asked);
                let n = frame.len();
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "redirect");
                assert_frame(&sent.frame, &lab.to_backend(1, &onward(&asked)));
                let mut wanted = vec![
                    format!("service {id} forward 1 x {n}"),
                    format!("backend {b} forward 1 x {n}"),
                    format!("to_backend 1 x {n}"),
                ];
                if flags == TCP_SYN {
                    wanted.extend([format!("service {id} flows 1"), format!("backend {b} flows 1")]);
                }
                assert_counted(&sent, &wanted.iter().map(String::as_str).collect::<Vec<_>>());
            }
            let flow = lab.flow();
            assert_eq!(flow.source, (client(v4), 40_000).into(), "the backend sees the client");
        });
    }
}

#[test]
fn options_extension_headers_padding_and_missing_checksums_stay_as_they_are() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(dsr(v4, Protocol::Udp));
            let mut asked = request(&served, 40_000, 0).padded(13);
            if v4 {
                asked = asked.options(&[1, 1, 1, 0]);
                if let Segment::Udp { checksum, .. } = &mut asked.segment {
                    *checksum = false;
                }
            } else {
                asked = asked.extension(extension(0, 1)).extension(extension(60, 3));
            }
            let sent = lab.send(Side::Front, &from_client(&asked));
            assert_eq!(sent.exit, "redirect");
            assert_frame(&sent.frame, &lab.to_backend(1, &onward(&asked)));
        });
    }
}

#[test]
fn a_service_on_every_port_reaches_every_port_of_the_backend() {
    lab(|lab| {
        lab.serve(Spec { port: 0, ..dsr(true, Protocol::Tcp) });
        for port in [80, 8443] {
            let asked = packet((client(true), 40_000).into(), (vip(true), port).into(), 64, Protocol::Tcp, TCP_SYN);
            let sent = lab.send(Side::Front, &from_client(&asked));
            assert_frame(&sent.frame, &lab.to_backend(1, &onward(&asked)));
        }
        assert_eq!(lab.flows().len(), 2);
    });
}

#[test]
fn the_clients_packets_alone_move_a_tcp_flow_on() {
    lab(|lab| {
        let served = lab.serve(dsr(true, Protocol::Tcp));
        let steps = [
            (TCP_SYN, State::Opening),
            (TCP_SYN, State::Opening),
            (TCP_ACK, State::Established),
            (TCP_ACK | 8, State::Established),
            (TCP_FIN | TCP_ACK, State::Closing),
            (TCP_ACK, State::Closing),
            (TCP_RST, State::Closed),
        ];
        for (flags, state) in steps {
            assert_eq!(send(lab, &served, 40_000, flags).exit, "redirect");
            assert_eq!(lab.flow().state, state, "after flags {flags:#x}");
        }
        // The client uses its port again.
        assert_eq!(send(lab, &served, 40_000, TCP_SYN).exit, "redirect");
        assert_eq!(lab.flow().state, State::Opening);
    });
}

#[test]
fn a_flood_of_syns_evicts_no_established_flow() {
    lab(|lab| {
        let served = lab.serve(dsr(true, Protocol::Tcp));
        for port in 20_000..20_200 {
            send(lab, &served, port, TCP_SYN);
            send(lab, &served, port, TCP_ACK);
        }
        // Three times as many as there are places.
        for port in 30_000..33_000 {
            assert_eq!(send(lab, &served, port, TCP_SYN).exit, "redirect");
        }
        let established = lab.flows().iter().filter(|flow| flow.state == State::Established).count();
        assert_eq!(established, 200);
    });
}

#[test]
fn flows_stay_on_their_backends_and_packets_are_scheduled_in_turn() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 3, ..dsr(true, Protocol::Tcp) });
        for port in 20_000..20_030 {
            let first = send(lab, &served, port, TCP_SYN).frame;
            let second = send(lab, &served, port, TCP_ACK).frame;
            assert_eq!(first[..6], second[..6], "one flow, one backend");
        }
        assert_eq!(lab.flows_begun(&served), [10, 10, 10]);
    });
    lab(|lab| {
        let spec = Spec { backends: 3, granularity: Granularity::Packet, ..dsr(false, Protocol::Udp) };
        let served = lab.serve(spec);
        let receivers: Vec<[u8; 6]> =
            (0..30).map(|_| send(lab, &served, 40_000, 0).frame[..6].try_into().unwrap()).collect();
        for n in 1..=3 {
            assert_eq!(receivers.iter().filter(|mac| **mac == crate::lab::backend_mac(n)).count(), 10);
        }
    });
}

#[test]
fn what_cannot_be_forwarded_is_refused_from_the_services_address() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(dsr(v4, Protocol::Tcp));
            let n = from_client(&request(&served, 40_000, TCP_ACK)).len();
            let sent = send(lab, &served, 40_000, TCP_ACK);
            assert_eq!(sent.exit, "tx");
            assert_counted(&sent, &[&format!("unknown_flow 1 x {n}"), "service 0 refused 1"]);

            send(lab, &served, 40_001, TCP_SYN);
            lab.set_state(&served, 1, BackendState::Dead);
            let sent = send(lab, &served, 40_001, TCP_ACK);
            assert_eq!(sent.exit, "tx");
            assert_counted(&sent, &[&format!("backend_dead 1 x {n}"), "service 0 refused 1", "backend 0 reset 1"]);
            assert_eq!(lab.flow().state, State::Closed);
        });
    }
}

#[test]
fn a_backend_behind_a_gateway_is_not_on_the_segment() {
    for v4 in [true, false] {
        for known in [true, false] {
            lab(move |lab| {
                let (to, via) = match (v4, known) {
                    (true, true) => ("10.9.0.0/24", "10.0.0.12"),
                    (true, false) => ("10.9.0.0/24", "10.0.0.99"),
                    (false, true) => ("2001:db8:9::/64", "2001:db8:2::12"),
                    (false, false) => ("2001:db8:9::/64", "2001:db8:2::99"),
                };
                ip_batch(&format!("route add {to} via {via}\n"));
                let served = lab.serve(dsr(v4, Protocol::Tcp));
                let mut entry = lab.data.read().unwrap().backends[&served.backends[0]];
                let far: std::net::IpAddr = if v4 { "10.9.0.1" } else { "2001:db8:9::1" }.parse().unwrap();
                (entry.address, entry.port) = (Address::from(far), Port::ANY);
                lab.apply(Op::SetBackend { id: served.backends[0], backend: entry });
                let frame = from_client(&request(&served, 40_000, TCP_SYN));
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "drop");
                assert_frame(&sent.frame, &frame);
                let reason = format!("not_on_segment 1 x {}", frame.len());
                assert_counted(&sent, &[&reason, "service 0 dropped 1", "service 0 flows 1", "backend 0 flows 1"]);
            });
        }
    }
}

#[test]
fn the_last_hop_is_left_to_the_kernel() {
    lab(|lab| {
        let served = lab.serve(dsr(true, Protocol::Tcp));
        let mut asked = request(&served, 40_000, TCP_SYN);
        asked.ttl = 1;
        let frame = from_client(&asked);
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "pass", "a packet that goes in circles between balancer and backend ends here");
        assert_frame(&sent.frame, &frame);
    });
}
