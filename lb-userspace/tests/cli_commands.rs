//! The binary as a user and a script meet it: exit codes, errors, tables and documents, against an
//! API server in this process that answers like an agent.

mod cli_support;

use std::{path::Path, process::Stdio};

use cli_support::{Agent, address, lb, run, text};
use lb_userspace::api::model::{
    BackendStats, Detached, Document, FlowList, FlowView, Kind, ServiceStats, StatsView, Stopping, Traffic,
    VerdictStats,
};
use serde::Serialize;

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
