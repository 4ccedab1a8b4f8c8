//! What becomes of flows that are over with their backend: every policy, cause, mode and transport, and
//! packets from both sides.

use std::net::SocketAddr;

use lb_common::{
    abi::{BackendState, EndCause, Mode, Protocol, ServiceInfo, ServiceValue, Slot},
    flow::{State, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{ETHERNET, Packet, Segment, verified},
    lab::{
        Lab, Sent, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, request,
        vip,
    },
    tracked,
};

const MODES: [Mode; 4] = [Mode::Nat, Mode::FullNat, Mode::DsrL2, Mode::DsrIpip];

/// The sequence and acknowledgement numbers of every segment.
const SEQUENCE: u32 = 0x1234_5678;
const ACKNOWLEDGEMENT: u32 = 0x9abc_def0;

fn spec(v4: bool, protocol: Protocol, mode: Mode) -> Spec {
    let backend_port = if Mode::is_one_sided(mode as u8) { 0 } else { 8080 };
    Spec { backends: 2, backend_port, ..Spec::new(v4, protocol, mode) }
}

fn send(lab: &mut Lab, served: &Served, flags: u8) -> Sent {
    lab.send(Side::Front, &from_client(&request(served, 40_000, flags)))
}

/// A flow to backend 1, established where it is TCP. Gives where that sees it come from.
fn begin(lab: &mut Lab, served: &Served) -> SocketAddr {
    lab.select(served, &[1]);
    assert_eq!(send(lab, served, TCP_SYN).exit, "redirect");
    let seen_as = lab.flow().source;
    if !Mode::is_one_sided(served.spec.mode as u8) {
        assert_eq!(answer(lab, served, seen_as, TCP_SYN | TCP_ACK).exit, "redirect");
    }
    assert_eq!(send(lab, served, TCP_ACK).exit, "redirect");
    seen_as
}

/// What backend 1 answers.
fn answered(served: &Served, seen_as: SocketAddr, flags: u8) -> Packet {
    packet((backend(served.spec.v4, 1), 8080).into(), seen_as, 64, served.spec.protocol, flags)
}

fn answer(lab: &mut Lab, served: &Served, seen_as: SocketAddr, flags: u8) -> Sent {
    lab.send(Side::Back, &from_backend(1, &answered(served, seen_as, flags)))
}

/// Backend 1 takes no new flows; those it has are treated so, because of that.
fn end(lab: &mut Lab, served: &Served, state: BackendState, cause: EndCause) {
    let mut entry = lab.data.read().unwrap().backends[&served.backends[0]];
    (entry.state, entry.cause) = (state as u8, cause as u8);
    lab.apply(Op::SetBackend { id: served.backends[0], backend: entry });
    lab.select(served, &[2]);
}

/// A reset from one to the other, in answer to a segment with an acknowledgement.
fn reset(from: SocketAddr, to: SocketAddr) -> Packet {
    let mut answer = packet(from, to, 64, Protocol::Tcp, TCP_RST);
    answer.segment = Segment::tcp(from.port(), to.port(), TCP_RST, b"");
    if let Segment::Tcp { header, .. } = &mut answer.segment {
        (header.sequence_number, header.acknowledgment_number, header.window_size) = (ACKNOWLEDGEMENT, 0, 0);
    }
    answer
}

const CAUSES: [(EndCause, &str); 4] = [
    (EndCause::Down, "backend_dead"),
    (EndCause::Demoted, "backend_demoted"),
    (EndCause::Drained, "backend_drained"),
    (EndCause::Removed, "backend_removed"),
];

#[test]
fn a_connection_is_reset_towards_its_client_and_counted_once_by_its_cause() {
    for mode in MODES {
        for v4 in [true, false] {
            // The cause is told by the reason alone: all of them once is enough.
            let causes = if v4 && mode == Mode::Nat { &CAUSES[..] } else { &CAUSES[..1] };
            for &(cause, reason) in causes {
                lab(move |lab| {
                    let served = lab.serve(spec(v4, Protocol::Tcp, mode));
                    begin(lab, &served);
                    end(lab, &served, BackendState::Dead, cause);
                    let n = from_client(&request(&served, 40_000, TCP_ACK)).len();
                    let wanted = lab.to_client(&reset((vip(v4), 80).into(), (client(v4), 40_000).into()));
                    let first = "backend 0 reset 1";
                    for more in [&[first][..], &[]] {
                        let sent = send(lab, &served, TCP_ACK);
                        assert_eq!(sent.exit, "tx", "{mode:?} {:?}", sent.counted);
                        assert_frame(&sent.frame, &wanted);
                        let counted = [format!("{reason} 1 x {n}"), "service 0 refused 1".to_owned()];
                        let counted: Vec<&str> =
                            counted.iter().map(String::as_str).chain(more.iter().copied()).collect();
                        assert_counted(&sent, &counted);
                    }
                    assert_eq!(lab.flow().state, State::Closed);
                    // The client connects again from the same port.
                    assert_eq!(send(lab, &served, TCP_SYN).exit, "redirect");
                    assert_eq!(lab.flow().backend_id, served.backends[1]);
                });
            }
        }
    }
}

#[test]
fn a_connection_is_reset_towards_its_backend_too() {
    for mode in [Mode::Nat, Mode::FullNat] {
        for v4 in [true, false] {
            lab(move |lab| {
                let served = lab.serve(spec(v4, Protocol::Tcp, mode));
                let seen_as = begin(lab, &served);
                end(lab, &served, BackendState::Dead, EndCause::Demoted);
                let asked = answered(&served, seen_as, TCP_ACK);
                let frame = from_backend(1, &asked);
                let sent = lab.send(Side::Back, &frame);
                assert_eq!(sent.exit, "tx");
                let wanted = reset(seen_as, (backend(v4, 1), 8080).into());
                assert_frame(&sent.frame, &lab.to_backend(1, &wanted));
                let reason = format!("backend_demoted 1 x {}", frame.len());
                assert_counted(&sent, &[&reason, "service 0 refused 1", "backend 0 reset 1"]);
                // The client hears of it with its own next segment; the flow is counted once.
                let sent = send(lab, &served, TCP_ACK | TCP_FIN);
                assert_eq!(sent.exit, "tx");
                let n = from_client(&request(&served, 40_000, TCP_ACK)).len();
                assert_counted(&sent, &[&format!("backend_demoted 1 x {n}"), "service 0 refused 1"]);
            });
        }
    }
}

#[test]
fn a_reset_of_either_side_still_reaches_the_other() {
    for mode in MODES {
        lab(move |lab| {
            let served = lab.serve(spec(true, Protocol::Tcp, mode));
            let seen_as = begin(lab, &served);
            end(lab, &served, BackendState::Dead, EndCause::Drained);
            let sent = send(lab, &served, TCP_RST);
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            assert!(sent.counted.iter().any(|line| line.starts_with("to_backend 1")), "{:?}", sent.counted);
            if !Mode::is_one_sided(mode as u8) {
                let sent = answer(lab, &served, seen_as, TCP_RST);
                assert_eq!(sent.exit, "redirect");
                assert!(sent.counted.iter().any(|line| line.starts_with("to_client 1")), "{:?}", sent.counted);
            }
            assert_eq!(lab.flow().state, State::Closed);
        });
    }
}

#[test]
fn a_udp_flow_is_told_once_from_either_side() {
    for mode in MODES {
        for v4 in [true, false] {
            lab(move |lab| {
                let served = lab.serve(spec(v4, Protocol::Udp, mode));
                begin(lab, &served);
                end(lab, &served, BackendState::Dead, EndCause::Removed);
                let n = from_client(&request(&served, 40_000, 0)).len();
                let sent = send(lab, &served, 0);
                assert_eq!(sent.exit, "tx");
                verified(&sent.frame);
                let reason = format!("backend_removed 1 x {n}");
                assert_counted(&sent, &[&reason, "service 0 refused 1", "backend 0 ended 1", "backend 0 reset 1"]);
                assert_eq!(send(lab, &served, 0).exit, "redirect");
                assert_eq!(lab.flow().backend_id, served.backends[1]);
            });
        }
    }
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(spec(v4, Protocol::Udp, Mode::FullNat));
            let seen_as = begin(lab, &served);
            end(lab, &served, BackendState::Dead, EndCause::Down);
            let sent = answer(lab, &served, seen_as, 0);
            assert_eq!(sent.exit, "tx");
            verified(&sent.frame);
            let (header, unreachable) = if v4 { (20, [3, 3]) } else { (40, [1, 4]) };
            assert_eq!(sent.frame[ETHERNET + header..][..2], unreachable);
            assert!(lab.flows().is_empty());
        });
    }
}

#[test]
fn a_udp_flow_that_is_moved_loses_no_packet() {
    for mode in MODES {
        for v4 in [true, false] {
            lab(move |lab| {
                let served = lab.serve(spec(v4, Protocol::Udp, mode));
                let seen_as = begin(lab, &served);
                end(lab, &served, BackendState::Moved, EndCause::Down);
                if !Mode::is_one_sided(mode as u8) {
                    assert_eq!(answer(lab, &served, seen_as, 0).exit, "redirect", "answers under way still arrive");
                }
                let n = from_client(&request(&served, 40_000, 0)).len();
                let sent = send(lab, &served, 0);
                assert_eq!(sent.exit, "redirect");
                let lines = [
                    format!("to_backend 1 x {n}"),
                    format!("service 0 forward 1 x {n}"),
                    format!("backend 1 forward 1 x {n}"),
                ];
                let mut counted: Vec<&str> = lines.iter().map(String::as_str).collect();
                counted.extend(["service 0 flows 1", "backend 1 flows 1", "backend 0 ended 1", "backend 0 moved 1"]);
                assert_counted(&sent, &counted);
                assert_eq!(lab.flow().backend_id, served.backends[1]);
            });
        }
    }
}

#[test]
fn a_flow_that_is_kept_goes_on_in_both_directions() {
    for mode in MODES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            lab(move |lab| {
                let served = lab.serve(spec(true, protocol, mode));
                let seen_as = begin(lab, &served);
                end(lab, &served, BackendState::Kept, EndCause::None);
                for _ in 0..2 {
                    let sent = send(lab, &served, TCP_ACK);
                    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
                    assert!(sent.counted.iter().any(|line| line.starts_with("backend 0 forward")));
                    if !Mode::is_one_sided(mode as u8) {
                        assert_eq!(answer(lab, &served, seen_as, TCP_ACK).exit, "redirect");
                    }
                }
                // A new one goes elsewhere, also while the table still says otherwise.
                lab.select(&served, &[1, 2]);
                for port in 41_000..41_006 {
                    let sent = lab.send(Side::Front, &from_client(&request(&served, port, TCP_SYN)));
                    assert!(!sent.counted.iter().any(|line| line.starts_with("backend 0")), "{:?}", sent.counted);
                }
            });
        }
    }
}

#[test]
fn flows_without_an_entry_follow_the_same_policies() {
    lab(|lab| {
        let served = lab.serve(tracked::spec(true, Protocol::Tcp));
        let (one, two) = (served.backends[0], served.backends[1]);
        let set = |lab: &mut Lab, state: BackendState, cause: EndCause| {
            let mut entry = lab.data.read().unwrap().backends[&one];
            (entry.state, entry.cause) = (state as u8, cause as u8);
            lab.apply(Op::SetBackend { id: one, backend: entry });
        };
        tracked::slots(lab, &served, &[Slot::unsettled(two, one)]);
        set(lab, BackendState::Dead, EndCause::Drained);
        let sent = tracked::send(lab, &served, 40_000, TCP_ACK);
        assert_eq!(sent.exit, "tx");
        assert!(sent.counted.iter().any(|line| line.starts_with("backend_drained 1")), "{:?}", sent.counted);

        set(lab, BackendState::Kept, EndCause::None);
        assert_eq!(tracked::receiver(&tracked::send(lab, &served, 40_000, TCP_ACK)), 1, "it goes on, with an entry");
        assert_eq!(tracked::receiver(&tracked::send(lab, &served, 40_001, TCP_SYN)), 2);
        // The table says that new ones still go there: it is about to be replaced.
        tracked::slots(lab, &served, &[Slot::clean(one)]);
        assert_eq!(tracked::receiver(&tracked::send(lab, &served, 40_002, TCP_ACK)), 1);
        let refused = tracked::send(lab, &served, 40_003, TCP_SYN);
        assert!(refused.counted.iter().any(|line| line.starts_with("no_backend 1")), "{:?}", refused.counted);
    });
}

/// What a walk tells of backend 1: left, clients, reset, moved.
fn walk(lab: &mut Lab, served: &Served) -> [u64; 4] {
    let ended = lab.data.sweep().unwrap().ended[&served.backends[0]];
    [ended.left, ended.clients, ended.reset, ended.moved]
}

#[test]
fn a_connection_that_says_nothing_is_asked_three_times_and_then_removed() {
    for (v4, mode) in [(true, Mode::Nat), (false, Mode::FullNat), (true, Mode::DsrL2)] {
        lab(move |lab| {
            let served = lab.serve(spec(v4, Protocol::Tcp, mode));
            begin(lab, &served);
            assert!(lab.data.sweep().unwrap().ended.is_empty());
            end(lab, &served, BackendState::Dead, EndCause::Demoted);
            for _ in 0..3 {
                assert_eq!(walk(lab, &served), [1, 1, 0, 0]);
            }
            assert_eq!(walk(lab, &served), [0, 1, 1, 0]);
            assert!(lab.flows().is_empty());
            assert_eq!(walk(lab, &served), [0, 0, 1, 0], "counted once");
        });
    }
}

#[test]
fn a_walk_leaves_flows_that_know_already_and_removes_those_that_are_moved() {
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp, Mode::Nat));
        begin(lab, &served);
        end(lab, &served, BackendState::Dead, EndCause::Down);
        assert_eq!(send(lab, &served, TCP_ACK).exit, "tx");
        for _ in 0..5 {
            assert_eq!(walk(lab, &served), [0, 0, 1, 0], "the data path has counted it");
        }
        assert_eq!(lab.flow().state, State::Closed, "it ages like others");
    });
    for (state, wanted) in [(BackendState::Moved, [0, 1, 0, 1]), (BackendState::Dead, [1, 1, 0, 0])] {
        lab(move |lab| {
            let served = lab.serve(spec(true, Protocol::Udp, Mode::FullNat));
            begin(lab, &served);
            end(lab, &served, state, EndCause::Down);
            for _ in 0..5 {
                let told = walk(lab, &served);
                assert_eq!((told[0], told[2], told[3]), (wanted[0], wanted[2], wanted[3]));
            }
            assert_eq!(lab.flows().len() as u64, wanted[0]);
        });
    }
    lab(|lab| {
        let served = lab.serve(spec(true, Protocol::Tcp, Mode::Nat));
        begin(lab, &served);
        end(lab, &served, BackendState::Kept, EndCause::Down);
        for _ in 0..5 {
            assert!(lab.data.sweep().unwrap().ended.is_empty());
        }
        assert_eq!(lab.flow().state, State::Established);
    });
}

/// Lets a frozen service begin flows again so many ticks from now.
fn freeze(lab: &mut Lab, served: &Served, ticks: i32) {
    let info = lab.data.read().unwrap().service_info[&served.id];
    let parked_until = lab.now().wrapping_add_signed(ticks) & 0xff_ffff;
    lab.apply(Op::SetServiceInfo { id: served.id, info: ServiceInfo { parked_until, ..info } });
}

#[test]
fn a_frozen_service_parks_what_would_begin_a_flow() {
    for mode in MODES {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            lab(move |lab| {
                let served = lab.serve(spec(true, protocol, mode));
                begin(lab, &served);
                let frozen = ServiceValue { flags: ServiceValue::PARKED, ..served.value };
                freeze(lab, &served, 10);
                lab.publish(&served, frozen);
                assert_eq!(send(lab, &served, TCP_ACK).exit, "redirect", "what is there goes on");
                let frame = from_client(&request(&served, 41_000, TCP_SYN));
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "drop");
                assert_counted(&sent, &[&format!("parked 1 x {}", frame.len()), "service 0 dropped 1"]);
                if protocol == Protocol::Tcp {
                    let sent = lab.send(Side::Front, &from_client(&request(&served, 41_001, TCP_ACK)));
                    assert_eq!(sent.exit, "tx", "of no connection: refused as ever");
                }
                // The time is over, and nobody has thawed it; or it lies so far ahead that the clock must have
                // come round.
                for ticks in [0, -1, 10_000] {
                    freeze(lab, &served, ticks);
                    let frame = from_client(&request(&served, (42_001 + ticks) as u16, TCP_SYN));
                    assert_eq!(lab.send(Side::Front, &frame).exit, "redirect", "{ticks}");
                }
                freeze(lab, &served, 10);
                lab.publish(&served, served.value);
                assert_eq!(lab.send(Side::Front, &frame).exit, "redirect");
            });
        }
    }
    lab(|lab| {
        let served = lab.serve(tracked::spec(true, Protocol::Tcp));
        let value = tracked::slots(lab, &served, &[tracked::clean(&served, 1)]);
        freeze(lab, &served, 10);
        lab.publish(&served, ServiceValue { flags: value.flags | ServiceValue::PARKED, ..value });
        assert_eq!(tracked::receiver(&tracked::send(lab, &served, 40_000, TCP_ACK)), 1);
        let sent = tracked::send(lab, &served, 40_001, TCP_SYN);
        assert_eq!(sent.exit, "drop");
        assert!(sent.counted.iter().any(|line| line.starts_with("parked 1")), "{:?}", sent.counted);
    });
}

#[test]
fn the_numbers_of_a_reset_are_those_that_its_receiver_waits_for() {
    // What `reset` builds on: the acknowledgement number of the segment that it answers.
    let asked = packet((client(true), 40_000).into(), (vip(true), 80).into(), 64, Protocol::Tcp, TCP_ACK);
    let Segment::Tcp { header, .. } = asked.segment else { panic!("a segment") };
    assert_eq!((header.sequence_number, header.acknowledgment_number), (SEQUENCE, ACKNOWLEDGEMENT));
}
