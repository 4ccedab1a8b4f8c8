//! Many services and backends: a change costs what it concerns, not what there is.

mod core_support;

use std::{net::SocketAddr, time::Instant};

use core_support::{World, backend, config, ok, refused, service};
use lb_common::abi::{BackendState, Scheduler};
use lb_userspace::{
    config::{Config, Limits},
    core::{Command, Input, OperatorLayer},
};

const SERVICES: u32 = 10_000;
const BACKENDS: u32 = 10;

/// 10,000 services with ten backends each; the first one has a thousand, and so has the second, which
/// hashes.
fn large() -> Config {
    let services = (0..SERVICES).map(|n| {
        let listen = format!("203.0.{}.{}:80", n / 250, n % 250 + 1);
        let mut service = service(&format!("s{n}"), &listen, &[]);
        let count = if n == 0 { 1000 } else { BACKENDS };
        service.backends =
            (0..count).map(|b| backend(&format!("10.{}.{}.{}:80", n / 250, n % 250, b % 250), 1, 0)).collect();
        if n == 1 {
            service.scheduler = Scheduler::Maglev;
            service.backends =
                (0..1000).map(|b| backend(&format!("10.200.{}.{}:80", b / 250, b % 250), 1, 0)).collect();
        }
        if n == 0 {
            for (b, backend) in service.backends.iter_mut().enumerate() {
                backend.address.set_port(1000 + b as u16);
            }
        }
        service
    });
    let mut config = config(services.collect());
    config.maglev_table_size = 65_537;
    config.limits =
        Limits { services: 16_384, backends: 131_072, addresses: 131_072, selection_slots: 1 << 20, ..config.limits };
    config
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = work();
    println!("{what}: {:?}", begin.elapsed());
    result
}

#[test]
fn a_change_among_a_hundred_thousand_backends_concerns_its_service_only() {
    let config = large();
    let mut world = timed("configure and publish", || World::new(config.clone()));
    let inputs: Vec<Input> = world.core.probes().into_iter().map(|key| Input::Probe { key, outcome: ok() }).collect();
    timed("all up", || world.core.handle_all(inputs, world.now));
    timed("publish", || world.publish());
    assert_eq!(world.turns("s0").len(), 1000);
    assert_eq!(world.turns("s9999").len(), 10);

    // One backend fails.
    let probe = world.core.probes().into_iter().find(|key| key.target.ip().to_string() == "10.39.249.3").unwrap();
    let done = world.core.published_services();
    timed("one result", || {
        world.core.handle(Input::Probe { key: probe.clone(), outcome: refused() }, world.now);
        world.core.handle(Input::Probe { key: probe, outcome: refused() }, world.now);
    });
    assert_eq!(world.core.published_services() - done, 1);
    world.ops();
    timed("its writes", || world.publish());
    assert_eq!(world.ops(), ["SetBackend", "SetGeneration", "WriteSelection", "SetService"]);

    // One backend is added to a thousand.
    let address: SocketAddr = "10.99.0.1:80".parse().unwrap();
    let add = Command::Add { service: "s0".to_owned(), address, weight: 1, tier: 0 };
    let done = world.core.published_services();
    timed("one backend added", || {
        let layer = world.core.apply_command(&OperatorLayer::default(), &add, "alice", "now", false).unwrap();
        world.core.handle(Input::Operator(layer), world.now);
    });
    assert_eq!(world.core.published_services() - done, 1);
    timed("its writes", || world.publish());

    // One is added to a thousand that are hashed: from the command to the last write.
    let address: SocketAddr = "10.99.0.2:80".parse().unwrap();
    let add = Command::Add { service: "s1".to_owned(), address, weight: 1, tier: 0 };
    let layer = world.core.apply_command(world.core.operator_layer(), &add, "alice", "now", false).unwrap();
    timed("one backend added to a maglev table: the core", || world.core.handle(Input::Operator(layer), world.now));
    timed("its writes", || world.publish());
    let probe = world.core.probes().into_iter().find(|key| key.target == address).unwrap();
    world.ops();
    timed("and it is up: the core", || world.core.handle(Input::Probe { key: probe, outcome: ok() }, world.now));
    timed("its writes", || world.publish());
    assert_eq!(world.ops(), ["SetGeneration", "WriteSelection", "SetService"]);
    assert_eq!(world.turns("s1").len(), 65_537);

    // A rack of a thousand fails at once.
    let rack: Vec<_> = world.core.probes().into_iter().filter(|key| key.target.port() != 80).collect();
    assert_eq!(rack.len(), 1000);
    let results = || rack.iter().map(|key| Input::Probe { key: key.clone(), outcome: refused() });
    let inputs: Vec<Input> = results().chain(results()).collect();
    timed("a rack fails", || world.core.handle_all(inputs, world.now));
    world.ops();
    timed("its writes", || world.publish());
    let dead = |id| world.dataplane.backend(id).unwrap().state == BackendState::Dead as u8;
    let view = world.core.service("s0").unwrap();
    assert_eq!(view.backends.iter().filter(|backend| dead(backend.id.unwrap())).count(), 1000);
    assert_eq!(world.ops().len(), 1000 + 2);

    // A restart finds everything as it is.
    let layer = world.core.operator_layer().clone();
    timed("restart", || world.restart(config, layer));
    assert!(world.ops().is_empty());
}
