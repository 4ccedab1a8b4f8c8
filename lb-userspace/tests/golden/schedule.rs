//! Round robin: in turn, for flows and for packets.

use std::collections::BTreeMap;

use lb_common::{
    abi::{BackendState, Granularity, Mode, Protocol},
    flow::TCP_SYN,
};

use crate::counters::assert_counted;
use crate::lab::{
    Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, request, vip,
};

fn flows_per_backend(lab: &Lab) -> BTreeMap<u32, usize> {
    let mut shares = BTreeMap::new();
    for flow in lab.flows() {
        *shares.entry(flow.backend_id).or_insert(0) += 1;
    }
    shares
}

fn syn(lab: &mut Lab, served: &Served, port: u16) {
    let sent = lab.send(Side::Front, &from_client(&request(served, port, TCP_SYN)));
    assert_eq!(sent.exit, "redirect");
}

#[test]
fn new_flows_go_to_the_backends_in_turn_and_stay() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
        for port in 40_000..40_300 {
            syn(lab, &served, port);
        }
        let before: BTreeMap<_, _> = lab.flows().into_iter().map(|f| (f.client, f.backend_id)).collect();
        // One thread may move between CPUs, each of which takes its own turns.
        for (backend, flows) in flows_per_backend(lab) {
            assert!((95..=105).contains(&flows), "backend {backend} has {flows} of 300");
        }
        for port in 40_000..40_300 {
            syn(lab, &served, port);
        }
        let after: BTreeMap<_, _> = lab.flows().into_iter().map(|f| (f.client, f.backend_id)).collect();
        assert_eq!(before, after);
    });
}

#[test]
fn flows_stay_whatever_becomes_of_the_other_backends() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        lab.select(&served, &[1, 2]);
        for port in 40_000..40_100 {
            syn(lab, &served, port);
        }
        let before: BTreeMap<_, _> = lab.flows().into_iter().map(|f| (f.client, f.backend_id)).collect();
        for selection in [&[1, 2, 3][..], &[3], &[2, 3], &[1]] {
            lab.select(&served, selection);
            for port in 40_000..40_100 {
                syn(lab, &served, port);
            }
            let after: BTreeMap<_, _> = lab.flows().into_iter().map(|f| (f.client, f.backend_id)).collect();
            assert_eq!(before, after, "selection {selection:?}");
        }
    });
}

#[test]
fn a_backend_that_died_after_the_table_was_written_is_passed_over() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
        lab.set_state(&served, 1, BackendState::Dead);
        for port in 40_000..40_020 {
            syn(lab, &served, port);
        }
        assert_eq!(flows_per_backend(lab), BTreeMap::from([(served.backends[1], 20)]));
    });
}

#[test]
fn packets_are_scheduled_one_by_one_and_replies_find_the_client() {
    for mode in [Mode::Nat, Mode::FullNat] {
        for v4 in [true, false] {
            lab(move |lab| {
                let spec = Spec { backends: 3, granularity: Granularity::Packet, ..Spec::new(v4, Protocol::Udp, mode) };
                let served = lab.serve(spec);
                let ask = from_client(&request(&served, 40_000, 0));
                let mut shares = BTreeMap::new();
                for _ in 0..90 {
                    let sent = lab.send(Side::Front, &ask);
                    assert_eq!(sent.exit, "redirect");
                    *shares.entry(sent.frame[5]).or_insert(0) += 1;
                }
                assert_eq!(shares.len(), 3, "all backends get packets of one tuple");
                assert!(shares.values().all(|n| (28..=32).contains(n)), "{shares:?}");
                let flows = lab.flows();
                assert_eq!(flows.len(), 3, "one flow a backend, however many packets");
                for flow in flows {
                    let n = (served.backends.iter().position(|&id| id == flow.backend_id).unwrap() + 1) as u8;
                    let answer = packet((backend(v4, n), 8080).into(), flow.source, 64, Protocol::Udp, 0);
                    let sent = lab.send(Side::Back, &from_backend(n, &answer));
                    assert_eq!(sent.exit, "redirect");
                    let wanted = packet((vip(v4), 80).into(), (client(v4), 40_000).into(), 63, Protocol::Udp, 0);
                    assert_frame(&sent.frame, &lab.to_client(&wanted));
                }
            });
        }
    }
}

#[test]
fn a_neighbour_that_is_not_known_costs_a_packet_and_asks_for_it() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        crate::lab::ip_batch("neigh del 10.0.0.11 dev back\n");
        let frame = from_client(&request(&served, 40_000, TCP_SYN));
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "drop");
        assert_counted(
            &sent,
            &[
                &format!("neighbour_missing 1 x {}", frame.len()),
                "service 0 dropped 1",
                "service 0 flows 1",
                "backend 0 flows 1",
            ],
        );
        crate::lab::ip_batch("neigh add 10.0.0.11 lladdr 02:00:00:00:02:11 dev back nud permanent\n");
        assert_eq!(lab.send(Side::Front, &frame).exit, "redirect", "the client's second try gets through");
        assert_eq!(lab.flows().len(), 1);
    });
}

#[test]
fn without_a_route_the_packet_is_dropped_whole() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        crate::lab::ip_batch("route add blackhole 10.0.0.11/32\n");
        let frame = from_client(&request(&served, 40_000, TCP_SYN));
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "drop");
        assert_frame(&sent.frame, &frame);
        assert!(sent.counted.iter().any(|line| line.starts_with("no_route 1")), "{:?}", sent.counted);
    });
}
