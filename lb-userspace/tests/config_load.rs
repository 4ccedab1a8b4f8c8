//! Configuration files on disk: what happens when they cannot be read, and that no text, however
//! broken, brings the reader or the report down.

use std::{fs, path::PathBuf};

use lb_common::abi::Mode;
use lb_userspace::config::{Config, EXAMPLE, ReportStyle, Severity, load, parse, render};
use proptest::prelude::*;

fn refused(path: PathBuf) -> String {
    match load(&path) {
        Ok(_) => panic!("{} was accepted", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_file_is_loaded_from_disk() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lb.toml");
    fs::write(&path, EXAMPLE).expect("a file");
    assert_eq!(load(&path).expect("valid").config.services.len(), 3);
}

#[test]
fn a_file_that_is_not_there_is_told_with_its_name_and_the_words_of_the_system() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lb.toml");
    let report = refused(path.clone());
    assert!(report.contains(&path.display().to_string()), "{report}");
    assert!(report.contains("No such file or directory (os error 2)"), "{report}");
    assert!(report.contains("help: check the path"), "{report}");
}

#[test]
fn a_file_that_never_ends_is_not_read_to_its_end() {
    let report = refused(PathBuf::from("/dev/zero"));
    assert!(report.contains("larger than 16 MiB"), "{report}");
}

#[test]
fn a_file_that_is_not_text_is_told_with_the_place_of_the_first_such_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lb.toml");
    fs::write(&path, b"interfaces = [\"eth0\"]\n# caf\xe9\n").expect("a file");
    let error = load(&path).expect_err("Latin-1 is not UTF-8");
    let [diagnostic] = error.diagnostics() else { panic!("{error}") };
    assert_eq!((diagnostic.line, diagnostic.column), (Some(2), Some(6)));
    assert!(diagnostic.message.contains("0xe9"), "{}", diagnostic.message);
}

/// One edit of a text by bytes or by lines.
#[derive(Clone, Debug)]
enum Edit {
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
    SwapLines(usize, usize),
    CopyLine(usize, usize),
    RemoveLine(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let scraps = prop_oneof![
        "[ -~\n\t]{1,6}".prop_map(String::into_bytes),
        prop::sample::select(vec![
            "\"",
            "'",
            "[",
            "]",
            "[[",
            "{",
            "}",
            "=",
            ",",
            "#",
            "\n",
            "\r\n",
            "\0",
            "\x1b[31m",
            "\u{202e}",
            "\u{feff}",
            "é",
            "漢",
            "👩‍👩‍👧",
            "9999999999999999999999",
            "-1",
            "nan",
            "1979-05-27",
            "[::1]:0",
            "%",
            "\u{301}",
        ])
        .prop_map(|scrap| scrap.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..4),
    ];
    prop_oneof![
        (any::<usize>(), 1..40_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        (any::<usize>(), scraps).prop_map(|(at, scrap)| Edit::Insert(at, scrap)),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Edit::SwapLines(a, b)),
        (any::<usize>(), any::<usize>()).prop_map(|(from, to)| Edit::CopyLine(from, to)),
        any::<usize>().prop_map(Edit::RemoveLine),
    ]
}

fn edited(text: &str, edits: &[Edit]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for edit in edits {
        if bytes.is_empty() {
            break;
        }
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let count = lines.len();
        match edit {
            Edit::Remove(at, length) => {
                let at = at % bytes.len();
                bytes.drain(at..bytes.len().min(at + length));
                continue;
            }
            Edit::Insert(at, scrap) => {
                let at = at % bytes.len();
                bytes.splice(at..at, scrap.iter().copied());
                continue;
            }
            Edit::SwapLines(a, b) => lines.swap(a % count, b % count),
            Edit::CopyLine(from, to) => lines.insert(to % count, lines[from % count].clone()),
            Edit::RemoveLine(at) => drop(lines.remove(at % count)),
        }
        bytes = lines.join(&b'\n');
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What every accepted configuration keeps, whatever the file looked like.
fn assert_valid(config: &Config) {
    assert!(!config.interfaces.is_empty());
    assert!(config.limits.flows.is_power_of_two() && config.limits.flows >= 64);
    let ports = &config.source_ports;
    assert!(ports.iter().all(|range| range.first >= 1024 && range.first <= range.last));
    assert!(ports.windows(2).all(|pair| pair[0].last < pair[1].first));
    for (i, service) in config.services.iter().enumerate() {
        let health = &service.health;
        assert!(!health.timeout.is_zero() && health.timeout <= health.interval && health.fall > 0 && health.rise > 0);
        for other in &config.services[..i] {
            assert_ne!(service.name, other.name);
            assert_ne!((service.listen, service.protocol), (other.listen, other.protocol));
        }
        for (i, backend) in service.backends.iter().enumerate() {
            let joins = Mode::joins_families(service.mode as u8);
            assert!(joins || backend.address.is_ipv4() == service.listen.is_ipv4());
            assert_eq!(backend.address.port() == 0, service.listen.port() == 0);
            assert!(backend.weight <= 1000 && backend.tier <= 15);
            assert!(service.backends[..i].iter().all(|other| other.address != backend.address));
        }
    }
}

fn assert_survives(text: &str) {
    match parse("lb.toml", text) {
        Ok(loaded) => {
            assert_valid(&loaded.config);
            assert!(loaded.warnings.iter().all(|warning| warning.severity == Severity::Warning));
            render(&loaded.warnings, ReportStyle::Colours);
        }
        Err(error) => {
            assert!(error.diagnostics().iter().any(|diagnostic| diagnostic.severity == Severity::Error));
            for diagnostic in error.diagnostics() {
                let lines = text.split('\n').count() as u32;
                assert!(diagnostic.line.is_some_and(|line| (1..=lines).contains(&line)), "{diagnostic:?}");
            }
            for style in [ReportStyle::Plain, ReportStyle::Lines] {
                let report = error.report(style);
                assert!(!report.contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t')), "{report:?}");
                // Every diagnostic that has a place is drawn with it.
                assert!(report.matches("[lb.toml:").count() >= error.diagnostics().len(), "{report}");
            }
            error.report(ReportStyle::Colours);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn no_edit_of_a_file_brings_the_reader_or_the_report_down(edits in prop::collection::vec(edit(), 1..6)) {
        assert_survives(&edited(EXAMPLE, &edits));
    }

    #[test]
    fn no_text_at_all_brings_the_reader_or_the_report_down(text in "\\PC{0,200}") {
        assert_survives(&text);
    }
}
