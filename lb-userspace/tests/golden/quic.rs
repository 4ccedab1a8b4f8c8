//! QUIC: packets go where their connection ID says, whatever address they come from.

use lb_common::{
    abi::{BackendState, Mode, Protocol, QuicKey, ServiceValue, Slot},
    flow::State,
};
use lb_userspace::dataplane::Op;

use crate::{
    frames::{Packet, Segment, verified},
    lab::{Lab, Served, Side, Spec, backend, backend_mac, client, from_backend, from_client, lab, packet, vip},
};

const MODES: [Mode; 3] = [Mode::Nat, Mode::FullNat, Mode::DsrL2];

/// The server id of backend `n`, of four bytes.
fn id_of(n: u8) -> [u8; 4] {
    [0xc0, 0xff, 0xee, n]
}

/// A UDP service with three backends whose server ids are known.
fn serve(lab: &mut Lab, v4: bool, mode: Mode) -> Served {
    let served = lab.serve(Spec { backends: 3, backend_port: 80, ..Spec::new(v4, Protocol::Udp, mode) });
    for (n, &backend) in (1..).zip(&served.backends) {
        let mut server_id = [0; 16];
        server_id[..4].copy_from_slice(&id_of(n));
        lab.apply(Op::SetQuicId { key: QuicKey::new(served.id, server_id), backend });
    }
    lab.publish(&served, ServiceValue { quic_server_id: 4, ..served.value });
    served
}

/// A packet with a short header to a connection of backend `n`; 0: to none that is known.
fn short(n: u8) -> Vec<u8> {
    [&[0x40, 0x0b][..], &id_of(n), &[0x5a; 40]].concat()
}

/// An Initial packet with the random connection ID that a client chooses.
fn initial() -> Vec<u8> {
    [&[0xc0, 0, 0, 0, 1, 8, 9, 8, 7, 6, 5, 4, 3, 2, 0, 0][..], &[0x5a; 1200]].concat()
}

/// A Handshake packet with the connection ID that backend `n` chose.
fn handshake(n: u8) -> Vec<u8> {
    [&[0xe0, 0, 0, 0, 1, 8, 0x0b][..], &id_of(n), &[1, 2, 3, 0], &[0x5a; 100]].concat()
}

/// Sends a client's packet and gives the backend (1 to 3) that gets it.
fn send(lab: &mut Lab, served: &Served, port: u16, payload: &[u8]) -> u8 {
    let v4 = served.spec.v4;
    let segment = Segment::udp(port, 80, payload);
    let frame = from_client(&Packet::new(&client(v4).to_string(), &vip(v4).to_string(), segment));
    let sent = lab.send(Side::Front, &frame);
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    verified(&sent.frame);
    (1..=3).find(|&n| sent.frame[..6] == backend_mac(n)).expect("one of the backends")
}

#[test]
fn a_connection_id_leads_to_its_backend_from_any_address() {
    for mode in MODES {
        for v4 in [true, false] {
            lab(move |lab| {
                let served = serve(lab, v4, mode);
                let mut port = 40_000;
                for n in [3, 1, 1, 2, 3, 3] {
                    for payload in [short(n), handshake(n)] {
                        port += 1;
                        assert_eq!(send(lab, &served, port, &payload), n, "{mode:?}");
                        assert_eq!(send(lab, &served, port, &payload), n);
                    }
                }
                assert_eq!(lab.flows().len(), 12, "one for each address");
            });
        }
    }
}

#[test]
fn a_connection_begins_on_a_flow_and_stays_on_it_when_its_connection_id_is_known() {
    for mode in MODES {
        lab(move |lab| {
            let served = serve(lab, true, mode);
            for port in 40_000..40_006 {
                let n = send(lab, &served, port, &initial());
                assert_eq!(send(lab, &served, port, &initial()), n);
                let begun = lab.flows();
                for payload in [handshake(n), short(n), short(n)] {
                    assert_eq!(send(lab, &served, port, &payload), n);
                }
                let sources = |flows: &[lb_userspace::dataplane::kernel::FlowRecord]| {
                    flows.iter().map(|flow| (flow.client, flow.source, flow.backend_id)).collect::<Vec<_>>()
                };
                assert_eq!(sources(&lab.flows()), sources(&begun), "the backend sees one address all along");
            }
        });
    }
}

#[test]
fn two_connections_of_one_address_go_to_two_backends_and_both_are_answered() {
    for mode in [Mode::Nat, Mode::FullNat] {
        for v4 in [true, false] {
            lab(move |lab| {
                let served = serve(lab, v4, mode);
                let first = send(lab, &served, 40_000, &initial());
                let other = first % 3 + 1;
                assert_eq!(send(lab, &served, 40_000, &short(other)), other);
                assert_eq!(send(lab, &served, 40_000, &short(first)), first);
                assert_eq!(send(lab, &served, 40_000, &handshake(other)), other);
                assert_eq!(send(lab, &served, 40_000, &initial()), first, "unknown: by the address");
                let flows = lab.flows();
                assert_eq!(flows.len(), 2);
                for flow in flows {
                    let n = (1 + flow.backend_id - served.backends[0]) as u8;
                    let answer = packet((backend(v4, n), 80).into(), flow.source, 64, Protocol::Udp, 0);
                    let sent = lab.send(Side::Back, &from_backend(n, &answer));
                    let wanted = packet((vip(v4), 80).into(), (client(v4), 40_000).into(), 63, Protocol::Udp, 0);
                    assert_eq!(sent.frame, lab.to_client(&wanted), "{mode:?} {n}");
                }
                assert!(lab.flows().iter().all(|flow| flow.state == State::BothWays));
            });
        }
    }
}

#[test]
fn a_connection_id_of_no_live_backend_is_left_to_the_flow() {
    lab(|lab| {
        let served = serve(lab, true, Mode::FullNat);
        let first = send(lab, &served, 40_000, &short(0));
        for payload in [short(0), initial(), vec![0x40; 3], vec![]] {
            assert_eq!(send(lab, &served, 40_000, &payload), first);
        }
        let dead = first % 3 + 1;
        lab.set_state(&served, dead, BackendState::Dead);
        assert_eq!(send(lab, &served, 40_000, &short(dead)), first);
        assert_ne!(send(lab, &served, 40_001, &short(dead)), dead);
        let unroutable = [&[0x40, 0xe0][..], &id_of(dead % 3 + 1), &[0; 40]].concat();
        assert_eq!(send(lab, &served, 40_000, &unroutable), first);
    });
}

#[test]
fn a_backend_that_takes_no_new_flows_keeps_its_connections_when_they_migrate() {
    lab(|lab| {
        let served = serve(lab, true, Mode::FullNat);
        assert_eq!(send(lab, &served, 40_000, &short(2)), 2);
        let value = ServiceValue { quic_server_id: 4, ..served.value };
        let base = served.value.selection_base + 8;
        lab.apply(Op::WriteSelection { base, slots: [served.backends[0], served.backends[2]].map(Slot::clean).into() });
        lab.publish(&served, ServiceValue { selection_base: base, selection_len: 2, ..value });
        for port in 40_001..40_004 {
            assert_eq!(send(lab, &served, port, &short(2)), 2);
            assert_ne!(send(lab, &served, port + 100, &initial()), 2);
        }
    });
}

#[test]
fn services_that_do_not_ask_go_by_their_flows() {
    lab(|lab| {
        let served = serve(lab, true, Mode::FullNat);
        lab.publish(&served, served.value);
        let first = send(lab, &served, 40_000, &short(1));
        let second = send(lab, &served, 40_001, &short(1));
        assert_ne!(first, second, "in turn");
        assert_eq!(send(lab, &served, 40_000, &short(2)), first);
    });
}
