//! Backends that refuse or do not answer the connections of clients.

mod core_support;

use std::time::Duration;

use core_support::{A, B, C, World, drain, ok, refused, state, tiers, web};
use lb_common::abi::{BackendState, Mode, ServiceValue};
use lb_userspace::{
    config::{Check, Config, LoginCheck, OnMultiplePrimaries, Passive, RolePolicy, WantedRole},
    core::{Command, FailoverCause, HealthState, Input, ProbeOutcome, Receipt, Role, RoleReport, Suspect, SuspectFor},
    dataplane::{FlowCensus, KnockCounts},
};

const D: &str = "10.0.0.4:80";

fn up(config: Config) -> World {
    let mut world = World::new(config);
    world.all_up();
    world.now += Duration::from_secs(2);
    world.texts();
    world
}

fn suspect(world: &mut World, address: &str, clients: u32) {
    suspect_for(world, address, SuspectFor::Refused, clients);
}

/// Seen first 60 ms ago, and 10 ms after the last answer.
fn suspect_for(world: &mut World, address: &str, seen: SuspectFor, clients: u32) {
    let backend_id = world.id("web", address);
    let (first, answered) = (Duration::from_millis(60), Some(Duration::from_millis(70)));
    world.input(Input::Suspect(Suspect { backend_id, seen, clients, first, answered }));
}

fn health(world: &World, address: &str) -> HealthState {
    world.backend("web", address).health
}

#[test]
fn a_backend_that_refuses_clients_is_out_of_turn_at_once_and_its_flows_stay() {
    let mut world = up(web(&[A, B, C]));
    suspect(&mut world, A, 3);
    assert_eq!(world.turns("web"), [B, C]);
    assert_eq!(state(&world, world.id("web", A)), BackendState::Live as u8);
    assert_eq!(health(&world, A), HealthState::Up);
    assert_eq!(world.backend("web", A).used_reason, "suspended: refused connections of 3 clients");
    assert_eq!(world.texts(), ["suspended: refused connections of 3 clients; probes decide"]);
}

#[test]
fn probes_in_quick_succession_confirm_it() {
    let mut world = up(web(&[A, B, C]));
    let usual = world.core.probes();
    suspect(&mut world, A, 3);
    let quick: Vec<_> = world.core.probes().into_iter().filter(|key| !usual.contains(key)).collect();
    assert_eq!(quick.len(), 1, "the suspected one alone is asked more often");
    assert!(quick[0].target == A.parse().unwrap() && quick[0].interval <= Duration::from_millis(50));
    world.probe(A, &refused(), 1);
    assert_eq!((health(&world, A), world.backend("web", A).suspended), (HealthState::Up, true));
    world.probe(A, &refused(), 1);
    assert_eq!((health(&world, A), world.backend("web", A).suspended), (HealthState::Down, false));
    assert_eq!(world.core.probes(), usual);
    world.probe(A, &ok(), 2);
    suspect(&mut world, A, 3);
    assert_eq!(world.turns("web"), [A, B, C], "what was seen before it came up says nothing");
    world.now += Duration::from_millis(59);
    suspect(&mut world, A, 3);
    assert_eq!(world.turns("web"), [A, B, C], "nor does what began before");
    world.now += Duration::from_millis(1);
    suspect(&mut world, A, 3);
    assert_eq!(world.turns("web"), [B, C]);
}

#[test]
fn a_false_alarm_is_over_when_enough_probes_succeed_and_the_next_ones_wait_longer() {
    let mut world = up(web(&[A, B, C]));
    let usual = world.core.probes();
    for n in 0..3 {
        suspect(&mut world, A, 3);
        assert_eq!(world.turns("web"), [B, C], "alarm {n}");
        world.probe(A, &ok(), 1);
        assert_eq!(world.turns("web"), [B, C]);
        world.probe(A, &ok(), 1);
        assert_eq!(world.turns("web"), [A, B, C]);
        assert_eq!(world.core.probes(), usual);
        let quiet = Passive::DEFAULT.back_off * (1 << n);
        world.now += quiet - Duration::from_millis(1);
        suspect(&mut world, A, 3);
        assert_eq!(world.turns("web"), [A, B, C], "too early after alarm {n}");
        world.now += Duration::from_millis(1);
    }
    // After a long calm the first one counts as the first again.
    world.now += Duration::from_secs(3600);
    suspect(&mut world, A, 3);
    world.probe(A, &ok(), 2);
    world.now += Passive::DEFAULT.back_off;
    suspect(&mut world, A, 3);
    assert_eq!(world.turns("web"), [B, C]);
}

#[test]
fn a_few_clients_alone_take_nobody_out() {
    let mut world = up(web(&[A, B]));
    suspect(&mut world, A, 2);
    assert_eq!(world.turns("web"), [A, B]);
    assert!(world.texts().is_empty());
    let mut config = web(&[A, B]);
    config.services[0].passive.clients = 1;
    world.configure(config);
    suspect(&mut world, A, 1);
    assert_eq!(world.turns("web"), [B]);
}

#[test]
fn never_more_than_the_allowed_share_and_never_the_last_one_of_a_tier() {
    let mut world = up(web(&[A, B, C, D]));
    for address in [A, B, C, D] {
        suspect(&mut world, address, 9);
    }
    assert_eq!(world.turns("web"), [C, D], "half of four");
    let mut world = up(web(&[A]));
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.texts(), ["suspected: refused connections of 9 clients; it stays in turn, and probes decide"]);
    let mut world = up(tiers());
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [B]);
    suspect(&mut world, B, 9);
    assert_eq!(world.turns("web"), [B], "the next tier waits for the probes' word");
}

#[test]
fn a_suspected_backend_serves_when_the_others_of_its_tier_go() {
    let mut world = up(web(&[A, B]));
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [B]);
    world.texts();
    world.probe(B, &refused(), 2);
    assert_eq!(world.turns("web"), [A]);
    assert!(world.texts().contains(&"in turn again while suspected: too few others are".to_owned()));
    let mut world = up(web(&[A, B]));
    suspect(&mut world, A, 9);
    let drain = Command::Drain { service: "web".to_owned(), address: B.parse().unwrap() };
    world.command(&drain, true).unwrap();
    assert_eq!(world.turns("web"), [A]);
}

#[test]
fn where_few_are_up_all_of_them_stay_in_turn() {
    let mut world = up(web(&[A, B, C, D]));
    for address in [C, D] {
        world.probe(address, &refused(), 2);
    }
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [B], "half are up, as many as are asked for");
    world.probe(C, &ok(), 2);
    world.probe(A, &ok(), 2);
    world.now += Duration::from_secs(10);
    for address in [B, C] {
        world.probe(address, &refused(), 2);
    }
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [A]);
}

#[test]
fn without_a_check_it_comes_back_after_the_back_off() {
    let mut config = web(&[A, B]);
    config.services[0].health.check = Check::None;
    let mut world = World::new(config);
    world.now += Duration::from_secs(2);
    suspect(&mut world, A, 3);
    assert_eq!(world.turns("web"), [B]);
    world.walk(&[], 3);
    assert_eq!(world.turns("web"), [B]);
    world.walk(&[], 3);
    assert_eq!(world.turns("web"), [A, B]);
}

#[test]
fn with_direct_server_return_it_stays_in_turn_and_is_probed_more_often() {
    let mut config = web(&[A, B]);
    config.services[0].mode = Mode::DsrL2;
    let mut world = up(config);
    let usual = world.core.probes();
    suspect_for(&mut world, A, SuspectFor::Repeated, 3);
    assert_eq!(world.turns("web"), [A, B]);
    assert_ne!(world.core.probes(), usual);
    world.probe(A, &ok(), 2);
    assert_eq!(world.core.probes(), usual);
}

#[test]
fn what_is_switched_off_does_nothing() {
    let mut config = web(&[A, B]);
    config.services[0].passive = Passive { enabled: false, retries: 0, ..Passive::default() };
    let mut world = up(config.clone());
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [A, B]);
    let value = |world: &World| *world.core.desired().services.values().next().unwrap();
    assert!(!value(&world).has(ServiceValue::WATCHED) && value(&world).retries == 0);
    config.services[0].passive = Passive::default();
    world.configure(config);
    assert!(value(&world).has(ServiceValue::WATCHED) && value(&world).retries == 2);
}

fn receipts(world: &mut World) -> Vec<Receipt> {
    world.core.take_receipts()
}

/// What a walk finds that counted so many connections which A did not take.
fn walk_with(world: &mut World, address: &str, rescued: u64) {
    let id = world.id("web", address);
    world.now += Duration::from_millis(1100);
    let knocks = [(id, KnockCounts { rescued, ..KnockCounts::default() })].into();
    world.input(Input::Flows(FlowCensus { knocks, ..FlowCensus::default() }));
}

#[test]
fn each_sign_is_a_cause_of_its_own_with_the_times_that_the_data_path_saw() {
    let signs = [
        (SuspectFor::Refused, FailoverCause::Refused, "refused connections of 4 clients"),
        (SuspectFor::Unreachable, FailoverCause::Unreachable, "unreachable for 4 clients, as ICMP says"),
        (
            SuspectFor::Silent { waited: Duration::from_millis(60) },
            FailoverCause::Unanswered,
            "4 clients without an answer for 60 ms",
        ),
    ];
    for (seen, cause, reason) in signs {
        let mut world = up(web(&[A, B, C]));
        receipts(&mut world);
        suspect_for(&mut world, A, seen, 4);
        let told = receipts(&mut world);
        assert_eq!(told.len(), 1, "{told:?}");
        let now = world.now;
        let Receipt { last_good, first_bad, witnesses, detected, switched, policy, .. } = told[0].clone();
        assert_eq!((told[0].cause, told[0].reason.as_str(), witnesses, policy), (cause, reason, 4, "keep"));
        assert_eq!(last_good, Some(now - Duration::from_millis(70)));
        assert_eq!((first_bad, detected), (Some(now - Duration::from_millis(60)), now));
        assert!(switched.unwrap() - first_bad.unwrap() <= Duration::from_millis(100), "the core adds nothing to it");
    }
}

#[test]
fn connections_that_were_rescued_before_a_walk_but_after_the_first_sign_are_in_the_receipt() {
    let mut world = up(web(&[A, B, C]));
    walk_with(&mut world, A, 7);
    // Two of them are counted already by the time that the third client makes it a suspicion.
    walk_with(&mut world, A, 9);
    suspect_for(&mut world, A, SuspectFor::Unreachable, 3);
    walk_with(&mut world, A, 10);
    assert_eq!(receipts(&mut world).last().unwrap().flows.rescued, 3);
}

#[test]
fn a_receipt_says_what_came_of_a_suspicion_and_how_many_were_rescued() {
    let mut world = up(web(&[A, B, C]));
    walk_with(&mut world, A, 7);
    world.now += Duration::from_millis(100);
    receipts(&mut world);
    suspect_for(&mut world, A, SuspectFor::Refused, 3);
    walk_with(&mut world, A, 19);
    assert_eq!(receipts(&mut world).last().unwrap().flows.rescued, 12);
    world.probe(A, &refused(), 2);
    let told = receipts(&mut world);
    assert_eq!(told.len(), 1, "one failover, one receipt: {told:?}");
    let reason = "refused connections of 3 clients; then down: L4CON: Connection refused, 2 of 2";
    assert_eq!((told[0].reason.as_str(), told[0].policy, told[0].cause), (reason, "reset", FailoverCause::Refused));
    world.probe(A, &ok(), 2);
    walk_with(&mut world, A, 21);
    let told = receipts(&mut world);
    let last = told.last().unwrap();
    assert_eq!((last.id, last.flows.rescued, last.back.is_some()), (told[0].id, 14, true), "counted to its end");
    walk_with(&mut world, A, 99);
    assert!(receipts(&mut world).is_empty(), "it is closed");
}

#[test]
fn a_false_alarm_is_a_receipt_that_says_when_the_backend_was_back() {
    let mut world = up(web(&[A, B, C]));
    receipts(&mut world);
    suspect(&mut world, A, 3);
    world.now += Duration::from_millis(50);
    world.probe(A, &ok(), 2);
    let told = receipts(&mut world);
    let last = told.last().unwrap();
    assert_eq!(last.back.unwrap() - last.detected, Duration::from_millis(50));
    assert_eq!(last.reason, "refused connections of 3 clients");
    // What probes find later has nothing to do with it.
    world.now += Duration::from_secs(9);
    world.probe(A, &refused(), 2);
    let later = receipts(&mut world).pop().unwrap();
    assert_eq!((later.cause, later.first_bad, later.witnesses), (FailoverCause::Down, None, 0));
}

#[test]
fn what_packets_said_of_one_that_stays_in_turn_is_in_the_receipt_of_its_end() {
    let mut world = up(web(&[A]));
    receipts(&mut world);
    suspect(&mut world, A, 9);
    assert!(receipts(&mut world).is_empty(), "the last one stays in turn");
    world.probe(A, &refused(), 2);
    let told = receipts(&mut world).pop().unwrap();
    assert_eq!((told.cause, told.witnesses, told.first_bad.is_some()), (FailoverCause::Down, 9, true));
}

#[test]
fn of_a_service_on_every_port_a_refusal_takes_nobody_out() {
    let mut config = web(&["10.0.0.1:0", "10.0.0.2:0"]);
    config.services[0].listen = "203.0.113.1:0".parse().unwrap();
    config.services[0].health.port = Some(9);
    let mut world = up(config);
    let turns = world.turns("web");
    suspect_for(&mut world, "10.0.0.1:0", SuspectFor::Refused, 9);
    assert_eq!(world.turns("web"), turns);
    world.probe("10.0.0.1:9", &ok(), 2);
    world.now += Duration::from_secs(6);
    suspect_for(&mut world, "10.0.0.1:0", SuspectFor::Silent { waited: Duration::from_millis(60) }, 9);
    assert_eq!(world.turns("web"), ["10.0.0.2:0"]);
}

#[test]
fn a_suspended_backend_is_missing_for_min_ready_and_a_false_alarm_costs_it_nothing() {
    let mut config = tiers();
    config.services[0].failover.min_ready = 2;
    config.services[0].failover.failback_delay = Duration::from_secs(60);
    config.services[0].failover.slow_start = Duration::from_secs(60);
    let mut world = up(config);
    assert_eq!(world.turns("web"), [A, B]);
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [B, C], "the next tier steps in");
    world.probe(A, &ok(), 2);
    assert_eq!(world.turns("web"), [A, B], "at once, and with its whole share: it never was down");
}

#[test]
fn a_drain_ends_a_suspicion_and_a_drained_backend_is_not_suspected() {
    let mut world = up(web(&[A, B, C]));
    let usual = world.core.probes();
    suspect(&mut world, A, 9);
    receipts(&mut world);
    world.command(&drain(A), false).unwrap();
    assert_eq!((world.backend("web", A).suspended, world.core.probes()), (false, usual.clone()));
    let told = receipts(&mut world).pop().unwrap();
    assert_eq!(told.reason, "refused connections of 9 clients; then drain: drain by alice");
    suspect(&mut world, A, 9);
    assert_eq!((world.backend("web", A).suspended, world.core.probes()), (false, usual));
}

#[test]
fn a_share_that_grows_begins_anew_after_a_false_alarm() {
    let mut config = web(&[A, B]);
    config.services[0].failover.slow_start = Duration::from_secs(60);
    let mut world = up(config);
    world.probe(A, &refused(), 2);
    world.probe(A, &ok(), 2);
    let share = |world: &World| world.turns("web").iter().filter(|turn| *turn == A).count();
    let first = share(&world);
    world.now += Duration::from_secs(45);
    world.input(Input::Tick);
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [B]);
    world.probe(A, &ok(), 2);
    assert_eq!(share(&world), first, "it was down before, and is new again");
}

#[test]
fn the_only_primary_stays_and_a_replica_goes() {
    let (on_multiple_primaries, role) = (OnMultiplePrimaries::Block, WantedRole::Primary);
    let primary = RolePolicy { role, max_lag: None, replica_fallback: false, on_multiple_primaries };
    let mut config = web(&[A, B, C]);
    config.services[0].role = Some(RolePolicy { role: WantedRole::Replica, ..primary.clone() });
    config.services[0].health.check = Check::Postgres(LoginCheck { role: true, ..LoginCheck::default() });
    let mut world = World::new(config.clone());
    let claim = |world: &mut World, address: &str, role: Role| {
        let outcome = ProbeOutcome { role: Some(RoleReport::new(role, "test")), ..ok() };
        world.probe(address, &outcome, 2);
    };
    let all = |world: &mut World| {
        claim(world, A, Role::Primary);
        claim(world, B, Role::Replica);
        claim(world, C, Role::Replica);
        world.now += Duration::from_secs(2);
    };
    all(&mut world);
    assert_eq!(world.turns("web"), [B, C]);
    suspect(&mut world, B, 9);
    assert_eq!(world.turns("web"), [C]);
    config.services[0].role = Some(primary);
    let mut world = World::new(config);
    all(&mut world);
    assert_eq!(world.turns("web"), [A]);
    suspect(&mut world, A, 9);
    assert_eq!(world.turns("web"), [A], "nobody else is the primary: probes decide");
}
