//! Source ports of `full-nat`: none twice, none of the host's, none lost.

use std::{
    collections::HashSet,
    net::{TcpListener, UdpSocket},
};

use lb_common::{
    abi::{Mode, Protocol},
    flow::{TCP_RST, TCP_SYN},
};
use lb_userspace::{config::PortRange, dataplane::Op};

use crate::counters::assert_counted;
use crate::lab::{Lab, Served, Side, Spec, backend, from_backend, from_client, lab, packet, request};

/// Leaves the pool of backend 1 with these ports.
fn only_ports(lab: &mut Lab, first: u16, last: u16) {
    lab.apply(Op::SetPortPool { pool: 0, ports: vec![PortRange { first, last }] });
}

fn syn(lab: &mut Lab, served: &Served, port: u16) -> &'static str {
    lab.send(Side::Front, &from_client(&request(served, port, TCP_SYN))).exit
}

#[test]
fn every_flow_has_its_own_port_and_all_are_used() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = lab.serve(Spec::new(v4, Protocol::Tcp, Mode::FullNat));
            only_ports(lab, 20_000, 20_199);
            for port in 0..200 {
                assert_eq!(syn(lab, &served, 30_000 + port), "redirect", "flow {port}");
            }
            let ports: HashSet<u16> = lab.flows().iter().map(|flow| flow.source.port()).collect();
            assert_eq!(ports, (20_000..=20_199).collect());

            let frame = from_client(&request(&served, 31_000, TCP_SYN));
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "drop");
            assert_counted(&sent, &[&format!("ports_exhausted 1 x {}", frame.len()), "service 0 dropped 1"]);
            assert_eq!(lab.flows().len(), 200, "nothing is left of the flow that could not begin");
        });
    }
}

#[test]
fn a_port_is_free_again_when_its_flow_has_ended() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        only_ports(lab, 20_000, 20_000);
        for _ in 0..5 {
            assert_eq!(syn(lab, &served, 40_000), "redirect");
            assert_eq!(syn(lab, &served, 40_001), "drop", "the only port is in use");
            let answer = packet((backend(true, 1), 8080).into(), lab.flow().source, 64, Protocol::Tcp, TCP_RST);
            lab.send(Side::Back, &from_backend(1, &answer));
            // The next connection of the tuple takes the place of the closed one.
        }
    });
}

/// A backend remembers each connection for a minute (TIME_WAIT).
#[test]
fn a_port_rests_until_all_others_had_their_turn() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        // As by default: the first words of the pool are closed, and some in the middle.
        let ports = vec![PortRange { first: 1024, last: 56_903 }, PortRange { first: 61_000, last: 65_535 }];
        lab.apply(Op::SetPortPool { pool: 0, ports });
        // Some ports are held for long.
        for port in 0..20 {
            syn(lab, &served, 30_000 + port);
        }
        let mut used = HashSet::new();
        for _ in 0..4000 {
            assert_eq!(syn(lab, &served, 40_000), "redirect");
            let source = lab.flows().iter().find(|flow| flow.client.port() == 40_000).unwrap().source;
            assert!(used.insert(source.port()), "port {} was used {} flows ago", source.port(), used.len());
            let answer = packet((backend(true, 1), 8080).into(), source, 64, Protocol::Tcp, TCP_RST);
            lab.send(Side::Back, &from_backend(1, &answer));
        }
    });
}

#[test]
fn a_second_backend_has_ports_of_its_own() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
        only_ports(lab, 20_000, 20_000);
        lab.apply(Op::SetPortPool { pool: 1, ports: vec![PortRange { first: 20_000, last: 20_000 }] });
        assert_eq!(syn(lab, &served, 40_000), "redirect");
        assert_eq!(syn(lab, &served, 40_001), "redirect", "the other backend can still take it");
        assert_eq!(syn(lab, &served, 40_002), "drop");
        let flows = lab.flows();
        assert_ne!(flows[0].backend_id, flows[1].backend_id);
        assert_eq!(flows[0].source, flows[1].source, "one port, two backends: two tuples");
    });
}

#[test]
fn ports_of_the_hosts_own_sockets_are_left_alone() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        only_ports(lab, 20_000, 20_003);
        let _listening = TcpListener::bind("10.0.0.1:20001").unwrap();
        let _bound = TcpListener::bind("0.0.0.0:20002").unwrap();
        // Each failed try uses up an attempt, so a client may have to try more than once.
        for port in 40_000..40_020 {
            syn(lab, &served, port);
        }
        let ports: HashSet<u16> = lab.flows().iter().map(|flow| flow.source.port()).collect();
        assert_eq!(ports, HashSet::from([20_000, 20_003]));
    });
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        only_ports(lab, 20_000, 20_001);
        let _bound = UdpSocket::bind("10.0.0.1:20001").unwrap();
        for port in 40_000..40_010 {
            syn(lab, &served, port);
        }
        let ports: HashSet<u16> = lab.flows().iter().map(|flow| flow.source.port()).collect();
        assert_eq!(ports, HashSet::from([20_000]));
    });
}
