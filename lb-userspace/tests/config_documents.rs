//! What the documentation and the examples say of configuration files is so.

mod config_support;

use std::{path::Path, time::Duration};

use config_support::accepted;
use lb_userspace::config::{Check, EXAMPLE, HttpCheck, StatusRange, reference};

#[test]
fn the_example_of_the_design_is_accepted() {
    let config = accepted(
        r#"
        interfaces = ["eth0"]              # where XDP attaches; one-arm or two-arm
        xdp-mode = "auto"                  # auto | native | generic
        manage-addresses = true            # put service addresses on the interface and announce them

        [[service]]
        name = "web"
        listen = "203.0.113.10:80"         # IPv6: "[2001:db8::10]:80"; port 0 = any port
        protocol = "tcp"                   # tcp | udp
        mode = "full-nat"
        scheduler = "round-robin"
        granularity = "flow"

        [service.health]                   # left out: a tcp check
        type = "http"
        path = "/healthz"
        interval = "500ms"
        timeout = "300ms"
        fall = 2
        rise = 2

        [[service.backend]]
        address = "10.0.0.11:8080"
        weight = 1
        tier = 0
        "#,
    );
    let health = &config.services[0].health;
    let expect = vec![StatusRange { first: 200, last: 399 }];
    assert_eq!(health.check, Check::Http(HttpCheck { path: "/healthz".to_owned(), expect, ..HttpCheck::default() }));
    assert_eq!(health.timeout, Duration::from_millis(300));
}

#[test]
fn the_example_is_accepted_without_a_warning() {
    let config = accepted(EXAMPLE);
    let names: Vec<_> = config.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["web", "web6", "dns"]);
    assert_eq!(config.services[0].backends[2].tier, 1);
}

#[test]
fn the_documentation_has_the_reference_word_for_word() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let document = std::fs::read_to_string(&path).expect("docs/configuration.md");
    let (begin, end) = ("<!-- reference: begin -->\n", "<!-- reference: end -->");
    let from = document.find(begin).expect("the mark where the reference begins") + begin.len();
    let to = document.find(end).expect("the mark where the reference ends");
    if document[from..to].trim() != reference().trim() {
        panic!(
            "the reference in docs/configuration.md is not the one of the code: put this between the marks\n\n{}",
            reference()
        );
    }
}

#[test]
fn every_key_of_the_reference_has_something_in_every_column() {
    for line in reference().lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 4, "{line}");
        assert!(cells.iter().all(|cell| !cell.is_empty() && *cell != "``"), "{line}");
    }
}

#[test]
fn files_in_the_documentation_are_accepted_without_a_warning() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let document = std::fs::read_to_string(&path).expect("docs/configuration.md");
    let files: Vec<_> = document
        .split("```toml\n")
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap_or_default())
        .filter(|block| block.contains("interfaces ="))
        .collect();
    assert!(!files.is_empty(), "docs/configuration.md shows no whole file");
    for file in files {
        accepted(file);
    }
}
