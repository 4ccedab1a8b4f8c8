//! Configuration files that are refused or accepted with a warning: one fixture each under
//! `tests/config/`, and what the user is told as a snapshot.

use std::{collections::BTreeSet, fs, path::PathBuf};

use lb_userspace::config::{ConfigError, Diagnostic, ReportStyle, Severity, parse, render};

fn folder(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(kind)
}

fn fixture(kind: &str, name: &str) -> String {
    let path = folder(kind).join(format!("{name}.toml"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn refusal(name: &str) -> ConfigError {
    match parse("lb.toml", &fixture("refused", name)) {
        Ok(loaded) => panic!("{name}.toml was accepted: {loaded:?}"),
        Err(error) => error,
    }
}

fn warnings(name: &str) -> Vec<Diagnostic> {
    match parse("lb.toml", &fixture("warned", name)) {
        Ok(loaded) => loaded.warnings,
        Err(error) => panic!("{name}.toml was refused:\n{error}"),
    }
}

/// One test per fixture, named as the file, and a list of all of them.
macro_rules! fixtures {
    ($list:ident, $tell:expr, $($name:ident)+) => {
        const $list: &[&str] = &[$(stringify!($name)),+];
        $(#[test]
        fn $name() {
            let tell: fn(&str) -> String = $tell;
            insta::assert_snapshot!(stringify!($name), tell(stringify!($name)));
        })+
    };
}

fixtures! { REFUSED, |name| refusal(name).report(ReportStyle::Plain),
    address_without_quotes
    addresses_that_are_none
    addresses_that_name_no_host
    backend_is_the_service_itself
    backend_twice
    backend_with_a_port_of_a_service_on_every_port
    backend_without_a_port
    beyond_the_limits
    checks_that_cannot_go_to_the_service
    checks_that_lack_something
    dsr_with_another_port
    empty_file
    every_port_check_without_a_port
    flow_policies
    http_settings
    http_settings_on_a_tcp_check
    interface_names
    max_connections_without_entries
    interfaces_empty
    key_in_the_wrong_table
    key_twice
    listen_twice
    maglev_table_that_is_no_prime
    maglev_tables_beyond_the_slots
    missing_keys
    name_twice
    numbers_out_of_range
    packets_by_their_backends_load
    packets_of_tcp
    plural_backends
    plural_tables
    quic
    roles_that_cannot_be_told
    service_names
    sctp
    services_that_are_no_tables
    single_brackets_for_a_service
    source_ports
    string_left_open
    ten_errors_at_once
    terminal_escapes
    text_without_quotes
    timeout_longer_than_interval
    timeouts
    times
    too_few_source_ports
    tunnel_sources
    two_families_in_a_service
    udp_check_without_a_port
    unknown_key_at_the_top
    unknown_key_far_from_any_other
    unknown_key_in_a_service
    unknown_words
    windows_line_ends
    wrong_types
}

fixtures! { WARNED, |name| render(&warnings(name), ReportStyle::Plain),
    backend_is_another_service
    check_settings_without_a_check
    every_port_without_a_check
    every_weight_zero
    loopback
    no_backends
    no_services
    tunnel_settings_without_a_tunnel
    udp_without_a_check
    weights_without_effect
    quic_backends_without_server_ids
}

#[test]
fn every_fixture_has_its_test() {
    for (kind, list) in [("refused", REFUSED), ("warned", WARNED)] {
        let files: BTreeSet<String> = fs::read_dir(folder(kind))
            .expect("the folder of fixtures")
            .map(|entry| entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned())
            .collect();
        let tests: BTreeSet<String> = list.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(files, tests, "{kind}");
    }
}

#[test]
fn ten_errors_at_once_are_ten_errors() {
    let errors = refusal("ten_errors_at_once").diagnostics().iter().filter(|d| d.severity == Severity::Error).count();
    assert_eq!(errors, 10);
}

#[test]
fn a_refused_file_has_an_error_and_a_warned_one_has_only_warnings() {
    for name in REFUSED {
        let error = refusal(name);
        assert!(error.diagnostics().iter().any(|d| d.severity == Severity::Error), "{name}");
    }
    for name in WARNED {
        let warnings = warnings(name);
        assert!(!warnings.is_empty(), "{name}");
        assert!(warnings.iter().all(|d| d.severity == Severity::Warning), "{name}");
    }
}

#[test]
fn every_diagnostic_has_its_place_and_a_help() {
    for name in REFUSED {
        for diagnostic in refusal(name).diagnostics() {
            assert!(diagnostic.line.is_some() && diagnostic.column.is_some(), "{name}: {diagnostic:?}");
            let explained = diagnostic.help.is_some() || diagnostic.severity == Severity::Warning;
            assert!(explained, "{name}: {diagnostic:?}");
        }
    }
}

#[test]
fn diagnostics_come_in_the_order_of_the_file() {
    for name in REFUSED {
        let places: Vec<_> = refusal(name).diagnostics().iter().map(|d| (d.line, d.column)).collect();
        assert!(places.is_sorted(), "{name}: {places:?}");
    }
}

#[test]
fn reports_as_json_keep_path_place_message_and_help() {
    insta::assert_snapshot!(serde_json::to_string_pretty(&refusal("backend_twice")).expect("plain data"));
}

#[test]
fn a_diagnostic_survives_the_way_over_json() {
    for diagnostic in refusal("ten_errors_at_once").diagnostics() {
        let json = serde_json::to_value(diagnostic).expect("plain data");
        let back: Diagnostic = serde_json::from_value(json.clone()).expect("its own output");
        assert_eq!(serde_json::to_value(&back).expect("plain data"), json);
        let text = render(&[back], ReportStyle::Plain);
        assert!(text.contains(&diagnostic.message), "{text}");
    }
}

#[test]
fn reports_for_files_and_pipes_are_ascii_and_those_for_terminals_have_colours() {
    let error = refusal("ten_errors_at_once");
    let plain = error.report(ReportStyle::Plain);
    assert!(plain.is_ascii() && !plain.contains('\x1b'), "{plain}");
    let lines = error.report(ReportStyle::Lines);
    assert!(!lines.is_ascii() && !lines.contains('\x1b'), "{lines}");
    assert!(error.report(ReportStyle::Colours).contains("\x1b["));
    assert_eq!(error.to_string(), plain.trim_end());
}

#[test]
fn what_a_terminal_would_obey_is_never_shown() {
    let error = refusal("terminal_escapes");
    for style in [ReportStyle::Plain, ReportStyle::Lines] {
        let report = error.report(style);
        assert!(!report.contains(|c: char| c.is_control() && c != '\n'), "{report:?}");
    }
}
