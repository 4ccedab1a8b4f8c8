//! Schedulers that look at loads and at hashes.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{Address, BackendState, Granularity, Mode, Port, Protocol, Scheduler, ServiceValue, Slot},
    flow::{TCP_ACK, TCP_RST, TCP_SYN},
    hash::{selection_hash, selection_slot, source_hash},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::lab::{Lab, Served, Side, Spec, backend, client, from_backend, from_client, lab, packet, request, vip};

fn spec(scheduler: Scheduler) -> Spec {
    Spec { backends: 3, scheduler, ..Spec::new(true, Protocol::Tcp, Mode::Nat) }
}

/// Sends a packet from a client to port 80 of the service; gives the backend (1 to 3) it went to.
#[track_caller]
fn send(lab: &mut Lab, served: &Served, from: SocketAddr, flags: u8) -> u8 {
    let Spec { v4, protocol, .. } = served.spec;
    let frame = from_client(&packet(from, (vip(v4), 80).into(), 64, protocol, flags));
    let sent = lab.send(Side::Front, &frame);
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    sent.frame[5] - 0x10
}

/// Opens connections from these ports of one client; gives how many each backend got.
fn open(lab: &mut Lab, served: &Served, ports: std::ops::Range<u16>) -> BTreeMap<u8, usize> {
    let mut shares = BTreeMap::new();
    for port in ports {
        *shares.entry(send(lab, served, (client(served.spec.v4), port).into(), TCP_SYN)).or_insert(0) += 1;
    }
    shares
}

fn loads(lab: &Lab, served: &Served) -> Vec<i64> {
    served.backends.iter().map(|&id| lab.data.backend_load(id).unwrap()).collect()
}

/// Backend `n` resets every connection to it; gives how many there were.
fn reset_all(lab: &mut Lab, served: &Served, n: u8) -> usize {
    let id = served.backends[usize::from(n) - 1];
    let flows: Vec<_> = lab.flows().into_iter().filter(|flow| flow.backend_id == id).collect();
    let Spec { v4, protocol, .. } = served.spec;
    for flow in &flows {
        let reset = packet((backend(v4, n), 8080).into(), flow.source, 64, protocol, TCP_RST | TCP_ACK);
        assert_eq!(lab.send(Side::Back, &from_backend(n, &reset)).exit, "redirect");
    }
    flows.len()
}

#[test]
fn least_connections_fills_up_the_backend_with_the_fewest() {
    lab(|lab| {
        let served = lab.serve(spec(Scheduler::LeastConnections));
        assert_eq!(open(lab, &served, 40_000..40_030), BTreeMap::from([(1, 10), (2, 10), (3, 10)]));
        assert_eq!(loads(lab, &served), [10, 10, 10]);
        assert_eq!(reset_all(lab, &served, 2), 10);
        assert_eq!(loads(lab, &served), [10, 0, 10], "closed connections are no load");
        assert_eq!(reset_all(lab, &served, 2), 10);
        assert_eq!(loads(lab, &served), [10, 0, 10], "nor are they taken away twice");
        assert_eq!(open(lab, &served, 41_000..41_010), BTreeMap::from([(2, 10)]));
        assert_eq!(open(lab, &served, 41_010..41_013), BTreeMap::from([(1, 1), (2, 1), (3, 1)]));
        assert_eq!(open(lab, &served, 41_000..41_010), BTreeMap::from([(2, 10)]), "flows stay where they are");
        assert_eq!(loads(lab, &served), [11, 11, 11]);
        lab.data.sweep().unwrap();
        assert_eq!(loads(lab, &served), [11, 11, 11], "a walk over the table finds the same");
    });
}

#[test]
fn least_connections_follows_the_weights_exactly() {
    lab(|lab| {
        let served = lab.serve(spec(Scheduler::LeastConnections));
        for (n, weight) in [(1, 1), (2, 2), (3, 3)] {
            lab.set_weight(&served, n, weight);
        }
        assert_eq!(open(lab, &served, 40_000..40_060), BTreeMap::from([(1, 10), (2, 20), (3, 30)]));
    });
}

#[test]
fn a_dead_backend_is_passed_over_however_idle_it_is() {
    for scheduler in [Scheduler::LeastConnections, Scheduler::RandomTwo] {
        lab(move |lab| {
            let served = lab.serve(spec(scheduler));
            lab.set_state(&served, 1, BackendState::Dead);
            let shares = open(lab, &served, 40_000..40_040);
            assert_eq!(shares.keys().copied().collect::<Vec<_>>(), [2, 3], "{scheduler:?}");
            assert_eq!(shares.values().sum::<usize>(), 40);
        });
    }
}

#[test]
fn of_a_long_table_least_connections_looks_at_a_window_that_moves() {
    lab(|lab| {
        let served = lab.serve(spec(Scheduler::LeastConnections));
        let mut slots = vec![served.backends[0]; 128];
        slots[127] = served.backends[1];
        let slots = slots.into_iter().map(Slot::clean).collect();
        lab.apply(Op::WriteSelection { base: 128, slots });
        lab.publish(&served, ServiceValue { selection_base: 128, selection_len: 128, ..served.value });
        assert_eq!(open(lab, &served, 40_000..40_001), BTreeMap::from([(1, 1)]), "63 slots further is out of sight");
        let shares = open(lab, &served, 40_001..40_128);
        assert!((60..=67).contains(&shares[&2]), "in sight half of the time: {shares:?}");
    });
}

#[test]
fn random_two_keeps_backends_even() {
    lab(|lab| {
        let served = lab.serve(spec(Scheduler::RandomTwo));
        let shares = open(lab, &served, 40_000..40_300);
        // Chosen at random alone, a share strays by 8.
        assert!(shares.values().all(|flows| (95..=105).contains(flows)), "{shares:?}");
        assert_eq!(loads(lab, &served).iter().sum::<i64>(), 300);
        // Of an idle backend and two busy ones, two draws meet the idle one two times in three.
        reset_all(lab, &served, 2);
        let shares = open(lab, &served, 41_000..41_060);
        assert!((25..=55).contains(&shares[&2]), "{shares:?}");
    });
}

#[test]
fn random_two_follows_the_weights() {
    lab(|lab| {
        let served = lab.serve(spec(Scheduler::RandomTwo));
        lab.set_weight(&served, 3, 2);
        lab.select(&served, &[3, 1, 3, 2]);
        let shares = open(lab, &served, 40_000..40_400);
        assert!((190..=210).contains(&shares[&3]), "{shares:?}");
        // Not by the table: with each of them in one slot the weight alone holds the heavy one up.
        lab.select(&served, &[1, 2, 3]);
        let more = open(lab, &served, 41_000..41_200);
        assert!((75..=120).contains(&more[&3]), "{more:?}");
    });
}

#[test]
fn flows_of_other_schedulers_are_not_counted_but_found_by_the_walk() {
    lab(|lab| {
        let served = lab.serve(spec(Scheduler::RoundRobin));
        lab.select(&served, &[1, 1, 2]);
        open(lab, &served, 40_000..40_030);
        assert_eq!(loads(lab, &served), [0, 0, 0]);
        lab.data.sweep().unwrap();
        let found = loads(lab, &served);
        assert_eq!(found.iter().sum::<i64>(), 30);
        // From here on by load: the third one catches up with what the others have.
        let value = ServiceValue { scheduler: Scheduler::LeastConnections as u8, ..served.value };
        lab.publish(&served, value);
        assert_eq!(open(lab, &served, 41_000..41_005), BTreeMap::from([(3, 5)]));
    });
}

/// The backend that the hash points at among those that live; the table lists backends 1, 2, 3.
fn by_hash(hash: u64, dead: &[u8]) -> u8 {
    let slots = (0..4).map(|attempt| selection_slot(hash, attempt, 3) as u8 + 1);
    slots.into_iter().find(|n| !dead.contains(n)).expect("one of four attempts meets a live backend")
}

fn flow_hash(served: &Served, from: SocketAddr) -> u64 {
    let to = vip(served.spec.v4).into();
    selection_hash(&from.ip().into(), &to, Port::new(from.port()), Port::new(80), served.spec.protocol as u8)
}

fn clients(v4: bool) -> impl Iterator<Item = IpAddr> {
    (0..60u8).map(
        move |n| if v4 { [198, 51, 100, n + 20].into() } else { [0x2001, 0xdb8, 0xc, 0, 0, 0, 0, n.into()].into() },
    )
}

#[test]
fn source_hash_sends_all_flows_of_a_client_to_one_backend() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec { v4, ..spec(Scheduler::SourceHash) });
            let mut shares = BTreeMap::new();
            for ip in clients(v4) {
                let wanted = by_hash(source_hash(&Address::from(ip)), &[]);
                for port in 40_000..40_004 {
                    assert_eq!(send(lab, &served, (ip, port).into(), TCP_SYN), wanted, "{ip}");
                }
                *shares.entry(wanted).or_insert(0) += 1;
            }
            assert!(shares.len() == 3 && shares.values().all(|&n| n >= 10), "{shares:?}");
        });
    }
}

#[test]
fn maglev_picks_what_every_other_node_would_and_flows_stay() {
    for v4 in [true, false] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            lab(move |lab| {
                let served = lab.serve(Spec { v4, protocol, ..spec(Scheduler::Maglev) });
                let flows: Vec<SocketAddr> = (40_000..40_060).map(|port| (client(v4), port).into()).collect();
                let mut shares = BTreeMap::new();
                for &from in &flows {
                    let wanted = by_hash(flow_hash(&served, from), &[]);
                    assert_eq!(send(lab, &served, from, TCP_SYN), wanted, "{from}");
                    *shares.entry(wanted).or_insert(0) += 1;
                }
                assert!(shares.len() == 3 && shares.values().all(|&n| n >= 10), "{shares:?}");
                lab.select(&served, &[1]);
                for &from in &flows {
                    assert_eq!(send(lab, &served, from, TCP_SYN), by_hash(flow_hash(&served, from), &[]), "{from}");
                }
            });
        }
    }
}

#[test]
fn flows_that_point_at_a_dead_backend_spread_over_the_others() {
    lab(|lab| {
        let served = lab.serve(spec(Scheduler::Maglev));
        lab.set_state(&served, 2, BackendState::Dead);
        let mut moved = BTreeMap::new();
        for port in 40_000..40_120 {
            let from = SocketAddr::new(client(true), port);
            let hash = flow_hash(&served, from);
            if (0..4).all(|attempt| selection_slot(hash, attempt, 3) == 1) {
                let sent = lab.send(Side::Front, &from_client(&request(&served, port, TCP_SYN)));
                assert_eq!(sent.exit, "tx", "one in 81 meets it four times and is reset");
                continue;
            }
            let wanted = by_hash(hash, &[2]);
            assert_eq!(send(lab, &served, from, TCP_SYN), wanted);
            if by_hash(hash, &[]) == 2 {
                *moved.entry(wanted).or_insert(0) += 1;
            }
        }
        assert!(moved.len() == 2 && moved.values().all(|&n| n >= 10), "{moved:?}");
    });
}

#[test]
fn single_packets_follow_the_hash_and_the_table_at_once() {
    for scheduler in [Scheduler::Maglev, Scheduler::SourceHash] {
        lab(move |lab| {
            let packets = Spec { protocol: Protocol::Udp, granularity: Granularity::Packet, ..spec(scheduler) };
            let served = lab.serve(packets);
            let from = SocketAddr::new(client(true), 40_000);
            let hash = match scheduler {
                Scheduler::Maglev => flow_hash(&served, from),
                _ => source_hash(&from.ip().into()),
            };
            let wanted = by_hash(hash, &[]);
            for _ in 0..10 {
                assert_eq!(send(lab, &served, from, 0), wanted);
            }
            let other = wanted % 3 + 1;
            lab.select(&served, &[other]);
            assert_eq!(send(lab, &served, from, 0), other);
        });
    }
}
