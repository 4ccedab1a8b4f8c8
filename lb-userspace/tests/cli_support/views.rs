//! What that agent knows: a service of three backends, and the failovers that there were.

use std::net::SocketAddr;

use lb_userspace::api::model::{
    AdminView, AgentStatus, BackendView, ConfigStatus, ConfigView, DataPathStatus, DecisionView, EffectiveView,
    EventFlows, EventView, Failed, HealthCheckView, HealthView, InterfaceStatus, NoticeView, ProbedChange,
    ServiceSummary, ServiceView, Status,
};

/// A backend that died and came back, and one that is being drained.
pub fn events() -> Vec<EventView> {
    let at = |second: &str| format!("2026-01-02T03:04:{second}Z");
    let died = EventView {
        id: 7,
        service: "web".to_owned(),
        backend: address("10.0.0.12:8080"),
        cause: "down".to_owned(),
        reason: "L4TOUT, 2 of 2".to_owned(),
        policy: "reset".to_owned(),
        last_good: Some(at("04.100")),
        first_bad: None,
        witnesses: 0,
        detected: at("05.200"),
        switched: Some(at("05.200")),
        first_good: Some(at("05.212")),
        back: Some(at("35.000")),
        suspect_micros: None,
        detect_micros: Some(1_100_000),
        switch_micros: Some(420),
        serve_micros: Some(12_000),
        serving: vec![address("10.0.0.11:8080")],
        flows: EventFlows { before: 400, reset: 390, rehomed: 0, kept: 0, left: 10, clients: 12, rescued: 0 },
    };
    let drained = EventView {
        id: 8,
        backend: address("10.0.0.13:8080"),
        cause: "drain".to_owned(),
        reason: "drain by alice".to_owned(),
        policy: "keep".to_owned(),
        last_good: None,
        first_good: None,
        back: None,
        detect_micros: None,
        serve_micros: None,
        serving: Vec::new(),
        flows: EventFlows { before: 312, kept: 312, ..EventFlows::default() },
        ..died.clone()
    };
    let silent = EventView {
        id: 9,
        cause: "unanswered".to_owned(),
        reason: "3 clients without an answer for 21 ms; then down: L4TOUT, 2 of 2".to_owned(),
        first_bad: Some(at("05.140")),
        witnesses: 3,
        suspect_micros: Some(60_420),
        detect_micros: Some(62_000),
        last_good: Some(at("05.138")),
        flows: EventFlows { before: 4, reset: 4, rescued: 9, ..EventFlows::default() },
        ..died.clone()
    };
    vec![died, drained, silent]
}

pub fn config_view() -> ConfigView {
    let toml = "interfaces = [\"eth0\"]\n".to_owned();
    ConfigView { status: status().config, files: Vec::new(), toml, decisions: Vec::new() }
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub fn status() -> Status {
    Status {
        agent: AgentStatus {
            version: "0.1.0".to_owned(),
            pid: 4711,
            started: "2026-01-01T00:00:00Z".to_owned(),
            uptime_seconds: 7620,
            config: "/etc/lb/lb.toml".to_owned(),
        },
        data_path: DataPathStatus {
            generation: 17,
            in_step: false,
            last_error: Some(Failed { at: "2026-01-01T02:00:00Z".to_owned(), error: "backends: No space".to_owned() }),
            interfaces: vec![InterfaceStatus {
                name: "eth0".to_owned(),
                xdp_mode: "generic".to_owned(),
                note: Some("the driver has no XDP".to_owned()),
            }],
            live_flows: 400,
            flow_capacity: 262_144,
            sweep_micros: 950,
            dead_man: lb_userspace::api::model::DeadManStatus::of(&Default::default()),
            ways: None,
        },
        services: vec![ServiceSummary {
            frozen_millis: Some(4200),
            name: "web".to_owned(),
            listen: address("203.0.113.10:80"),
            protocol: "tcp".to_owned(),
            used: 1,
            backends: 3,
            active_tier: Some(0),
            live_flows: 400,
        }],
        config: ConfigStatus {
            revision: "18c-7".to_owned(),
            source: "/etc/lb/lb.toml".to_owned(),
            taken: "2026-01-01T00:00:00Z".to_owned(),
            by: "start".to_owned(),
            fallback: None,
            unconfirmed: None,
            without_effect: vec![DecisionView {
                service: "web".to_owned(),
                backend: Some(address("10.0.0.19:8080")),
                what: "drain".to_owned(),
                by: "anna".to_owned(),
                at: "2026-01-01T00:10:00Z".to_owned(),
                reason: None,
                until: None,
                no_effect: Some("the file has no backend 10.0.0.19:8080 in `web`".to_owned()),
            }],
        },
        last_change: Some(ProbedChange {
            at: "2026-01-01T01:00:00Z".to_owned(),
            service: "web".to_owned(),
            backend: Some(address("10.0.0.12:8080")),
            text: "health up -> down (L4TOUT, 2 of 2)".to_owned(),
            detect_to_written_micros: 780,
        }),
        reload_failed: Some(Failed {
            at: "2026-01-01T01:30:00Z".to_owned(),
            error: "line 4, column 1: unknown key `lissten` in [[service]]; see: lb config check /etc/lb/lb.toml"
                .to_owned(),
        }),
        notices: vec![
            NoticeView {
                at: "2026-01-01T01:00:00Z".to_owned(),
                level: "info".to_owned(),
                service: Some("web".to_owned()),
                backend: Some(address("10.0.0.12:8080")),
                text: "health up -> down (L4TOUT, 2 of 2)".to_owned(),
            },
            NoticeView {
                at: "2026-01-01T01:10:00Z".to_owned(),
                level: "warning".to_owned(),
                service: None,
                backend: None,
                text: "table_full: 5 packets".to_owned(),
            },
        ],
    }
}

fn backend(ip: &str, tier: u8, health: &str, reason: &str, used: bool, why: &str) -> BackendView {
    BackendView {
        service: "web".to_owned(),
        address: address(ip),
        id: Some(u32::from(tier)),
        weight: 1,
        tier,
        admin: AdminView { state: "ready".to_owned(), by: None, at: None, reason: None, until: None },
        health: HealthView {
            state: health.to_owned(),
            reason: reason.to_owned(),
            for_millis: 185_000,
            last_probe: None,
            asked_at: None,
            asked_at_reason: None,
        },
        role: None,
        role_detail: None,
        agent: None,
        effective: EffectiveView { used, reason: why.to_owned() },
        leaving: false,
        live_flows: 88,
        refusals: 2,
        unanswered: 5,
        rescued: 7,
    }
}

pub fn draining() -> BackendView {
    let admin = AdminView {
        state: "drain".to_owned(),
        by: Some("anna".to_owned()),
        at: Some("2026-01-01T00:30:00Z".to_owned()),
        reason: Some("new kernel".to_owned()),
        until: Some("2026-01-01T02:30:00Z".to_owned()),
    };
    BackendView { admin, live_flows: 312, ..backend("10.0.0.13:8080", 0, "up", "L4OK", false, "admin drain") }
}

pub fn service() -> ServiceView {
    ServiceView {
        name: "web".to_owned(),
        listen: address("203.0.113.10:80"),
        protocol: "tcp".to_owned(),
        mode: "full-nat".to_owned(),
        scheduler: "round-robin".to_owned(),
        granularity: "flow".to_owned(),
        health_check: HealthCheckView {
            check: "http GET /healthz".to_owned(),
            interval_millis: 500,
            fast_interval_millis: None,
            timeout_millis: 300,
            fall: 2,
            rise: 2,
        },
        id: Some(0),
        active_tier: Some(0),
        live_flows: 400,
        tracking: None,
        frozen_millis: None,
        backends: vec![
            backend("10.0.0.11:8080", 0, "up", "L7OK 200", true, "tier 0 serves"),
            backend("10.0.0.12:8080", 1, "down", "L4TOUT", false, "health down (L4TOUT)"),
            draining(),
        ],
    }
}
