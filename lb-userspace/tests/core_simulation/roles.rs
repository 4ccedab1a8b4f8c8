//! Databases in a seeded world: servers are promoted and demoted, two of them claim to be primary,
//! answers get lost, agents restart, writes fail. After every single write a packet to the writers'
//! service meets at most one server, and never one whose last answer was that it takes no writes.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use lb_userspace::{
    config::{Check, Config, LoginCheck, MaxLag, OnMultiplePrimaries, RolePolicy, Service, WantedRole},
    core::{
        Core, Epoch, Input, Now, OperatorLayer, ProbeKey, ProbeOutcome, Role, RoleReport, plan, reconcile::Reconciler,
    },
    dataplane::{Dataplane, DataplaneError, FlowCensus, Op, Tables, fake::FakeDataplane, faulty::FaultyDataplane},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::core_support::{backend, config, key_of, ok, refused, service};

const WRITERS: &str = "203.0.113.1:5432";
const READERS: &str = "203.0.113.2:5432";

/// A server as it really is.
#[derive(Clone, Debug)]
struct Server {
    role: Role,
    alive: bool,
    position: u64,
    timeline: u64,
}

struct Cluster {
    random: StdRng,
    now: Now,
    config: Config,
    core: Core,
    dataplane: FaultyDataplane<FakeDataplane>,
    reconciler: Reconciler,
    servers: BTreeMap<SocketAddr, Server>,
    /// The last answer that the core was told, by server.
    answers: BTreeMap<SocketAddr, Role>,
    /// How often writers had somebody, and how often several servers claimed to be primary.
    served: u64,
    conflicts: u64,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let addresses: Vec<String> = (1..=random.random_range(2..6)).map(|n| format!("10.0.0.{n}:5432")).collect();
        let config = config(services(&mut random, &addresses));
        let server = Server { role: Role::Replica, alive: true, position: 0, timeline: 1 };
        let servers = addresses.iter().map(|address| (address.parse().unwrap(), server.clone())).collect();
        let core = Core::new(Arc::new(config.clone()), OperatorLayer::default(), &Tables::default(), Now::ZERO);
        let chance = [0.0, 0.05, 0.3][seed as usize % 3];
        Self {
            dataplane: FaultyDataplane::new(FakeDataplane::new(config.limits), seed, chance),
            reconciler: Reconciler::new(),
            now: Now::ZERO,
            answers: BTreeMap::new(),
            served: 0,
            conflicts: 0,
            random,
            config,
            core,
            servers,
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            // Now and then the host sleeps for an hour.
            let pause = if self.random.random_bool(0.005) { 3_600_000 } else { self.random.random_range(0..300) };
            self.now += Duration::from_millis(pause);
            match self.random.random_range(0..100) {
                0..12 => self.change_a_server(),
                12..15 => self.switch_over(),
                15..18 => self.change_policy(),
                18..20 => self.restart(),
                _ => self.probe(),
            }
            if self.random.random_bool(0.8) {
                self.reconcile();
            }
        }
    }

    fn change_a_server(&mut self) {
        let random = &mut self.random;
        let addresses: Vec<SocketAddr> = self.servers.keys().copied().collect();
        let Some(server) = addresses.choose(random).and_then(|address| self.servers.get_mut(address)) else { return };
        match random.random_range(0..4) {
            0 => server.alive = !server.alive,
            1 => server.role = *[Role::Primary, Role::Replica, Role::None].choose(random).unwrap(),
            2 => server.timeline += 1,
            _ => server.position += random.random_range(0..5000),
        }
    }

    /// As a cluster's manager does it: one is demoted, another promoted.
    fn switch_over(&mut self) {
        let next = self.random.random_range(0..self.servers.len());
        for (n, server) in self.servers.values_mut().enumerate() {
            server.role = if n == next { Role::Primary } else { Role::Replica };
            server.timeline += u64::from(n == next);
        }
    }

    fn change_policy(&mut self) {
        let addresses: Vec<String> = self.servers.keys().map(ToString::to_string).collect();
        self.config.services = services(&mut self.random, &addresses);
        self.take_in(Input::Config(Arc::new(self.config.clone())));
    }

    fn restart(&mut self) {
        let inherited = self.dataplane.inner_mut().read().unwrap();
        let layer = self.core.operator_layer().clone();
        self.core = Core::new(Arc::new(self.config.clone()), layer, &inherited, self.now);
        self.reconciler = Reconciler::new();
        // What an earlier agent was told is forgotten with it.
        self.answers.clear();
        self.check();
    }

    /// Results of some probes; some are lost, some come as one change.
    fn probe(&mut self) {
        let mut inputs = Vec::new();
        for key in self.core.probes() {
            if self.random.random_bool(0.6) {
                let outcome = self.outcome(&key);
                if let Some(report) = &outcome.role {
                    self.answers.insert(key.target, report.role);
                }
                inputs.push(Input::Probe { key, outcome });
            }
        }
        if self.random.random_bool(0.5) {
            self.core.handle_all(inputs, self.now);
        } else {
            inputs.into_iter().for_each(|input| self.core.handle(input, self.now).clear());
        }
        self.check();
    }

    fn outcome(&mut self, key: &ProbeKey) -> ProbeOutcome {
        let server = &self.servers[&key.target];
        if !server.alive || self.random.random_bool(0.1) {
            return refused();
        }
        let report = RoleReport {
            position: Some(server.position),
            epoch: Some(Epoch::of("timeline", server.timeline)),
            ..RoleReport::new(server.role, "simulated")
        };
        ProbeOutcome { role: Some(report), ..ok() }
    }

    fn take_in(&mut self, input: Input) {
        self.core.handle(input, self.now);
        self.check();
    }

    fn reconcile(&mut self) {
        let desired = self.core.desired().clone();
        let mut watched = Watched { inner: &mut self.dataplane, config: &self.config };
        if let Ok(report) = self.reconciler.step(&mut watched, &desired) {
            self.take_in(Input::Published { generation: report.generation });
        }
    }

    /// What is decided: one server at most, and one that did not say the contrary.
    fn check(&mut self) {
        let tables = self.core.desired();
        assert!(plan(tables, tables).is_empty());
        for service in self.config.services.iter().filter(|service| wants_primary(service)) {
            let Some(value) = tables.services.get(&key_of(service)).filter(|value| value.selection_len > 0) else {
                continue;
            };
            let slots = &tables.selection[&value.selection_base];
            assert_eq!(slots.len(), 1, "{slots:?}");
            let chosen = &tables.backends[&slots[0].current()];
            let address = SocketAddr::new(chosen.address.into(), chosen.port.get());
            let said = self.answers.get(&address).copied();
            assert!(said.is_none_or(|said| said == Role::Primary), "{address} said {said:?} and is the primary");
            self.served += 1;
        }
        let claims = self.servers.values().filter(|server| server.alive && server.role == Role::Primary).count();
        self.conflicts += u64::from(claims > 1);
    }

    /// Everything calms down: writers find the one primary, readers every replica.
    fn finish(&mut self) {
        self.dataplane.chance = 0.0;
        self.switch_over();
        for server in self.servers.values_mut() {
            (server.alive, server.position) = (true, 100_000);
        }
        for _ in 0..8 {
            for key in self.core.probes() {
                let server = self.servers[&key.target].clone();
                let report =
                    RoleReport { position: Some(server.position), ..RoleReport::new(server.role, "simulated") };
                self.answers.insert(key.target, report.role);
                let outcome = ProbeOutcome { role: Some(report), ..ok() };
                self.core.handle(Input::Probe { key, outcome }, self.now);
            }
            self.now += Duration::from_secs(1);
        }
        self.reconcile();
        for service in &self.config.services {
            let Some(policy) = &service.role else { continue };
            let role = if policy.role == WantedRole::Primary { Role::Primary } else { Role::Replica };
            let view = self.core.service(&service.name).unwrap();
            for backend in view.backends {
                let wanted = self.servers[&backend.address].role == role;
                assert_eq!(backend.used, wanted, "{} {}: {}", service.name, backend.address, backend.used_reason);
            }
        }
    }
}

fn wants_primary(service: &Service) -> bool {
    service.role.as_ref().is_some_and(|policy| policy.role == WantedRole::Primary)
}

/// Writers and readers over the same servers, with a policy that chance decides.
fn services(random: &mut StdRng, addresses: &[String]) -> Vec<Service> {
    let mut database = |name: &str, listen: &str, role| {
        let mut service = service(name, listen, &[]);
        service.backends = addresses.iter().map(|address| backend(address, 1, 0)).collect();
        service.health.check = Check::Postgres(LoginCheck { role: true, ..LoginCheck::default() });
        service.health.fall = random.random_range(1..4);
        service.health.rise = random.random_range(1..4);
        service.role = Some(RolePolicy {
            role,
            max_lag: (role == WantedRole::Replica).then_some(MaxLag::Bytes(2000)),
            replica_fallback: random.random_bool(0.5),
            on_multiple_primaries: *OnMultiplePrimaries::ALL.choose(random).unwrap(),
        });
        service
    };
    vec![database("writers", WRITERS, WantedRole::Primary), database("readers", READERS, WantedRole::Replica)]
}

/// Asks a packet after every write.
struct Watched<'a> {
    inner: &'a mut FaultyDataplane<FakeDataplane>,
    config: &'a Config,
}

impl Dataplane for Watched<'_> {
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError> {
        let result = self.inner.apply(op);
        for service in self.config.services.iter().filter(|service| wants_primary(service)) {
            let Some(choices) = self.inner.inner().choices(&key_of(service)).unwrap() else { continue };
            let several = choices.slots.iter().any(|slot| slot != &choices.slots[0]);
            assert!(!several, "after {op:?} writers may meet {choices:?}");
        }
        result
    }

    fn read(&mut self) -> Result<Tables, DataplaneError> {
        self.inner.read()
    }

    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        self.inner.sweep()
    }

    fn beat(&mut self, rule: &lb_userspace::config::DeadMan) -> Result<(), DataplaneError> {
        self.inner.beat(rule)
    }
}

#[test]
fn writers_never_meet_two_primaries() {
    let seeds = std::env::var("LB_SIMULATION_SEEDS").map_or(300, |seeds| seeds.parse().expect("a number of seeds"));
    let (mut served, mut conflicts, mut faults) = (0, 0, 0);
    for seed in 0..seeds {
        let told = std::panic::catch_unwind(|| {
            let mut cluster = Cluster::new(seed);
            cluster.run(400);
            cluster.finish();
            (cluster.served, cluster.conflicts, cluster.dataplane.faults)
        });
        let Ok(counts) = told else { panic!("seed {seed} failed") };
        served += counts.0;
        conflicts += counts.1;
        faults += counts.2;
    }
    assert!(served > 1000 && conflicts > 1000 && faults > 100, "nothing happened: {served} {conflicts} {faults}");
}
