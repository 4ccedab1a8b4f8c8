//! Backends with `max-connections`: new flows pass by those that have so many, and no other flow is touched.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Backend, Granularity, Mode, Protocol, Scheduler, ServiceValue},
    flow::{TCP_ACK, TCP_RST, TCP_SYN, seconds},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::Segment,
    lab::{Lab, Sent, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, vip},
    tracked::receiver,
};

fn spec(v4: bool, protocol: Protocol, mode: Mode) -> Spec {
    let backend_port = if Mode::is_one_sided(mode as u8) { 0 } else { 8080 };
    Spec { backends: 3, backend_port, ..Spec::new(v4, protocol, mode) }
}

/// Lets each backend have as many flows.
fn limit(lab: &mut Lab, served: &Served, most: u32) {
    for id in served.backends.clone() {
        let backend = Backend { max_flows: most, ..lab.data.read().unwrap().backends[&id] };
        lab.apply(Op::SetBackend { id, backend });
    }
}

fn send(lab: &mut Lab, served: &Served, port: u16, flags: u8) -> (Vec<u8>, Sent) {
    let Spec { v4, protocol, .. } = served.spec;
    let asker: SocketAddr = (client(v4), port).into();
    let frame = from_client(&packet(asker, (vip(v4), 80).into(), 64, protocol, flags));
    let sent = lab.send(Side::Front, &frame);
    (frame, sent)
}

/// The backend (1 to 3) that a flow from this port begins at.
#[track_caller]
fn begin(lab: &mut Lab, served: &Served, port: u16) -> u8 {
    let (_, sent) = send(lab, served, port, TCP_SYN);
    assert_eq!(sent.exit, "redirect", "{port}: {:?}", sent.counted);
    receiver(&sent)
}

/// A flow from this port is refused, by a frame of this length, and counted so and nowhere else.
#[track_caller]
fn refused(lab: &mut Lab, served: &Served, port: u16) -> Sent {
    let flows = lab.flows().len();
    let (frame, sent) = send(lab, served, port, TCP_SYN);
    assert_eq!(sent.exit, "tx", "{port}: {:?}", sent.counted);
    let verdict = format!("backends_full 1 x {}", frame.len());
    assert_counted(&sent, &[&verdict, &format!("service {} refused 1", served.id)]);
    assert_eq!(lab.flows().len(), flows, "nothing is left behind");
    sent
}

/// The backend resets the flow of the client's port: what is over for both counts no more.
fn reset(lab: &mut Lab, served: &Served, port: u16) -> u8 {
    let Spec { v4, protocol, .. } = served.spec;
    let flow = lab.flows().into_iter().find(|flow| flow.client.port() == port).expect("the flow");
    let n = served.backends.iter().position(|id| *id == flow.backend_id).unwrap() as u8 + 1;
    let packet = packet((backend(v4, n), 8080).into(), flow.source, 64, protocol, TCP_RST | TCP_ACK);
    assert_eq!(lab.send(Side::Back, &from_backend(n, &packet)).exit, "redirect");
    n
}

#[test]
fn every_scheduler_passes_by_the_full_and_refuses_when_all_are() {
    for scheduler in Scheduler::ALL.iter().copied() {
        for (v4, mode) in [(true, Mode::Nat), (false, Mode::FullNat)] {
            lab(move |lab| {
                let served = lab.serve(Spec { scheduler, ..spec(v4, Protocol::Tcp, mode) });
                limit(lab, &served, 4);
                let mut shares = [0; 3];
                let owners: Vec<u8> = (40_000..40_012).map(|port| begin(lab, &served, port)).collect();
                owners.iter().for_each(|n| shares[usize::from(n - 1)] += 1);
                assert_eq!(shares, [4, 4, 4], "{scheduler:?}");
                for port in 41_000..41_003 {
                    refused(lab, &served, port);
                }
                // Flows that are there go on, also by a SYN that comes again.
                for (port, owner) in (40_000..40_012).zip(&owners) {
                    for flags in [TCP_SYN, TCP_ACK] {
                        let (_, sent) = send(lab, &served, port, flags);
                        assert_eq!(receiver(&sent), *owner, "{scheduler:?} {port}");
                    }
                }
                // One that ends makes room for one.
                let n = reset(lab, &served, 40_005);
                assert_eq!(begin(lab, &served, 42_000), n, "{scheduler:?}");
                refused(lab, &served, 42_001);
            });
        }
    }
}

#[test]
fn a_refused_client_is_told_as_by_a_service_without_backends() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp, Mode::Nat));
        limit(lab, &served, 1);
        for port in 40_000..40_003 {
            begin(lab, &served, port);
        }
        let full = refused(lab, &served, 41_000);
        lab.publish(&served, ServiceValue { selection_len: 0, ..served.value });
        let (_, none) = send(lab, &served, 41_000, TCP_SYN);
        assert_frame(&full.frame, &none.frame);
        assert_eq!(none.counted[0].split(' ').next(), Some("no_backend"), "{:?}", none.counted);
    });
}

#[test]
fn datagrams_are_counted_by_flows_too_and_refused_by_icmp() {
    for mode in [Mode::Nat, Mode::DsrL2, Mode::DsrGre] {
        lab(move |lab| {
            let served = lab.serve(spec(true, Protocol::Udp, mode));
            limit(lab, &served, 2);
            let owners: Vec<u8> = (40_000..40_006).map(|port| begin(lab, &served, port)).collect();
            assert!([1, 2, 3].iter().all(|n| owners.iter().filter(|owner| *owner == n).count() == 2), "{owners:?}");
            let sent = refused(lab, &served, 41_000);
            // ICMP, destination unreachable, port.
            assert_eq!((sent.frame[23], &sent.frame[34..36]), (1, &[3, 3][..]), "{mode:?}");
            assert_eq!(begin(lab, &served, 40_000), owners[0], "its next packet");
        });
    }
}

#[test]
fn a_limit_that_is_set_later_ends_nothing_and_counts_what_is_there() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp, Mode::Nat));
        let owners: Vec<u8> = (40_000..40_009).map(|port| begin(lab, &served, port)).collect();
        limit(lab, &served, 2);
        // Nobody has counted them; the agent's walk finds them.
        lab.data.sweep().unwrap();
        refused(lab, &served, 41_000);
        for (port, owner) in (40_000..40_009).zip(&owners) {
            assert_eq!(receiver(&send(lab, &served, port, TCP_ACK).1), *owner);
        }
        limit(lab, &served, 4);
        for port in 41_000..41_003 {
            begin(lab, &served, port);
        }
        refused(lab, &served, 41_003);
        limit(lab, &served, 0);
        begin(lab, &served, 41_003);
    });
}

#[test]
fn backends_without_a_limit_take_what_others_do_not() {
    for scheduler in Scheduler::ALL.iter().copied() {
        lab(move |lab| {
            let served = lab.serve(Spec { scheduler, ..spec(true, Protocol::Tcp, Mode::Nat) });
            for n in [0, 2] {
                let id = served.backends[n];
                let backend = Backend { max_flows: 1, ..lab.data.read().unwrap().backends[&id] };
                lab.apply(Op::SetBackend { id, backend });
            }
            let owners: Vec<u8> = (40_000..40_030).map(|port| begin(lab, &served, port)).collect();
            let of = |n: u8| owners.iter().filter(|owner| **owner == n).count();
            assert!(of(1) <= 1 && of(3) <= 1, "{scheduler:?}: {owners:?}");
        });
    }
}

/// All flows of a client go to one backend: where that is full, they do not go to another.
#[test]
fn clients_begin_at_backends_with_room_and_stay_with_a_full_one() {
    lab(|lab| {
        let served = lab.serve(Spec { granularity: Granularity::Client, ..spec(true, Protocol::Tcp, Mode::Nat) });
        let mut info = lab.data.read().unwrap().service_info[&served.id];
        info.client_timeout = seconds(600);
        lab.apply(Op::SetServiceInfo { id: served.id, info });
        limit(lab, &served, 2);
        let from = |lab: &mut Lab, host: u8, port: u16| {
            let address = IpAddr::from([198, 51, 100, host]);
            let mut asked = packet((address, port).into(), (vip(true), 80).into(), 64, Protocol::Tcp, TCP_SYN);
            asked.segment = Segment::tcp(port, 80, TCP_SYN, b"");
            lab.send(Side::Front, &from_client(&asked))
        };
        let first = receiver(&from(lab, 7, 40_000));
        assert_eq!(receiver(&from(lab, 7, 40_001)), first);
        let third = from(lab, 7, 40_002);
        assert_eq!(third.exit, "tx");
        assert!(third.counted.iter().any(|line| line.starts_with("backends_full 1 ")), "{:?}", third.counted);
        let others: Vec<u8> = (8..12).map(|host| receiver(&from(lab, host, 40_000))).collect();
        assert!(!others.contains(&first), "{others:?}");
        let none = from(lab, 12, 40_000);
        assert!(none.counted.iter().any(|line| line.starts_with("backends_full 1 ")), "{:?}", none.counted);
    });
}
