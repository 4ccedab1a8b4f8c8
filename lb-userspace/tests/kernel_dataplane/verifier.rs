//! What the verifier walks in each program, against what is written down in `lb-ebpf/verified.toml`.

use std::{collections::BTreeMap, io::Write as _};

use crate::support::PinDir;

const RECORD: &str = include_str!("../../../lb-ebpf/verified.toml");
/// Half of the kernel's limit: room for the verifiers of older and newer kernels.
const BUDGET: u32 = 500_000;

#[test]
fn no_program_walks_much_more_than_is_written_down() {
    let record: BTreeMap<String, BTreeMap<String, u32>> = toml::from_str(RECORD).unwrap();
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel = release.split('.').take(2).collect::<Vec<_>>().join(".");
    let written = record.get(&kernel);
    let pins = PinDir::new();
    let mut problems = Vec::new();
    for (name, walked) in pins.load().verified {
        let walked = walked.expect("the kernel tells what the verifier walked");
        let before = written.and_then(|programs| programs.get(name));
        say(&kernel, name, walked, before);
        if walked >= BUDGET {
            problems.push(format!("{name}: {walked} of at most {BUDGET}"));
        }
        match before {
            Some(before) if walked > before + before / 10 => {
                problems.push(format!("{name}: {walked}, {before} are written down"));
            }
            None if written.is_some() => problems.push(format!("{name}: {walked}, nothing is written down")),
            _ => {}
        }
    }
    assert!(problems.is_empty(), "instructions walked on Linux {kernel}, see lb-ebpf/verified.toml: {problems:#?}");
}

/// Past the test harness, which shows what a test prints only if it fails.
fn say(kernel: &str, name: &str, walked: u32, before: Option<&u32>) {
    let before = before.map_or_else(|| "not written down".to_owned(), |before| format!("{before} written down"));
    let line = format!("verifier, Linux {kernel}: {name} {walked} instructions, {before}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}
