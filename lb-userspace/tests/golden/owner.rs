//! ICMP errors about flows that need no entry in the flow table reach the backend that the flow's hash
//! names, in every mode of direct server return, the way that the flow's own packets travel.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{BackendState, Granularity, HashedBy, Mode, Port, Protocol, ServiceValue, Slot},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{Packet, fragment, in_gre, tunnelled},
    icmp_wire::{KINDS as ERRORS, Kind, WHOLE, error, quote},
    lab::{
        KINDS, Lab, Served, Side, Spec, assert_frame, backend, client, from_client, lab, packet, request, source, vip,
    },
    tracked::{clean, receiver, send, slots, spec, unsettled},
};

const MODES: [Mode; 4] = [Mode::DsrL2, Mode::DsrIpip, Mode::DsrGue, Mode::DsrGre];
const GUE_PORT: u16 = 6080;

fn serve(lab: &mut Lab, spec: Spec) -> Served {
    let served = lab.serve(spec);
    if spec.mode == Mode::DsrGue {
        let known = lab.data.read().unwrap().backends;
        for id in &served.backends {
            let mut entry = known[id];
            entry.tunnel_port = Port::new(GUE_PORT);
            lab.apply(Op::SetBackend { id: *id, backend: entry });
        }
    }
    served
}

/// What a router on the client's side says about a reply to the client's port.
fn told(served: &Served, port: u16, kind: Kind, behind: usize) -> Packet {
    let Spec { v4, protocol, .. } = served.spec;
    let router: IpAddr = if v4 { "198.51.100.254" } else { "2001:db8:c::fe" }.parse().unwrap();
    let asker: SocketAddr = (client(v4), port).into();
    let reply = packet((vip(v4), 80).into(), asker, 57, protocol, TCP_ACK);
    error(router, vip(v4), kind, &quote(&reply, behind))
}

/// The error, or the flow's own packet, as backend `n` gets it: with the flow label and the source port that the flow's packets have
/// in their tunnel.
fn expected(lab: &Lab, served: &Served, n: u8, told: &Packet, of_flow: &[u8]) -> Vec<u8> {
    let Spec { v4, mode, .. } = served.spec;
    let onward = lab.to_backend(n, &Packet { ttl: told.ttl - 1, ..told.clone() });
    if mode == Mode::DsrL2 {
        return onward;
    }
    let label = if v4 { 0 } else { u32::from_be_bytes(of_flow[14..18].try_into().unwrap()) & 0xf_ffff };
    let udp = 14 + if v4 { 20 } else { 40 };
    let gue = (mode == Mode::DsrGue).then(|| (u16::from_be_bytes([of_flow[udp], of_flow[udp + 1]]), GUE_PORT, true));
    if mode == Mode::DsrGre {
        return in_gre(&onward, source(v4), backend(v4, n), label);
    }
    tunnelled(&onward, source(v4), backend(v4, n), label, gue)
}

/// Sends the error and compares what comes out for backend `n`.
#[track_caller]
fn assert_told(lab: &mut Lab, served: &Served, n: u8, told: &Packet, of_flow: &[u8]) {
    let before = lab.flows().len();
    let frame = from_client(told);
    let sent = lab.send(Side::Front, &frame);
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    assert_frame(&sent.frame, &expected(lab, served, n, told, of_flow));
    assert_counted(&sent, &[&format!("error_to_backend 1 x {}", frame.len())]);
    assert_eq!(lab.flows().len(), before, "an error begins nothing");
}

/// The backend (1 to 3) that is told about a reply to the client's port.
fn told_to(lab: &mut Lab, served: &Served, port: u16) -> u8 {
    receiver(&lab.send(Side::Front, &from_client(&told(served, port, Kind::TooBig(1400), 8))))
}

#[test]
fn an_error_about_a_flow_without_entry_reaches_its_slots_backend_as_the_flows_packets_do() {
    for (v4, protocol) in KINDS {
        for mode in MODES {
            lab(move |lab| {
                let served = serve(lab, Spec { mode, ..spec(v4, protocol) });
                slots(lab, &served, &[clean(&served, 2)]);
                let of_flow = send(lab, &served, 40_000, TCP_SYN);
                assert_eq!(receiver(&of_flow), 2);
                let asked = request(&served, 40_000, TCP_SYN);
                assert_frame(&of_flow.frame, &expected(lab, &served, 2, &asked, &of_flow.frame));
                for (kind, behind) in ERRORS.iter().flat_map(|kind| [8, 20, WHOLE].map(|behind| (*kind, behind))) {
                    assert_told(lab, &served, 2, &told(&served, 40_000, kind, behind), &of_flow.frame);
                }
                // The slot moves: the flow stays, and so do errors about it.
                slots(lab, &served, &[unsettled(&served, 3, 2)]);
                let about = told(&served, 40_000, Kind::TooBig(1400), 8);
                assert_told(lab, &served, 2, &about, &of_flow.frame);
                assert!(lab.flows().is_empty());
            });
        }
    }
}

#[test]
fn an_error_about_a_flow_that_is_tracked_reaches_the_backend_of_its_entry() {
    for (v4, protocol) in KINDS {
        for mode in MODES {
            lab(move |lab| {
                let served = serve(lab, Spec { mode, ..spec(v4, protocol) });
                // A connection that begins now goes to 3; a datagram may be of an older flow, and goes to 2.
                slots(lab, &served, &[unsettled(&served, 3, 2)]);
                let of_flow = send(lab, &served, 40_000, TCP_SYN);
                let n = if protocol == Protocol::Tcp { 3 } else { 2 };
                assert_eq!((receiver(&of_flow), lab.flows().len()), (n, 1));
                slots(lab, &served, &[unsettled(&served, 2, 1)]);
                let about = told(&served, 40_000, Kind::TooBig(1400), 8);
                assert_told(lab, &served, n, &about, &of_flow.frame);
                assert_eq!(told_to(lab, &served, 40_001), 1, "a flow without an entry");
            });
        }
    }
}

#[test]
fn an_error_about_a_flow_of_a_dead_or_vanished_backend_ends_here() {
    for mode in MODES {
        lab(move |lab| {
            let served = serve(lab, Spec { mode, ..spec(true, Protocol::Tcp) });
            let frame = from_client(&told(&served, 40_000, Kind::TooBig(1400), 8));
            let ends = |lab: &mut Lab| {
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "drop");
                assert_frame(&sent.frame, &frame);
                assert_counted(&sent, &[&format!("error_of_no_flow 1 x {}", frame.len())]);
            };
            slots(lab, &served, &[Slot::gone(served.backends[1])]);
            ends(lab);
            lab.set_state(&served, 1, BackendState::Dead);
            slots(lab, &served, &[unsettled(&served, 2, 1)]);
            ends(lab);
            slots(lab, &served, &[clean(&served, 1)]);
            ends(lab);
        });
    }
}

#[test]
fn errors_about_flows_of_clients_that_stay_follow_the_client() {
    lab(|lab| {
        let served = lab.serve(Spec { granularity: Granularity::Client, ..spec(true, Protocol::Udp) });
        let of_clients = |lab: &mut Lab, table: &[Slot]| {
            let value = slots(lab, &served, table);
            lab.publish(&served, ServiceValue { stable_hash: HashedBy::Client as u8, ..value });
        };
        of_clients(lab, &[clean(&served, 1)]);
        assert_eq!(told_to(lab, &served, 40_000), 1, "by the hash of the address alone");
        of_clients(lab, &[unsettled(&served, 2, 1)]);
        assert_eq!(told_to(lab, &served, 40_000), 1);
        // The client and its flow get entries elsewhere, and the slot changes once more.
        of_clients(lab, &[Slot::gone(served.backends[2])]);
        assert_eq!(receiver(&send(lab, &served, 40_000, 0)), 3);
        of_clients(lab, &[unsettled(&served, 2, 1)]);
        assert_eq!(told_to(lab, &served, 40_000), 3, "its flow's entry");
        assert_eq!(told_to(lab, &served, 41_000), 3, "the client's entry");
    });
}

/// The place where packets are worked on keeps what the last one left.
#[test]
fn a_flow_without_entry_takes_nothing_over_from_the_packet_before() {
    lab(|lab| {
        let across = Spec { backends_v4: true, ..Spec::new(false, Protocol::Udp, Mode::FullNat) };
        let across = lab.serve(across);
        let served = lab.serve(spec(true, Protocol::Udp));
        slots(lab, &served, &[clean(&served, 2)]);
        let sent = lab.send(Side::Front, &from_client(&request(&across, 40_000, 0)));
        assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
        let asked = request(&served, 40_000, 0);
        let sent = lab.send(Side::Front, &from_client(&asked));
        assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
        assert_frame(&sent.frame, &lab.to_backend(2, &Packet { ttl: asked.ttl - 1, ..asked }));
    });
}

/// Behind an ICMPv6 error with extension headers in its quotation nothing is different.
#[test]
fn what_is_quoted_may_have_extension_headers() {
    lab(|lab| {
        let served = serve(lab, Spec { mode: Mode::DsrGue, ..spec(false, Protocol::Udp) });
        slots(lab, &served, &[clean(&served, 2)]);
        let of_flow = send(lab, &served, 40_000, 0);
        let reply = packet((vip(false), 80).into(), (client(false), 40_000).into(), 57, Protocol::Udp, 0);
        let reply = quote(&reply.extension(fragment(0, true)), WHOLE);
        let about = error("2001:db8:c::fe".parse().unwrap(), vip(false), Kind::TimeExceeded, &reply);
        assert_told(lab, &served, 2, &about, &of_flow.frame);
    });
}
