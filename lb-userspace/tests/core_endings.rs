//! What becomes of the flows of a backend that takes no new ones, services that are frozen, and the receipts
//! that are left.

mod core_support;

use std::{collections::BTreeMap, time::Duration};

use core_support::{A, B, C, World, config, drain, key_of, ok, refused, service, state, web};
use lb_common::abi::{BackendState, EndCause, Protocol, ServiceValue};
use lb_userspace::{
    config::{Check, Config, Failover, FlowPolicy, LoginCheck, OnMultiplePrimaries, RolePolicy, WantedRole},
    core::{
        Admin, Aspect, FailoverCause, Input, Mark, OperatorLayer, Override, ProbeOutcome, Receipt, Role, RoleReport,
    },
    dataplane::{Dataplane, EndedFlows, FlowCensus},
};

/// State and cause in the map `backends`.
fn entry(world: &World, id: u32) -> (BackendState, EndCause) {
    let backend = world.dataplane.backend(id).unwrap();
    (BackendState::from_number(backend.state).unwrap(), EndCause::from_number(backend.cause).unwrap())
}

/// `web` over A and B, with these policies.
fn with(change: impl FnOnce(&mut Failover)) -> Config {
    let mut config = web(&[A, B]);
    change(&mut config.services[0].failover);
    config
}

fn database(role: WantedRole) -> Config {
    let mut service = service("web", "203.0.113.1:5432", &[A, B, C]);
    service.health.check = Check::Postgres(LoginCheck { role: true, ..LoginCheck::default() });
    service.role = Some(RolePolicy {
        role,
        max_lag: None,
        replica_fallback: false,
        on_multiple_primaries: OnMultiplePrimaries::Block,
    });
    service.failover = Failover::of(Protocol::Tcp, Some(role));
    config(vec![service])
}

fn says(role: Role) -> ProbeOutcome {
    ProbeOutcome { role: Some(RoleReport::new(role, "test")), ..ok() }
}

/// The operator's layer with one decision about A.
fn decided(decided: Override) -> Input {
    let backends = [(A.parse().unwrap(), decided)].into();
    Input::Operator(OperatorLayer { services: [("web".to_owned(), backends)].into(), ..OperatorLayer::default() })
}

#[test]
fn a_backend_that_is_down_has_its_flows_treated_as_its_service_says() {
    let cases = [
        (FlowPolicy::Reset, BackendState::Dead),
        (FlowPolicy::Rehome, BackendState::Moved),
        (FlowPolicy::Keep, BackendState::Kept),
    ];
    for (policy, wanted) in cases {
        let mut world = World::new(with(|failover| failover.flows.on_down = policy));
        world.all_up();
        let a = world.id("web", A);
        world.probe(A, &refused(), 2);
        assert_eq!(entry(&world, a), (wanted, EndCause::Down));
        assert_eq!(world.turns("web"), [B]);
        let config = with(|failover| failover.flows.on_down = policy);
        world.restart(config, OperatorLayer::default());
        assert_eq!(entry(&world, a), (wanted, EndCause::Down), "known after a restart");
        world.probe(A, &ok(), 2);
        assert_eq!(entry(&world, a), (BackendState::Live, EndCause::None));
    }
}

#[test]
fn a_policy_that_changes_holds_for_the_flows_there_are() {
    let mut world = World::new(with(|failover| failover.flows.on_down = FlowPolicy::Keep));
    world.all_up();
    let a = world.id("web", A);
    world.probe(A, &refused(), 2);
    world.configure(with(|_| {}));
    assert_eq!(entry(&world, a), (BackendState::Dead, EndCause::Down));
}

#[test]
fn a_removed_backend_keeps_its_flows_or_has_them_reset() {
    for (policy, wanted) in [(FlowPolicy::Keep, BackendState::Live), (FlowPolicy::Reset, BackendState::Dead)] {
        let mut world = World::new(with(|failover| failover.flows.on_remove = policy));
        world.all_up();
        let a = world.id("web", A);
        world.walk(&[(a, 3)], 1);
        let mut config = with(|failover| failover.flows.on_remove = policy);
        config.services[0].backends.remove(0);
        world.configure(config.clone());
        assert_eq!(entry(&world, a).0, wanted);
        // Of a whole service too, and what only the maps know goes on as it was.
        config.services.clear();
        world.configure(config.clone());
        assert_eq!(entry(&world, a).0, wanted);
        world.restart(config, OperatorLayer::default());
        assert_eq!(entry(&world, a).0, wanted);
    }
}

#[test]
fn a_drain_ends_its_flows_when_its_time_is_over_and_not_before() {
    let mut world = World::new(with(|_| {}));
    world.all_up();
    let a = world.id("web", A);
    world.walk(&[(a, 3)], 1);
    world.command(&drain(A), false).unwrap();
    assert_eq!(entry(&world, a), (BackendState::Live, EndCause::None));
    world.texts();
    let mark = [(Aspect::Admin, Mark::new("anna", "2026-01-01T00:00:00Z"))];
    let over = Override { admin: Some(Admin::Drain), drain_over: true, marks: mark.into(), ..Override::default() };
    world.input(decided(over.clone()));
    assert_eq!(entry(&world, a), (BackendState::Dead, EndCause::Drained));
    assert_eq!(world.texts(), ["the time of its drain is over, 3 flows left"]);
    world.configure(with(|failover| failover.flows.on_drain_timeout = FlowPolicy::Keep));
    assert_eq!(entry(&world, a), (BackendState::Kept, EndCause::Drained));
    world.input(Input::Operator(OperatorLayer::default()));
    assert_eq!(entry(&world, a), (BackendState::Live, EndCause::None));
    assert_eq!(world.turns("web"), [A, B]);
}

#[test]
fn a_primary_that_is_demoted_keeps_no_writer() {
    let mut world = World::new(database(WantedRole::Primary));
    world.probe(A, &says(Role::Primary), 2);
    world.probe(B, &says(Role::Replica), 2);
    let (a, b) = (world.id("web", A), world.id("web", B));
    assert_eq!((entry(&world, a).0, world.turns("web")), (BackendState::Live, vec![A.to_owned()]));
    world.probe(A, &says(Role::Replica), 1);
    assert_eq!(entry(&world, a), (BackendState::Dead, EndCause::Demoted), "at the first contrary answer");
    world.restart(database(WantedRole::Primary), OperatorLayer::default());
    assert_eq!(entry(&world, a), (BackendState::Dead, EndCause::Demoted), "a restart forgets nothing");
    world.probe(B, &says(Role::Primary), 2);
    assert_eq!((entry(&world, b).0, world.turns("web")), (BackendState::Live, vec![B.to_owned()]));
    world.probe(A, &says(Role::Replica), 5);
    assert_eq!(entry(&world, a), (BackendState::Dead, EndCause::Demoted));
}

#[test]
fn a_primary_in_whose_place_another_one_is_elected_keeps_no_writer_either() {
    let mut config = database(WantedRole::Primary);
    config.services[0].failover.flows.on_down = FlowPolicy::Keep;
    let mut world = World::new(config);
    world.probe(A, &says(Role::Primary), 2);
    let a = world.id("web", A);
    world.probe(A, &refused(), 2);
    assert_eq!(entry(&world, a), (BackendState::Kept, EndCause::Down), "nobody else is known to write");
    world.probe(B, &says(Role::Primary), 2);
    assert_eq!(entry(&world, a), (BackendState::Dead, EndCause::Demoted));
}

#[test]
fn while_two_claim_to_be_the_primary_flows_stay_and_none_begins() {
    let mut world = World::new(database(WantedRole::Primary));
    world.probe(A, &says(Role::Primary), 2);
    let a = world.id("web", A);
    world.probe(B, &says(Role::Primary), 2);
    assert!(world.turns("web").is_empty());
    assert_eq!(entry(&world, a), (BackendState::Kept, EndCause::None));
}

#[test]
fn readers_of_a_replica_stay_by_default() {
    let mut world = World::new(database(WantedRole::Replica));
    world.probe(A, &says(Role::Replica), 2);
    world.probe(B, &says(Role::Replica), 2);
    let a = world.id("web", A);
    world.probe(A, &says(Role::Primary), 2);
    assert_eq!((entry(&world, a).0, world.turns("web")), (BackendState::Kept, vec![B.to_owned()]));
}

/// Receipts as they stand now, by number.
#[derive(Default)]
struct Book(BTreeMap<u64, Receipt>);

impl Book {
    fn read(&mut self, world: &mut World) -> &Receipt {
        self.0.extend(world.core.take_receipts().into_iter().map(|receipt| (receipt.id, receipt)));
        self.0.values().next_back().expect("a receipt")
    }
}

fn census(world: &World, id: u32, alive: u64, ended: Option<EndedFlows>) -> Input {
    let service = world.dataplane.backend(id).unwrap().service_id;
    Input::Flows(FlowCensus {
        live: alive,
        by_backend: [(id, alive)].into(),
        by_service: [(service, alive)].into(),
        ended: ended.map(|ended| (id, ended)).into_iter().collect(),
        ..FlowCensus::default()
    })
}

#[test]
fn a_failover_leaves_a_receipt_from_the_last_good_probe_to_the_return() {
    let mut world = World::new(with(|_| {}));
    let second = Duration::from_secs(1);
    world.now = second;
    world.all_up();
    let a = world.id("web", A);
    world.input(census(&world, a, 5, None));
    assert!(world.core.take_receipts().is_empty(), "to begin is no failover");
    world.now = second * 2;
    world.probe(A, &refused(), 1);
    world.now = second * 3;
    world.probe(A, &refused(), 1);
    let mut book = Book::default();
    let receipt = book.read(&mut world).clone();
    assert_eq!((receipt.id, receipt.cause, receipt.policy), (1, FailoverCause::Down, "reset"));
    assert_eq!(receipt.reason, "L4CON: Connection refused, 2 of 2");
    assert_eq!((receipt.last_good, receipt.detected, receipt.switched), (Some(second), second * 3, Some(second * 3)));
    assert_eq!((receipt.flows.before, receipt.first_good, receipt.back), (5, None, None));
    assert_eq!(receipt.serving, [B.parse().unwrap()]);

    let service_id = world.core.service("web").unwrap().id.unwrap();
    assert_eq!(world.core.awaited_flows(), [service_id].into());
    world.input(Input::FlowBegun { service_id, at: second * 2 });
    assert_eq!(world.core.awaited_flows().len(), 1, "that was before");
    world.input(Input::FlowBegun { service_id, at: second * 4 });
    assert!(world.core.awaited_flows().is_empty());

    world.now = second * 5;
    let ended = EndedFlows { left: 2, clients: 3, reset: 3, moved: 0 };
    world.input(census(&world, a, 2, Some(ended)));
    let receipt = book.read(&mut world);
    assert_eq!((receipt.first_good, receipt.flows.reset, receipt.flows.left), (Some(second * 4), 3, 2));
    world.input(census(&world, a, 0, Some(EndedFlows { left: 0, clients: 0, reset: 5, moved: 0 })));
    world.now = second * 9;
    world.probe(A, &ok(), 2);
    let receipt = book.read(&mut world);
    assert_eq!((receipt.flows.reset, receipt.flows.clients, receipt.back), (5, 3, Some(second * 9)));
    assert!(world.core.take_receipts().is_empty(), "told once");

    // The next one counts from there.
    world.probe(A, &refused(), 2);
    world.input(census(&world, a, 0, Some(EndedFlows { reset: 6, ..EndedFlows::default() })));
    let receipt = book.read(&mut world);
    assert_eq!((receipt.id, receipt.flows.reset), (2, 1));
}

#[test]
fn without_another_backend_the_receipt_waits_for_one() {
    let mut world = World::new(web(&[A, B]));
    world.probe(A, &ok(), 1);
    world.probe(A, &refused(), 2);
    let mut book = Book::default();
    assert!(book.read(&mut world).serving.is_empty());
    assert!(world.core.awaited_flows().is_empty(), "nobody can be served");
    world.probe(B, &ok(), 2);
    assert_eq!(book.read(&mut world).serving, [B.parse().unwrap()]);
    assert_eq!(world.core.awaited_flows().len(), 1);
}

#[test]
fn drains_removals_and_demotions_leave_receipts_with_their_cause() {
    let mut world = World::new(with(|_| {}));
    world.all_up();
    let mut book = Book::default();
    world.command(&drain(A), false).unwrap();
    let receipt = book.read(&mut world);
    assert_eq!(
        (receipt.cause, receipt.policy, receipt.reason.as_str()),
        (FailoverCause::Drain, "keep", "drain by alice")
    );
    let mut config = with(|_| {});
    config.services[0].backends.truncate(1);
    world.configure(config);
    let receipt = book.read(&mut world);
    assert_eq!((receipt.cause, receipt.backend), (FailoverCause::Removed, B.parse().unwrap()));

    let mut world = World::new(database(WantedRole::Primary));
    world.probe(A, &says(Role::Primary), 2);
    world.probe(A, &says(Role::Replica), 1);
    let receipt = Book::default().read(&mut world).clone();
    assert_eq!((receipt.cause, receipt.policy), (FailoverCause::Demoted, "reset"));
}

#[test]
fn a_tier_that_gives_back_is_no_failover_and_numbers_go_on_where_they_were() {
    let mut world = World::new(core_support::tiers());
    world.core.number_receipts_after(40);
    world.all_up();
    world.probe(A, &refused(), 2);
    world.probe(B, &refused(), 2);
    let mut book = Book::default();
    book.read(&mut world);
    world.probe(A, &ok(), 2);
    world.probe(B, &ok(), 2);
    book.read(&mut world);
    assert_eq!(book.0.keys().copied().collect::<Vec<_>>(), [41, 42], "C only gave back");
}

#[test]
fn many_open_receipts_are_bounded_and_none_is_lost() {
    let backends: Vec<String> = (0..1200).map(|n| format!("10.1.{}.{}:80", n / 200, n % 200 + 1)).collect();
    let names: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut world = World::new(web(&names));
    for (outcome, times) in [(ok(), 1), (refused(), 2)] {
        let keys = world.core.probes().into_iter();
        let all = keys.flat_map(|key| std::iter::repeat_n(Input::Probe { key, outcome: outcome.clone() }, times));
        world.core.handle_all(all.collect::<Vec<_>>(), world.now);
    }
    let told = world.core.take_receipts();
    assert_eq!(told.len(), 1200);
    assert_eq!(told.iter().map(|receipt| receipt.id).max(), Some(1200));
}

fn flags(world: &World) -> u8 {
    let view = world.core.service("web").unwrap();
    world.dataplane.service(&key_of(&view.config)).unwrap().flags & ServiceValue::PARKED
}

fn freeze(lasts: u64) -> Input {
    Input::Freeze { service: "web".to_owned(), lasts: Duration::from_secs(lasts), tick: 77 }
}

#[test]
fn a_service_is_frozen_until_its_time_is_over_or_it_is_thawed() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    world.texts();
    let second = Duration::from_secs(1);
    world.now = second;
    world.input(freeze(5));
    assert_eq!(flags(&world), ServiceValue::PARKED);
    assert_eq!(world.dataplane.read().unwrap().service_info[&0].parked_until, 77);
    assert_eq!(world.core.wake_at(), Some(second * 6));
    assert_eq!(world.core.service("web").unwrap().frozen_until, Some(second * 6));
    world.now = second * 5;
    world.input(Input::Tick);
    assert_eq!(flags(&world), ServiceValue::PARKED);
    world.probe(A, &refused(), 2);
    assert_eq!(flags(&world), ServiceValue::PARKED, "whatever happens meanwhile");
    world.now = second * 6;
    world.input(Input::Tick);
    assert_eq!((flags(&world), world.core.wake_at()), (0, None));
    world.input(freeze(5));
    world.input(Input::Thaw { service: "web".to_owned() });
    assert_eq!((flags(&world), world.core.wake_at()), (0, None));
    let texts = world.texts();
    for text in ["frozen for at most 5s", "thawed: its time is over", "thawed"] {
        assert!(texts.iter().any(|told| told == text), "`{text}` is not in {texts:?}");
    }
    world.input(freeze(500));
    assert_eq!(world.core.wake_at(), Some(second * 66), "no longer than a minute");
    assert!(state(&world, world.id("web", B)) == BackendState::Live as u8);
}

#[test]
fn a_frozen_service_stays_frozen_over_a_restart_and_thaws_by_itself() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    world.input(freeze(5));
    world.restart(web(&[A, B]), OperatorLayer::default());
    assert_eq!(flags(&world), ServiceValue::PARKED, "the data path knows for how long");
    assert_eq!(world.dataplane.read().unwrap().service_info[&0].parked_until, 77);
    world.now = world.core.wake_at().unwrap();
    world.input(Input::Tick);
    assert_eq!(flags(&world), 0);
}
