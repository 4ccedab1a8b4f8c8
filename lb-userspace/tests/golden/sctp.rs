//! SCTP in the modes of direct server return: packets go on as they are, to the last bit.

use lb_common::{
    abi::{BackendState, Mode, Protocol},
    flow::State,
};

use crate::{
    counters::assert_counted,
    frames::{ETHERNET, Packet, Segment, tunnelled},
    lab::{
        BACK_MAC, Lab, Served, Side, Spec, assert_frame, backend, backend_mac, client, from_client, lab, source, vip,
    },
};

const INIT: u8 = 1;
const DATA: u8 = 0;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const COOKIE_ECHO: u8 = 10;
const SHUTDOWN_COMPLETE: u8 = 14;

fn serve(lab: &mut Lab, v4: bool, mode: Mode) -> Served {
    lab.serve(Spec { backends: 2, backend_port: 0, ..Spec::new(v4, Protocol::Sctp, mode) })
}

/// A client's packet to the service's port 80 whose first chunk is of this type. The checksum is not
/// one: nobody on the way looks at it.
fn sctp(v4: bool, port: u16, chunk: u8) -> Packet {
    let [p0, p1] = port.to_be_bytes();
    let header = [p0, p1, 0, 80, 1, 2, 3, 4, 0xde, 0xad, 0xbe, 0xef];
    let bytes = [&header[..], &[chunk, 3, 0, 20], &[0x5a; 16]].concat();
    let segment = Segment::Other { protocol: Protocol::Sctp as u8, bytes };
    Packet::new(&client(v4).to_string(), &vip(v4).to_string(), segment)
}

/// What leaves for backend `n`.
fn expected(lab: &Lab, mode: Mode, packet: Packet, n: u8, got: &[u8]) -> Vec<u8> {
    let v4 = packet.source.is_ipv4();
    let frame = lab.to_backend(n, &Packet { ttl: packet.ttl - 1, ..packet });
    if mode == Mode::DsrL2 {
        return frame;
    }
    let label = if v4 { 0 } else { u32::from_be_bytes(got[ETHERNET..ETHERNET + 4].try_into().unwrap()) & 0xf_ffff };
    tunnelled(&frame, source(v4), backend(v4, n), label, None)
}

#[test]
fn an_association_goes_to_one_backend_as_it_is_and_its_chunks_move_the_flow_on() {
    for mode in [Mode::DsrL2, Mode::DsrIpip] {
        for v4 in [true, false] {
            lab(move |lab| {
                let served = serve(lab, v4, mode);
                lab.select(&served, &[1]);
                let steps = [
                    (INIT, State::Opening),
                    (INIT, State::Opening),
                    (COOKIE_ECHO, State::Established),
                    (DATA, State::Established),
                    (SHUTDOWN, State::Closing),
                    (SHUTDOWN_COMPLETE, State::Closed),
                ];
                for (nth, (chunk, state)) in steps.into_iter().enumerate() {
                    let packet = sctp(v4, 40_000, chunk);
                    let frame = from_client(&packet);
                    let sent = lab.send(Side::Front, &frame);
                    assert_eq!(sent.exit, "redirect", "{chunk}: {:?}", sent.counted);
                    assert_frame(&sent.frame, &expected(lab, mode, packet, 1, &sent.frame));
                    assert_eq!(lab.flow().state, state, "{chunk}");
                    assert_eq!(lab.flow().protocol, Protocol::Sctp);
                    if nth == 0 {
                        // New flows go elsewhere from here on; this one stays.
                        lab.select(&served, &[2]);
                    }
                }
                let sent = lab.send(Side::Front, &from_client(&sctp(v4, 40_000, INIT)));
                assert_eq!(sent.frame[..6], backend_mac(2), "an association that begins anew");
                assert_eq!((lab.flow().state, &sent.frame[6..12]), (State::Opening, &BACK_MAC[..]));
            });
        }
    }
}

#[test]
fn an_abort_closes_an_association() {
    lab(|lab| {
        serve(lab, true, Mode::DsrL2);
        for chunk in [INIT, COOKIE_ECHO, ABORT] {
            lab.send(Side::Front, &from_client(&sctp(true, 40_000, chunk)));
        }
        assert_eq!(lab.flow().state, State::Closed);
    });
}

#[test]
fn what_belongs_to_no_association_is_dropped_and_never_answered() {
    lab(|lab| {
        serve(lab, true, Mode::DsrL2);
        for chunk in [DATA, COOKIE_ECHO, SHUTDOWN, ABORT, 4] {
            let frame = from_client(&sctp(true, 40_000, chunk));
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "drop", "{chunk}");
            assert_counted(&sent, &[&format!("unknown_association 1 x {}", frame.len()), "service 0 dropped 1"]);
        }
        assert_eq!(lab.flows(), []);
    });
}

#[test]
fn an_association_that_no_backend_can_take_is_refused_by_icmp() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = serve(lab, v4, Mode::DsrL2);
            for n in 1..=2 {
                lab.set_state(&served, n, BackendState::Dead);
            }
            let frame = from_client(&sctp(v4, 40_000, INIT));
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "tx");
            let (header, unreachable) = if v4 { (20, [3, 3]) } else { (40, [1, 4]) };
            assert_eq!(sent.frame[ETHERNET + header..ETHERNET + header + 2], unreachable);
            assert_counted(&sent, &[&format!("no_backend 1 x {}", frame.len()), "service 0 refused 1"]);
        });
    }
}

#[test]
fn sctp_that_no_service_asks_for_is_left_to_the_host() {
    lab(|lab| {
        lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        let frame = from_client(&sctp(true, 40_000, INIT));
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "pass");
        assert_counted(&sent, &[&format!("no_service 1 x {}", frame.len())]);
    });
}
