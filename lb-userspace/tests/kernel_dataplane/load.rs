use std::os::fd::{AsFd as _, AsRawFd as _};

use lb_common::{
    abi::{ABI_VERSION, Settings, names},
    verdict::Stage,
};
use lb_userspace::{
    config::{Limits, parse},
    dataplane::{
        Dataplane as _, Op,
        kernel::{KernelDataplane, LoadOptions, Pins, detach, load, map_specs},
    },
};

use crate::support::{LIMITS, PinDir, run};

#[test]
fn loading_pins_every_map_with_the_configured_capacity() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    for spec in map_specs(&LIMITS).unwrap() {
        let info = pins.map(spec.name).info().unwrap();
        assert_eq!(info.max_entries(), spec.max_entries, "{}", spec.name);
        assert_eq!(info.name_as_str(), Some(spec.name));
    }
    assert_eq!(pins.map(names::FLOW_WORDS).info().unwrap().max_entries(), LIMITS.flows / 8);
    assert_eq!(pins.map(names::REPLY_WORDS).info().unwrap().max_entries(), LIMITS.flows / 4);
}

#[test]
fn the_default_limits_load() {
    let pins = PinDir::new();
    let loaded = pins.try_load(&Limits::default()).unwrap();
    assert!(loaded.program_id != 0);
    assert_eq!(pins.open().read().unwrap(), Default::default());
}

/// With a service, because a file must have one to be worth loading.
const LARGE: &str = r#"
interfaces = ["eth0"]
[limits]
services = 10000
backends = 100000
addresses = 131072
selection-slots = 4194304
flows = 16777216
[[service]]
name = "web"
listen = "203.0.113.10:80"
[[service.backend]]
address = "10.0.0.11:8080"
"#;

#[test]
fn ten_thousand_services_with_a_hundred_thousand_backends_and_sixteen_million_flows_fit_into_the_memory_that_is_told() {
    let pins = PinDir::new();
    let config = parse("lb.toml", LARGE).expect("a valid file").config;
    drop(pins.try_load(&config.limits).unwrap());
    assert_eq!(pins.open().read().unwrap(), Default::default());
    for spec in map_specs(&config.limits).unwrap() {
        assert_eq!(pins.map(spec.name).info().unwrap().max_entries(), spec.max_entries, "{}", spec.name);
    }
    let summary = config.summary(aya::util::nr_cpus().expect("the number of CPUs"));
    let mut all = 0;
    for map in &summary.maps {
        let taken = memory(&pins, map.name);
        all += taken;
        println!("{:<16} {:>8} KiB told, {:>8} KiB taken", map.name, map.bytes >> 10, taken >> 10);
        // What the kernel needs besides the elements, and whole pages.
        let (told, slack) = (map.bytes as f64, 32_768.0);
        let fits = (told * 0.8 - slack..=told * 1.25 + slack).contains(&(taken as f64));
        assert!(fits, "{}: {told} bytes are told, {taken} are taken", map.name);
    }
    println!("all maps: {} MiB told, {} MiB taken", summary.memory_bytes >> 20, all >> 20);
    let ratio = all as f64 / summary.memory_bytes as f64;
    assert!((0.95..=1.1).contains(&ratio), "{} bytes are told, {all} are taken", summary.memory_bytes);
}

/// Bytes that the kernel says a map takes.
fn memory(pins: &PinDir, name: &str) -> u64 {
    let map = pins.map(name);
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).expect("the memory of a map");
    line.trim().parse().expect("bytes")
}

#[test]
fn maps_and_seed_outlive_the_agent() {
    let pins = PinDir::new();
    let first = pins.load();
    let settings: Settings = pins.array(names::SETTINGS).get(&0, 0).unwrap();
    assert_eq!(settings.abi_version, ABI_VERSION);
    assert_ne!(settings.hash_seed, 0);
    pins.open().apply(&Op::SetGeneration(7)).unwrap();
    drop(first);
    let ids: Vec<_> = names::PINNED.iter().map(|name| pins.map(name).info().unwrap().id()).collect();

    let _second = pins.load();
    let after: Settings = pins.array(names::SETTINGS).get(&0, 0).unwrap();
    assert_eq!(after, Settings { generation: 7, ..settings });
    assert_eq!(pins.open().read().unwrap().generation, 7);
    let again: Vec<_> = names::PINNED.iter().map(|name| pins.map(name).info().unwrap().id()).collect();
    assert_eq!(ids, again, "the maps were made anew");
}

#[test]
fn seeds_differ_between_installations() {
    let (a, b) = (PinDir::new(), PinDir::new());
    let _loaded = (a.load(), b.load());
    let seed = |pins: &PinDir| pins.array::<Settings>(names::SETTINGS).get(&0, 0).unwrap().hash_seed;
    assert_ne!(seed(&a), seed(&b));
}

#[test]
fn other_limits_take_over_what_is_there_or_say_what_to_do() {
    let pins = PinDir::new();
    drop(pins.load());
    let buckets = || pins.map(names::FLOW_WORDS).info().unwrap().max_entries();
    let larger = pins.try_load(&Limits { flows: 1024, ..LIMITS }).unwrap();
    assert_eq!(buckets(), 128);
    // It never was on an interface: everything is as before.
    drop(larger);
    assert_eq!(buckets(), 64);

    let last = LIMITS.backends - 1;
    pins.array::<lb_common::abi::Backend>(names::BACKENDS).set(last, crate::support::BACKEND, 0).unwrap();
    let error = pins.try_load(&Limits { backends: last, ..LIMITS }).err().expect("the last backend has no place");
    let text = format!("{error:#}");
    assert!(text.contains("backends") && text.contains("keep a larger `limits.backends`"), "{text}");
    assert!(text.contains(&format!("the configuration wants {last}")) && text.contains("lb detach"), "{text}");
    // Nothing was changed by the attempt.
    drop(pins.load());
}

#[test]
fn a_pin_of_another_type_is_refused() {
    let pins = PinDir::new();
    drop(pins.load());
    let path = Pins::new(&pins.0).map(names::BACKENDS);
    std::fs::remove_file(&path).unwrap();
    pins.map(names::SERVICES).pin(&path).unwrap();
    let text = format!("{:#}", pins.try_load(&LIMITS).err().expect("a hash map is no array"));
    assert!(text.contains("backends") && text.contains("has type 1, this version needs 2"), "{text}");
}

#[test]
fn a_pin_directory_elsewhere_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let pins = PinDir(directory.path().join("pins"));
    let text = format!("{:#}", pins.try_load(&LIMITS).err().expect("no BPF file system"));
    assert!(text.contains("is not on a BPF file system"), "{text}");
}

#[test]
fn opening_without_pins_names_the_missing_one() {
    let pins = PinDir::new();
    let text = KernelDataplane::open(&pins.0).err().expect("nothing is pinned").to_string();
    assert!(text.contains("settings") && text.contains("lb run"), "{text}");
}

#[test]
fn detach_removes_every_version_and_leaves_other_files_alone() {
    let pins = PinDir::new();
    drop(pins.load());
    let old = pins.0.join("v0");
    std::fs::create_dir(&old).unwrap();
    pins.map(names::SETTINGS).pin(old.join("settings")).unwrap();
    let other = pins.0.join("other");
    pins.map(names::SETTINGS).pin(&other).unwrap();

    let done = detach(&pins.0).unwrap();
    assert_eq!(
        done.pins,
        names::PINNED.len() + Stage::ALL.len() + 3,
        "all maps, the programs, their stages and the old map"
    );
    assert!(other.exists() && !old.exists() && !Pins::new(&pins.0).dir().exists());
    std::fs::remove_file(other).unwrap();
    assert_eq!(detach(&pins.0).unwrap().pins, 0, "a second time there is nothing to do");
    assert!(!pins.0.exists());
}

#[test]
fn bpftool_prints_the_fields_by_name() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    pins.array::<lb_common::abi::Backend>(names::BACKENDS).set(0, crate::support::BACKEND, 0).unwrap();
    let dump = |name: &str| run("bpftool", &["map", "dump", "pinned", Pins::new(&pins.0).map(name).to_str().unwrap()]);
    let backends = dump(names::BACKENDS);
    for field in ["\"generation\": 3", "\"service_id\": 2", "\"port_pool\": 1", "\"address\""] {
        assert!(backends.contains(field), "no {field} in: {}", &backends[..backends.len().min(600)]);
    }
    assert!(dump(names::SETTINGS).contains("\"hash_seed\""));
    assert!(dump(names::VERDICT_STATS).contains("\"packets\""));
}

#[tokio::test]
async fn the_debug_log_costs_nothing_unless_it_is_asked_for() {
    let (quiet, loud) = (PinDir::new(), PinDir::new());
    let options = LoadOptions { pin_dir: &loud.0, limits: &LIMITS, debug_log: true };
    let mut with_log = load(&options).unwrap();
    let without = quiet.load();
    assert!(without.verified[0].1.unwrap() < with_log.verified[0].1.unwrap(), "nothing was pruned");
    let log = with_log.debug_log().unwrap();
    let waited = tokio::time::timeout(std::time::Duration::from_millis(20), log).await;
    assert!(waited.is_err(), "it goes on for as long as the agent does");
}
