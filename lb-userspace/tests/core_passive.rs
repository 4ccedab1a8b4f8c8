//! Backends that refuse or do not answer the connections of clients.

mod core_support;

use std::time::Duration;

use core_support::{A, B, C, World, ok, refused, state, tiers, web};
use lb_common::abi::{BackendState, Mode, ServiceValue};
use lb_userspace::{
    config::{Check, Config, Passive},
    core::{Command, HealthState, Input, Suspect, SuspectFor},
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
    let backend_id = world.id("web", address);
    world.input(Input::Suspect(Suspect { backend_id, seen: SuspectFor::Refused, clients }));
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
    world.now += Duration::from_secs(2);
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
    let backend_id = world.id("web", A);
    world.input(Input::Suspect(Suspect { backend_id, seen: SuspectFor::Repeated, clients: 3 }));
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
