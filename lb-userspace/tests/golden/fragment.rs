//! Fragments of datagrams: the first has the ports, the others follow it.

use std::{collections::BTreeSet, net::SocketAddr};

use lb_common::{
    abi::{Granularity, Mode, Protocol},
    flow::{TCP_ACK, TCP_SYN, Word, seconds},
    verdict::Reason,
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{ETHERNET, Packet, Segment, fragments, reassembled, right_header, verified},
    lab::{
        KINDS, Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, ip_batch, lab,
        packet, request, vip,
    },
};

const ID: u32 = 0x0000_beef;
const CHUNK: usize = 1_000;

/// With 2,500 bytes of payload: three fragments.
fn long(mut packet: Packet) -> Packet {
    let long: Vec<u8> = (0..2_500u32).map(|i| (i * 7) as u8).collect();
    match &mut packet.segment {
        Segment::Tcp { payload, .. } | Segment::Udp { payload, .. } => *payload = long,
        Segment::Other { bytes, .. } => *bytes = long,
    }
    packet
}

fn asked(served: &Served, port: u16, flags: u8, id: u32) -> Vec<Vec<u8>> {
    fragments(&from_client(&long(request(served, port, flags))), CHUNK, id)
}

/// To a port of the service's address that is no service's: the host may listen there.
fn to_another_port(served: &Served, id: u32) -> Vec<Vec<u8>> {
    let mut other = request(served, 40_000, 0);
    other.segment = Segment::udp(40_000, 81, &[7; 2_500]);
    fragments(&from_client(&other), CHUNK, id)
}

/// What the pieces became, each of which has to leave for `reason`.
fn send_all(lab: &mut Lab, side: Side, pieces: &[Vec<u8>], reason: &str) -> Vec<Vec<u8>> {
    let mut out = vec![];
    for piece in pieces {
        let sent = lab.send(side, piece);
        assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
        assert!(sent.counted.contains(&format!("{reason} 1 x {}", piece.len())), "{:?}", sent.counted);
        out.push(sent.frame);
    }
    out
}

impl Lab {
    /// Fragments that were sent on before their first.
    fn guessed(&self) -> u64 {
        self.stats().verdicts().unwrap()[&Reason::FragmentGuessed].packets
    }
}

#[track_caller]
fn assert_dropped(lab: &mut Lab, frame: &[u8], reason: &str) {
    let sent = lab.send(Side::Front, frame);
    assert_eq!(sent.exit, "drop", "{:?}", sent.counted);
    assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
}

/// Dropped, with whatever its service counts.
#[track_caller]
fn assert_dropped_at(lab: &mut Lab, frame: &[u8], reason: &str) {
    let sent = lab.send(Side::Front, frame);
    assert_eq!(sent.exit, "drop", "{:?}", sent.counted);
    assert!(sent.counted.contains(&format!("{reason} 1 x {}", frame.len())), "{:?}", sent.counted);
}

#[track_caller]
fn assert_passed(lab: &mut Lab, side: Side, frame: &[u8], reason: &str) {
    let sent = lab.send(side, frame);
    assert_eq!(sent.exit, "pass", "{:?}", sent.counted);
    assert_frame(&sent.frame, frame);
    assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
}

#[test]
fn fragments_are_translated_both_ways() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = lab.serve(Spec::new(v4, protocol, mode));
                lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
                let (flow, server) = (lab.flow(), (backend(v4, 1), 8080).into());

                let out = send_all(lab, Side::Front, &asked(&served, 40_000, TCP_ACK, ID), "to_backend");
                let (whole, id) = reassembled(&out);
                verified(&whole);
                let wanted = long(packet(flow.source, server, 63, protocol, TCP_ACK));
                assert_frame(&whole, &lab.to_backend(1, &wanted));
                // Datagrams of other senders may have the same number.
                assert_eq!(id == ID, !v4, "the identification is new in IPv4");

                let (us, them): (SocketAddr, SocketAddr) = ((vip(v4), 80).into(), (client(v4), 40_000).into());
                let reply = from_backend(1, &long(packet(server, flow.source, 64, protocol, TCP_ACK)));
                let out = send_all(lab, Side::Back, &fragments(&reply, CHUNK, ID), "to_client");
                let (whole, _) = reassembled(&out);
                verified(&whole);
                assert_frame(&whole, &lab.to_client(&long(packet(us, them, 63, protocol, TCP_ACK))));
                assert_eq!(lab.flows().len(), 1);
            });
        }
    }
}

#[test]
fn a_fragmented_datagram_may_begin_a_flow() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Udp, Mode::FullNat) });
        for port in 40_000..40_006 {
            let out = send_all(lab, Side::Front, &asked(&served, port, 0, u32::from(port)), "to_backend");
            verified(&reassembled(&out).0);
            let to: BTreeSet<_> = out.iter().map(|frame| frame[30..34].to_vec()).collect();
            assert_eq!(to.len(), 1, "all to one backend");
        }
        assert_eq!(lab.flows().len(), 6);
    });
}

#[test]
fn a_fragmented_datagram_may_begin_a_flow_of_a_client_that_stays() {
    lab(|lab| {
        let spec =
            Spec { backends: 3, granularity: Granularity::Client, ..Spec::new(true, Protocol::Udp, Mode::FullNat) };
        let served = lab.serve(spec);
        let mut info = lab.data.read().unwrap().service_info[&served.id];
        info.client_timeout = seconds(60);
        lab.apply(Op::SetServiceInfo { id: served.id, info });
        let mut ids = BTreeSet::new();
        let mut to = BTreeSet::new();
        for port in 40_000..40_006 {
            let out = send_all(lab, Side::Front, &asked(&served, port, 0, ID), "to_backend");
            let (whole, id) = reassembled(&out);
            verified(&whole);
            to.extend(out.iter().map(|frame| frame[30..34].to_vec()));
            ids.insert(id);
        }
        assert_eq!((to.len(), ids.len()), (1, 6), "one backend, and an identification for each datagram");
    });
}

#[test]
fn of_fragments_that_do_not_fit_only_the_first_is_answered() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let pieces = asked(&served, 40_000, 0, ID);
        ip_batch("link set back mtu 600\n");
        let sent = lab.send(Side::Front, &pieces[0]);
        assert_eq!(sent.exit, "tx", "{:?}", sent.counted);
        assert!(sent.counted.contains(&format!("too_big 1 x {}", pieces[0].len())), "{:?}", sent.counted);
        verified(&sent.frame);
        assert_dropped_at(lab, &pieces[1], "fragment_early");

        // The first has gone its way, and the others do not fit any more.
        ip_batch("link set back mtu 1500\n");
        send_all(lab, Side::Front, &pieces[..1], "to_backend");
        ip_batch("link set back mtu 600\n");
        lab.until_ways_are_asked_for();
        assert_dropped_at(lab, &pieces[1], "unanswerable");
    });
}

#[test]
fn datagrams_of_different_clients_never_get_one_identification() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        let ids: BTreeSet<_> = (40_000..40_100)
            .map(|port| reassembled(&send_all(lab, Side::Front, &asked(&served, port, 0, ID), "to_backend")).1)
            .collect();
        assert_eq!(ids.len(), 100);
    });
}

#[test]
fn fragments_go_back_to_front_behind_their_first() {
    lab(|lab| {
        let served = lab.serve(Spec::new(false, Protocol::Udp, Mode::FullNat));
        let mut pieces = asked(&served, 40_000, 0, ID);
        pieces[1..].reverse();
        verified(&reassembled(&send_all(lab, Side::Front, &pieces, "to_backend")).0);
    });
}

#[test]
fn packets_scheduled_one_by_one_keep_their_fragments_together() {
    lab(|lab| {
        let spec = Spec { granularity: Granularity::Packet, backends: 3, ..Spec::new(true, Protocol::Udp, Mode::Nat) };
        let served = lab.serve(spec);
        for id in 1..10 {
            verified(&reassembled(&send_all(lab, Side::Front, &asked(&served, 40_000, 0, id), "to_backend")).0);
        }
    });
}

#[test]
fn dsr_hands_fragments_on_as_they_are_and_in_tunnels() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec { backend_port: 0, ..Spec::new(v4, Protocol::Udp, Mode::DsrL2) });
            let out = send_all(lab, Side::Front, &asked(&served, 40_000, 0, ID), "to_backend");
            let (whole, id) = reassembled(&out);
            assert_eq!(id, ID);
            let ask = long(request(&served, 40_000, 0));
            assert_frame(&whole, &lab.to_backend(1, &Packet { ttl: 63, ..ask }));
        });
        lab(move |lab| {
            let served = lab.serve(Spec { backend_port: 0, ..Spec::new(v4, Protocol::Udp, Mode::DsrIpip) });
            let out = send_all(lab, Side::Front, &asked(&served, 40_000, 0, ID), "to_backend");
            let outer = if v4 { 20 } else { 40 };
            let inner: Vec<_> =
                out.iter().map(|frame| [&frame[..ETHERNET], &frame[ETHERNET + outer..]].concat()).collect();
            let ask = long(request(&served, 40_000, 0));
            let (whole, id) = reassembled(&inner);
            assert_eq!(id, ID);
            assert_frame(&whole, &lab.to_backend(1, &Packet { ttl: 63, ..ask }));
        });
    }
}

#[test]
fn tagged_fragments_keep_their_tags() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let tag = |frame: &Vec<u8>| [&frame[..12], &[0x81, 0, 0, 100], &frame[12..]].concat();
        let mut plain = vec![];
        for piece in asked(&served, 40_000, 0, ID) {
            let sent = lab.send(Side::Front, &tag(&piece));
            assert_eq!(sent.exit, "redirect");
            assert_eq!(sent.frame[12..16], [0x81, 0, 0, 100]);
            plain.push([&sent.frame[..12], &sent.frame[16..]].concat());
        }
        verified(&reassembled(&plain).0);
    });
}

#[test]
fn a_fragment_before_its_first_is_dropped_and_counted() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, Protocol::Udp, Mode::Nat));
            let pieces = asked(&served, 40_000, 0, ID);
            assert_dropped(lab, &pieces[1], "fragment_early");
            send_all(lab, Side::Front, &pieces[..1], "to_backend");
            send_all(lab, Side::Front, &pieces[1..], "to_backend");
            // Of a client that has sent none in pieces before.
            let mut stranger = long(request(&served, 40_000, 0));
            stranger.source = backend(v4, 9);
            assert_dropped(lab, &fragments(&from_client(&stranger), CHUNK, ID + 1)[1], "fragment_early");
        });
    }
}

#[test]
fn fragments_of_a_refused_datagram_are_not_answered() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 0, ..Spec::new(true, Protocol::Udp, Mode::Nat) });
        let pieces = asked(&served, 40_000, 0, ID);
        let sent = lab.send(Side::Front, &pieces[0]);
        assert_eq!(sent.exit, "tx", "the first one is");
        verified(&sent.frame);
        assert_dropped(lab, &pieces[1], "fragment_early");
    });
    // The backend goes away between two fragments.
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let pieces = asked(&served, 40_000, 0, ID);
        send_all(lab, Side::Front, &pieces[..1], "to_backend");
        lab.set_state(&served, 1, lb_common::abi::BackendState::Dead);
        lab.select(&served, &[]);
        let sent = lab.send(Side::Front, &pieces[1]);
        assert_eq!(sent.exit, "drop", "{:?}", sent.counted);
        assert!(sent.counted.contains(&format!("fragment_early 1 x {}", pieces[1].len())), "{:?}", sent.counted);
    });
}

#[test]
fn fragments_for_the_host_reach_it() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        for piece in to_another_port(&served, ID) {
            assert_passed(lab, Side::Front, &piece, "no_service");
        }
        // To the host's own address, which is the source of full-nat too, from nobody's flow.
        let own = packet((backend(true, 1), 53).into(), "10.0.0.1:5353".parse().unwrap(), 64, Protocol::Udp, 0);
        let pieces = fragments(&from_backend(1, &long(own)), CHUNK, ID);
        assert_passed(lab, Side::Back, &pieces[1], "fragment");
        assert_passed(lab, Side::Back, &pieces[0], "no_flow");
        assert_passed(lab, Side::Back, &pieces[2], "fragment");
        // To others, and what is not balanced.
        let mut far = long(request(&served, 40_000, 0));
        far.destination = "203.0.113.11".parse().unwrap();
        for piece in fragments(&from_client(&far), CHUNK, ID) {
            assert_passed(lab, Side::Front, &piece, "not_for_us");
        }
        let mut ping = far;
        (ping.destination, ping.segment) = (vip(true), Segment::Other { protocol: 1, bytes: vec![8; 2_500] });
        for piece in fragments(&from_client(&ping), CHUNK, ID) {
            assert_passed(lab, Side::Front, &piece, "fragment");
        }
    });
}

#[test]
fn fragments_that_no_honest_sender_makes_are_malformed() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
        let pieces = asked(&served, 40_000, TCP_ACK, ID);
        // Less than the TCP header; over its flags; a middle one that is no whole units.
        let mut tiny = pieces[0][..ETHERNET + 20 + 16].to_vec();
        tiny[16..18].copy_from_slice(&36u16.to_be_bytes());
        let mut over = pieces[1].clone();
        over[20..22].copy_from_slice(&[0x20, 1]);
        let mut odd = pieces[1][..ETHERNET + 20 + 999].to_vec();
        odd[16..18].copy_from_slice(&1_019u16.to_be_bytes());
        for mut frame in [tiny, over, odd] {
            right_header(&mut frame);
            assert_dropped(lab, &frame, "malformed");
        }
        assert_eq!(lab.flows().len(), 1);
    });
}

#[test]
fn a_first_fragment_whose_ttl_is_used_up_tells_nothing() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let mut ask = long(request(&served, 40_000, 0));
        ask.ttl = 1;
        let pieces = fragments(&from_client(&ask), CHUNK, ID);
        assert_passed(lab, Side::Front, &pieces[0], "ttl_expired");
        assert_dropped(lab, &pieces[1], "fragment_early");
        assert!(lab.flows().is_empty());
    });
}

#[test]
fn fragments_before_their_first_go_where_their_sender_s_last_datagram_went() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = lab.serve(Spec { backends: 3, ..Spec::new(v4, protocol, mode) });
                lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
                send_all(lab, Side::Front, &asked(&served, 40_000, TCP_ACK, ID), "to_backend");
                let last = reassembled(&send_all(lab, Side::Front, &asked(&served, 40_000, TCP_ACK, 1), "to_backend"));
                let mut guessed = 0;
                for (datagram, order) in [[2, 1, 0], [1, 0, 2], [2, 0, 1]].into_iter().enumerate() {
                    let pieces = asked(&served, 40_000, TCP_ACK, ID + 1 + datagram as u32);
                    let pieces = order.map(|at| pieces[at].clone());
                    let out = send_all(lab, Side::Front, &pieces, "to_backend");
                    guessed += order.iter().position(|at| *at == 0).unwrap() as u64;
                    assert_eq!(lab.guessed(), guessed);
                    // One identification for all pieces, and the same flow.
                    let (whole, id) = reassembled(&out);
                    verified(&whole);
                    assert_frame(&whole, &last.0);
                    assert_ne!(id, last.1);
                }
                assert_eq!(lab.flows().len(), 1);
            });
        }
    }
}

#[test]
fn in_dsr_fragments_before_their_first_follow_without_an_entry_in_the_flow_table() {
    lab(|lab| {
        let spec = Spec { backends: 3, backend_port: 0, ..Spec::new(true, Protocol::Udp, Mode::DsrL2) };
        let served = lab.serve(spec);
        send_all(lab, Side::Front, &asked(&served, 40_000, 0, ID), "to_backend");
        let mut pieces = asked(&served, 40_000, 0, ID + 1);
        pieces.reverse();
        let (whole, id) = reassembled(&send_all(lab, Side::Front, &pieces, "to_backend"));
        verified(&whole);
        assert_eq!((lab.guessed(), id), (2, ID + 1));
    });
}

#[test]
fn a_wrong_guess_costs_the_early_fragments_only() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Udp, Mode::Nat) });
        let backend_of = |frame: &[u8]| frame[30..34].to_vec();
        let one = send_all(lab, Side::Front, &asked(&served, 40_000, 0, ID), "to_backend");
        let other = send_all(lab, Side::Front, &asked(&served, 40_001, 0, ID + 1), "to_backend");
        assert_ne!(backend_of(&one[0]), backend_of(&other[0]));
        // The client's other flow: what comes first goes the last one's way, the rest its own.
        let pieces = asked(&served, 40_000, 0, ID + 2);
        let out = send_all(lab, Side::Front, &[1, 0, 2].map(|at: usize| pieces[at].clone()), "to_backend");
        let to: Vec<_> = out.iter().map(|frame| backend_of(frame)).collect();
        assert_eq!(to, [backend_of(&other[0]), backend_of(&one[0]), backend_of(&one[0])]);
        assert_eq!(out[1][18..20], out[2][18..20]);
        assert_ne!(out[0][18..20], out[1][18..20], "the two backends are never given one number");
        assert_eq!((lab.flows().len(), lab.guessed()), (2, 1));
    });
}

#[test]
fn a_guess_begins_no_flow() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        let pieces = asked(&served, 40_000, 0, ID);
        send_all(lab, Side::Front, &pieces, "to_backend");
        lab.set_every_word(Word::EMPTY);
        assert_dropped_at(lab, &asked(&served, 40_000, 0, ID + 1)[1], "fragment_early");
        assert!(lab.flows().is_empty());
        assert_eq!(lab.guessed(), 0);
        send_all(lab, Side::Front, &asked(&served, 40_000, 0, ID + 1)[..1], "to_backend");
        assert_eq!(lab.flows().len(), 1);
    });
}

#[test]
fn fragments_of_many_senders_to_one_source_of_full_nat_are_not_guessed() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
        let flow = lab.flow();
        let server = (backend(true, 1), 8080).into();
        let answer =
            |id| fragments(&from_backend(1, &long(packet(server, flow.source, 64, Protocol::Udp, 0))), CHUNK, id);
        send_all(lab, Side::Back, &answer(ID), "to_client");
        assert_passed(lab, Side::Back, &answer(ID + 1)[1], "fragment");
    });
    // In `nat` the client's address is in it.
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
        let flow = lab.flow();
        let server = (backend(true, 1), 8080).into();
        let answer =
            |id| fragments(&from_backend(1, &long(packet(server, flow.source, 64, Protocol::Udp, 0))), CHUNK, id);
        send_all(lab, Side::Back, &answer(ID), "to_client");
        let mut pieces = answer(ID + 1);
        pieces.reverse();
        verified(&reassembled(&send_all(lab, Side::Back, &pieces, "to_client")).0);
        assert_eq!(lab.guessed(), 2);
    });
}

#[test]
fn early_fragments_for_the_host_follow_those_that_reached_it() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        for piece in to_another_port(&served, ID) {
            assert_passed(lab, Side::Front, &piece, "no_service");
        }
        assert_passed(lab, Side::Front, &to_another_port(&served, ID + 1)[2], "no_service");
    });
}
