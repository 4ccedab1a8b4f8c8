//! What a valid configuration file comes to: values, defaults, the summary.

mod config_support;

use std::time::Duration;

use config_support::accepted;
use lb_common::{
    abi::{DontFragment, Granularity, Mode, Protocol, Scheduler},
    flow::{State, idle_ticks},
};
use lb_userspace::config::{
    AgentCheck, AgentHealth, Backend, BodyMatch, Check, Clients, Config, EXAMPLE, ExecCheck, FlowPolicies, FlowPolicy,
    HeaderMatch, Health, HttpCheck, HttpMethod, Limits, LoginCheck, MaxLag, MssClamp, OnMultiplePrimaries, PortRange,
    Quic, RolePolicy, Service, StatusRange, TlsCheck, Trust, Tunnel, TunnelSource, UdpCheck, Via, WantedRole, XdpMode,
    parse, reference,
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

#[test]
fn what_is_left_out_has_its_default() {
    let health = Health {
        check: Check::Tcp,
        interval: Duration::from_secs(1),
        fast_interval: None,
        timeout: Duration::from_secs(1),
        fall: 2,
        rise: 2,
        jitter_percent: 10,
        port: None,
        via: Via::Backend,
        agent: None,
    };
    let service = Service {
        name: "web".to_owned(),
        listen: "203.0.113.10:80".parse().expect("an address"),
        protocol: Protocol::Tcp,
        mode: Mode::FullNat,
        scheduler: Scheduler::RoundRobin,
        granularity: Granularity::Flow,
        tunnel: Tunnel::default(),
        mss_clamp: MssClamp::Off,
        clients: Clients::default(),
        health,
        timeouts: State::TIMEOUTS,
        passive: lb_userspace::config::Passive::default(),
        quic: Quic::default(),
        role: None,
        failover: lb_userspace::config::Failover::of(lb_common::abi::Protocol::Tcp, None),
        backends: vec![Backend {
            address: "10.0.0.11:8080".parse().expect("an address"),
            weight: 1,
            tier: 0,
            check_address: None,
            max_connections: None,
        }],
    };
    let expected = Config {
        interfaces: vec!["eth0".to_owned()],
        xdp_mode: XdpMode::Auto,
        manage_addresses: true,
        watch_config: false,
        dead_man: lb_userspace::config::DeadMan::default(),
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
        let check = format!("[service.health]\n{}\n", check_with(key));
        let (without, with) = match header.as_str() {
            "Top level" => (LEAST.to_owned(), format!("{line}{LEAST}")),
            "[limits]" => (LEAST.to_owned(), format!("{LEAST}[limits]\n{line}")),
            "[[service]]" if key.starts_with("client-") => {
                let with = |lines: &str| LEAST.replace("name =", &format!("granularity = \"client\"\n{lines}name ="));
                (with(""), with(&line))
            }
            "[[service]]" if key == "replica-fallback" || key == "on-multiple-primaries" => {
                let redis = LEAST.replace("name =", "role = \"replica\"\nhealth = { type = \"redis\" }\nname =");
                (redis.clone(), redis.replace("name =", &format!("{line}name =")))
            }
            "[[service]]" => (LEAST.to_owned(), LEAST.replace("name =", &format!("{line}name ="))),
            "[[service.backend]]" => (LEAST.to_owned(), format!("{LEAST}{line}")),
            "[service.timeouts]" => (LEAST.to_owned(), format!("{LEAST}[service.timeouts]\n{line}")),
            "[service.passive]" => (LEAST.to_owned(), format!("{LEAST}[service.passive]\n{line}")),
            "[service.health]" => (format!("{LEAST}{check}"), format!("{LEAST}{check}{line}")),
            other => panic!("a table of the reference that this test does not know: {other}"),
        };
        assert_eq!(accepted(&with), accepted(&without), "{header} {key} = {value}");
    }
    // One per key with a plain default, table by table: this test must not look at nothing.
    assert_eq!(rows.len(), 7 + 6 + 14 + 15 + 6 + 6 + 2, "{rows:#?}");
}

#[test]
fn tunnels_have_a_source_for_each_family_fixed_or_chosen() {
    let tunnel = |mode: &str, lines: &str| {
        let text = LEAST.replace("name =", &format!("mode = \"{mode}\"\n{lines}\nname =")).replace(":8080", "");
        accepted(&text).services[0].tunnel.clone()
    };
    let source =
        |address: &str, chosen_bits| TunnelSource { address: address.parse().expect("an address"), chosen_bits };
    assert_eq!(tunnel("dsr-ipip", ""), Tunnel::default());
    assert_eq!(tunnel("dsr-gue", "gue-port = 9886\ntunnel-df = \"clear\""), {
        Tunnel { gue_port: 9886, sources: vec![], dont_fragment: DontFragment::Clear }
    });
    let mixed = tunnel("dsr-ipip", "tunnel-source = [\"2001:db8::1\"]\ntunnel-source-entropy = \"10.77.0.0/16\"");
    assert_eq!(mixed.sources, [source("2001:db8::1", 0), source("10.77.0.0", 16)]);
    let both = tunnel("dsr-ipip", "tunnel-source-entropy = [\"2001:db8:77::/64\", \"10.0.0.0/8\"]");
    assert_eq!(both.sources, [source("2001:db8:77::", 32), source("10.0.0.0", 24)]);
    assert_eq!(both.source("192.0.2.1".parse().expect("an address")), Some(both.sources[1]));
    let long = tunnel("dsr-ipip", "tunnel-source-entropy = \"2001:db8:77::/120\"");
    assert_eq!(long.source("192.0.2.1".parse().expect("an address")), None);
    assert_eq!(long.sources, [source("2001:db8:77::", 8)]);
}

#[test]
fn what_becomes_of_flows_follows_from_protocol_and_role_where_nothing_is_said() {
    use FlowPolicy::{Keep, Rehome, Reset};
    let policies = |lines: &str| {
        let FlowPolicies { on_down, on_demote, on_drain_timeout, on_remove } =
            accepted(&LEAST.replace("name =", &format!("{lines}\nname ="))).services[0].failover.flows;
        [on_down, on_demote, on_drain_timeout, on_remove]
    };
    let check = "health = { type = \"redis\" }";
    assert_eq!(policies(""), [Reset, Reset, Reset, Keep]);
    assert_eq!(policies("protocol = \"udp\"\nhealth = { type = \"none\" }"), [Rehome, Rehome, Rehome, Keep]);
    assert_eq!(policies(&format!("role = \"primary\"\n{check}")), [Reset, Reset, Reset, Keep]);
    assert_eq!(policies(&format!("role = \"replica\"\n{check}")), [Reset, Keep, Reset, Keep]);
    let said = "on-down = \"keep\"\non-drain-timeout = \"keep\"\non-remove = \"reset\"";
    assert_eq!(policies(said), [Keep, Reset, Keep, Reset]);
}

/// A check that the key goes with.
fn check_with(key: &str) -> &'static str {
    match key {
        "tls" => "type = \"redis\"",
        "verify" | "expiry-warning" => "type = \"tls\"",
        "query" | "query-type" | "response" => "type = \"dns\"",
        "arguments" => "type = \"exec\"\ncommand = \"/bin/true\"",
        _ => "type = \"http\"",
    }
}

/// The check of a service with these lines in `[service.health]`.
fn check(lines: &str) -> Check {
    accepted(&format!("{LEAST}[service.health]\n{lines}\n")).services[0].health.check.clone()
}

#[test]
fn every_type_of_check_takes_what_goes_with_it() {
    let tls = TlsCheck { server_name: Some("shop.example".to_owned()), ..TlsCheck::default() };
    let https = HttpCheck {
        method: HttpMethod::Head,
        path: "/ready".to_owned(),
        host: Some("shop.example:8443".to_owned()),
        body: Some(BodyMatch::Regex("^ok".to_owned())),
        headers: vec![HeaderMatch { name: "x-ready".to_owned(), value: "yes".to_owned() }],
        tls: Some(tls.clone()),
        ..HttpCheck::default()
    };
    assert_eq!(
        check(
            "type = \"https\"\nmethod = \"HEAD\"\npath = \"/ready\"\nhost = \"shop.example:8443\"\nbody-regex = \"^ok\"\nheaders = [\"X-Ready: yes\"]"
        ),
        Check::Http(https),
        "the name of the host is asked for in TLS too"
    );
    let pinned = TlsCheck { trust: Trust::Fingerprint([0xab; 32]), expiry_warning: Duration::from_secs(86_400), ..tls };
    let print = "AB:".repeat(31) + "AB";
    let lines =
        format!("type = \"tls\"\nserver-name = \"shop.example\"\nfingerprint = \"{print}\"\nexpiry-warning = \"1d\"");
    assert_eq!(check(&lines), Check::Tls(pinned));
    assert_eq!(
        check("type = \"udp\"\nsend = \"hex:00 ff\"\nreceive = \"pong\""),
        Check::Udp(UdpCheck { send: vec![0, 255], receive: Some(b"pong".to_vec()) })
    );
    assert_eq!(
        check("type = \"exec\"\ncommand = \"/usr/bin/true\"\narguments = [\"a b\"]"),
        Check::Exec(ExecCheck { command: "/usr/bin/true".into(), arguments: vec!["a b".to_owned()] })
    );
    let login = LoginCheck {
        user: Some("lb".to_owned()),
        password_file: Some("/etc/lb/password".into()),
        tls: Some(TlsCheck { trust: Trust::CaFile("/etc/lb/ca.pem".into()), ..TlsCheck::default() }),
        ..LoginCheck::default()
    };
    let lines = "user = \"lb\"\npassword-file = \"/etc/lb/password\"\ntls = true\nca-file = \"/etc/lb/ca.pem\"";
    assert_eq!(check(&format!("type = \"postgres\"\n{lines}")), Check::Postgres(login.clone()));
    assert_eq!(check(&format!("type = \"mysql\"\n{lines}")), Check::Mysql(login.clone()));
    assert_eq!(check(&format!("type = \"redis\"\n{lines}")), Check::Redis(login));
}

#[test]
fn a_service_with_a_role_has_the_role_asked_for() {
    let text = LEAST.replace("name =", "role = \"replica\"\nmax-lag = \"16MiB\"\nreplica-fallback = true\nname =")
        + "[service.health]\ntype = \"postgres\"\nuser = \"lb\"\n";
    let service = &accepted(&text).services[0];
    assert!(matches!(&service.health.check, Check::Postgres(LoginCheck { role: true, .. })));
    let policy = RolePolicy {
        role: WantedRole::Replica,
        max_lag: Some(MaxLag::Bytes(16 << 20)),
        replica_fallback: true,
        on_multiple_primaries: OnMultiplePrimaries::Block,
    };
    assert_eq!(service.role, Some(policy));
}

#[test]
fn a_check_may_ask_elsewhere_and_an_agent_besides() {
    let text = LEAST
        .replace("address = \"10.0.0.11:8080\"", "address = \"10.0.0.11:8080\"\ncheck-address = \"10.1.0.11\"")
        + "[service.health]\ntype = \"patroni\"\nagent-port = 9999\nagent-send = \"web\\n\"\n";
    let service = &accepted(&text).services[0];
    assert_eq!(service.backends[0].check_address, Some("10.1.0.11:0".parse().expect("an address")));
    assert_eq!(service.health.port, Some(8008), "Patroni's own port");
    let agent =
        AgentHealth { port: 9999, interval: Duration::from_secs(1), check: AgentCheck { send: "web\n".to_owned() } };
    assert_eq!(service.health.agent, Some(agent));
}

#[test]
fn checks_that_speak_udp_or_run_a_program_need_no_tcp_port() {
    let udp = LEAST.replace("name =", "protocol = \"udp\"\nname =");
    for lines in ["type = \"dns\"", "type = \"udp\"\nsend = \"ping\"", "type = \"exec\"\ncommand = \"/bin/true\""] {
        assert_eq!(accepted(&format!("{udp}[service.health]\n{lines}\n")).services[0].health.port, None, "{lines}");
    }
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
fn server_ids_are_kept_by_backend_and_filled_up_with_zeros() {
    let lines = "protocol = \"udp\"\nquic-server-id-length = 3\n";
    let text = LEAST.replace("name =", &format!("{lines}name ="))
        + "server-id = \"0aFF01\"\n[service.health]\ntype = \"none\"\n";
    let mut server_id = [0; 16];
    server_id[..3].copy_from_slice(&[0x0a, 0xff, 0x01]);
    let server_ids = [("10.0.0.11:8080".parse().expect("an address"), server_id)].into();
    assert_eq!(accepted(&text).services[0].quic, Quic { server_id_length: 3, server_ids });
}

#[test]
fn sctp_keeps_silent_associations_for_a_time_of_its_own() {
    let sctp = "protocol = \"sctp\"\nmode = \"dsr-l2\"\n";
    let text = LEAST.replace("name =", &format!("{sctp}name =")).replace(":8080", "")
        + "[service.health]\ntype = \"none\"\n[service.timeouts]\nopening = \"5s\"\n";
    let service = accepted(&text).services.remove(0);
    assert_eq!(service.protocol, Protocol::Sctp);
    assert_eq!(service.timeouts[State::Established as usize], idle_ticks(900_000_000_000));
    assert_eq!(service.timeouts[State::Opening as usize], idle_ticks(5_000_000_000));
    assert_eq!(service.timeouts[State::Closing as usize], State::Closing.timeout());
    let text = text.replace("opening", "established");
    assert_eq!(accepted(&text).services[0].timeouts[State::Established as usize], idle_ticks(5_000_000_000));
}

#[test]
fn timeouts_of_flows_are_set_state_by_state() {
    let text = format!("{LEAST}[service.timeouts]\nclosed = \"1s\"\none-way = \"2m\"\n");
    let timeouts = accepted(&text).services[0].timeouts;
    let mut expected = State::TIMEOUTS;
    expected[State::Closed as usize] = idle_ticks(1_000_000_000);
    expected[State::OneWay as usize] = idle_ticks(120_000_000_000);
    assert_eq!(timeouts, expected);
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
            Check::Http(HttpCheck { expect, .. }) => expect,
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
fn segment_sizes_are_off_automatic_or_a_number() {
    let clamp = |value: &str| LEAST.replace("name =", &format!("mss-clamp = {value}\nname ="));
    assert_eq!(accepted(LEAST).services[0].mss_clamp, MssClamp::Off);
    for (value, wanted, number) in [
        ("\"off\"", MssClamp::Off, 0),
        ("\"auto\"", MssClamp::Auto, u16::MAX),
        ("536", MssClamp::Bytes(536), 536),
        ("65495", MssClamp::Bytes(65_495), 65_495),
    ] {
        let read = accepted(&clamp(value)).services[0].mss_clamp;
        assert_eq!((read, read.number()), (wanted, number));
    }
    for value in ["535", "65496", "-1", "\"1400\"", "\"on\"", "true"] {
        assert!(parse("lb.toml", &clamp(value)).is_err(), "{value}");
    }
    let udp = clamp("\"auto\"\nprotocol = \"udp\"");
    let error = parse("lb.toml", &udp).unwrap_err().to_string();
    assert!(error.contains("only TCP has a segment size"), "{error}");
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
