//! What cannot be forwarded and is worth an answer: a TCP reset, or an ICMP "port unreachable".

use lb_common::{
    abi::{BackendState, Mode, Protocol},
    flow::{State, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::{Segment, verified},
    lab::{KINDS, Lab, Served, Side, Spec, assert_frame, from_client, lab, packet, request, vip},
};
use std::net::IpAddr;

use lb_common::abi::BackendState::{Dead, Live};

/// The reset that answers a client's packet: from the service, to the client.
fn reset(lab: &Lab, served: &Served, sequence: u32, acknowledgement: u32, flags: u8) -> Vec<u8> {
    let v4 = served.spec.v4;
    let mut answer = packet((vip(v4), 80).into(), (crate::lab::client(v4), 40_000).into(), 64, Protocol::Tcp, flags);
    answer.segment = Segment::tcp(80, 40_000, flags, b"");
    if let Segment::Tcp { header, .. } = &mut answer.segment {
        header.sequence_number = sequence;
        header.acknowledgment_number = acknowledgement;
        header.window_size = 0;
    }
    let mut frame = lab.to_client(&answer);
    if v4 {
        // "Don't fragment", which the builder of frames sets as well.
        assert_eq!(frame[20], 0x40);
    }
    frame[12..14].copy_from_slice(if v4 { &[8, 0] } else { &[0x86, 0xdd] });
    frame
}

#[track_caller]
fn assert_refused(lab: &mut Lab, served: &Served, flags: u8, wanted: &[u8], reason: &str, more: &[&str]) {
    let frame = from_client(&request(served, 40_000, flags));
    let sent = lab.send(Side::Front, &frame);
    assert_eq!(sent.exit, "tx", "{reason}");
    assert_frame(&sent.frame, wanted);
    let lines = [format!("{reason} 1 x {}", frame.len()), format!("service {} refused 1", served.id)];
    let lines: Vec<&str> = lines.iter().map(String::as_str).chain(more.iter().copied()).collect();
    assert_counted(&sent, &lines);
}

/// The sequence and acknowledgement numbers of every request, and its payload.
const SEQUENCE: u32 = 0x1234_5678;
const ACKNOWLEDGEMENT: u32 = 0x9abc_def0;
const PAYLOAD: u32 = 5;

#[test]
fn without_a_ready_backend_a_connection_is_reset_at_once() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec { backends: 0, ..Spec::new(v4, Protocol::Tcp, Mode::FullNat) });
            let wanted = reset(lab, &served, 0, SEQUENCE + 1 + PAYLOAD, TCP_RST | TCP_ACK);
            assert_refused(lab, &served, TCP_SYN, &wanted, "no_backend", &[]);
            assert!(lab.flows().is_empty());
        });
    }
}

#[test]
fn packets_of_unknown_connections_are_reset() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, Protocol::Tcp, Mode::Nat));
            let of_ack = reset(lab, &served, ACKNOWLEDGEMENT, 0, TCP_RST);
            for flags in [TCP_ACK, TCP_SYN | TCP_ACK, TCP_FIN | TCP_ACK] {
                assert_refused(lab, &served, flags, &of_ack, "unknown_flow", &[]);
            }
            let of_fin = reset(lab, &served, 0, SEQUENCE + PAYLOAD + 1, TCP_RST | TCP_ACK);
            assert_refused(lab, &served, TCP_FIN, &of_fin, "unknown_flow", &[]);
        });
    }
}

#[test]
fn a_reset_is_never_answered_with_a_reset() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        for flags in [TCP_RST, TCP_RST | TCP_ACK] {
            let frame = from_client(&request(&served, 40_000, flags));
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "drop");
            assert_counted(&sent, &[&format!("unknown_reset 1 x {}", frame.len()), "service 0 dropped 1"]);
        }
    });
}

#[test]
fn flows_of_a_dead_backend_are_reset_and_the_next_connection_goes_elsewhere() {
    for v4 in [true, false] {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = lab.serve(Spec { backends: 2, ..Spec::new(v4, Protocol::Tcp, mode) });
                lab.select(&served, &[1]);
                lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
                assert_eq!(lab.flow().backend_id, served.backends[0]);
                lab.set_state(&served, 1, Dead);
                lab.select(&served, &[2]);
                let wanted = reset(lab, &served, ACKNOWLEDGEMENT, 0, TCP_RST);
                let reset = format!("backend {} reset 1", served.backends[0]);
                assert_refused(lab, &served, TCP_ACK, &wanted, "backend_dead", &[&reset]);
                assert_eq!(lab.flow().state, State::Closed);
                assert_refused(lab, &served, TCP_ACK, &wanted, "backend_dead", &[]);
                // The same tuple again.
                lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
                assert_eq!(lab.flow().backend_id, served.backends[1]);
            });
        }
    }
}

#[test]
fn a_retransmitted_syn_leaves_a_dead_backend_without_a_reset() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
        lab.select(&served, &[1]);
        let syn = from_client(&request(&served, 40_000, TCP_SYN));
        lab.send(Side::Front, &syn);
        lab.set_state(&served, 1, Dead);
        lab.select(&served, &[2]);
        assert_eq!(lab.send(Side::Front, &syn).exit, "redirect");
        assert_eq!(lab.flow().backend_id, served.backends[1]);
    });
}

#[test]
fn a_backend_that_came_back_keeps_flows_that_said_nothing_meanwhile() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
        lab.set_state(&served, 1, Dead);
        lab.set_state(&served, 1, Live);
        let sent = lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_ACK)));
        assert_eq!(sent.exit, "redirect");
    });
}

#[test]
fn udp_is_answered_with_port_unreachable_that_quotes_it() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec { backends: 0, ..Spec::new(v4, Protocol::Udp, Mode::Nat) });
            let frame = from_client(&request(&served, 40_000, 0));
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "tx");
            assert_counted(&sent, &[&format!("no_backend 1 x {}", frame.len()), "service 0 refused 1"]);
            verified(&sent.frame);
            let (header, quoted) = if v4 { (20, 28) } else { (40, 48) };
            assert_eq!(sent.frame.len(), 14 + header + 8 + quoted);
            assert_eq!(&sent.frame[..6], &frame[6..12], "back to the sender");
            assert_eq!(&sent.frame[6..12], &frame[..6]);
            let kind = if v4 { [3, 3] } else { [1, 4] };
            assert_eq!(sent.frame[14 + header..][..2], kind);
            assert_eq!(&sent.frame[14 + header + 8..], &frame[14..14 + quoted], "the packet as it came");
        });
    }
}

#[test]
fn udp_of_a_dead_backend_is_told_once_and_then_goes_elsewhere() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Udp, Mode::FullNat) });
        lab.select(&served, &[1]);
        let ask = from_client(&request(&served, 40_000, 0));
        lab.send(Side::Front, &ask);
        lab.set_state(&served, 1, Dead);
        lab.select(&served, &[2]);
        let sent = lab.send(Side::Front, &ask);
        assert_eq!(sent.exit, "tx");
        verified(&sent.frame);
        assert_eq!(lab.send(Side::Front, &ask).exit, "redirect");
        assert_eq!(lab.flow().backend_id, served.backends[1]);
    });
}

#[test]
fn options_are_quoted_whole() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 0, ..Spec::new(true, Protocol::Udp, Mode::Nat) });
        let frame = from_client(&request(&served, 40_000, 0).options(&[1; 40]));
        let sent = lab.send(Side::Front, &frame);
        verified(&sent.frame);
        assert_eq!(&sent.frame[14 + 20 + 8..], &frame[14..14 + 68]);
    });
}

#[test]
fn long_packets_are_cut_to_the_answer() {
    for (v4, protocol) in KINDS {
        lab(move |lab| {
            let served = lab.serve(Spec { backends: 0, ..Spec::new(v4, protocol, Mode::Nat) });
            let long = match protocol {
                Protocol::Tcp => Segment::tcp(40_000, 80, TCP_ACK, &[7; 1200]),
                Protocol::Udp => Segment::udp(40_000, 80, &[7; 1200]),
                Protocol::Sctp => panic!("of the kinds above there is none"),
            };
            let mut ask = request(&served, 40_000, TCP_SYN);
            ask.segment = long;
            let sent = lab.send(Side::Front, &from_client(&ask));
            assert_eq!(sent.exit, "tx");
            verified(&sent.frame);
            assert!(sent.frame.len() < 120, "{}", sent.frame.len());
        });
    }
}

#[test]
fn a_flood_of_udp_is_answered_at_a_limited_rate() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 0, ..Spec::new(true, Protocol::Udp, Mode::Nat) });
        let ask = from_client(&request(&served, 40_000, 0));
        let exits =
            lab.send_from_all_cpus(Side::Front, |cpu| if cpu == 0 { vec![ask.clone(); 20_000] } else { vec![] });
        let (answered, dropped) = (exits["tx"], exits["drop"]);
        assert_eq!(answered + dropped, 20_000);
        // The flood takes less than a second: seven ticks of 128 answers.
        assert!((128..=8 * 128).contains(&answered), "{exits:?}");
        let frame = lab.send(Side::Front, &ask);
        if frame.exit == "drop" {
            assert_counted(&frame, &[&format!("answer_limited 1 x {}", ask.len()), "service 0 dropped 1"]);
        }
    });
}

#[test]
fn nothing_is_sent_to_a_source_that_is_no_host() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 0, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        let forged = packet(
            ("224.0.0.5".parse::<IpAddr>().unwrap(), 1).into(),
            (vip(true), 80).into(),
            64,
            Protocol::Tcp,
            TCP_SYN,
        );
        let frame = from_client(&forged);
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "drop");
        assert_counted(&sent, &[&format!("unanswerable 1 x {}", frame.len()), "service 0 dropped 1"]);
        assert_eq!(served.spec.backends, 0);
    });
}

#[test]
fn an_emptied_backend_ends_its_flows() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        lab.select(&served, &[1]);
        lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
        lab.select(&served, &[2]);
        lab.set_state(&served, 1, BackendState::Empty);
        let sent = lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_ACK)));
        assert_eq!(sent.exit, "tx");
        assert!(sent.counted.iter().any(|line| line.starts_with("unknown_flow")), "{:?}", sent.counted);
    });
}
