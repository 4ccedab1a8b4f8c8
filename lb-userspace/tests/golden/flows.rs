//! The life of a flow: states, ends, tuples that are used again.

use lb_common::{
    abi::{Mode, Protocol},
    flow::{State, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
};

use crate::lab::{Lab, Served, Side, Spec, backend, from_backend, from_client, lab, packet, request};

/// Sends packets of one connection, `>` from the client and `<` from the backend, and gives the
/// state after each.
fn walk(lab: &mut Lab, served: &Served, steps: &[(char, u8)]) -> Vec<State> {
    let mut states = vec![];
    for &(direction, flags) in steps {
        let sent = if direction == '>' {
            lab.send(Side::Front, &from_client(&request(served, 40_000, flags)))
        } else {
            let source = lab.flow().source;
            let spec = served.spec;
            let answer = packet((backend(spec.v4, 1), 8080).into(), source, 64, spec.protocol, flags);
            lab.send(Side::Back, &from_backend(1, &answer))
        };
        assert_eq!(sent.exit, "redirect", "{direction}{flags:#x}: {:?}", sent.counted);
        states.push(lab.flow().state);
    }
    states
}

const SYN_ACK: u8 = TCP_SYN | TCP_ACK;
const FIN_ACK: u8 = TCP_FIN | TCP_ACK;

#[test]
fn tcp_states_follow_the_packets() {
    use State::{Closed, Closing, Established, Opening};
    for mode in [Mode::Nat, Mode::FullNat] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(true, Protocol::Tcp, mode));
            let steps = [
                ('>', TCP_SYN),
                ('<', SYN_ACK),
                ('>', TCP_ACK),
                ('<', TCP_ACK),
                ('>', FIN_ACK),
                ('<', TCP_ACK),
                ('<', FIN_ACK),
                ('>', TCP_ACK),
            ];
            let states = walk(lab, &served, &steps);
            let wanted = [Opening, Opening, Established, Established, Closing, Closing, Closed, Closed];
            assert_eq!(states, wanted);
        });
    }
}

#[test]
fn udp_states_follow_the_packets() {
    lab(|lab| {
        let served = lab.serve(Spec::new(false, Protocol::Udp, Mode::FullNat));
        let states = walk(lab, &served, &[('>', 0), ('>', 0), ('<', 0), ('>', 0)]);
        assert_eq!(states, [State::OneWay, State::OneWay, State::BothWays, State::BothWays]);
    });
}

#[test]
fn a_refused_connection_is_closed_and_its_tuple_begins_anew() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
        lab.select(&served, &[1]);
        let states = walk(lab, &served, &[('>', TCP_SYN), ('<', TCP_RST | TCP_ACK)]);
        assert_eq!(states, [State::Opening, State::Closed]);
        lab.select(&served, &[2]);
        lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
        let flow = lab.flow();
        assert_eq!((flow.backend_id, flow.state), (served.backends[1], State::Opening));
    });
}

#[test]
fn a_connection_that_meets_the_remains_of_another_tries_again_on_the_same_backend_and_port() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
        lab.select(&served, &[1]);
        // The backend remembers a connection with this port (TIME_WAIT); the client resets that.
        let states = walk(lab, &served, &[('>', TCP_SYN), ('<', TCP_ACK), ('>', TCP_RST)]);
        assert_eq!(states.last(), Some(&State::Opening));
        let before = lab.flow();
        lab.select(&served, &[2]);
        walk(lab, &served, &[('>', TCP_SYN)]);
        let after = lab.flow();
        assert_eq!((after.backend_id, after.source), (before.backend_id, before.source));
    });
}

#[test]
fn a_client_that_gives_up_closes_the_flow() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        let steps = [('>', TCP_SYN), ('<', SYN_ACK), ('>', TCP_ACK), ('>', TCP_RST | TCP_ACK)];
        assert_eq!(walk(lab, &served, &steps).last(), Some(&State::Closed));
    });
}

#[test]
fn a_new_connection_on_an_open_ones_tuple_stays_on_its_backend() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        lab.select(&served, &[1]);
        walk(lab, &served, &[('>', TCP_SYN), ('<', SYN_ACK), ('>', TCP_ACK)]);
        lab.select(&served, &[2]);
        // The client rebooted; its backend answers with a challenge and the client resets (RFC 5961, 4).
        walk(lab, &served, &[('>', TCP_SYN)]);
        assert_eq!(lab.flow().backend_id, served.backends[0]);
    });
}

#[test]
fn two_services_with_one_nat_backend_never_share_a_tuple() {
    lab(|lab| {
        let first = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        // The same backend behind another port of the same address.
        let second = lab.serve(Spec { port: 81, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        lab.send(Side::Front, &from_client(&request(&first, 40_000, TCP_SYN)));
        let mut ask = request(&second, 40_000, TCP_SYN);
        ask.segment = crate::frames::Segment::tcp(40_000, 81, TCP_SYN, b"hello");
        let frame = from_client(&ask);
        let sent = lab.send(Side::Front, &frame);
        // The backend could not tell the two connections apart.
        assert_eq!(sent.exit, "drop");
        crate::counters::assert_counted(&sent, &[&format!("tuple_taken 1 x {}", frame.len()), "service 1 dropped 1"]);
        assert_eq!(lab.flows().len(), 1);
    });
}
