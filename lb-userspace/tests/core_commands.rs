//! What operators decide at run time.

mod core_support;

use core_support::{A, B, C, World, drain, ok, refused, state, tiers, web};
use lb_common::abi::BackendState;
use lb_userspace::core::{Admin, Aspect, Command, HealthState, Input, Mark, OperatorLayer};

#[test]
fn draining_keeps_the_backend_live_and_out_of_the_table() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    world.texts();
    world.command(&drain(A), false).unwrap();
    assert_eq!(world.turns("web"), [B]);
    assert_eq!(state(&world, world.id("web", A)), BackendState::Live as u8);
    assert_eq!(world.backend("web", A).used_reason, "drain by alice");
    assert_eq!(world.texts(), ["admin ready -> drain (by alice)"]);
    world.command(&Command::Ready { service: "web".to_owned(), address: A.parse().unwrap() }, false).unwrap();
    assert_eq!(world.turns("web"), [A, B]);
    assert_eq!(world.core.operator_layer(), &OperatorLayer::default());
}

#[test]
fn maintenance_stops_the_probes_and_the_first_result_after_it_decides() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    world.command(&Command::Maintenance { service: "web".to_owned(), address: A.parse().unwrap() }, false).unwrap();
    assert_eq!(world.core.probes().len(), 1);
    assert_eq!(world.backend("web", A).health, HealthState::Unknown);
    assert_eq!(state(&world, world.id("web", A)), BackendState::Live as u8);
    world.command(&Command::Ready { service: "web".to_owned(), address: A.parse().unwrap() }, false).unwrap();
    assert_eq!(world.turns("web"), [B]);
    world.probe(A, &ok(), 1);
    assert_eq!(world.turns("web"), [A, B]);
}

#[test]
fn the_last_ready_backend_is_not_taken_out_without_force() {
    let mut world = World::new(web(&[A, B]));
    world.probe(A, &ok(), 1);
    world.probe(B, &refused(), 1);
    let address = A.parse().unwrap();
    let service = || "web".to_owned();
    for command in [
        drain(A),
        Command::Maintenance { service: service(), address },
        Command::Remove { service: service(), address },
        Command::Weight { service: service(), address, weight: 0 },
    ] {
        let error = world.command(&command, false).unwrap_err();
        assert!(error.contains("last ready backend") && error.contains("--force"), "{error}");
    }
    world.command(&drain(B), false).unwrap();
    world.command(&drain(A), true).unwrap();
    assert!(world.turns("web").is_empty());
    let layer = world.core.operator_layer().clone();
    assert!(world.core.check_layer(&layer).is_ok());
}

#[test]
fn a_whole_layer_is_checked_before_it_is_taken() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let empty = OperatorLayer::default();
    let drained = world.core.apply_command(&empty, &drain(A), "bob", "t", true).unwrap();
    assert!(world.core.check_layer(&drained).unwrap_err().to_string().contains("last ready backend"));
}

#[test]
fn commands_that_make_no_sense_say_what_would() {
    let mut world = World::new(web(&[A, B]));
    let add = |address: &str, tier| Command::Add {
        service: "web".to_owned(),
        address: address.parse().unwrap(),
        weight: 1,
        tier,
    };
    let unknown = Command::Drain { service: "wbe".to_owned(), address: A.parse().unwrap() };
    for (command, words) in [
        (unknown, "there is no service `wbe`; did you mean `web`?"),
        (drain("10.0.0.1:8"), "has no backend 10.0.0.1:8; did you mean `10.0.0.1:80`?"),
        (add(A, 0), "has a backend 10.0.0.1:80 already"),
        (add("[2001:db8::1]:80", 0), "is an IPv6 address, but service `web` listens on 203.0.113.1:80"),
        (add("10.0.0.9:0", 0), "has no port"),
    ] {
        let error = world.command(&command, false).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    world.command(&Command::Remove { service: "web".to_owned(), address: B.parse().unwrap() }, false).unwrap();
    let error = world.command(&add(B, 3), false).unwrap_err();
    assert!(error.contains("the file has 10.0.0.2:80 in tier 0"), "{error}");
    world.command(&add(B, 0), false).unwrap();
    assert_eq!(world.core.operator_layer(), &OperatorLayer::default(), "back to what the file says");
}

#[test]
fn an_operator_cannot_decide_what_the_file_could_not_say() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let add = |address: &str, weight, tier| Command::Add {
        service: "web".to_owned(),
        address: address.parse().unwrap(),
        weight,
        tier,
    };
    let heavier = Command::Weight { service: "web".to_owned(), address: A.parse().unwrap(), weight: 1001 };
    for (command, why) in [
        (add("224.0.0.1:80", 1, 0), "multicast"),
        (add("255.255.255.255:80", 1, 0), "broadcast"),
        (add("203.0.113.1:8080", 1, 0), "the service's own address"),
        (add(C, 1001, 0), "a weight of 1001 is too much: from 0 to 1000"),
        (add(C, 1, 16), "there is no tier 16: from 0 to 15"),
        (heavier, "a weight of 1001 is too much"),
    ] {
        // Not with --force either.
        let error = world.command(&command, true).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn an_operator_adds_changes_and_removes_a_backend() {
    let mut world = World::new(web(&[A]));
    world.all_up();
    let address = C.parse().unwrap();
    let service = || "web".to_owned();
    world.command(&Command::Add { service: service(), address, weight: 7, tier: 0 }, false).unwrap();
    world.probe(C, &ok(), 1);
    assert_eq!(world.turns("web"), [A, C]);
    let shown = world.backend("web", C);
    assert_eq!((shown.weight, shown.tier, shown.admin), (7, 0, Admin::Ready));
    let marks = shown.overridden.unwrap().marks;
    assert_eq!(marks.keys().copied().collect::<Vec<_>>(), [Aspect::Added, Aspect::Weight]);
    assert_eq!(marks[&Aspect::Added], Mark::new("alice", "2026-01-02T03:04:05Z"));
    let layer = world.core.operator_layer().clone();
    world.restart(web(&[A]), layer);
    assert_eq!(world.turns("web"), [A, C], "the layer survives a restart");
    world.command(&Command::Remove { service: service(), address }, false).unwrap();
    assert_eq!(world.turns("web"), [A]);
    assert_eq!(world.core.operator_layer(), &OperatorLayer::default());
}

#[test]
fn decisions_about_what_is_not_configured_are_told_once() {
    let mut world = World::new(web(&[A]));
    let mut layer = OperatorLayer::default();
    layer.services.insert("gone".to_owned(), Default::default());
    world.input(Input::Operator(layer.clone()));
    world.input(Input::Operator(layer));
    assert_eq!(world.texts().iter().filter(|text| text.contains("not configured")).count(), 1);
}

#[test]
fn the_last_ready_backend_of_the_tier_that_serves_is_not_taken_out_without_force() {
    let mut world = World::new(tiers());
    world.all_up();
    world.command(&drain(A), false).unwrap();
    let error = world.command(&drain(B), false).unwrap_err();
    assert!(error.contains("last ready backend of tier 0") && error.contains("would go to tier 1"), "{error}");
    assert_eq!(world.turns("web"), [B]);
    world.command(&drain(B), true).unwrap();
    assert_eq!(world.turns("web"), [C]);
    // Of the standby tier nobody is served: the other way round is no danger.
    world.command(&Command::Ready { service: "web".to_owned(), address: A.parse().unwrap() }, false).unwrap();
    world.command(&drain(C), false).unwrap();
}

#[test]
fn several_backends_are_judged_together_and_changed_together() {
    let mut world = World::new(web(&[A, B, C]));
    world.all_up();
    let layer = OperatorLayer::default();
    let mark = Mark::new("alice", "now");
    let all = [drain(A), drain(B), drain(C)];
    let error = world.core.apply_commands(&layer, &all, &mark, false).unwrap_err().to_string();
    assert!(error.contains("last ready backend"), "{error}");
    let two = world.core.apply_commands(&layer, &all[..2], &mark, false).unwrap();
    assert_eq!(two.services["web"].len(), 2);
    let unknown = [drain(A), drain("10.0.0.99:80")];
    assert!(world.core.apply_commands(&layer, &unknown, &mark, true).is_err(), "one is wrong: none is changed");
    world.input(Input::Operator(two));
    assert_eq!(world.turns("web"), [C]);
}

#[test]
fn each_decision_keeps_its_own_mark() {
    let mut world = World::new(web(&[A, B]));
    world.all_up();
    let layer = OperatorLayer::default();
    let anna =
        Mark { reason: Some("new kernel".to_owned()), until: Some("later".to_owned()), ..Mark::new("anna", "1") };
    let layer = world.core.apply_commands(&layer, &[drain(A)], &anna, false).unwrap();
    let address = A.parse().unwrap();
    let weight = Command::Weight { service: "web".to_owned(), address, weight: 7 };
    let layer = world.core.apply_commands(&layer, &[weight], &Mark::new("bob", "2"), false).unwrap();
    let decided = &layer.services["web"][&address];
    assert_eq!((&decided.marks[&Aspect::Admin], decided.marks[&Aspect::Weight].by.as_str()), (&anna, "bob"));
    assert_eq!(decided.shown(), Some(&anna));
    // Decided anew, without an end: it stays.
    let layer = world.core.apply_commands(&layer, &[drain(A)], &Mark::new("carl", "3"), false).unwrap();
    assert_eq!(layer.next_end(), None);
    let ready = Command::Ready { service: "web".to_owned(), address };
    let layer = world.core.apply_commands(&layer, &[ready], &Mark::new("carl", "4"), false).unwrap();
    let decided = &layer.services["web"][&address];
    assert_eq!(decided.marks.keys().copied().collect::<Vec<_>>(), [Aspect::Weight]);
}
