//! Clients as what is scheduled: all flows of one go to one backend, for a time.

use std::{thread::sleep, time::Duration};

use lb_common::{
    abi::{BackendState, Granularity, Mode, Protocol, Scheduler, ServiceInfo, ServiceValue},
    flow::{TCP_ACK, TCP_RST, TCP_SYN, seconds},
};
use lb_userspace::dataplane::{Dataplane as _, Op, kernel::FlowRecord};

use crate::{
    lab::{Lab, Sent, Served, Side, Spec, from_client, lab, packet, vip},
    tracked::{self, clean, receiver, unsettled},
};

/// Three backends in turn.
fn spec(mode: Mode) -> Spec {
    let backend_port = if Mode::is_one_sided(mode as u8) { 0 } else { 8080 };
    Spec { granularity: Granularity::Client, backends: 3, backend_port, ..Spec::new(true, Protocol::Tcp, mode) }
}

/// Serves it with clients that are remembered for so many ticks.
fn serve(lab: &mut Lab, spec: Spec, ticks: u32) -> Served {
    let served = lab.serve(spec);
    let mut info = lab.data.read().unwrap().service_info[&served.id];
    info.client_timeout = ticks;
    lab.apply(Op::SetServiceInfo { id: served.id, info });
    served
}

/// A packet from 198.51.100.`host`.
fn from(lab: &mut Lab, host: u8, port: u16, flags: u8) -> Sent {
    let address = std::net::IpAddr::from([198, 51, 100, host]);
    let packet = packet((address, port).into(), (vip(true), 80).into(), 64, Protocol::Tcp, flags);
    lab.send(Side::Front, &from_client(&packet))
}

fn begins_at(lab: &mut Lab, host: u8, port: u16) -> u8 {
    receiver(&from(lab, host, port, TCP_SYN))
}

fn clients(lab: &Lab) -> Vec<FlowRecord> {
    lab.flows().into_iter().filter(|flow| flow.granularity == Granularity::Client).collect()
}

#[test]
fn all_flows_of_a_client_go_to_one_backend_in_every_mode() {
    for mode in Mode::ALL.iter().copied() {
        lab(move |lab| {
            serve(lab, spec(mode), seconds(600));
            let first = begins_at(lab, 7, 40_000);
            for port in 40_001..40_010 {
                assert_eq!(begins_at(lab, 7, port), first, "{mode:?}");
                assert_eq!(receiver(&from(lab, 7, port, TCP_ACK)), first, "{mode:?}");
            }
            let others: Vec<u8> = (8..17).map(|host| begins_at(lab, host, 40_000)).collect();
            assert!([1, 2, 3].iter().all(|n| others.iter().filter(|o| *o == n).count() == 3), "in turn: {others:?}");
            let known = clients(lab);
            assert_eq!((known.len(), lab.flows().len()), (10, 29));
            assert!(known.iter().all(|client| client.client.port() == 0 && client.idle < Duration::from_secs(10)));
        });
    }
}

#[test]
fn neighbours_are_one_client_by_the_netmask() {
    lab(|lab| {
        let served = serve(lab, spec(Mode::Nat), seconds(600));
        lab.publish(&served, ServiceValue { client_prefix_v4: 29, ..served.value });
        let first = begins_at(lab, 8, 40_000);
        for host in 9..16 {
            assert_eq!(begins_at(lab, host, 40_000), first);
        }
        assert_ne!(begins_at(lab, 16, 40_000), first);
        let networks: Vec<String> = clients(lab).iter().map(|client| client.client.ip().to_string()).collect();
        assert!(networks.contains(&"198.51.100.8".to_owned()) && networks.len() == 2, "{networks:?}");
    });
}

#[test]
fn a_client_is_forgotten_some_time_after_its_last_new_flow() {
    lab(|lab| {
        // Of more than half a second.
        serve(lab, spec(Mode::FullNat), 5);
        let first = begins_at(lab, 7, 40_000);
        for port in 40_001..40_004 {
            sleep(Duration::from_millis(350));
            assert_eq!(begins_at(lab, 7, port), first, "each new flow makes it last");
        }
        sleep(Duration::from_millis(900));
        assert!(clients(lab).is_empty());
        assert_eq!(receiver(&from(lab, 7, 40_003, TCP_ACK)), first, "its flows stay");
        // Removing its entry touches no port: what is left is as good as new.
        assert_eq!(lab.data.sweep().unwrap().live, 4);
        lab.data.audit_ports().unwrap();
        let next: Vec<u8> = (41_000..41_003).map(|port| begins_at(lab, 7, port)).collect();
        assert!(next.iter().all(|n| *n == next[0] && *n != first), "scheduled anew: {first}, then {next:?}");
    });
}

#[test]
fn a_drained_backend_keeps_its_clients_for_the_time_they_have_left() {
    lab(|lab| {
        let served = serve(lab, spec(Mode::Nat), 6);
        let first = begins_at(lab, 7, 40_000);
        lab.set_weight(&served, first, 0);
        let others: Vec<u8> = (1..=3).filter(|n| *n != first).collect();
        lab.select(&served, &others);
        assert_eq!(begins_at(lab, 7, 40_001), first);
        sleep(Duration::from_millis(500));
        assert_eq!(begins_at(lab, 7, 40_002), first);
        sleep(Duration::from_millis(600));
        assert_ne!(begins_at(lab, 7, 40_003), first, "new flows did not make it last");
        assert_eq!(receiver(&from(lab, 7, 40_002, TCP_ACK)), first);
    });
}

#[test]
fn clients_of_a_dead_backend_choose_anew() {
    lab(|lab| {
        let served = serve(lab, spec(Mode::FullNat), seconds(600));
        let first = begins_at(lab, 7, 40_000);
        lab.set_state(&served, first, BackendState::Dead);
        let second = begins_at(lab, 7, 40_001);
        assert_ne!(second, first);
        lab.set_state(&served, first, BackendState::Live);
        assert_eq!(begins_at(lab, 7, 40_002), second);
        assert_eq!(clients(lab).len(), 1);
    });
}

#[test]
fn without_a_ready_backend_no_client_is_remembered() {
    lab(|lab| {
        serve(lab, Spec { backends: 0, ..spec(Mode::Nat) }, seconds(600));
        let sent = from(lab, 7, 40_000, TCP_SYN);
        assert_eq!(sent.exit, "tx");
        assert!(sent.counted.iter().any(|counted| counted.starts_with("no_backend 1")), "{:?}", sent.counted);
        assert!(lab.flows().is_empty());
    });
}

#[test]
fn a_reset_client_keeps_its_backend() {
    lab(|lab| {
        serve(lab, spec(Mode::Nat), seconds(600));
        let first = begins_at(lab, 7, 40_000);
        from(lab, 7, 40_000, TCP_RST);
        assert_eq!(begins_at(lab, 7, 40_001), first);
    });
}

#[test]
fn hashed_clients_need_no_entries_until_their_slot_changes() {
    lab(|lab| {
        let spec = Spec { scheduler: Scheduler::Maglev, ..spec(Mode::DsrL2) };
        let served = serve(lab, spec, seconds(600));
        let by_client = |lab: &mut Lab, slots: &[_], stay: bool| {
            let value = tracked::slots(lab, &served, slots);
            let flags = value.flags | if stay { ServiceValue::CLIENTS_STAY } else { 0 };
            lab.publish(&served, ServiceValue { flags, stable_hash: 1, client_prefix_v4: 24, ..value });
        };
        let all: Vec<_> = [1, 2, 3, 1, 2, 3].iter().map(|n| clean(&served, *n)).collect();
        by_client(lab, &all, false);
        let first = begins_at(lab, 7, 40_000);
        assert!((8..30).all(|host| begins_at(lab, host, 40_000) == first), "one network, one client");
        assert!(lab.flows().is_empty());

        by_client(lab, &[unsettled(&served, 2, 1)], true);
        assert_eq!(begins_at(lab, 7, 40_001), 1, "it may have been here before");
        by_client(lab, &[unsettled(&served, 2, 1)], false);
        assert_eq!(begins_at(lab, 7, 40_002), 1, "its entry says so");
        assert_eq!(receiver(&from(lab, 7, 39_999, TCP_ACK)), 1, "a connection from before");
        by_client(lab, &[unsettled(&served, 3, 1)], false);
        assert_eq!(begins_at(lab, 9, 40_003), 1, "of the same network");
        lab.set_state(&served, 1, BackendState::Dead);
        assert_eq!(begins_at(lab, 9, 40_004), 3);
        assert_eq!(begins_at(lab, 7, 40_005), 3);
    });
}

#[test]
fn the_time_that_clients_are_remembered_changes_without_losing_counters() {
    lab(|lab| {
        let served = serve(lab, spec(Mode::Nat), seconds(600));
        begins_at(lab, 7, 40_000);
        let info = lab.data.read().unwrap().service_info[&served.id];
        lab.apply(Op::SetServiceInfo { id: served.id, info: ServiceInfo { client_timeout: seconds(60), ..info } });
        assert_eq!(lab.flows_begun(&served).iter().sum::<u64>(), 1);
    });
}
