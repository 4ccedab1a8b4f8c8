//! Tiers in a seeded world: servers fail and return, probes get lost, time jumps, services freeze, agents
//! restart. At every moment somebody serves while anybody is ready, as many as are wanted do, nobody
//! waits for ever, and what time alone changes costs few writes.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use lb_common::abi::{Scheduler, ServiceValue};
use lb_userspace::{
    config::Config,
    core::{BackendView, Core, HealthState, Input, Now, OperatorLayer, reconcile::Reconciler},
    dataplane::{Dataplane, Tables, fake::FakeDataplane},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::core_support::{backend, key_of, ok, refused, web};

struct World {
    random: StdRng,
    now: Now,
    config: Config,
    core: Core,
    dataplane: FakeDataplane,
    reconciler: Reconciler,
    alive: BTreeMap<SocketAddr, bool>,
    /// Moments in which a backend was held back, and in which a later tier helped.
    held: u64,
    helped: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut config = web(&[]);
        config.maglev_table_size = 31;
        let service = &mut config.services[0];
        service.scheduler = *Scheduler::ALL.choose(&mut random).unwrap();
        service.failover.min_ready = random.random_range(1..5);
        service.failover.failback_delay = Duration::from_secs(random.random_range(0..30));
        service.failover.slow_start = Duration::from_secs(random.random_range(0..30));
        let count = random.random_range(1..8);
        service.backends = (1..=count)
            .map(|n| backend(&format!("10.0.0.{n}:80"), random.random_range(1..5), random.random_range(0..3)))
            .collect();
        let core = Core::new(Arc::new(config.clone()), OperatorLayer::default(), &Tables::default(), Now::ZERO);
        let mut world = Self {
            random,
            now: Now::ZERO,
            dataplane: FakeDataplane::new(config.limits),
            reconciler: Reconciler::new(),
            alive: BTreeMap::new(),
            config,
            core,
            held: 0,
            helped: 0,
        };
        world.publish();
        world
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..20 => {
                let address = self.config.services[0].backends.choose(&mut self.random).unwrap().address;
                let alive = self.alive.entry(address).or_insert(true);
                *alive = !*alive;
            }
            20..70 => self.probe(),
            70..75 => {
                let lasts = Duration::from_millis(self.random.random_range(1..90_000));
                self.input(Input::Freeze { service: "web".to_owned(), lasts, tick: 7 });
            }
            75..80 => self.input(Input::Thaw { service: "web".to_owned() }),
            80..82 => self.restart(),
            82..84 => self.now += Duration::from_secs(self.random.random_range(0..100_000)),
            _ => {
                let span = Duration::from_millis(self.random.random_range(0..5_000));
                self.pass(span);
            }
        }
        self.check();
    }

    fn probe(&mut self) {
        for key in self.core.probes() {
            if self.random.random_bool(0.6) {
                let alive = *self.alive.get(&key.target).unwrap_or(&true) && self.random.random_bool(0.95);
                self.input(Input::Probe { key, outcome: if alive { ok() } else { refused() } });
            }
        }
    }

    /// Time passes, and the core is woken when it wants to be.
    fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(at) = self.core.wake_at().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let before = self.dataplane.ops.len();
            self.input(Input::Tick);
            let backends = self.config.services[0].backends.len();
            let writes = self.dataplane.ops.len() - before;
            assert!(writes <= 4 + backends, "{writes} writes for what time alone changes");
            assert!(self.core.wake_at().is_none_or(|next| next > self.now), "it wakes for nothing");
        }
        self.now = end;
    }

    fn input(&mut self, input: Input) {
        self.core.handle(input, self.now);
        self.publish();
    }

    fn publish(&mut self) {
        let report =
            self.reconciler.step_touched(&mut self.dataplane, self.core.desired(), self.core.touched()).unwrap();
        self.core.handle(Input::Published { generation: report.generation }, self.now);
    }

    fn restart(&mut self) {
        let inherited = self.dataplane.read().unwrap();
        self.core = Core::new(Arc::new(self.config.clone()), OperatorLayer::default(), &inherited, self.now);
        self.reconciler = Reconciler::new();
        self.publish();
    }

    fn check(&mut self) {
        let service = &self.config.services[0];
        let view = self.core.service("web").unwrap();
        let ready: Vec<&BackendView> = view.backends.iter().filter(|b| b.health == HealthState::Up).collect();
        let used: Vec<&&BackendView> = ready.iter().filter(|backend| backend.used).collect();
        let wanted = ready.len().min(service.failover.min_ready as usize);
        assert!(ready.is_empty() || !used.is_empty(), "nobody serves: {view:#?}");
        let held: Vec<&&BackendView> =
            ready.iter().filter(|backend| backend.used_reason.starts_with("held back")).collect();
        assert!(used.len() + held.len() >= wanted, "{} of {wanted} serve: {view:#?}", used.len());
        assert!(held.iter().all(|backend| !backend.used));
        if let (Some(held), Some(last)) = (held.iter().map(|b| b.tier).max(), used.iter().map(|b| b.tier).max()) {
            assert!(held < last, "held back for an earlier tier: {view:#?}");
        }
        let choices = self.dataplane.choices(&key_of(service)).unwrap().unwrap();
        assert_eq!(choices.live.len(), used.len());
        let parked = self.dataplane.service(&key_of(service)).unwrap().has(ServiceValue::PARKED);
        assert_eq!(parked, view.frozen_until.is_some());
        self.held += held.len() as u64;
        self.helped += u64::from(used.iter().any(|backend| Some(backend.tier) > view.active_tier));
    }

    /// In a calm world everybody of the first tier serves in the end, and nothing waits.
    fn finish(&mut self) {
        self.alive.clear();
        for _ in 0..8 {
            for key in self.core.probes() {
                self.input(Input::Probe { key, outcome: ok() });
            }
        }
        self.pass(Duration::from_secs(200));
        self.check();
        assert_eq!(self.core.wake_at(), None);
        let view = self.core.service("web").unwrap();
        let first = view.backends.iter().map(|backend| backend.tier).min();
        assert!(view.backends.iter().all(|backend| backend.used || Some(backend.tier) != first), "{view:#?}");
        assert!(view.frozen_until.is_none());
    }
}

#[test]
fn somebody_serves_while_anybody_is_ready() {
    let (mut held, mut helped) = (0, 0);
    for seed in 0..200 {
        let told = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            (0..300).for_each(|_| world.step());
            world.finish();
            (world.held, world.helped)
        });
        let Ok(counts) = told else { panic!("seed {seed} failed") };
        held += counts.0;
        helped += counts.1;
    }
    assert!(held > 100 && helped > 100, "nothing happened: {held} {helped}");
}
