//! Flows without an entry: direct server return with a scheduler that has a table of hashes.

use std::collections::BTreeMap;

use lb_common::{
    abi::{BackendState, HashedBy, Mode, Protocol, Scheduler, ServiceValue, Slot},
    flow::{State, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    hash::{selection_hash, selection_slot},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::Packet,
    lab::{KINDS, Lab, Sent, Served, Side, Spec, assert_frame, backend_mac, client, from_client, lab, request, vip},
};

/// A service of three backends whose flows need no entry.
pub fn spec(v4: bool, protocol: Protocol) -> Spec {
    let spec = Spec::new(v4, protocol, Mode::DsrL2);
    Spec { scheduler: Scheduler::Maglev, backend_port: 0, backends: 3, ..spec }
}

/// Publishes these slots. Backends are called 1 to 3.
pub fn slots(lab: &mut Lab, served: &Served, slots: &[Slot]) -> ServiceValue {
    let len = slots.len() as u32;
    // Never where the last table was.
    let base = 64 + lab.now() % 4 * 32;
    lab.apply(Op::WriteSelection { base, slots: slots.to_vec() });
    let value = ServiceValue {
        selection_base: base,
        selection_len: len,
        stable_len: len,
        flags: ServiceValue::TRACKED | ServiceValue::PAIRED,
        ..served.value
    };
    lab.publish(served, value);
    value
}

fn id(served: &Served, n: u8) -> u32 {
    served.backends[usize::from(n) - 1]
}

pub fn clean(served: &Served, n: u8) -> Slot {
    Slot::clean(id(served, n))
}

pub fn unsettled(served: &Served, current: u8, stable: u8) -> Slot {
    Slot::unsettled(id(served, current), id(served, stable))
}

pub fn send(lab: &mut Lab, served: &Served, port: u16, flags: u8) -> Sent {
    lab.send(Side::Front, &from_client(&request(served, port, flags)))
}

/// The backend (1 to 3) that a packet went to.
pub fn receiver(sent: &Sent) -> u8 {
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    (1..=3).find(|n| sent.frame[..6] == backend_mac(*n)).expect("a backend")
}

fn goes_to(lab: &mut Lab, served: &Served, port: u16, flags: u8) -> u8 {
    receiver(&send(lab, served, port, flags))
}

fn is_reset(lab: &mut Lab, served: &Served, port: u16, flags: u8, reason: &str) {
    let n = from_client(&request(served, port, flags)).len();
    let sent = send(lab, served, port, flags);
    assert_eq!(sent.exit, "tx", "{:?}", sent.counted);
    assert!(sent.counted.contains(&format!("{reason} 1 x {n}")), "{:?}", sent.counted);
}

/// Entries by client port, with their backends (1 to 3).
fn entries(lab: &Lab, served: &Served) -> BTreeMap<u16, (u8, State)> {
    let number = |id: u32| served.backends.iter().position(|known| *known == id).unwrap() as u8 + 1;
    lab.flows().iter().map(|flow| (flow.client.port(), (number(flow.backend_id), flow.state))).collect()
}

#[test]
fn a_clean_slot_takes_every_packet_and_leaves_nothing_behind() {
    for (v4, protocol) in KINDS {
        lab(move |lab| {
            let served = lab.serve(spec(v4, protocol));
            slots(lab, &served, &[clean(&served, 2)]);
            for flags in [TCP_SYN, TCP_ACK, TCP_FIN | TCP_ACK, TCP_RST] {
                let asked = request(&served, 40_000, flags);
                let frame = from_client(&asked);
                let n = frame.len();
                let sent = lab.send(Side::Front, &frame);
                assert_frame(&sent.frame, &lab.to_backend(2, &Packet { ttl: asked.ttl - 1, ..asked }));
                let mut wanted = vec![
                    format!("service 0 forward 1 x {n}"),
                    format!("backend 1 forward 1 x {n}"),
                    format!("to_backend 1 x {n}"),
                ];
                if protocol == Protocol::Tcp && flags == TCP_SYN {
                    wanted.extend(["service 0 flows 1".to_owned(), "backend 1 flows 1".to_owned()]);
                }
                assert_counted(&sent, &wanted.iter().map(String::as_str).collect::<Vec<_>>());
            }
            assert!(lab.flows().is_empty());
        });
    }
}

#[test]
fn tunnels_need_no_entry_either_and_keep_one_label_per_flow() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec { mode: Mode::DsrIpip, ..spec(v4, Protocol::Udp) });
            slots(lab, &served, &[clean(&served, 1)]);
            let before = send(lab, &served, 40_000, 0);
            slots(lab, &served, &[unsettled(&served, 2, 1)]);
            let after = send(lab, &served, 40_000, 0);
            assert_eq!((receiver(&before), lab.flows().len()), (1, 1));
            assert_frame(&after.frame, &before.frame);
            let label = |sent: Sent| sent.frame[14..18].to_vec();
            let other = send(lab, &served, 40_001, 0);
            assert!(v4 || label(other) != label(after), "another flow has another label");
        });
    }
}

#[test]
fn flows_stay_where_they_are_when_their_slot_changes() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp));
        slots(lab, &served, &[clean(&served, 1)]);
        for port in [40_000, 40_001, 40_002] {
            assert_eq!(goes_to(lab, &served, port, TCP_SYN), 1);
        }
        slots(lab, &served, &[unsettled(&served, 2, 1)]);
        assert_eq!(goes_to(lab, &served, 40_000, TCP_ACK), 1, "it began before");
        assert_eq!(goes_to(lab, &served, 40_001, TCP_FIN | TCP_ACK), 1);
        assert_eq!(goes_to(lab, &served, 41_000, TCP_SYN), 2, "it begins now");
        assert_eq!(goes_to(lab, &served, 41_000, TCP_ACK), 2);
        let wanted =
            [(40_000, (1, State::Established)), (40_001, (1, State::Closing)), (41_000, (2, State::Established))];
        assert_eq!(entries(lab, &served), wanted.into());
        // Another change, while old flows are still without an entry.
        slots(lab, &served, &[unsettled(&served, 3, 1)]);
        for (port, n) in [(40_000, 1), (40_001, 1), (40_002, 1), (41_000, 2)] {
            assert_eq!(goes_to(lab, &served, port, TCP_ACK), n, "port {port}");
        }
        assert_eq!(goes_to(lab, &served, 42_000, TCP_SYN), 3);
        assert_eq!(lab.flows_begun(&served), [3, 1, 1], "each connection is counted once");
    });
}

#[test]
fn a_slot_without_flows_left_behind_gives_entries_to_nobody() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp));
        slots(lab, &served, &[unsettled(&served, 2, 1)]);
        assert_eq!(goes_to(lab, &served, 40_000, TCP_ACK), 1);
        slots(lab, &served, &[unsettled(&served, 2, 2)]);
        assert_eq!(goes_to(lab, &served, 40_000, TCP_ACK), 1, "it has an entry");
        for flags in [TCP_SYN, TCP_ACK] {
            assert_eq!(goes_to(lab, &served, 41_000, flags), 2);
        }
        assert_eq!(entries(lab, &served).keys().copied().collect::<Vec<_>>(), [40_000]);
    });
}

#[test]
fn flows_of_a_dead_or_vanished_backend_are_reset() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp));
        lab.set_state(&served, 1, BackendState::Dead);
        slots(lab, &served, &[unsettled(&served, 2, 1)]);
        is_reset(lab, &served, 40_000, TCP_ACK, "backend_dead");
        assert_eq!(goes_to(lab, &served, 40_000, TCP_SYN), 2);
        assert_eq!(goes_to(lab, &served, 40_000, TCP_ACK), 2);
        slots(lab, &served, &[Slot::gone(served.backends[1])]);
        is_reset(lab, &served, 40_001, TCP_ACK, "unknown_flow");
        assert_eq!(goes_to(lab, &served, 40_001, TCP_SYN), 2);
    });
}

#[test]
fn udp_follows_the_backend_it_may_have_had_while_that_lives() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Udp));
        slots(lab, &served, &[unsettled(&served, 2, 1)]);
        assert_eq!(goes_to(lab, &served, 40_000, 0), 1);
        assert_eq!(
            entries(lab, &served),
            [(40_000, (1, State::BothWays))].into(),
            "it may be old, and silent for long"
        );
        lab.set_state(&served, 1, BackendState::Dead);
        assert_eq!(goes_to(lab, &served, 40_001, 0), 2);
        slots(lab, &served, &[Slot::gone(served.backends[2])]);
        assert_eq!(goes_to(lab, &served, 40_002, 0), 3);
        assert_eq!(goes_to(lab, &served, 40_001, 0), 2, "it has an entry");
    });
}

/// A client port whose first slot is 0, of two.
fn port_of_slot_0(served: &Served) -> u16 {
    let (v4, protocol) = (served.spec.v4, served.spec.protocol as u8);
    let slot = |port: u16| {
        let (port, service) = (lb_common::abi::Port::new(port), lb_common::abi::Port::new(80));
        let hash = selection_hash(&client(v4).into(), &vip(v4).into(), port, service, protocol);
        [selection_slot(hash, 0, 2), selection_slot(hash, 1, 2)]
    };
    (40_000..).find(|port| slot(*port) == [0, 1]).unwrap()
}

#[test]
fn a_flow_that_begins_while_its_slots_backend_is_dead_stays_where_it_began() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp));
        let port = port_of_slot_0(&served);
        slots(lab, &served, &[clean(&served, 1), clean(&served, 2)]);
        // The table still says so, but the backend has just died.
        lab.set_state(&served, 1, BackendState::Dead);
        is_reset(lab, &served, port, TCP_ACK, "backend_dead");
        assert_eq!(goes_to(lab, &served, port, TCP_SYN), 2);
        assert_eq!(goes_to(lab, &served, port, TCP_ACK), 2, "its slot is clean, but its backend is dead");
        slots(lab, &served, &[unsettled(&served, 3, 1), clean(&served, 2)]);
        assert_eq!(goes_to(lab, &served, port, TCP_ACK), 2);
        lab.set_state(&served, 1, BackendState::Live);
        slots(lab, &served, &[unsettled(&served, 1, 1), clean(&served, 2)]);
        assert_eq!(goes_to(lab, &served, port, TCP_ACK), 2, "also when the first one is back");
    });
}

#[test]
fn without_a_ready_backend_flows_go_on_and_none_begins() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp));
        slots(lab, &served, &[Slot::unsettled(Slot::NOBODY, served.backends[0])]);
        assert_eq!(goes_to(lab, &served, 40_000, TCP_ACK), 1);
        is_reset(lab, &served, 40_001, TCP_SYN, "no_backend");
        slots(lab, &served, &[Slot::gone(Slot::NOBODY)]);
        assert_eq!(goes_to(lab, &served, 40_000, TCP_ACK), 1, "it has an entry");
        is_reset(lab, &served, 40_002, TCP_ACK, "unknown_flow");
    });
}

#[test]
fn a_scheduler_without_hashes_leaves_flows_of_the_one_before_where_they_are() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp));
        let value = slots(lab, &served, &[unsettled(&served, 3, 1), unsettled(&served, 2, 1)]);
        // In turn among 3 and 2; the last slots of the old table are beyond that.
        let round_robin =
            ServiceValue { flags: ServiceValue::TRACKED, scheduler: Scheduler::RoundRobin as u8, ..value };
        lab.publish(&served, round_robin);
        let begun: Vec<u8> = (40_000..40_004).map(|port| goes_to(lab, &served, port, TCP_SYN)).collect();
        assert!(begun == [2, 3, 2, 3] || begun == [3, 2, 3, 2], "{begun:?}");
        for (port, n) in (40_000..40_004).zip(begun) {
            assert_eq!(goes_to(lab, &served, port, TCP_ACK), n);
        }
        assert_eq!(goes_to(lab, &served, 41_000, TCP_ACK), 1, "it began before");
        lab.publish(&served, ServiceValue { selection_len: 0, ..round_robin });
        assert_eq!(goes_to(lab, &served, 41_001, TCP_ACK), 1, "also when nobody takes new ones");
        is_reset(lab, &served, 41_002, TCP_SYN, "no_backend");
    });
}

#[test]
fn source_hash_keeps_all_flows_of_an_address_together() {
    lab(|lab| {
        let served = lab.serve(Spec { scheduler: Scheduler::SourceHash, ..spec(true, Protocol::Tcp) });
        let all: Vec<Slot> = [1, 2, 3, 1, 2, 3, 1, 2].iter().map(|n| clean(&served, *n)).collect();
        let value = slots(lab, &served, &all);
        lab.publish(&served, ServiceValue { stable_hash: HashedBy::Client as u8, ..value });
        let first = goes_to(lab, &served, 40_000, TCP_SYN);
        for port in 40_001..40_020 {
            assert_eq!(goes_to(lab, &served, port, TCP_SYN), first);
        }
        assert!(lab.flows().is_empty());
    });
}

#[test]
fn a_walk_tells_the_slots_of_those_that_have_entries() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp));
        let port = port_of_slot_0(&served);
        slots(lab, &served, &[unsettled(&served, 2, 1), clean(&served, 3)]);
        assert_eq!(goes_to(lab, &served, port, TCP_ACK), 1);
        let census = lab.data.sweep().unwrap();
        let entries = &census.entries[&served.id];
        assert_eq!((entries.by, entries.len), (HashedBy::Flow, 2));
        assert_eq!(entries.at, [(0, served.backends[0])].into());
    });
}
