//! A small world around the core: a configuration in short words, a data plane, a clock.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::abi::{Granularity, HashedBy, Mode, Port, Protocol, Scheduler, ServiceKey, ServiceValue};
use lb_userspace::{
    config::{Backend, Check, Clients, Config, Health, Limits, MssClamp, PortRange, Service, Tunnel, XdpMode},
    core::{BackendView, Command, Core, Input, Notice, Now, OperatorLayer, ProbeOutcome, reconcile::Reconciler},
    dataplane::{Dataplane, FlowCensus, SlotEntries, Tables, fake::FakeDataplane},
};

pub const SOURCE: &str = "10.255.0.1";

pub const A: &str = "10.0.0.1:80";
pub const B: &str = "10.0.0.2:80";
pub const C: &str = "10.0.0.3:80";

/// One service, `web`, in mode `nat`.
pub fn web(backends: &[&str]) -> Config {
    config(vec![service("web", "203.0.113.1:80", backends)])
}

/// `web` with two backends in tier 0 and one in tier 1.
pub fn tiers() -> Config {
    let mut config = web(&[]);
    config.services[0].backends = vec![backend(A, 1, 0), backend(B, 1, 0), backend(C, 1, 1)];
    config
}

/// `web` in mode `full-nat`.
pub fn full_nat(backends: &[&str]) -> Config {
    let mut config = web(backends);
    config.services[0].mode = Mode::FullNat;
    config
}

/// Takes a backend of `web` out of turn.
pub fn drain(address: &str) -> Command {
    Command::Drain { service: "web".to_owned(), address: address.parse().unwrap() }
}

/// State of an element of the map `backends`.
pub fn state(world: &World, id: u32) -> u8 {
    world.dataplane.backend(id).unwrap().state
}

pub fn config(services: Vec<Service>) -> Config {
    Config {
        interfaces: vec!["eth0".to_owned()],
        xdp_mode: XdpMode::Auto,
        manage_addresses: true,
        watch_config: false,
        dead_man: lb_userspace::config::DeadMan::default(),
        source_ports: vec![PortRange { first: 1024, last: 65535 }],
        limits: Limits { selection_slots: 4096, ..Limits::default() },
        maglev_table_size: 251,
        services,
    }
}

/// A TCP service in mode `nat`, round robin, with a TCP check (`fall` 2, `rise` 2).
pub fn service(name: &str, listen: &str, backends: &[&str]) -> Service {
    Service {
        name: name.to_owned(),
        listen: listen.parse().unwrap(),
        protocol: Protocol::Tcp,
        mode: Mode::Nat,
        scheduler: Scheduler::RoundRobin,
        granularity: Granularity::Flow,
        tunnel: Tunnel::default(),
        mss_clamp: MssClamp::Off,
        clients: Clients::default(),
        health: Health {
            check: Check::Tcp,
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(300),
            ..Health::default()
        },
        timeouts: lb_common::flow::State::TIMEOUTS,
        passive: lb_userspace::config::Passive::default(),
        quic: lb_userspace::config::Quic::default(),
        role: None,
        failover: lb_userspace::config::Failover::of(lb_common::abi::Protocol::Tcp, None),
        backends: backends.iter().map(|address| backend(address, 1, 0)).collect(),
    }
}

pub fn backend(address: &str, weight: u16, tier: u8) -> Backend {
    Backend { address: address.parse().unwrap(), weight, tier, check_address: None, max_connections: None }
}

pub fn key_of(service: &Service) -> ServiceKey {
    ServiceKey::new(service.listen.ip().into(), Port::new(service.listen.port()), service.protocol as u8)
}

pub fn ok() -> ProbeOutcome {
    ProbeOutcome::new(true, "L4OK", Duration::from_millis(1))
}

pub fn refused() -> ProbeOutcome {
    ProbeOutcome::new(false, "L4CON: Connection refused", Duration::from_millis(1))
}

/// What a walk tells of services whose flows need no entry, where none has one.
pub fn slot_entries(dataplane: &FakeDataplane) -> BTreeMap<u32, SlotEntries> {
    let services = dataplane.service_keys().into_iter().filter_map(|key| dataplane.service(&key));
    let tracked = services.filter(|value| value.has(ServiceValue::TRACKED));
    let entries = |value: &ServiceValue| {
        let by = HashedBy::from_number(value.stable_hash).unwrap();
        (value.id, SlotEntries { by, len: value.stable_len, at: BTreeSet::new() })
    };
    tracked.map(entries).collect()
}

/// A core with its data plane, without faults.
pub struct World {
    pub core: Core,
    pub dataplane: FakeDataplane,
    pub reconciler: Reconciler,
    pub now: Now,
    pub notices: Vec<Notice>,
}

impl World {
    pub fn new(config: Config) -> Self {
        let dataplane = FakeDataplane::new(config.limits);
        let core = Core::new(Arc::new(config), OperatorLayer::default(), &Tables::default(), Now::ZERO);
        let mut world = Self { core, dataplane, reconciler: Reconciler::new(), now: Now::ZERO, notices: Vec::new() };
        world.publish();
        world
    }

    /// A new core over what is in the maps.
    pub fn restart(&mut self, config: Config, layer: OperatorLayer) {
        let inherited = self.dataplane.read().unwrap();
        self.core = Core::new(Arc::new(config), layer, &inherited, self.now);
        self.reconciler = Reconciler::new();
        self.publish();
    }

    pub fn input(&mut self, input: Input) {
        let notices = self.core.handle(input, self.now);
        self.notices.extend(notices);
        self.publish();
    }

    pub fn publish(&mut self) {
        let report =
            self.reconciler.step_touched(&mut self.dataplane, self.core.desired(), self.core.touched()).unwrap();
        self.dataplane.check().unwrap();
        let generation = report.generation;
        let notices = self.core.handle(Input::Published { generation }, self.now);
        self.notices.extend(notices);
    }

    pub fn configure(&mut self, config: Config) {
        self.input(Input::Config(Arc::new(config)));
    }

    /// Results of the probes towards one address; `times` in a row.
    pub fn probe(&mut self, target: &str, outcome: &ProbeOutcome, times: usize) {
        let target: SocketAddr = target.parse().unwrap();
        for _ in 0..times {
            for key in self.core.probes().into_iter().filter(|key| key.target == target) {
                self.input(Input::Probe { key, outcome: outcome.clone() });
            }
        }
    }

    pub fn all_up(&mut self) {
        for key in self.core.probes() {
            self.input(Input::Probe { key, outcome: ok() });
        }
    }

    /// Answers every question for a source address.
    pub fn route_all(&mut self) {
        for backend in self.core.wanted_sources() {
            self.route(backend, Some(SOURCE));
        }
    }

    pub fn route(&mut self, backend: IpAddr, source: Option<&str>) {
        self.input(Input::Source { backend, source: source.map(|source| source.parse().unwrap()) });
    }

    /// Walks that find these flows, by backend; each a good second after the last.
    pub fn walk(&mut self, flows: &[(u32, u64)], times: usize) {
        for _ in 0..times {
            self.now += Duration::from_millis(1100);
            let by_backend: BTreeMap<u32, u64> = flows.iter().copied().collect();
            let mut by_service = BTreeMap::new();
            for (id, flows) in &by_backend {
                let service = self.dataplane.backend(*id).map_or(0, |backend| backend.service_id);
                *by_service.entry(service).or_default() += flows;
            }
            let live = by_backend.values().sum();
            let entries = slot_entries(&self.dataplane);
            self.input(Input::Flows(FlowCensus {
                live,
                aged: 0,
                by_backend,
                by_service,
                entries,
                ..FlowCensus::default()
            }));
        }
    }

    pub fn command(&mut self, command: &Command, force: bool) -> Result<(), String> {
        let layer = self.core.operator_layer().clone();
        let layer = self.core.apply_command(&layer, command, "alice", "2026-01-02T03:04:05Z", force);
        self.input(Input::Operator(layer.map_err(|error| error.to_string())?));
        Ok(())
    }

    pub fn backend(&self, service: &str, address: &str) -> BackendView {
        let address: SocketAddr = address.parse().unwrap();
        let view = self.core.service(service).unwrap();
        view.backends.iter().find(|backend| backend.address == address).unwrap().clone()
    }

    pub fn id(&self, service: &str, address: &str) -> u32 {
        self.backend(service, address).id.unwrap()
    }

    /// Backends that a new flow of the service may get, in the order of the table.
    pub fn turns(&self, service: &str) -> Vec<String> {
        let view = self.core.service(service).unwrap();
        let choices = self.dataplane.choices(&key_of(&view.config)).unwrap().unwrap();
        let name = |id: &u32| {
            let backend = self.dataplane.backend(*id).unwrap();
            SocketAddr::new(backend.address.into(), backend.port.get()).to_string()
        };
        choices.slots.iter().map(name).collect()
    }

    pub fn texts(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notices).into_iter().map(|notice| notice.text).collect()
    }

    pub fn ops(&mut self) -> Vec<String> {
        let ops = std::mem::take(&mut self.dataplane.ops);
        ops.iter().map(|op| format!("{op:?}").split([' ', '(']).next().unwrap().to_owned()).collect()
    }
}
