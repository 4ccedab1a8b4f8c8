//! What a valid configuration file comes to: values, defaults, the example, the reference.

use std::{path::Path, time::Duration};

use lb_common::abi::{Granularity, Mode, Protocol, Scheduler};
use lb_userspace::config::{
    Backend, Check, Config, EXAMPLE, Health, Limits, PortRange, Service, StatusRange, XdpMode, parse, reference,
};

/// The least that a file can say about a service.
const LEAST: &str = r#"
interfaces = ["eth0"]

[[service]]
name = "web"
listen = "203.0.113.10:80"

[[service.backend]]
address = "10.0.0.11:8080"
"#;

fn accepted(text: &str) -> Config {
    match parse("lb.toml", text) {
        Ok(loaded) => {
            assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
            loaded.config
        }
        Err(error) => panic!("refused:\n{error}"),
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let health = Health {
        check: Check::Tcp,
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        fall: 2,
        rise: 2,
        jitter_percent: 10,
        port: None,
    };
    let service = Service {
        name: "web".to_owned(),
        listen: "203.0.113.10:80".parse().expect("an address"),
        protocol: Protocol::Tcp,
        mode: Mode::FullNat,
        scheduler: Scheduler::RoundRobin,
        granularity: Granularity::Flow,
        health,
        backends: vec![Backend { address: "10.0.0.11:8080".parse().expect("an address"), weight: 1, tier: 0 }],
    };
    let expected = Config {
        interfaces: vec!["eth0".to_owned()],
        xdp_mode: XdpMode::Auto,
        manage_addresses: true,
        watch_config: false,
        source_ports: vec![PortRange { first: 1024, last: 56_903 }, PortRange { first: 61_000, last: 65_535 }],
        limits: Limits::default(),
        maglev_table_size: 65_537,
        services: vec![service],
    };
    assert_eq!(accepted(LEAST), expected);
}

/// Rows of the reference whose default is a value: the table's header, the key, the default.
fn documented_defaults() -> Vec<(String, String, String)> {
    let mut header = String::new();
    let mut rows = Vec::new();
    for line in reference().lines() {
        if let Some(title) = line.strip_prefix("### ") {
            header = title.trim_matches('`').to_owned();
        }
        let cells: Vec<_> = line.split(" | ").collect();
        if let [key, _, left_out, _] = cells[..]
            && let Some(value) = left_out.strip_prefix('`').and_then(|rest| rest.strip_suffix('`'))
            && !value.contains('`')
        {
            rows.push((header.clone(), key.trim_matches(['|', ' ', '`']).to_owned(), value.to_owned()));
        }
    }
    rows
}

#[test]
fn every_default_of_the_reference_is_what_leaving_the_key_out_means() {
    let rows = documented_defaults();
    for (header, key, value) in &rows {
        let line = format!("{key} = {value}\n");
        let http = "[service.health]\ntype = \"http\"\n";
        let (without, with) = match header.as_str() {
            "Top level" => (LEAST.to_owned(), format!("{line}{LEAST}")),
            "[limits]" => (LEAST.to_owned(), format!("{LEAST}[limits]\n{line}")),
            "[[service]]" => (LEAST.to_owned(), LEAST.replace("name =", &format!("{line}name ="))),
            "[[service.backend]]" => (LEAST.to_owned(), format!("{LEAST}{line}")),
            "[service.health]" => (format!("{LEAST}{http}"), format!("{LEAST}{http}{line}")),
            other => panic!("a table of the reference that this test does not know: {other}"),
        };
        assert_eq!(accepted(&with), accepted(&without), "{header} {key} = {value}");
    }
    // One per key with a plain default, table by table: this test must not look at nothing.
    assert_eq!(rows.len(), 5 + 6 + 4 + 6 + 2, "{rows:#?}");
}

#[test]
fn the_timeout_follows_a_short_interval() {
    let health = |lines: &str| accepted(&format!("{LEAST}[service.health]\n{lines}")).services[0].health.clone();
    assert_eq!(health("interval = \"200ms\"").timeout, Duration::from_millis(200));
    assert_eq!(health("interval = \"1m30s\"").interval, Duration::from_secs(90));
    assert_eq!(health("interval = \"1m30s\"").timeout, Duration::from_secs(1));
    assert_eq!(health("interval = \"5s\"\ntimeout = \"5s\"").timeout, Duration::from_secs(5));
}

#[test]
fn ranges_are_written_as_numbers_texts_and_lists_of_both() {
    let ports = |value: &str| accepted(&format!("source-ports = {value}\n{LEAST}")).source_ports;
    let range = |first, last| PortRange { first, last };
    assert_eq!(ports("\"2000-3999\""), [range(2000, 3999)]);
    assert_eq!(
        ports("[\"5000-6999\", \"2000-2999, 3000-3999\", 1024]"),
        [range(1024, 1024), range(2000, 3999), range(5000, 6999)]
    );
    let expect = |value: &str| {
        let text = format!("{LEAST}[service.health]\ntype = \"http\"\nexpect = {value}\n");
        match accepted(&text).services[0].health.check.clone() {
            Check::Http { expect, .. } => expect,
            other => panic!("{other:?}"),
        }
    };
    let range = |first, last| StatusRange { first, last };
    assert_eq!(expect("200"), [range(200, 200)]);
    assert_eq!(expect("\"204, 200\""), [range(200, 200), range(204, 204)]);
    assert_eq!(expect("[301, \"200-299\", \"300\"]"), [range(200, 301)]);
}

#[test]
fn a_service_on_every_port_stands_beside_services_on_single_ports() {
    let config = accepted(
        r#"
        interfaces = ["eth0", "eth1"]
        [[service]]
        name = "web"
        listen = "[2001:db8::10]:80"
        [[service.backend]]
        address = "[2001:db8:1::11]:8080"
        [[service]]
        name = "all"
        listen = "[2001:db8::10]:0"
        health = { type = "tcp", port = 22 }
        backend = [{ address = "2001:db8:1::11" }, { address = "[2001:db8:1::12]" }, { address = "[2001:db8:1::13]:0" }]
        [[service]]
        name = "all-udp"
        listen = "[2001:db8::10]:0"
        protocol = "udp"
        health = { type = "none" }
        backend = [{ address = "2001:db8:1::11" }]
        "#,
    );
    assert_eq!(config.services[1].health.port, Some(22));
    assert_eq!(config.services[1].backends.len(), 3);
    assert!(config.services[1].backends.iter().all(|backend| backend.address.port() == 0));
}

#[test]
fn the_same_address_and_port_serve_tcp_and_udp() {
    let config = accepted(
        r#"
        interfaces = ["eth0"]
        [[service]]
        name = "dns-tcp"
        listen = "203.0.113.10:53"
        backend = [{ address = "10.0.0.21:53" }]
        [[service]]
        name = "dns-udp"
        listen = "203.0.113.10:53"
        protocol = "udp"
        granularity = "packet"
        health = { type = "tcp", port = 53 }
        backend = [{ address = "10.0.0.21:53" }]
        "#,
    );
    assert_eq!(config.services[1].granularity, Granularity::Packet);
}

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
    assert_eq!(health.check, Check::Http { path: "/healthz".to_owned(), host: None, expect });
    assert_eq!(health.timeout, Duration::from_millis(300));
}

#[test]
fn every_word_of_the_data_path_is_accepted() {
    for mode in Mode::ALL {
        // Direct server return keeps the service's port.
        let text = LEAST.replace("name =", &format!("mode = \"{}\"\nname =", mode.name())).replace(":8080", ":80");
        assert_eq!(accepted(&text).services[0].mode, *mode);
    }
    for scheduler in Scheduler::ALL {
        let text = LEAST.replace("name =", &format!("scheduler = \"{}\"\nname =", scheduler.name()));
        assert_eq!(accepted(&text).services[0].scheduler, *scheduler);
    }
    for granularity in Granularity::ALL {
        let health = "[service.health]\ntype = \"none\"\n";
        let lines = format!("protocol = \"udp\"\ngranularity = \"{}\"\nname =", granularity.name());
        let text = format!("{}{health}", LEAST.replace("name =", &lines));
        assert_eq!(accepted(&text).services[0].granularity, *granularity);
    }
    for mode in XdpMode::ALL {
        assert_eq!(accepted(&format!("xdp-mode = \"{}\"\n{LEAST}", mode.name())).xdp_mode, mode);
    }
}

#[test]
fn the_example_is_accepted_without_a_warning() {
    let config = accepted(EXAMPLE);
    let names: Vec<_> = config.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["web", "web6", "dns"]);
    assert_eq!(config.services[0].backends[2].tier, 1);
}

#[test]
fn the_summary_tells_services_backends_and_memory() {
    insta::assert_snapshot!(accepted(EXAMPLE).summary(4));
}

#[test]
fn larger_limits_take_more_memory() {
    let small = accepted(LEAST).summary(2).memory_bytes;
    let large = accepted(&format!("{LEAST}[limits]\nflows = 1048576\n")).summary(2).memory_bytes;
    // A flow takes its element, its word and two reply words.
    assert_eq!(large - small, (1_048_576 - 262_144) * (64 + 8 + 16));
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
