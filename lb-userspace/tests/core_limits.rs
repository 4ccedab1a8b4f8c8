//! What does not fit is told, and the rest works.

mod core_support;

use core_support::{A, B, C, World, config, ok, refused, service, web};
use lb_userspace::config::Limits;
use lb_userspace::core::Input;

#[test]
fn what_does_not_fit_is_told_and_the_rest_works() {
    let mut crowded = config(vec![service("a", "203.0.113.1:80", &[A, B]), service("b", "203.0.113.2:80", &[C])]);
    crowded.limits = Limits { backends: 2, ..crowded.limits };
    let mut world = World::new(crowded.clone());
    world.all_up();
    assert_eq!(world.turns("a"), [A, B]);
    assert!(world.turns("b").is_empty());
    let text = "not published as configured: all 2 backends are taken; raise `limits.backends` and restart";
    assert_eq!(world.texts().iter().filter(|told| *told == text).count(), 1);
    assert_eq!(world.backend("b", C).used_reason, text);
    crowded.services.remove(0);
    world.configure(crowded);
    world.walk(&[], 5);
    assert_eq!(world.turns("b"), [C], "it comes in as soon as there is room");
    assert!(world.texts().contains(&format!("no longer: {text}")));
}

#[test]
fn without_room_for_a_new_table_the_ready_part_of_the_old_one_serves() {
    let mut tight = web(&[A, B, C]);
    tight.limits = Limits { selection_slots: 3, ..tight.limits };
    let mut world = World::new(tight);
    // The three results are one change: the table goes in once.
    let probes: Vec<Input> = world.core.probes().into_iter().map(|key| Input::Probe { key, outcome: ok() }).collect();
    world.core.handle_all(probes, world.now);
    world.publish();
    assert_eq!(world.turns("web"), [A, B, C]);
    world.probe(A, &refused(), 2);
    assert_eq!(world.turns("web"), [B, C]);
    world.probe(C, &refused(), 2);
    assert_eq!(world.turns("web"), [B]);
    world.probe(A, &ok(), 2);
    assert_eq!(world.turns("web"), [B], "no room for two");
    assert!(world.backend("web", A).used_reason.contains("selection slots"));
}

#[test]
fn too_many_services_or_addresses_are_told() {
    let mut crowded = config(vec![service("a", "203.0.113.1:80", &[A]), service("b", "203.0.113.2:80", &[A])]);
    crowded.limits = Limits { services: 1, ..crowded.limits };
    let mut world = World::new(crowded.clone());
    world.all_up();
    assert_eq!((world.turns("a").len(), world.dataplane.service_keys().len()), (1, 1));
    assert!(world.texts().iter().any(|text| text.contains("limits.services")));
    crowded.limits = Limits { services: 9, addresses: 2, ..crowded.limits };
    let mut world = World::new(crowded);
    world.all_up();
    assert_eq!((world.turns("a").len(), world.dataplane.service_keys().len()), (1, 1));
    assert!(world.texts().iter().any(|text| text.contains("limits.addresses")));
}
