//! What ICMP says about backends, and what is noted of those that do not answer.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use lb_common::{
    abi::{Mode, Protocol, ServiceInfo, ServiceValue},
    flow::{TCP_ACK, TCP_RST, TCP_SYN},
};
use lb_userspace::{
    core::{Suspect, SuspectFor},
    dataplane::{Op, kernel::Knocks},
};

use crate::{
    frames::{Packet, Segment},
    icmp_wire::{Kind, WHOLE, error, quote},
    lab::{
        KINDS, Lab, Sent, Served, Side, Spec, backend, client, from_backend, from_client, lab, packet, request, vip,
    },
    rescue::{OPTIONS, assert_rescued, at, open, serve, tcp, watch},
};

/// What a backend, or its firewall, says about the SYN that it got, of which it quotes so many bytes behind
/// the IP headers.
fn denial(served: &Served, n: u8, to: SocketAddr, sequence: u32, behind: usize) -> Vec<u8> {
    let v4 = served.spec.v4;
    let mut got = tcp(to, (backend(v4, n), 8080).into(), TCP_SYN, &OPTIONS);
    let Segment::Tcp { header, .. } = &mut got.segment else { unreachable!() };
    header.sequence_number = header.sequence_number.wrapping_add(sequence);
    from_backend(n, &error(backend(v4, n), to.ip(), Kind::PortUnreachable, &quote(&got, behind)))
}

/// What speaks against backends, as the agent sees it.
fn suspects(lab: &Lab) -> Vec<Suspect> {
    Knocks::open(lab.pin_dir()).unwrap().look(&[]).unwrap().suspects
}

#[test]
fn a_connection_that_icmp_denies_goes_to_the_next_backend_and_its_client_hears_nothing() {
    for v4 in [true, false] {
        for (mode, behind) in [(Mode::Nat, 8), (Mode::FullNat, 8), (Mode::Nat, WHOLE)] {
            lab(move |lab| {
                let served = serve(lab, v4, mode, 2);
                let first = open(lab, &served);
                let frame = denial(&served, first, lab.flow().source, 0, behind);
                let sent = lab.send(Side::Back, &frame);
                assert_rescued(lab, &served, first, frame.len(), &sent);
                let told = suspects(lab);
                assert_eq!(told.len(), 1, "{told:?}");
                let id = served.backends[usize::from(first) - 1];
                assert_eq!((told[0].backend_id, told[0].seen, told[0].clients), (id, SuspectFor::Unreachable, 1));
            });
        }
    }
}

#[test]
fn a_denial_after_the_last_retry_is_for_the_client() {
    lab(|lab| {
        let served = serve(lab, true, Mode::Nat, 1);
        let first = open(lab, &served);
        lab.send(Side::Back, &denial(&served, first, lab.flow().source, 0, 8));
        let second = at(lab, &served);
        let sent = lab.send(Side::Back, &denial(&served, second, lab.flow().source, 0, 8));
        assert_told_the_client(&sent);
        assert_eq!(suspects(lab).len(), 2, "both are suspected, each once");
        // What was left over from that does not concern the next one.
        let sent = lab.send(Side::Back, &denial(&served, second, lab.flow().source, 0, 8));
        assert_told_the_client(&sent);
    });
}

#[track_caller]
fn assert_told_the_client(sent: &Sent) {
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    assert!(sent.counted.iter().any(|line| line.starts_with("error_to_client 1 ")), "{:?}", sent.counted);
}

#[test]
fn a_forged_denial_and_one_of_a_connection_that_lives_tell_nothing() {
    lab(|lab| {
        let served = serve(lab, true, Mode::FullNat, 2);
        let first = open(lab, &served);
        let source = lab.flow().source;
        let sent = lab.send(Side::Back, &denial(&served, first, source, 1, 8));
        assert_told_the_client(&sent);
        assert_eq!((at(lab, &served), suspects(lab)), (first, vec![]), "who has not seen the SYN");
        let answer = tcp((backend(true, first), 8080).into(), source, TCP_SYN | TCP_ACK, &[]);
        lab.send(Side::Back, &from_backend(first, &answer));
        let sent = lab.send(Side::Back, &denial(&served, first, source, 0, 8));
        assert_told_the_client(&sent);
        assert_eq!((at(lab, &served), suspects(lab)), (first, vec![]), "an answered connection stays");
    });
}

#[test]
fn other_errors_and_services_that_nobody_watches_are_left_alone() {
    lab(|lab| {
        let served = serve(lab, true, Mode::Nat, 2);
        let first = open(lab, &served);
        let to = lab.flow().source;
        let got = tcp(to, (backend(true, first), 8080).into(), TCP_SYN, &OPTIONS);
        for kind in [Kind::TooBig(1400), Kind::TimeExceeded, Kind::ParameterProblem] {
            let told = error(backend(true, first), to.ip(), kind, &quote(&got, 8));
            assert_told_the_client(&lab.send(Side::Back, &from_backend(first, &told)));
        }
        assert_eq!((at(lab, &served), suspects(lab)), (first, vec![]));
    });
    lab(|lab| {
        let served = lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        let first = open(lab, &served);
        assert_told_the_client(&lab.send(Side::Back, &denial(&served, first, lab.flow().source, 0, 8)));
        assert_eq!((at(lab, &served), suspects(lab)), (first, vec![]));
    });
}

#[test]
fn between_families_a_denied_connection_goes_to_the_next_backend() {
    for v4 in [true, false] {
        lab(move |lab| {
            let spec = Spec { backends: 3, backends_v4: !v4, ..Spec::new(v4, Protocol::Tcp, Mode::FullNat) };
            let mut served = lab.serve(spec);
            watch(lab, &mut served, 2);
            let first = open(lab, &served);
            let to = lab.flow().source;
            let got = tcp(to, (backend(!v4, first), 8080).into(), TCP_SYN, &OPTIONS);
            let told = error(backend(!v4, first), to.ip(), Kind::PortUnreachable, &quote(&got, 8));
            let sent = lab.send(Side::Back, &from_backend(first, &told));
            assert_ne!(at(lab, &served), first);
            assert_eq!(sent.exit, "tx");
            assert!(sent.counted.contains(&"service 0 rescued 1".to_owned()), "{:?}", sent.counted);
        });
    }
}

/// A watched UDP service; `within`: milliseconds in which it answers, or 0.
fn serve_udp(lab: &mut Lab, v4: bool, mode: Mode, within: u32) -> Served {
    let mut served = lab.serve(Spec::new(v4, Protocol::Udp, mode));
    served.value.flags |= ServiceValue::WATCHED | if within != 0 { ServiceValue::ANSWERED } else { 0 };
    let new = ServiceInfo::new(vip(v4).into(), lb_common::abi::Port::new(80), Protocol::Udp as u8, mode as u8);
    lab.apply(Op::SetServiceInfo { id: served.id, info: ServiceInfo { answer_within: within, ..new } });
    lab.publish(&served, served.value);
    served
}

fn answer_udp(v4: bool, n: u8, to: SocketAddr) -> Packet {
    packet((backend(v4, n), 8080).into(), to, 64, Protocol::Udp, 0)
}

#[test]
fn a_denied_datagram_is_told_to_the_client_and_noted() {
    for (v4, _) in KINDS.iter().filter(|(_, protocol)| *protocol == Protocol::Udp) {
        for mode in [Mode::Nat, Mode::FullNat] {
            let v4 = *v4;
            lab(move |lab| {
                let served = serve_udp(lab, v4, mode, 0);
                lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
                let to = lab.flow().source;
                assert_eq!(suspects(lab), [], "silence alone says nothing");
                let got = packet(to, (backend(v4, 1), 8080).into(), 63, Protocol::Udp, 0);
                let told = error(backend(v4, 1), to.ip(), Kind::PortUnreachable, &quote(&got, 8));
                assert_told_the_client(&lab.send(Side::Back, &from_backend(1, &told)));
                let told = suspects(lab);
                assert_eq!((told.len(), told[0].seen, told[0].clients), (1, SuspectFor::Unreachable, 1));
                lab.send(Side::Back, &from_backend(1, &answer_udp(v4, 1, to)));
                assert_eq!(suspects(lab), [], "it answers");
            });
        }
    }
}

#[test]
fn datagrams_without_an_answer_are_noted_where_there_should_be_one() {
    for mode in [Mode::Nat, Mode::FullNat] {
        lab(move |lab| {
            let served = serve_udp(lab, true, mode, 100);
            lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
            let first = lab.flow().source;
            sleep(Duration::from_millis(40));
            assert_eq!(suspects(lab), [], "it has the time that the service says");
            sleep(Duration::from_millis(70));
            let told = suspects(lab);
            assert_eq!((told.len(), told[0].clients), (1, 1), "{told:?}");
            assert!(matches!(told[0].seen, SuspectFor::Silent { waited } if waited >= Duration::from_millis(100)));
            assert_eq!(told[0].answered, None);
            lab.send(Side::Back, &from_backend(1, &answer_udp(true, 1, first)));
            assert_eq!(suspects(lab), []);
        });
        // One way only: nothing is expected.
        lab(move |lab| {
            let served = serve_udp(lab, true, mode, 0);
            lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
            sleep(Duration::from_millis(60));
            assert_eq!(suspects(lab), []);
        });
    }
}

#[test]
fn what_is_told_of_a_backend_has_its_times() {
    lab(|lab| {
        let served = serve(lab, true, Mode::Nat, 0);
        let first = open(lab, &served);
        let id = served.backends[usize::from(first) - 1];
        let ok = tcp((backend(true, first), 8080).into(), lab.flow().source, TCP_SYN | TCP_ACK, &[]);
        lab.send(Side::Back, &from_backend(first, &ok));
        sleep(Duration::from_millis(30));
        // Round robin: the fourth is the first one's again.
        for port in 40_001..40_004 {
            lab.send(Side::Front, &from_client(&crate::rescue::syn(true, port, &OPTIONS)));
        }
        let mut refusal =
            tcp((backend(true, first), 8080).into(), (client(true), 40_003).into(), TCP_RST | TCP_ACK, &[]);
        let Segment::Tcp { header, .. } = &mut refusal.segment else { unreachable!() };
        header.acknowledgment_number = crate::rescue::SEQUENCE + 1;
        lab.send(Side::Back, &from_backend(first, &refusal));
        sleep(Duration::from_millis(10));
        let told = suspects(lab);
        let told = told.iter().find(|suspect| suspect.backend_id == id).unwrap();
        assert_eq!(told.seen, SuspectFor::Refused);
        let answered = told.answered.unwrap();
        assert!(
            told.first >= Duration::from_millis(10) && answered >= told.first + Duration::from_millis(30),
            "{told:?}"
        );
    });
}
