//! Timeouts of a service: the data path keeps its flows for as long as the service says.

use std::{thread::sleep, time::Duration};

use lb_common::{
    abi::{Mode, Protocol},
    flow::{State, TCP_ACK, TCP_RST, TCP_SYN, Timeouts, idle_ticks},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::lab::{Lab, Served, Side, Spec, backend, from_backend, from_client, lab, packet, request};

const LONG: u32 = idle_ticks(100_000_000_000);
const SECOND: u32 = idle_ticks(1_000_000_000);

/// Changes the timeouts of these states.
fn set_timeouts(lab: &mut Lab, served: &Served, changes: &[(State, u32)]) {
    let mut info = lab.data.read().unwrap().service_info[&served.id];
    let timeouts: &mut Timeouts = &mut info.timeouts;
    for &(state, ticks) in changes {
        timeouts[state as usize] = ticks;
    }
    lab.apply(Op::SetServiceInfo { id: served.id, info });
}

/// Sends a packet of the client; gives how it left.
fn ask(lab: &mut Lab, served: &Served, flags: u8) -> &'static str {
    lab.send(Side::Front, &from_client(&request(served, 40_000, flags))).exit
}

fn answer(lab: &mut Lab, served: &Served, flags: u8) {
    let spec = served.spec;
    let answer = packet((backend(spec.v4, 1), 8080).into(), lab.flow().source, 64, spec.protocol, flags);
    assert_eq!(lab.send(Side::Back, &from_backend(1, &answer)).exit, "redirect");
}

/// What is listed as silent is reckoned from when the flow expires: right only where the program went
/// by the same timeouts.
#[test]
fn each_state_is_kept_for_as_long_as_the_service_says() {
    for mode in [Mode::Nat, Mode::FullNat, Mode::DsrL2] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            lab(move |lab| {
                let same_port = if mode == Mode::DsrL2 { 80 } else { 8080 };
                let served = lab.serve(Spec { backend_port: same_port, ..Spec::new(true, protocol, mode) });
                let all = State::ALL.map(|state| (state, LONG + state as u32 * 100));
                set_timeouts(lab, &served, &all[2..]);
                let mut steps = vec![TCP_SYN, TCP_ACK, TCP_RST];
                if mode != Mode::DsrL2 {
                    ask(lab, &served, TCP_SYN);
                    answer(lab, &served, TCP_SYN | TCP_ACK);
                    steps.remove(0);
                }
                for flags in steps {
                    assert_eq!(ask(lab, &served, flags), "redirect");
                    let flow = lab.flow();
                    assert!(flow.idle < Duration::from_secs(2), "{mode:?} {flow:?}");
                }
            });
        }
    }
}

#[test]
fn a_closed_connection_is_forgotten_after_a_second_where_the_service_says_so() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        set_timeouts(lab, &served, &[(State::Closed, SECOND)]);
        ask(lab, &served, TCP_SYN);
        answer(lab, &served, TCP_RST | TCP_ACK);
        assert_eq!(lab.flow().state, State::Closed);
        assert_eq!(ask(lab, &served, TCP_ACK), "redirect", "its last packets still pass");
        sleep(Duration::from_millis(1500));
        assert_eq!(lab.flows(), []);
        assert_eq!(ask(lab, &served, TCP_ACK), "tx", "a reset: the flow is not known any more");
        let census = lab.data.sweep().unwrap();
        assert_eq!((census.live, census.aged), (0, 1), "its port is free");
    });
}

#[test]
fn new_timeouts_reach_the_flows_there_are_with_their_next_packet() {
    lab(|lab| {
        let served = lab.serve(Spec::new(false, Protocol::Udp, Mode::FullNat));
        ask(lab, &served, 0);
        set_timeouts(lab, &served, &[(State::OneWay, LONG)]);
        assert!(lab.flow().idle > Duration::from_secs(60), "no packet yet: reckoned from what it will be");
        ask(lab, &served, 0);
        assert!(lab.flow().idle < Duration::from_secs(2));
        set_timeouts(lab, &served, &[(State::OneWay, SECOND)]);
        ask(lab, &served, 0);
        sleep(Duration::from_millis(1500));
        assert_eq!(lab.flows(), []);
    });
}
