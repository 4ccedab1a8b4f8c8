//! Many flows, and several CPUs at once.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{Mode, Protocol},
    flow::{State, TCP_SYN},
};

use crate::lab::{PORTS, Served, Side, Spec, cpus, from_client, lab_of, packet, vip};

/// The first packet of client number `n` (of 2^24).
fn hello(served: &Served, n: u32) -> Vec<u8> {
    let [_, a, b, c] = n.to_be_bytes();
    let address: IpAddr = [100, a, b, 7].into();
    let client: SocketAddr = (address, 20_000 + u16::from(c)).into();
    from_client(&packet(client, (vip(true), 80).into(), 64, served.spec.protocol, TCP_SYN))
}

#[test]
fn every_backend_gets_its_share_of_100_000_flows_within_one_percent() {
    lab_of(1024, |lab| {
        let served = lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        let cpus = cpus();
        let each = 100_000 / cpus;
        let frames = |cpu: usize| (0..each).map(|n| hello(&served, (cpu * each + n) as u32)).collect();
        let exits = lab.send_from_all_cpus(Side::Front, frames);
        assert_eq!(exits, BTreeMap::from([("redirect", each * cpus)]));
        let shares = lab.flows_begun(&served);
        let fair = (each * cpus) as f64 / 3.0;
        for flows in &shares {
            assert!((*flows as f64 / fair - 1.0).abs() < 0.01, "{shares:?}");
        }
    });
}

#[test]
fn sixty_thousand_flows_to_one_backend_have_a_port_each() {
    lab_of(131_072, |lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::FullNat));
        let frames = |cpu: usize| {
            let half = (cpu * 30_000) as u32;
            if cpu < 2 { (half..half + 30_000).map(|n| hello(&served, n)).collect() } else { vec![] }
        };
        let exits = lab.send_from_all_cpus(Side::Front, frames);
        assert_eq!(exits, BTreeMap::from([("redirect", 60_000)]));
        let flows = lab.flows();
        assert_eq!(flows.len(), 60_000);
        let ports: HashSet<u16> = flows.iter().map(|flow| flow.source.port()).collect();
        assert_eq!(ports.len(), 60_000, "no port twice");
        let inside = |port: &u16| PORTS.iter().any(|range| (range.first..=range.last).contains(port));
        assert!(ports.iter().all(inside), "only ports of the configuration");
        // The few hundred ports that are left serve as many flows, and not one more.
        let left = 60_416 - 60_000;
        let more = lab.send_from_all_cpus(Side::Front, |cpu| {
            if cpu == 0 { (100_000..100_500).map(|n| hello(&served, n)).collect() } else { vec![] }
        });
        assert_eq!(more, BTreeMap::from([("redirect", left), ("drop", 500 - left)]));
    });
}

#[test]
fn cpus_that_begin_and_evict_flows_together_keep_the_table_whole() {
    lab_of(1024, |lab| {
        let served = lab.serve(Spec { backends: 2, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
        // Half of the tuples are the same on every CPU, and there are far more than places.
        let frames = |cpu: usize| {
            (0..40_000u32)
                .map(|n| hello(&served, if n % 2 == 0 { n % 3000 } else { n + (cpu as u32) * 40_000 }))
                .collect()
        };
        let exits = lab.send_from_all_cpus(Side::Front, frames);
        // A way that another CPU is just writing may be the only one left to take.
        let dropped = exits.get("drop").copied().unwrap_or(0);
        assert!(dropped < 100, "{exits:?}");

        let flows = lab.flows();
        assert!(flows.len() > 900, "{}", flows.len());
        assert!(flows.iter().all(|flow| flow.state == State::Opening));
        let tuples: HashSet<_> = flows.iter().map(|flow| (flow.backend_id, flow.source)).collect();
        assert_eq!(tuples.len(), flows.len(), "no port twice");
        // Every flow that lives has its port and its reply word; nothing else has one.
        for round in 0..2 {
            let audit = lab.data.audit_ports().unwrap();
            assert_eq!((audit.ports, audit.replies), (0, 0), "round {round}: {audit:?}");
        }
    });
}
