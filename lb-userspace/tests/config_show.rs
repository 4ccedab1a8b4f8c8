//! The effective configuration as text: what it says is what runs.

use lb_userspace::config::{AddedBackend, BackendNotes, EXAMPLE, FileText, Notes, ServiceNotes, parse, show};

fn file(name: &str, text: &str) -> FileText {
    FileText { name: name.to_owned(), text: text.to_owned() }
}

fn notes() -> Notes {
    let comment = |text: &str| vec![text.to_owned()];
    let drained = BackendNotes { comments: comment("drain by anna at 1\n[[service]]"), ..BackendNotes::default() };
    let removed = BackendNotes { comments: comment("removed by bob at 2"), removed: true, weight: None };
    let heavier = BackendNotes { comments: comment("weight 7 by carl at 3"), removed: false, weight: Some(7) };
    let backends = [
        ("10.0.0.11:8080".parse().unwrap(), drained),
        ("10.0.0.12:8080".parse().unwrap(), removed),
        ("10.0.0.13:8080".parse().unwrap(), heavier),
    ];
    let added = AddedBackend {
        address: "10.0.0.19:8080".parse().unwrap(),
        weight: 2,
        tier: 3,
        comments: comment("added, tier 3 by dora at 4"),
    };
    let web = ServiceNotes { backends: backends.into(), added: vec![added], ..ServiceNotes::default() };
    let dns = ServiceNotes { comments: comment("removed by emil at 5"), removed: true, ..ServiceNotes::default() };
    [("web".to_owned(), web), ("dns".to_owned(), dns)].into()
}

#[test]
fn what_nobody_decided_about_is_shown_as_it_was_meant() {
    let shown = show(&[file("lb.toml", EXAMPLE)], &Notes::new()).expect("valid");
    let again = parse("shown", &shown).expect("what is shown can be read").config;
    assert_eq!(again, parse("example", EXAMPLE).expect("valid").config);
    assert!(shown.contains("# maglev-table-size = 65537"), "defaults are told: {shown}");
}

#[test]
fn decisions_are_marked_and_carried_out() {
    let shown = show(&[file("lb.toml", EXAMPLE)], &notes()).expect("valid");
    insta::assert_snapshot!(shown);
    let config = parse("shown", &shown).expect("what is shown can be read").config;
    let names: Vec<&str> = config.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["web", "web6"], "the removed one is a comment, and a remark cannot end its line");
    let backends: Vec<_> =
        config.services[0].backends.iter().map(|b| (b.address.to_string(), b.weight, b.tier)).collect();
    let expected = [("10.0.0.11:8080", 1, 0), ("10.0.0.13:8080", 7, 1), ("10.0.0.19:8080", 2, 3)];
    assert_eq!(backends, expected.map(|(address, weight, tier)| (address.to_owned(), weight, tier)));
}

#[test]
fn several_files_are_shown_as_one() {
    let service = |name: &str, port| {
        format!("[[service]]\nname = \"{name}\"\nlisten = \"203.0.113.10:{port}\"\nhealth = {{ type = \"tcp\" }}\n")
    };
    let files = [
        file("a.toml", &format!("{}[limits]\nflows = 1024\n", "interfaces = [\n  \"eth0\", # first\n]\n")),
        file("b.toml", &service("b", 80)),
        file("c.toml", &service("c", 81)),
    ];
    let shown = show(&files, &Notes::new()).expect("valid");
    let again = parse("shown", &shown).expect("what is shown can be read").config;
    assert_eq!((again.services.len(), again.limits.flows), (2, 1024));
    assert!(show(&[file("a.toml", "interfaces = 7")], &Notes::new()).is_err());
}
