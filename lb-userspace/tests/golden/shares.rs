//! Shares of the schedulers against weights: the agent makes the tables, and the program sends by them.

use std::collections::BTreeMap;

use lb_common::{
    abi::{Protocol, Scheduler},
    flow::TCP_SYN,
};
use lb_userspace::{
    config::Limits,
    core::{Now, OperatorLayer},
};

use crate::{
    agent::{Agent, config, make_neighbours},
    lab::{LIMITS, Lab, Side, from_client, ifindex, lab_with, packet, vip},
};

/// Of servers 101 to 104.
const WEIGHTS: [(u8, u16); 4] = [(101, 1), (102, 2), (103, 3), (104, 6)];
/// New connections, each of another client.
const CONNECTIONS: u32 = 24_000;
/// The exit of the program.
const REDIRECT: u32 = 4;

/// How many of the connections each server got.
fn shares(lab: &mut Lab) -> BTreeMap<u8, u32> {
    let (front, mut out, mut shares) = (ifindex(Side::Front), [0; 128], BTreeMap::new());
    for number in 0..CONNECTIONS {
        let [_, a, b, c] = number.to_be_bytes();
        let client = ([100, 64 + a, b, c], 20_000 + (number % 30_000) as u16).into();
        let syn = from_client(&packet(client, (vip(true), 80).into(), 64, Protocol::Tcp, TCP_SYN));
        assert_eq!(lab.run_into(front, &syn, &mut out), REDIRECT, "connection {number}");
        *shares.entry(out[5]).or_insert(0) += 1;
    }
    shares
}

/// Furthest that a share may be from what the weights say, in percent of all connections; `round-robin` takes
/// no weights. By hash the connections are a sample: five standard deviations of the largest share are 1.6 %.
const SCHEDULERS: [(Scheduler, bool, f64); 6] = [
    (Scheduler::RoundRobin, false, 0.01),
    (Scheduler::WeightedRoundRobin, true, 0.05),
    (Scheduler::LeastConnections, true, 0.05),
    (Scheduler::RandomTwo, true, 1.0),
    (Scheduler::SourceHash, true, 1.6),
    (Scheduler::Maglev, true, 1.6),
];

#[test]
fn every_scheduler_gives_shares_by_weight() {
    // Each check that finds a server up makes a table, and those before it are kept for a moment.
    let limits = Limits { flows: 1 << 16, selection_slots: 1 << 19, ..LIMITS };
    for (scheduler, weighted, tolerance) in SCHEDULERS {
        lab_with(limits, move |lab| {
            make_neighbours(101..=104);
            let mut agent =
                Agent::start(lab, &config(scheduler, WEIGHTS.into_iter(), limits), OperatorLayer::default(), Now::ZERO);
            agent.probe(|_| true, true);
            let shares = shares(lab);
            let weight = |weight: u16| f64::from(if weighted { weight } else { 1 });
            let sum: f64 = WEIGHTS.iter().map(|(_, w)| weight(*w)).sum();
            let percent = |n: f64| 100.0 * n / f64::from(CONNECTIONS);
            let mut furthest = 0.0f64;
            print!("{:<21}", scheduler.name());
            for (server, w) in WEIGHTS {
                let share = percent(shares.get(&server).copied().unwrap_or(0).into());
                let wanted = 100.0 * weight(w) / sum;
                print!(" {share:>6.2} % ({wanted:.2} %)");
                furthest = furthest.max((share - wanted).abs());
            }
            println!();
            assert!(furthest <= tolerance, "{scheduler:?}: {furthest} % from the weights, {shares:?}");
        });
    }
}
