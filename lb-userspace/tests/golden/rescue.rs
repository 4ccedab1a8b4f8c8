//! Connections that their backend refuses or does not answer go to another one.

use std::{net::SocketAddr, thread::sleep, time::Duration};

use lb_common::{
    abi::{BackendState, Mode, Protocol, ServiceValue},
    flow::{TCP_ACK, TCP_RST, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, mark, verified},
    lab::{Lab, Sent, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, vip},
};

pub const SEQUENCE: u32 = 0x1234_5678;
/// As Linux sends them: MSS, SACK permitted, timestamps, window scale.
pub const OPTIONS: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0xde, 0xad, 0xbe, 0xef, 0, 0, 0, 0, 1, 3, 3, 7];
/// Longer than what counts as a copy that the network has made.
const AGAIN: Duration = Duration::from_millis(15);

/// A watched service of three backends, of which new flows go to the first one first.
pub fn serve(lab: &mut Lab, v4: bool, mode: Mode, retries: u8) -> Served {
    let mut served = lab.serve(Spec { backends: 3, ..Spec::new(v4, Protocol::Tcp, mode) });
    watch(lab, &mut served, retries);
    served
}

pub fn watch(lab: &mut Lab, served: &mut Served, retries: u8) {
    served.value.flags |= ServiceValue::WATCHED;
    served.value.retries = retries;
    lab.publish(served, served.value);
}

pub fn tcp(from: SocketAddr, to: SocketAddr, flags: u8, options: &[u8]) -> Packet {
    let mut made = packet(from, to, 64, Protocol::Tcp, flags);
    made.segment = Segment::tcp(from.port(), to.port(), flags, b"");
    let Segment::Tcp { header, .. } = &mut made.segment else { unreachable!() };
    header.set_options_raw(options).unwrap();
    made
}

pub fn syn(v4: bool, port: u16, options: &[u8]) -> Packet {
    tcp((client(v4), port).into(), (vip(v4), 80).into(), TCP_SYN, options)
}

/// What a backend answers to a SYN that came from `to`.
fn answer(v4: bool, n: u8, to: SocketAddr, flags: u8) -> Packet {
    let mut made = tcp((backend(v4, n), 8080).into(), to, flags, &[]);
    let Segment::Tcp { header, .. } = &mut made.segment else { unreachable!() };
    header.acknowledgment_number = SEQUENCE + 1;
    header.sequence_number = if flags & TCP_RST != 0 { 0 } else { 77 };
    made
}

fn refusal(v4: bool, n: u8, to: SocketAddr) -> Vec<u8> {
    from_backend(n, &answer(v4, n, to, TCP_RST | TCP_ACK))
}

/// The number (1 to 3) of the only flow's backend.
pub fn at(lab: &Lab, served: &Served) -> u8 {
    let id = lab.flow().backend_id;
    served.backends.iter().position(|backend| *backend == id).expect("one of the service's") as u8 + 1
}

/// Opens a connection, and gives the backend that it was sent to.
pub fn open(lab: &mut Lab, served: &Served) -> u8 {
    let sent = lab.send(Side::Front, &from_client(&syn(served.spec.v4, 40_000, &OPTIONS)));
    assert_eq!(sent.exit, "redirect");
    at(lab, served)
}

/// The frame in which the client's SYN reaches the backend of the only flow.
pub fn wanted(lab: &Lab, served: &Served) -> Vec<u8> {
    let v4 = served.spec.v4;
    let mut made = tcp(lab.flow().source, (backend(v4, at(lab, served)), 8080).into(), TCP_SYN, &OPTIONS);
    made.ttl = 63;
    lab.to_backend(at(lab, served), &made)
}

#[test]
fn a_refused_connection_goes_to_the_next_backend_with_all_its_options() {
    for v4 in [true, false] {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = serve(lab, v4, mode, 2);
                let first = open(lab, &served);
                let frame = refusal(v4, first, lab.flow().source);
                let sent = lab.send(Side::Back, &frame);
                let second = at(lab, &served);
                assert_ne!(second, first);
                assert_eq!(sent.exit, "tx", "out of the interface that the refusal came from");
                assert_frame(&sent.frame, &wanted(lab, &served));
                let (from, to, n) = (first - 1, second - 1, sent.frame.len());
                assert_counted(
                    &sent,
                    &[
                        &format!("rescued 1 x {}", frame.len()),
                        &format!("service 0 forward 1 x {n}"),
                        &format!("backend {to} forward 1 x {n}"),
                        &format!("backend {to} flows 1"),
                        &format!("backend {from} ended 1"),
                        &format!("backend {from} refusals 1"),
                        &format!("backend {from} rescued 1"),
                        "service 0 rescued 1",
                    ],
                );
                // The second one answers, and the client hears nothing of the first.
                let ok = answer(v4, second, lab.flow().source, TCP_SYN | TCP_ACK);
                let sent = lab.send(Side::Back, &from_backend(second, &ok));
                let mut heard = tcp((vip(v4), 80).into(), (client(v4), 40_000).into(), TCP_SYN | TCP_ACK, &[]);
                let Segment::Tcp { header, .. } = &mut heard.segment else { unreachable!() };
                (header.acknowledgment_number, header.sequence_number) = (SEQUENCE + 1, 77);
                heard.ttl = 63;
                assert_frame(&sent.frame, &lab.to_client(&heard));
            });
        }
    }
}

#[test]
fn what_the_client_marked_its_packet_with_stays() {
    lab(|lab| {
        let served = serve(lab, true, Mode::FullNat, 2);
        let mut frame = from_client(&syn(true, 40_000, &OPTIONS));
        mark(&mut frame, 0xb9, 0x4242, true);
        lab.send(Side::Front, &frame);
        let frame = refusal(true, at(lab, &served), lab.flow().source);
        let sent = lab.send(Side::Back, &frame);
        let mut wanted = wanted(lab, &served);
        mark(&mut wanted, 0xb9, 0x4242, true);
        assert_frame(&sent.frame, &wanted);
    });
}

#[test]
fn after_as_many_retries_as_are_allowed_the_client_is_refused() {
    for retries in [1, 2] {
        lab(move |lab| {
            let served = serve(lab, true, Mode::FullNat, retries);
            let mut tried = vec![open(lab, &served)];
            for _ in 0..retries {
                let frame = refusal(true, *tried.last().unwrap(), lab.flow().source);
                lab.send(Side::Back, &frame);
                let next = at(lab, &served);
                assert!(!tried.contains(&next), "{next} after {tried:?}");
                tried.push(next);
            }
            let frame = refusal(true, *tried.last().unwrap(), lab.flow().source);
            assert_refused_to_client(&lab.send(Side::Back, &frame));
        });
    }
}

#[track_caller]
pub fn assert_refused_to_client(sent: &Sent) {
    assert_eq!(sent.exit, "redirect");
    assert!(sent.counted.iter().any(|line| line.starts_with("to_client 1 ")), "{:?}", sent.counted);
    assert!(!sent.counted.iter().any(|line| line.contains("rescued")), "{:?}", sent.counted);
    assert_eq!(sent.frame[14 + 20 + 13], TCP_RST | TCP_ACK);
}

#[test]
fn without_another_backend_the_client_is_refused() {
    lab(|lab| {
        let mut served = lab.serve(Spec { backends: 1, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        watch(lab, &mut served, 2);
        let first = open(lab, &served);
        let frame = refusal(true, first, lab.flow().source);
        assert_refused_to_client(&lab.send(Side::Back, &frame));
    });
    lab(|lab| {
        let served = serve(lab, true, Mode::Nat, 2);
        let first = open(lab, &served);
        for n in (1..=3).filter(|n| *n != first) {
            lab.set_state(&served, n, BackendState::Dead);
        }
        let frame = refusal(true, first, lab.flow().source);
        assert_refused_to_client(&lab.send(Side::Back, &frame));
    });
}

#[test]
fn services_without_retries_pass_refusals_on() {
    lab(|lab| {
        let served = serve(lab, true, Mode::Nat, 0);
        let first = open(lab, &served);
        let frame = refusal(true, first, lab.flow().source);
        assert_refused_to_client(&lab.send(Side::Back, &frame));
    });
}

#[test]
fn a_connection_that_was_answered_is_never_moved() {
    for mode in [Mode::Nat, Mode::FullNat] {
        lab(move |lab| {
            let served = serve(lab, true, mode, 2);
            let first = open(lab, &served);
            let source = lab.flow().source;
            let ok = from_backend(first, &answer(true, first, source, TCP_SYN | TCP_ACK));
            lab.send(Side::Back, &ok);
            // The SYN-ACK is lost: the client asks again, and the same backend answers again.
            sleep(AGAIN);
            lab.send(Side::Front, &from_client(&syn(true, 40_000, &OPTIONS)));
            assert_eq!(at(lab, &served), first);
            assert_refused_to_client(&lab.send(Side::Back, &refusal(true, first, source)));
        });
    }
}

#[test]
fn a_reset_that_does_not_acknowledge_the_syn_moves_nothing() {
    lab(|lab| {
        let served = serve(lab, true, Mode::Nat, 2);
        let first = open(lab, &served);
        let mut forged = answer(true, first, lab.flow().source, TCP_RST | TCP_ACK);
        let Segment::Tcp { header, .. } = &mut forged.segment else { unreachable!() };
        header.acknowledgment_number = SEQUENCE + 2;
        let sent = lab.send(Side::Back, &from_backend(first, &forged));
        assert_refused_to_client(&sent);
    });
}

#[test]
fn signed_segments_and_those_with_data_are_left_alone() {
    let md5 = [&[1, 1, 19, 18][..], &[7; 16]].concat();
    for (options, payload) in [(&md5[..], &b""[..]), (&OPTIONS[..], b"early")] {
        let (options, payload) = (options.to_vec(), payload.to_vec());
        lab(move |lab| {
            let served = serve(lab, true, Mode::Nat, 2);
            let mut first = syn(true, 40_000, &options);
            let Segment::Tcp { payload: data, .. } = &mut first.segment else { unreachable!() };
            data.extend(&payload);
            lab.send(Side::Front, &from_client(&first));
            let frame = refusal(true, at(lab, &served), lab.flow().source);
            assert_refused_to_client(&lab.send(Side::Back, &frame));
        });
    }
}

#[test]
fn a_repeated_syn_goes_to_another_backend_and_the_late_answer_is_reset() {
    for v4 in [true, false] {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = serve(lab, v4, mode, 2);
                let first = open(lab, &served);
                let before = lab.flow().source;
                // A copy that the network has made.
                let again = from_client(&syn(v4, 40_000, &OPTIONS));
                lab.send(Side::Front, &again);
                assert_eq!(at(lab, &served), first);
                sleep(AGAIN);
                let sent = lab.send(Side::Front, &again);
                let second = at(lab, &served);
                assert_ne!(second, first);
                assert_eq!(sent.exit, "redirect");
                assert_frame(&sent.frame, &wanted(lab, &served));
                let (from, to, n) = (first - 1, second - 1, again.len());
                assert_counted(
                    &sent,
                    &[
                        &format!("to_backend 1 x {n}"),
                        &format!("service 0 forward 1 x {n}"),
                        &format!("backend {to} forward 1 x {n}"),
                        &format!("backend {to} flows 1"),
                        &format!("backend {from} ended 1"),
                        &format!("backend {from} unanswered 1"),
                        &format!("backend {from} rescued 1"),
                        "service 0 rescued 1",
                    ],
                );
                late_answer(lab, v4, first, before);
                assert_eq!(at(lab, &served), second);
            });
        }
    }
}

/// The backend that was given up answers after all.
fn late_answer(lab: &mut Lab, v4: bool, n: u8, to: SocketAddr) {
    let frame = from_backend(n, &answer(v4, n, to, TCP_SYN | TCP_ACK));
    let sent = lab.send(Side::Back, &frame);
    assert_eq!(sent.exit, "tx");
    assert_counted(&sent, &[&format!("late_answer 1 x {}", frame.len()), "service 0 refused 1"]);
    let mut reset = tcp(to, (backend(v4, n), 8080).into(), TCP_RST, &[]);
    let Segment::Tcp { header, .. } = &mut reset.segment else { unreachable!() };
    (header.sequence_number, header.window_size) = (SEQUENCE + 1, 0);
    let mut wanted = lab.to_backend(n, &reset);
    if v4 {
        mark(&mut wanted, 0, 0, true);
    }
    assert_frame(&sent.frame, &wanted);
}

#[test]
fn a_syn_ack_of_no_connection_is_the_hosts_own() {
    lab(|lab| {
        serve(lab, true, Mode::Nat, 2);
        let frame = from_backend(1, &answer(true, 1, (client(true), 41_000).into(), TCP_SYN | TCP_ACK));
        let sent = lab.send(Side::Back, &frame);
        assert_eq!((sent.exit, &sent.frame), ("pass", &frame));
        assert_counted(&sent, &[&format!("no_flow 1 x {}", frame.len())]);
    });
}

#[test]
fn with_direct_server_return_a_repeated_syn_goes_to_another_backend_until_the_client_acknowledges() {
    for mode in [Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue, Mode::DsrGre] {
        lab(move |lab| {
            let served = serve(lab, true, mode, 2);
            let first = open(lab, &served);
            let again = from_client(&syn(true, 40_000, &OPTIONS));
            lab.send(Side::Front, &again);
            let second = at(lab, &served);
            assert_ne!(second, first, "{}", mode.name());
            let ack = tcp((client(true), 40_000).into(), (vip(true), 80).into(), TCP_ACK, &[]);
            lab.send(Side::Front, &from_client(&ack));
            lab.send(Side::Front, &again);
            assert_eq!(at(lab, &served), second, "{}", mode.name());
        });
    }
}

#[test]
fn between_families_a_refused_connection_goes_to_the_next_backend() {
    for v4 in [true, false] {
        lab(move |lab| {
            let spec = Spec { backends: 3, backends_v4: !v4, ..Spec::new(v4, Protocol::Tcp, Mode::FullNat) };
            let mut served = lab.serve(spec);
            watch(lab, &mut served, 2);
            let first = open(lab, &served);
            let frame = refusal(!v4, first, lab.flow().source);
            let sent = lab.send(Side::Back, &frame);
            let second = at(lab, &served);
            assert_ne!(second, first);
            assert_eq!(sent.exit, "tx");
            // Whole, with right checksums, and to the other backend.
            verified(&sent.frame);
            assert_eq!(sent.frame[..6], crate::lab::backend_mac(second));
            assert!(sent.counted.contains(&"service 0 rescued 1".to_owned()), "{:?}", sent.counted);
        });
    }
}

#[test]
fn a_backend_that_acknowledges_an_earlier_connection_is_asked_again_and_not_suspected() {
    for mode in [Mode::Nat, Mode::FullNat] {
        lab(move |lab| {
            let served = serve(lab, true, mode, 2);
            let first = open(lab, &served);
            // TIME-WAIT: the backend tells where the earlier connection stands (RFC 9293, 3.10.7.4).
            let mut told = answer(true, first, lab.flow().source, TCP_ACK);
            let Segment::Tcp { header, .. } = &mut told.segment else { unreachable!() };
            header.acknowledgment_number = SEQUENCE.wrapping_sub(5000);
            assert_passed(&lab.send(Side::Back, &from_backend(first, &told)), "to_client");
            let reset = tcp((client(true), 40_000).into(), (vip(true), 80).into(), TCP_RST, &[]);
            assert_passed(&lab.send(Side::Front, &from_client(&reset)), "to_backend");
            sleep(AGAIN);
            let sent = lab.send(Side::Front, &from_client(&syn(true, 40_000, &OPTIONS)));
            assert_passed(&sent, "to_backend");
            assert_eq!(at(lab, &served), first, "the way to it is clear now");
            assert_frame(&sent.frame, &wanted(lab, &served));
            // Once: when it says nothing then, it is as silent as any other.
            sleep(AGAIN);
            lab.send(Side::Front, &from_client(&syn(true, 40_000, &OPTIONS)));
            assert_ne!(at(lab, &served), first);
        });
    }
}

#[track_caller]
fn assert_passed(sent: &Sent, reason: &str) {
    assert!(sent.counted.iter().any(|line| line.starts_with(&format!("{reason} 1 "))), "{:?}", sent.counted);
}
