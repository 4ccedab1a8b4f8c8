//! What becomes of packets when the agent has been silent for too long.

use std::time::Duration;

use lb_common::{
    abi::{Granularity, Mode, Protocol, ServiceValue},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::{
    config::{DeadMan, DeadManPolicy},
    dataplane::Dataplane as _,
};

use crate::{
    counters::assert_counted,
    lab::{KINDS, Lab, Sent, Served, Side, Spec, assert_frame, from_client, lab, request},
    tracked,
};

/// The agent gave its last sign of life `ago`, and might be silent for so long.
fn beat(lab: &mut Lab, policy: DeadManPolicy, after: Duration) {
    lab.data.beat(&DeadMan { policy, after }).unwrap();
}

/// It was to give the next one at once.
fn falls_silent(lab: &mut Lab, policy: DeadManPolicy) {
    beat(lab, policy, Duration::ZERO);
}

fn send(lab: &mut Lab, served: &Served, port: u16, flags: u8) -> Sent {
    lab.send(Side::Front, &from_client(&request(served, port, flags)))
}

/// What the policy makes of a packet of a new flow.
const ENDS: [(DeadManPolicy, &str, &str); 2] =
    [(DeadManPolicy::Pass, "pass", "agent_silent_passed"), (DeadManPolicy::Drop, "drop", "agent_silent_dropped")];

#[test]
fn known_flows_go_on_and_new_ones_follow_the_policy_until_the_agent_speaks() {
    for (v4, protocol) in KINDS {
        for (policy, exit, reason) in ENDS {
            lab(move |lab| {
                let served = lab.serve(Spec::new(v4, protocol, Mode::FullNat));
                beat(lab, policy, Duration::from_secs(60));
                assert_eq!(send(lab, &served, 40_000, TCP_SYN).exit, "redirect", "the agent speaks");
                falls_silent(lab, policy);
                assert_eq!(send(lab, &served, 40_000, TCP_ACK).exit, "redirect", "a known flow");
                let frame = from_client(&request(&served, 40_001, TCP_SYN));
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, exit);
                assert_frame(&sent.frame, &frame);
                let counted = format!("{reason} 1 x {}", frame.len());
                match policy {
                    DeadManPolicy::Drop => assert_counted(&sent, &["service 0 dropped 1", &counted]),
                    _ => assert_counted(&sent, &[&counted]),
                }
                assert_eq!(lab.flows().len(), 1, "nothing is left of it");
                beat(lab, policy, Duration::from_secs(60));
                assert_eq!(send(lab, &served, 40_001, TCP_SYN).exit, "redirect", "it speaks again");
            });
        }
    }
}

#[test]
fn frozen_means_that_nothing_changes() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::FullNat));
        falls_silent(lab, DeadManPolicy::Freeze);
        assert_eq!(send(lab, &served, 40_000, TCP_SYN).exit, "redirect");
        // And after another policy.
        falls_silent(lab, DeadManPolicy::Drop);
        falls_silent(lab, DeadManPolicy::Freeze);
        assert_eq!(send(lab, &served, 40_001, TCP_SYN).exit, "redirect");
    });
}

#[test]
fn a_sign_of_life_changes_nothing_else_in_the_settings() {
    lab(|lab| {
        lab.set_routes_vary(true);
        falls_silent(lab, DeadManPolicy::Drop);
        lab.set_routes_vary(false);
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        assert_eq!(send(lab, &served, 40_000, TCP_SYN).exit, "drop", "and the other way round");
    });
}

#[test]
fn connections_that_need_no_entry_go_on_and_new_ones_follow_the_policy() {
    for (policy, exit, _) in ENDS {
        lab(move |lab| {
            let served = lab.serve(tracked::spec(true, Protocol::Tcp));
            tracked::slots(lab, &served, &[tracked::clean(&served, 2)]);
            falls_silent(lab, policy);
            assert_eq!(tracked::receiver(&tracked::send(lab, &served, 40_000, TCP_ACK)), 2);
            assert_eq!(send(lab, &served, 40_000, TCP_SYN).exit, exit);
            // One that gets an entry only now is no new one.
            let value = tracked::slots(lab, &served, &[tracked::unsettled(&served, 1, 2)]);
            assert!(value.has(ServiceValue::TRACKED));
            assert_eq!(tracked::receiver(&tracked::send(lab, &served, 40_000, TCP_ACK)), 2);
            assert_eq!(lab.flows().len(), 1);
        });
    }
}

#[test]
fn where_every_packet_is_scheduled_all_follow_the_policy() {
    for (policy, exit, _) in ENDS {
        lab(move |lab| {
            let spec = Spec { granularity: Granularity::Packet, ..Spec::new(true, Protocol::Udp, Mode::FullNat) };
            let served = lab.serve(spec);
            assert_eq!(send(lab, &served, 40_000, 0).exit, "redirect");
            falls_silent(lab, policy);
            assert_eq!(send(lab, &served, 40_000, 0).exit, exit);
        });
    }
}

#[test]
fn clients_that_are_known_begin_nothing_either() {
    lab(|lab| {
        let spec = Spec { granularity: Granularity::Client, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) };
        let served = lab.serve(spec);
        assert_eq!(send(lab, &served, 40_000, TCP_SYN).exit, "redirect");
        falls_silent(lab, DeadManPolicy::Drop);
        assert_eq!(send(lab, &served, 40_001, TCP_SYN).exit, "drop");
        assert_eq!(send(lab, &served, 40_000, TCP_ACK).exit, "redirect");
    });
}
