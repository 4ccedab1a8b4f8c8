//! The flow table when it is full.

use lb_common::{
    abi::{Mode, Protocol},
    flow::{State, TCP_ACK, TCP_SYN, Word},
};

use crate::counters::assert_counted;
use crate::lab::{Lab, Served, Side, Spec, backend, from_backend, from_client, lab, packet, request};

fn open(lab: &mut Lab, served: &Served, port: u16) {
    let sent = lab.send(Side::Front, &from_client(&request(served, port, TCP_SYN)));
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
}

/// Opens a connection and completes its handshake.
fn establish(lab: &mut Lab, served: &Served, port: u16) {
    open(lab, served, port);
    let source = lab.flows().into_iter().find(|flow| flow.client.port() == port).expect("the flow").source;
    let answer = packet((backend(true, 1), 8080).into(), source, 64, Protocol::Tcp, TCP_SYN | TCP_ACK);
    lab.send(Side::Back, &from_backend(1, &answer));
    lab.send(Side::Front, &from_client(&request(served, port, TCP_ACK)));
}

#[test]
fn half_open_flows_give_way_and_established_ones_stay() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        for port in 20_000..20_200 {
            establish(lab, &served, port);
        }
        // Three times as many as there are places.
        for port in 30_000..33_000 {
            open(lab, &served, port);
        }
        let flows = lab.flows();
        let established = flows.iter().filter(|flow| flow.state == State::Established).count();
        assert_eq!(established, 200, "a flood of half-open flows evicts none that is established");
        assert!(flows.len() > 900 && flows.len() <= 1024, "{} flows", flows.len());
        let ports: std::collections::HashSet<u16> = flows.iter().map(|flow| flow.source.port()).collect();
        assert_eq!(ports.len(), flows.len(), "no port twice");
    });
}

#[test]
fn evictions_are_counted_and_free_the_port() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        let mut evicted = 0;
        for port in 30_000..33_000 {
            let sent = lab.send(Side::Front, &from_client(&request(&served, port, TCP_SYN)));
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            evicted += sent.counted.iter().filter(|line| line.starts_with("evicted 1")).count();
        }
        let live = lab.flows().len();
        assert_eq!(live + evicted, 3000, "each flow lives or was counted");
        let audit = lab.data.audit_ports().unwrap();
        assert_eq!(audit.ports, 0, "{audit:?}");
        let audit = lab.data.audit_ports().unwrap();
        assert_eq!(audit.ports, 0, "no port of an evicted flow is still taken: {audit:?}");
    });
}

#[test]
fn most_of_the_table_fills_without_an_eviction() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        // Buckets differ by chance, the more so the fuller they are; two thirds is safely below the first
        // that overflows.
        for port in 30_000..30_640 {
            open(lab, &served, port);
        }
        assert_eq!(lab.flows().len(), 640);
    });
}

#[test]
fn a_flow_that_finds_every_place_being_worked_on_cannot_begin() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        lab.set_every_word(Word::busy(lab.now()));
        let frame = from_client(&request(&served, 40_000, TCP_SYN));
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "drop");
        assert_counted(&sent, &[&format!("table_full 1 x {}", frame.len()), "service 0 dropped 1"]);
        // Whoever was at work has died: places are taken over after a while.
        lab.set_every_word(Word::busy(lab.now().wrapping_sub(200)));
        open(lab, &served, 40_000);
    });
}
