use lb_common::{
    abi::{ABI_VERSION, Settings, names},
    verdict::Stage,
};
use lb_userspace::{
    config::Limits,
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

#[test]
fn ten_thousand_services_with_a_hundred_thousand_backends_and_sixteen_million_flows_fit() {
    let pins = PinDir::new();
    let limits = Limits {
        services: 10_000,
        backends: 100_000,
        addresses: 131_072,
        selection_slots: 1 << 22,
        flows: 1 << 24,
        ..Limits::default()
    };
    drop(pins.try_load(&limits).unwrap());
    assert_eq!(pins.open().read().unwrap(), Default::default());
    for spec in map_specs(&limits).unwrap() {
        assert_eq!(pins.map(spec.name).info().unwrap().max_entries(), spec.max_entries, "{}", spec.name);
    }
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
