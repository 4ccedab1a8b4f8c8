//! The binary as a user and a script meet it: exit codes, errors, tables and documents, against an
//! API server in this process that answers like an agent.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use axum::http::StatusCode;
use lb_userspace::api::{
    ApiSocket, Handle, Refusal, Request, Task, WriteOptions,
    model::{
        AdminView, AgentStatus, Applied, BackendDone, BackendImpactView, BackendStats, BackendView, Change,
        CommandDone, CommandRequest, ConfigStatus, ConfigView, DataPathStatus, DecisionView, Detached, Document,
        EffectiveView, EventFlows, EventView, Failed, FlowImpactView, FlowList, FlowView, HealthCheckView, HealthView,
        ImpactView, InterfaceStatus, Kind, NoticeView, ProbedChange, ServiceDone, ServiceFrozen, ServiceImpactView,
        ServiceStats, ServiceSummary, ServiceView, Settled, StatsView, Status, Stopping, Traffic, VerdictStats,
    },
    serve,
};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

fn lb(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lb"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    lb(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// An agent with one service of three backends; a drain is done, a removal refused.
struct Agent {
    socket: PathBuf,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
    _dir: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("lb.sock");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let (requests, inbox) = mpsc::channel(16);
        runtime.block_on(async {
            tokio::spawn(answer(inbox));
            tokio::spawn(serve(ApiSocket::bind(&socket).unwrap(), Handle::new(requests), stop.clone()));
        });
        Self { socket, stop, runtime: Some(runtime), _dir: dir }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        lb(arguments).env("LB_SOCKET", &self.socket).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    fn shows(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        text(&output.stdout)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        self.runtime.take().unwrap().shutdown_background();
    }
}

async fn answer(mut requests: mpsc::Receiver<Request>) {
    while let Some(request) = requests.recv().await {
        match request {
            Request::Status(reply) => drop(reply.send(status())),
            Request::Services(reply) => drop(reply.send(vec![service()])),
            Request::Stop { reply, .. } => drop(reply.send(Stopping { pid: 4711 })),
            Request::Config(reply) => drop(reply.send(Box::new(|| Ok(config_view())))),
            Request::Events(reply) => drop(reply.send(events())),
            Request::Freeze { name, lasts, reply, options, .. } => {
                let text = format!("{lasts:?}");
                let done = ServiceFrozen {
                    service: name,
                    text,
                    frozen_millis: None,
                    published: true,
                    dry_run: options.dry_run,
                };
                drop(reply.send(Ok(done)));
            }
            Request::Change { task, options, .. } => change(task, &options),
        }
    }
}

/// A backend that died and came back, and one that is being drained.
fn events() -> Vec<EventView> {
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

fn command(request: CommandRequest) -> Result<CommandDone, Refusal> {
    match request.change {
        Change::Drain => Ok(CommandDone {
            service: request.service,
            address: request.address,
            text: "drains: 312 flows left".to_owned(),
            backend: Some(draining()),
            others: request
                .addresses
                .into_iter()
                .map(|address| BackendDone { address, text: "drains: no flows left".to_owned(), backend: None })
                .collect(),
            published: true,
            dry_run: false,
            revision: "18c-7".to_owned(),
        }),
        _ => Err(Refusal::new(StatusCode::CONFLICT, "not done: remove web", "it is the last one", "add --force")),
    }
}

/// What is sent back says what was asked.
fn change(task: Task, options: &WriteOptions) {
    match task {
        Task::Command { request, reply } => drop(reply.send(command(request))),
        Task::Apply { request, reply } => {
            if request.files.iter().flatten().any(|file| file.text.contains("refuse")) {
                let mut refusal =
                    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "it stays as it was", "line 1", "mend it");
                refusal.report = Some("  error: the whole report\n".to_owned());
                return drop(reply.send(Err(refusal)));
            }
            let confirm_until = request.confirm_seconds.map(|seconds| format!("in {seconds} s"));
            drop(reply.send(Ok(applied(!options.dry_run, request.source, confirm_until))));
        }
        Task::Service { name, request, reply } => {
            let text = format!("{:?} for {:?} because {:?}", request.change, request.for_seconds, request.reason);
            let (dry_run, revision) = (options.dry_run, options.revision.clone().unwrap_or_default());
            let impact = ImpactView::default();
            drop(reply.send(Ok(ServiceDone { service: name, text, dry_run, impact, published: true, revision })));
        }
        Task::Confirm { reply } => drop(reply.send(Ok(settled("confirmed")))),
        Task::RollBack { reply } => drop(reply.unwrap().send(Ok(settled("rolled back")))),
        Task::Reload | Task::Expire => panic!("nobody can ask for that"),
    }
}

fn settled(what: &str) -> Settled {
    let (source, revision) = ("/etc/lb/lb.toml".to_owned(), "18c-8".to_owned());
    Settled { what: what.to_owned(), dry_run: false, source, revision }
}

fn applied(applied: bool, source: Option<String>, confirm_until: Option<String>) -> Applied {
    let backend = |text: &str, presence: &str, (before, after), drained| BackendImpactView {
        address: address(text),
        presence: presence.to_owned(),
        changes: Vec::new(),
        share_before: before,
        share_after: after,
        flows: FlowImpactView { drained, ..FlowImpactView::default() },
    };
    let flows = FlowImpactView { kept: 88, drained: 312, rehomed: 0, reset: 0 };
    let service = ServiceImpactView {
        name: "web".to_owned(),
        presence: "changed".to_owned(),
        changes: vec!["scheduler round-robin -> maglev".to_owned()],
        backends: vec![
            backend("10.0.0.13:8080", "removed", (0.5, 0.0), 312),
            backend("10.0.0.14:8080", "added", (0.0, 0.5), 0),
        ],
        moved: 0.5,
        flows,
    };
    Applied {
        applied,
        source: source.unwrap_or_else(|| "/etc/lb/lb.toml".to_owned()),
        needs_restart: Vec::new(),
        impact: ImpactView { services: vec![service], flows },
        warnings: Vec::new(),
        confirm_until,
        published: true,
        revision: "18c-8".to_owned(),
    }
}

fn config_view() -> ConfigView {
    let toml = "interfaces = [\"eth0\"]\n".to_owned();
    ConfigView { status: status().config, files: Vec::new(), toml, decisions: Vec::new() }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn status() -> Status {
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

fn draining() -> BackendView {
    let admin = AdminView {
        state: "drain".to_owned(),
        by: Some("anna".to_owned()),
        at: Some("2026-01-01T00:30:00Z".to_owned()),
        reason: Some("new kernel".to_owned()),
        until: Some("2026-01-01T02:30:00Z".to_owned()),
    };
    BackendView { admin, live_flows: 312, ..backend("10.0.0.13:8080", 0, "up", "L4OK", false, "admin drain") }
}

fn service() -> ServiceView {
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

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [
        &["sttus"][..],
        &["backend", "drain", "web"],
        &["backend", "drain", "web", "example.com:80"],
        &["backend", "drain", "we b", "10.0.0.1:80"],
        &["status", "--watch=1ms"],
        &["status", "-o", "yaml"],
        &["flows", "--state", "open"],
        &[],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty());
    }
}

#[test]
fn without_an_agent_three_lines_say_so_and_the_exit_code_is_3() {
    let reads: [&[&str]; 3] = [&["status"], &["service", "list"], &["backend", "drain", "web", "10.0.0.1:80"]];
    for arguments in reads {
        let output = run(&[arguments, &["--socket", "/nowhere/lb.sock"]].concat());
        assert_eq!(output.status.code(), Some(3));
        assert!(output.stdout.is_empty());
        insta::allow_duplicates! {
            insta::assert_snapshot!(text(&output.stderr), @r"
            error: cannot reach the agent at /nowhere/lb.sock
            why:   No such file or directory (os error 2)
            next:  start it: lb run --config FILE (or name its socket: --socket PATH)
            ");
        }
    }
}

#[test]
fn with_o_json_an_error_is_one_object_on_standard_error() {
    let output = run(&["status", "-o", "json", "--socket", "/nowhere/lb.sock"]);
    assert_eq!(output.status.code(), Some(3));
    insta::assert_snapshot!(text(&output.stderr), @r#"{"apiVersion":"lb/v1","kind":"Error","code":3,"what":"cannot reach the agent at /nowhere/lb.sock","why":"No such file or directory (os error 2)","next":"start it: lb run --config FILE (or name its socket: --socket PATH)"}"#);
}

#[test]
fn counters_and_flows_without_maps_fail_with_what_to_do() {
    for arguments in
        [["stats", "--pin-dir", "/sys/fs/bpf/lb-not-there"], ["flows", "--pin-dir", "/sys/fs/bpf/lb-not-there"]]
    {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let shown = text(&output.stderr);
        assert!(shown.starts_with("error: cannot read the maps under /sys/fs/bpf/lb-not-there\nwhy:   "), "{shown}");
        assert_eq!(shown.lines().count(), 3, "{shown}");
    }
}

#[test]
fn status_is_shown_as_a_table() {
    insta::assert_snapshot!(Agent::start().shows(&["status"]));
}

#[test]
fn services_are_shown_as_tables() {
    let agent = Agent::start();
    insta::assert_snapshot!("service_list", agent.shows(&["service", "list"]));
    insta::assert_snapshot!("service_list_wide", agent.shows(&["service", "list", "-o", "wide"]));
    insta::assert_snapshot!("service_show", agent.shows(&["service", "show", "web"]));
}

#[test]
fn backends_are_shown_with_four_fields() {
    let agent = Agent::start();
    insta::assert_snapshot!("backend_list", agent.shows(&["backend", "list", "web"]));
    insta::assert_snapshot!("backend_list_wide", agent.shows(&["backend", "list", "-o", "wide"]));
}

#[test]
fn a_change_says_what_was_done_and_what_to_follow() {
    let agent = Agent::start();
    assert_eq!(
        agent.shows(&["backend", "drain", "web", "10.0.0.13:8080"]),
        "web 10.0.0.13:8080 drains: 312 flows left; follow with: lb backend list web --watch\n"
    );
}

#[test]
fn a_refused_change_exits_with_1_and_the_agents_words() {
    let agent = Agent::start();
    let output = agent.run(&["backend", "remove", "web", "10.0.0.11:8080"]);
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!(text(&output.stderr), @r"
    error: not done: remove web
    why:   it is the last one
    next:  add --force
    ");
}

#[test]
fn every_read_has_a_document_of_its_kind() {
    let agent = Agent::start();
    insta::assert_snapshot!("json_status", agent.shows(&["status", "-o", "json"]));
    insta::assert_snapshot!("json_service_list", agent.shows(&["service", "list", "-o", "json"]));
    insta::assert_snapshot!("json_service", agent.shows(&["service", "show", "web", "-o", "json"]));
    insta::assert_snapshot!("json_backend_list", agent.shows(&["backend", "list", "web", "-o", "json"]));
    let done = agent.shows(&["backend", "drain", "web", "10.0.0.13:8080", "-o", "json"]);
    insta::assert_snapshot!("json_command_done", done);
}

/// Kinds that come from pinned maps, or from taking them away.
#[test]
fn documents_of_maps_have_their_kind() {
    fn document<T: Kind + Serialize>(body: T) -> String {
        serde_json::to_string_pretty(&Document::new(body)).unwrap()
    }
    let traffic = Traffic { packets: 10, bytes: 1500 };
    let stats = StatsView {
        agent_alive: true,
        services: vec![ServiceStats {
            id: 0,
            name: "web".to_owned(),
            listen: address("203.0.113.10:80"),
            protocol: "tcp".to_owned(),
            mode: "full-nat".to_owned(),
            forward: traffic,
            reply: traffic,
            flows: 3,
            refused: 1,
            dropped: 0,
            rescued: 0,
            backends: vec![BackendStats {
                id: 0,
                address: address("10.0.0.11:8080"),
                state: "live".to_owned(),
                forward: traffic,
                reply: traffic,
                flows: 3,
                ended: 1,
                refusals: 0,
                unanswered: 0,
                rescued: 3,
                reset: 2,
                moved: 0,
            }],
        }],
        verdicts: vec![VerdictStats {
            reason: "to_backend".to_owned(),
            action: "forward".to_owned(),
            packets: 10,
            bytes: 1500,
            meaning: "Sent on to the backend.".to_owned(),
        }],
    };
    let flows = FlowList {
        agent_alive: false,
        matched: 1,
        flows: vec![FlowView {
            service: "203.0.113.10:80/tcp".to_owned(),
            protocol: "tcp".to_owned(),
            mode: "full-nat".to_owned(),
            client: address("198.51.100.7:51000"),
            listen: Some(address("203.0.113.10:80")),
            source: address("10.0.0.1:1024"),
            backend: Some(address("10.0.0.11:8080")),
            state: "established".to_owned(),
            idle_millis: 134,
        }],
    };
    let detached = Detached {
        stopped_pid: Some(4711),
        interfaces: vec!["eth0".to_owned()],
        done: vec!["took the XDP program off eth0".to_owned()],
    };
    insta::assert_snapshot!("json_stats", document(stats));
    insta::assert_snapshot!("json_flow_list", document(flows));
    insta::assert_snapshot!("json_detached", document(detached));
    insta::assert_snapshot!("json_stopping", document(Stopping { pid: 4711 }));
}

#[test]
fn failovers_are_listed_and_shown_one_by_one() {
    let agent = Agent::start();
    insta::assert_snapshot!("events", agent.shows(&["events"]));
    insta::assert_snapshot!("events_wide", agent.shows(&["events", "-o", "wide"]));
    insta::assert_snapshot!("event", agent.shows(&["events", "show", "7"]));
    insta::assert_snapshot!("event_told_by_packets", agent.shows(&["events", "show", "9"]));
    insta::assert_snapshot!("json_event", agent.shows(&["events", "show", "8", "-o", "json"]));
    assert_eq!(agent.shows(&["events", "--limit", "1"]).lines().count(), 2, "a heading and the newest");
    assert_eq!(agent.shows(&["events", "--service", "other"]).trim(), "no failover yet");
    let output = lb(&["events", "show", "10"]).env("LB_SOCKET", &agent.socket).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("7 to 9 are kept"), "{}", text(&output.stderr));
}

#[test]
fn a_service_is_frozen_for_the_time_that_is_asked_for() {
    let agent = Agent::start();
    assert_eq!(agent.shows(&["service", "freeze", "web"]).trim(), "web Some(5s)");
    assert_eq!(agent.shows(&["service", "freeze", "web", "--max", "1500ms"]).trim(), "web Some(1.5s)");
    assert_eq!(agent.shows(&["service", "thaw", "web"]).trim(), "web None");
}

#[test]
fn a_watch_prints_one_document_per_line_until_its_reader_goes() {
    use std::io::{BufRead, BufReader};
    let agent = Agent::start();
    let mut watching = lb(&["backend", "list", "-o", "json", "--watch=100ms"])
        .env("LB_SOCKET", &agent.socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        let line = lines.next().unwrap().unwrap();
        let document: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(document["kind"], "BackendList");
    }
    drop(lines);
    assert_eq!(watching.wait().unwrap().code(), Some(0), "a pipe that closes is no failure");
}

#[test]
fn colours_are_only_for_terminals_or_whoever_asks() {
    let agent = Agent::start();
    assert!(!agent.shows(&["backend", "list"]).contains('\x1b'));
    assert!(agent.shows(&["backend", "list", "--color", "always"]).contains("\x1b["));
    let output = lb(&["backend", "list"]).env("LB_SOCKET", &agent.socket).env("NO_COLOR", "1").output().unwrap();
    assert!(!text(&output.stdout).contains('\x1b'));
}

fn file(dir: &Path, content: &str) -> String {
    let path = dir.join("lb.toml");
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

const VALID: &str = r#"
interfaces = ["eth0"]
[[service]]
name = "web"
listen = "203.0.113.10:80"
mode = "full-nat"
[[service.backend]]
address = "10.0.0.11:8080"
"#;

#[test]
fn a_valid_file_is_summed_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), VALID);
    let output = run(&["config", "check", &path]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let shown = text(&output.stdout);
    assert!(shown.starts_with(&format!("{path}: valid\nservices: 1, backends: 1\n")), "{shown}");
    let document = text(&run(&["config", "check", &path, "-o", "json"]).stdout);
    let document: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["kind"], &document["valid"]), (&"ConfigCheck".into(), &true.into()));
    assert_eq!(document["summary"]["services"][0]["name"], "web");
}

#[test]
fn every_error_of_a_file_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = file(dir.path(), &VALID.replace("listen", "lissten").replace("full-nat", "fullnat"));
    let output = run(&["config", "check", &path]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stderr);
    assert!(
        shown.contains("lissten") && shown.contains("did you mean `listen`") && shown.contains("fullnat"),
        "{shown}"
    );
    let output = run(&["config", "check", &path, "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["valid"], false);
    assert!(document["diagnostics"].as_array().unwrap().len() >= 2);
    assert_eq!(document["diagnostics"][0]["line"], 5);
}

#[test]
fn a_missing_file_is_an_error_with_its_name() {
    let output = run(&["config", "check", "/nowhere/lb.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nowhere/lb.toml"));
}

#[test]
fn help_names_every_command() {
    let help = text(&run(&["--help"]).stdout);
    for command in ["run", "status", "service", "backend", "stats", "flows", "config", "detach"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
    }
}

/// A file in a folder of its own.
fn lone_file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.display().to_string();
    (dir, path)
}

#[test]
fn an_impact_is_shown_service_by_service() {
    let agent = Agent::start();
    insta::assert_snapshot!("config_diff", agent.shows(&["config", "diff"]));
    insta::assert_snapshot!("config_apply", agent.shows(&["config", "apply", "--confirm", "90s"]));
    insta::assert_snapshot!("json_applied", agent.shows(&["config", "diff", "-o", "json"]));
    let output = agent.run(&["config", "diff", "--exit-code"]);
    assert_eq!(output.status.code(), Some(1), "something would change");
    assert_eq!(agent.shows(&["config", "confirm"]), "confirmed: /etc/lb/lb.toml runs, revision 18c-8\n");
    assert_eq!(agent.shows(&["config", "rollback"]), "rolled back: /etc/lb/lb.toml runs, revision 18c-8\n");
}

#[test]
fn a_file_is_read_by_whoever_asks_and_sent_whole() {
    let agent = Agent::start();
    let (_dir, path) = lone_file("anything");
    let done = agent.shows(&["config", "apply", &path]);
    assert!(done.contains(&format!("{path} runs now, revision 18c-8.")), "{done}");
    assert!(agent.shows(&["config", "apply", &path, "--dry-run"]).ends_with("Nothing was changed.\n"));
    let output = agent.run(&["config", "apply", "/nowhere/lb.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("No such file or directory"), "{}", text(&output.stderr));
}

#[test]
fn a_configuration_that_the_agent_refuses_comes_back_with_its_whole_report() {
    let agent = Agent::start();
    let (_dir, path) = lone_file("refuse this");
    let output = agent.run(&["config", "apply", &path]);
    assert_eq!(output.status.code(), Some(1));
    insta::assert_snapshot!("config_refused", text(&output.stderr));
}

#[test]
fn the_running_configuration_is_shown_with_what_operators_decided() {
    let agent = Agent::start();
    insta::assert_snapshot!("config_show", agent.shows(&["config", "show"]));
    insta::assert_snapshot!("json_config", agent.shows(&["config", "show", "-o", "json"]));
}

#[test]
fn a_schema_and_a_first_configuration_need_no_agent() {
    let schema = run(&["config", "schema"]);
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert_eq!(schema["required"], serde_json::json!(["interfaces"]));
    let part: serde_json::Value = serde_json::from_slice(&run(&["config", "schema", "--part"]).stdout).unwrap();
    assert!(part.get("required").is_none());

    let first = ["config", "init", "--iface", "lo", "--vip", "203.0.113.10:80", "--backend", "10.0.0.1:80"];
    let output = run(&first);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = text(&output.stdout);
    assert!(written.contains("#   lo: loopback, up, MTU 65536, 127.0.0.1/8"), "{written}");
    assert!(written.contains("# lo has an MTU of 65536: XDP takes at most 3498 here"), "{written}");
    let (_dir, path) = lone_file(&written);
    let checked = run(&["config", "check", &path]);
    assert!(checked.status.success(), "{}", text(&checked.stderr));
    assert!(text(&checked.stdout).contains("web: tcp 203.0.113.10:80, full-nat"), "{}", text(&checked.stdout));
    let unknown = run(&["config", "init", "--iface", "nope0"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).starts_with("error: there is no interface `nope0`\nwhy:   this machine has: "));
}

#[test]
fn several_backends_are_changed_with_one_command() {
    let agent = Agent::start();
    let done = agent.shows(&["backend", "drain", "web", "10.0.0.13:8080", "10.0.0.14:8080"]);
    assert!(
        done.starts_with("web 10.0.0.13:8080 drains: 312 flows left\nweb 10.0.0.14:8080 drains: no flows left"),
        "{done}"
    );
}

#[test]
fn services_are_added_and_removed() {
    let agent = Agent::start();
    let add = ["service", "add", "x", "--listen", "203.0.113.30:80", "--set", "mode=nat", "--backend", "10.0.0.1:80"];
    insta::assert_snapshot!("service_added", agent.shows(&add));
    let options = ["--for", "90s", "--reason", "moved", "--dry-run", "--revision", "18c-7"];
    insta::assert_snapshot!("service_removed", agent.shows(&[&["service", "remove", "web"][..], &options].concat()));
    assert_eq!(agent.run(&["service", "add", "x", "--set", "mode=nat"]).status.code(), Some(2), "without --listen");
}

#[test]
fn monitoring_is_told_by_the_exit_code() {
    let agent = Agent::start();
    assert_eq!(agent.run(&["status"]).status.code(), Some(0));
    let output = agent.run(&["status", "--check"]);
    assert_eq!(output.status.code(), Some(1), "the maps are behind and a reload failed");
    assert!(text(&output.stdout).contains("out of step"));
}
