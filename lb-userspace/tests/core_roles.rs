//! Services whose backends have roles: one primary, and replicas that are not too far behind.

mod core_support;

use std::time::Duration;

use core_support::{A, B, C, World, config, ok, refused, service};
use lb_userspace::{
    config::{AgentCheck, AgentHealth, Check, Config, LoginCheck, MaxLag, OnMultiplePrimaries, RolePolicy, WantedRole},
    core::{AgentAdmin, AgentReply, Certificate, Command, Epoch, Input, OperatorLayer, ProbeOutcome, Role, RoleReport},
};

fn policy(role: WantedRole) -> RolePolicy {
    RolePolicy { role, max_lag: None, replica_fallback: false, on_multiple_primaries: OnMultiplePrimaries::Block }
}

/// `web` over A, B and C, with this policy; `fall` 2, `rise` 2.
fn database(policy: RolePolicy) -> Config {
    let mut service = service("web", "203.0.113.1:5432", &[A, B, C]);
    service.health.check = Check::Postgres(LoginCheck { role: true, ..LoginCheck::default() });
    service.role = Some(policy);
    config(vec![service])
}

fn says(role: Role) -> ProbeOutcome {
    ProbeOutcome { role: Some(RoleReport::new(role, "test")), ..ok() }
}

fn at(role: Role, position: u64) -> ProbeOutcome {
    let report = RoleReport { position: Some(position), ..RoleReport::new(role, "test") };
    ProbeOutcome { role: Some(report), ..ok() }
}

fn of_epoch(number: u64) -> ProbeOutcome {
    let report = RoleReport { epoch: Some(Epoch::of("timeline", number)), ..RoleReport::new(Role::Primary, "test") };
    ProbeOutcome { role: Some(report), ..ok() }
}

#[test]
fn nobody_has_flows_before_it_has_said_rise_times_that_it_is_the_primary() {
    let mut world = World::new(database(policy(WantedRole::Primary)));
    world.probe(A, &says(Role::Primary), 1);
    world.probe(B, &says(Role::Replica), 1);
    assert!(world.turns("web").is_empty());
    assert_eq!(world.backend("web", A).used_reason, "role none, not primary (says primary (test), 1 of 2)");
    world.probe(A, &says(Role::Primary), 1);
    world.probe(B, &says(Role::Replica), 1);
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.backend("web", B).used_reason, "role replica, not primary (test)");
    assert_eq!(world.backend("web", A).role.unwrap().role, Role::Primary);
}

#[test]
fn the_first_contrary_answer_demotes_and_the_next_primary_has_to_say_so_rise_times() {
    let mut world = World::new(database(policy(WantedRole::Primary)));
    world.probe(A, &says(Role::Primary), 2);
    world.probe(B, &says(Role::Replica), 2);
    world.texts();
    world.probe(A, &says(Role::Replica), 1);
    assert!(world.turns("web").is_empty());
    world.probe(B, &says(Role::Primary), 1);
    assert!(world.turns("web").is_empty());
    world.probe(B, &says(Role::Primary), 1);
    assert_eq!(world.turns("web"), [B]);
    let texts = world.texts();
    for text in [
        "role primary -> none (says replica (test), 1 of 2)",
        "there is no primary any more: it was 10.0.0.1:80",
        "role none -> primary (test)",
        "the primary is 10.0.0.2:80",
    ] {
        assert!(texts.iter().any(|told| told == text), "`{text}` is not in {texts:#?}");
    }
}

#[test]
fn a_primary_that_does_not_answer_keeps_its_role_until_it_is_down() {
    let mut world = World::new(database(policy(WantedRole::Primary)));
    world.probe(A, &says(Role::Primary), 2);
    world.probe(A, &refused(), 1);
    assert_eq!(world.turns("web"), [A]);
    world.probe(B, &says(Role::Primary), 2);
    assert!(world.turns("web").is_empty(), "both may take writes");
    world.probe(A, &refused(), 1);
    assert_eq!(world.turns("web"), [B], "the other one is down");
    world.probe(A, &says(Role::Primary), 1);
    assert_eq!(world.turns("web"), [B]);
    world.probe(A, &says(Role::Primary), 1);
    assert!(world.turns("web").is_empty(), "a split brain");
}

#[test]
fn several_primaries_are_blocked_or_resolved_as_the_policy_says() {
    let play = |on_multiple_primaries, a: &ProbeOutcome, b: &ProbeOutcome| {
        let mut world = World::new(database(RolePolicy { on_multiple_primaries, ..policy(WantedRole::Primary) }));
        world.probe(A, a, 2);
        world.probe(B, b, 2);
        (world.turns("web"), world.backend("web", B).used_reason, world.texts())
    };
    let primary = says(Role::Primary);
    let (turns, why, texts) = play(OnMultiplePrimaries::Block, &primary, &primary);
    assert!(turns.is_empty());
    let words = "10.0.0.1:80 and 10.0.0.2:80 say that they are the primary: none of them gets new flows";
    assert_eq!(why, words);
    assert!(texts.iter().any(|text| text == words), "{texts:?}");
    assert_eq!(play(OnMultiplePrimaries::KeepCurrent, &primary, &primary).0, [A]);
    assert_eq!(play(OnMultiplePrimaries::HighestEpoch, &of_epoch(1), &of_epoch(2)).0, [B]);
    assert_eq!(play(OnMultiplePrimaries::HighestEpoch, &of_epoch(3), &of_epoch(2)).0, [A]);
    assert!(play(OnMultiplePrimaries::HighestEpoch, &of_epoch(2), &of_epoch(2)).0.is_empty());
    assert!(play(OnMultiplePrimaries::HighestEpoch, &of_epoch(2), &primary).0.is_empty());
}

#[test]
fn keep_current_keeps_nobody_when_there_was_nobody() {
    let on_multiple_primaries = OnMultiplePrimaries::KeepCurrent;
    let mut world = World::new(database(RolePolicy { on_multiple_primaries, ..policy(WantedRole::Primary) }));
    let inputs = world.core.probes().into_iter().flat_map(|key| {
        let input = Input::Probe { key, outcome: says(Role::Primary) };
        [input.clone(), input]
    });
    let inputs: Vec<Input> = inputs.collect();
    world.core.handle_all(inputs, world.now);
    world.publish();
    assert!(world.turns("web").is_empty());
}

#[test]
fn replicas_serve_readers_and_the_primary_only_as_a_fallback() {
    let mut policy = policy(WantedRole::Replica);
    let mut world = World::new(database(policy.clone()));
    world.probe(A, &says(Role::Primary), 2);
    world.probe(B, &says(Role::Replica), 2);
    world.probe(C, &says(Role::Replica), 2);
    assert_eq!(world.turns("web"), [B, C]);
    world.probe(B, &refused(), 2);
    world.probe(C, &says(Role::None), 1);
    assert!(world.turns("web").is_empty());
    policy.replica_fallback = true;
    world.configure(database(policy));
    assert_eq!(world.turns("web"), [A]);
    world.probe(C, &says(Role::Replica), 2);
    assert_eq!(world.turns("web"), [C]);
    let drain = Command::Drain { service: "web".to_owned(), address: C.parse().unwrap() };
    world.command(&drain, true).unwrap();
    assert_eq!(world.turns("web"), [A], "a replica out of turn leaves the readers to the primary");
}

#[test]
fn a_replica_that_is_too_far_behind_gets_no_flows_until_it_has_caught_up() {
    let mut world =
        World::new(database(RolePolicy { max_lag: Some(MaxLag::Bytes(1000)), ..policy(WantedRole::Replica) }));
    world.probe(A, &at(Role::Primary, 10_000), 2);
    world.probe(B, &at(Role::Replica, 9_500), 2);
    world.probe(C, &at(Role::Replica, 8_000), 2);
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(world.backend("web", C).used_reason, "too far behind: 2000 bytes behind");
    assert_eq!(world.backend("web", B).role.unwrap().lag_bytes, Some(500));
    world.probe(C, &at(Role::Replica, 9_900), 1);
    assert_eq!(world.turns("web"), [B]);
    world.probe(C, &at(Role::Replica, 9_900), 1);
    assert_eq!(world.turns("web"), [B, C]);
    // The primary dies with more in its log than anybody has: nobody is behind it any more.
    world.probe(A, &at(Role::Primary, 90_000), 1);
    world.probe(B, &at(Role::Replica, 9_950), 1);
    assert_eq!(world.turns("web"), [C]);
    world.probe(A, &refused(), 2);
    world.probe(B, &at(Role::Replica, 9_950), 2);
    assert_eq!(world.turns("web"), [B, C]);
}

#[test]
fn a_restart_keeps_new_flows_on_the_primary_until_it_says_otherwise() {
    let database = database(policy(WantedRole::Primary));
    let mut world = World::new(database.clone());
    world.probe(A, &says(Role::Primary), 2);
    world.probe(B, &says(Role::Replica), 2);
    world.restart(database.clone(), OperatorLayer::default());
    assert_eq!(world.turns("web"), [A]);
    world.probe(A, &says(Role::Primary), 1);
    assert_eq!(world.turns("web"), [A]);
    world.restart(database, OperatorLayer::default());
    world.probe(A, &says(Role::Replica), 1);
    assert!(world.turns("web").is_empty(), "it was demoted while the agent was away");
}

#[test]
fn a_service_without_roles_that_becomes_one_with_roles_stops_until_it_knows_them() {
    let with = database(policy(WantedRole::Primary));
    let mut without = with.clone();
    without.services[0].role = None;
    let mut world = World::new(without.clone());
    world.all_up();
    assert_eq!(world.turns("web"), [A, B, C]);
    world.configure(with.clone());
    assert!(world.turns("web").is_empty());
    world.restart(with, OperatorLayer::default());
    assert!(world.turns("web").is_empty());
    world.configure(without);
    world.all_up();
    assert_eq!(world.turns("web"), [A, B, C]);
}

#[test]
fn an_agent_changes_weight_and_turn_beside_the_check() {
    let mut config = core_support::web(&[A, B]);
    config.services[0].scheduler = lb_common::abi::Scheduler::WeightedRoundRobin;
    config.services[0].backends.iter_mut().for_each(|backend| backend.weight = 100);
    config.services[0].health.agent =
        Some(AgentHealth { port: 9999, interval: Duration::from_secs(1), check: AgentCheck::default() });
    let mut world = World::new(config);
    assert_eq!(world.core.probes().len(), 4);
    world.probe(A, &ok(), 1);
    world.probe(B, &ok(), 1);
    let agent = |reply| ProbeOutcome { agent: Some(reply), ..ok() };
    let half = agent(AgentReply { percent: Some(50), ..AgentReply::default() });
    world.probe("10.0.0.1:9999", &half, 1);
    assert_eq!(world.turns("web"), [B, A, B]);
    world.probe("10.0.0.1:9999", &refused(), 5);
    assert_eq!(world.turns("web"), [B, A, B], "an agent that is not there changes nothing");
    let drain = agent(AgentReply { admin: Some(AgentAdmin::Drain), ..AgentReply::default() });
    world.probe("10.0.0.1:9999", &drain, 1);
    assert_eq!(
        (world.turns("web"), world.backend("web", A).used_reason),
        (vec![B.to_owned()], "drain by its agent".to_owned())
    );
    let down = agent(AgentReply { state: Some(Err("disk".to_owned())), ..AgentReply::default() });
    world.probe("10.0.0.2:9999", &down, 1);
    assert!(world.turns("web").is_empty());
    let back = agent(AgentReply { percent: Some(100), admin: Some(AgentAdmin::Ready), state: Some(Ok(())) });
    for address in ["10.0.0.1:9999", "10.0.0.2:9999"] {
        world.probe(address, &back, 1);
    }
    assert_eq!(world.turns("web"), [A, B]);
}

#[test]
fn a_certificate_that_ends_soon_is_told_once_a_day() {
    let mut world = World::new(core_support::web(&[A]));
    let with =
        |days_left, warn| ProbeOutcome { certificate: Some(Certificate { not_after: 0, days_left, warn }), ..ok() };
    world.probe(A, &with(15, false), 2);
    world.texts();
    for (days, texts) in [
        (13, vec!["its certificate ends in 13 days"]),
        (13, Vec::new()),
        (12, vec!["its certificate ends in 12 days"]),
        (0, vec!["its certificate ends within a day"]),
        (-2, vec!["its certificate is over since 2 days"]),
    ] {
        world.probe(A, &with(days, true), 1);
        assert_eq!(world.texts(), texts);
    }
}
