//! The core, the plan and the reconciler in a seeded world: random configurations, probe results,
//! operators, routes, flows, failing data planes and restarts. After every single write a packet is
//! asked what it would meet; a failure names its seed.

#[path = "../core_support/mod.rs"]
mod core_support;
mod events;
mod roles;
mod tiers;
mod watched;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use core_support::{config, key_of};
use lb_common::abi::{Address, BackendState, EndCause, Mode, Scheduler, ServiceKey, ServiceValue};
use lb_userspace::{
    config::{Check, Config, FlowPolicy, Limits, Service},
    core::{
        Admin, BackendView, Core, HealthState, Input, Now, OperatorLayer, ServiceView, plan, plan_within,
        reconcile::Reconciler,
    },
    dataplane::{Dataplane, Tables, fake::FakeDataplane, faulty::FaultyDataplane},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use watched::{Flow, Watched, choices, slots};

/// A packet that has read its service's value and not yet its slot.
#[derive(Clone, Debug)]
struct Packet {
    key: ServiceKey,
    value: ServiceValue,
    slot: u32,
    since: Now,
}

/// Longest time a packet is under way; shorter than the rest of what it may name.
const UNDER_WAY: Duration = Duration::from_millis(900);

struct Simulation {
    random: StdRng,
    now: Now,
    config: Config,
    core: Core,
    dataplane: FaultyDataplane<FakeDataplane>,
    reconciler: Reconciler,
    alive: BTreeMap<SocketAddr, bool>,
    flows: Vec<Flow>,
    packets: Vec<Packet>,
    /// Limits are wide enough for everything.
    roomy: bool,
    resets: u64,
    /// Backends seen suspended.
    suspended: u64,
    begun: u64,
    /// Plans made from the log of changes alone.
    scoped: u64,
}

impl Simulation {
    fn new(seed: u64, roomy: bool) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut config = config(Vec::new());
        config.maglev_table_size = 31;
        if !roomy {
            config.limits = Limits {
                services: random.random_range(2..6),
                backends: random.random_range(4..14),
                addresses: random.random_range(4..14),
                selection_slots: random.random_range(8..40),
                port_pools: random.random_range(1..5),
                ..config.limits
            };
        }
        let fake = FakeDataplane::new(config.limits);
        let core = Core::new(Arc::new(config.clone()), OperatorLayer::default(), &Tables::default(), Now::ZERO);
        let chance = [0.0, 0.02, 0.2][seed as usize % 3];
        Self {
            dataplane: FaultyDataplane::new(fake, seed, chance),
            reconciler: Reconciler::new(),
            now: Now::ZERO,
            alive: BTreeMap::new(),
            flows: Vec::new(),
            packets: Vec::new(),
            resets: 0,
            suspended: 0,
            begun: 0,
            scoped: 0,
            random,
            config,
            core,
            roomy,
        }
    }

    fn run(&mut self, steps: usize) {
        for _ in 0..steps {
            self.now += Duration::from_millis(self.random.random_range(0..400));
            self.act();
            self.deliver();
            if self.random.random_bool(0.8) {
                self.reconcile();
            }
        }
    }

    fn act(&mut self) {
        match self.random.random_range(0..100) {
            0..6 => self.change_config(),
            6..14 => self.command(),
            14..22 => self.flip_a_server(),
            22..55 => self.probe(),
            55..65 => self.route(),
            65..80 => self.walk(),
            80..90 => self.send(),
            90..94 => self.end_flows(),
            94..97 => self.suspect(),
            97..98 => self.reconciler.forget(),
            _ => self.restart(),
        }
    }

    fn input(&mut self, input: Input) {
        self.core.handle(input, self.now);
        self.check_desired();
    }

    fn reconcile(&mut self) {
        let desired = self.core.desired().clone();
        let before = choices(self.dataplane.inner());
        let mut watched = Watched { inner: &mut self.dataplane, before, desired: &desired, flows: &self.flows };
        if let Some(actual) = self.reconciler.actual()
            && let Some(scope) = self.core.touched().scope_since(actual.generation)
        {
            self.scoped += 1;
            assert_eq!(plan_within(actual, &desired, &scope), plan(actual, &desired), "the log left something out");
        }
        let touched = self.core.touched();
        let Ok(report) = self.reconciler.step_touched(&mut watched, &desired, touched) else { return };
        assert_eq!(self.dataplane.inner_mut().read().unwrap(), desired, "a step that succeeded is complete");
        self.check_served();
        self.input(Input::Published { generation: report.generation });
    }

    /// What the tables say of a backend's flows is what its service's policies want.
    fn check_endings(&self) {
        for view in self.core.view() {
            for backend in &view.backends {
                let Some(entry) = backend.id.map(|id| self.core.desired().backends[&id]) else { continue };
                let flows = view.config.failover.flows;
                let down = (backend.health == HealthState::Down).then_some(flows.on_down);
                let removed = backend.leaving.then_some(flows.on_remove);
                let state = match down.into_iter().chain(removed).min() {
                    Some(FlowPolicy::Reset) => BackendState::Dead,
                    Some(FlowPolicy::Rehome) => BackendState::Moved,
                    Some(FlowPolicy::Keep) if down.is_some() => BackendState::Kept,
                    Some(FlowPolicy::Keep) | None => BackendState::Live,
                };
                assert_eq!(entry.state, state as u8, "{}: {backend:?}", view.config.name);
            }
        }
    }

    /// Every published table lists live backends of its own service, in fair shares.
    fn check_desired(&self) {
        self.check_endings();
        let tables = self.core.desired();
        assert!(plan(tables, tables).is_empty());
        for (key, value) in tables.services.iter().filter(|(_, value)| value.selection_len > 0) {
            let slots = slots(tables, value);
            assert!(slots.is_empty() || slots.len() == value.selection_len as usize, "{key:?}");
            for id in slots {
                let backend = &tables.backends[&id];
                assert_eq!(backend.service_id, value.id, "{key:?}");
                // Without room a table that tells where flows are stays as it is.
                let stays = !self.roomy && value.has(ServiceValue::TRACKED);
                assert!(stays || backend.state == BackendState::Live as u8, "{key:?}");
            }
        }
        let mut extents: Vec<(u32, u32)> = tables.services.values().map(|v| (v.selection_base, v.slots())).collect();
        extents.retain(|(_, len)| *len > 0);
        extents.sort_unstable();
        assert!(extents.is_sorted_by(|(base, len), (next, _)| base + len <= *next), "tables overlap: {extents:?}");
        assert_eq!(tables.selection.len(), extents.len());
    }

    /// The maps are right: who is ready in the lowest tier is in the table, and nobody else.
    fn check_served(&self) {
        for view in self.core.view() {
            let ready = |backend: &&BackendView| {
                !backend.leaving
                    && backend.admin == Admin::Ready
                    && backend.health == HealthState::Up
                    && backend.weight > 0
                    && backend.id.is_some()
                    && backend.used_reason != "no route to it"
            };
            check_suspended(&view, &ready);
            let ready = |backend: &&BackendView| ready(backend) && !backend.suspended;
            let tier = view.backends.iter().filter(ready).map(|backend| backend.tier).min();
            let wanted: BTreeMap<u32, u16> = view
                .backends
                .iter()
                .filter(|backend| ready(backend) && Some(backend.tier) == tier)
                .map(|backend| (backend.id.unwrap(), backend.weight))
                .collect();
            let found = self.dataplane.inner().choices(&key_of(&view.config)).unwrap();
            if !self.roomy {
                // Where flows need no entry, a table that cannot be replaced stays, with all that it names: a
                // shorter one would lose where they are.
                let stays = view.tracking.is_some();
                let ready: BTreeSet<u32> =
                    view.backends.iter().filter(|b| stays || ready(b)).filter_map(|b| b.id).collect();
                assert!(found.unwrap_or_default().live.is_subset(&ready), "{view:?}");
                continue;
            }
            let found = found.unwrap_or_else(|| panic!("{} is not published", view.config.name));
            assert_eq!(found.live, wanted.keys().copied().collect(), "{view:?}");
            assert!(found.dead.is_empty(), "{view:?}");
            check_shares(&view.config, &wanted, &found.slots);
        }
    }

    fn restart(&mut self) {
        // Taking over takes longer than any packet does.
        self.now += Duration::from_secs(1);
        self.packets.clear();
        let inherited = self.dataplane.inner_mut().read().unwrap();
        let layer = self.core.operator_layer().clone();
        if self.random.random_bool(0.3) {
            self.config.services = self.random_services();
        }
        self.core = Core::new(Arc::new(self.config.clone()), layer, &inherited, self.now);
        self.reconciler = Reconciler::new();
        self.check_desired();
        self.check_kept(&inherited);
    }

    /// Services that served and are still configured serve on, with the same ids.
    fn check_kept(&self, inherited: &Tables) {
        for view in self.core.view() {
            let key = key_of(&view.config);
            let Some(old) = inherited.services.get(&key).filter(|old| old.mode == view.config.mode as u8) else {
                continue;
            };
            assert_eq!(view.id, Some(old.id), "{key:?} has another id after a restart");
            for id in slots(inherited, old) {
                let backend = &inherited.backends[&id];
                let Some(kept) = view.backends.iter().find(|kept| !kept.leaving && kept.id == Some(id)) else {
                    continue;
                };
                assert_eq!(Address::from(kept.address.ip()), backend.address);
                if kept.admin == Admin::Ready && view.config.health.check != Check::None {
                    let down = backend.cause == EndCause::Down as u8;
                    let health = if down { HealthState::Down } else { HealthState::Up };
                    assert_eq!(kept.health, health, "{key:?}: {kept:?}");
                }
            }
        }
    }
}

/// Slots in proportion to the weights, each within one of its exact share.
fn check_shares(config: &Service, wanted: &BTreeMap<u32, u16>, slots: &[u32]) {
    let once = matches!(config.scheduler, Scheduler::RoundRobin | Scheduler::LeastConnections);
    let hashed = matches!(config.scheduler, Scheduler::SourceHash | Scheduler::Maglev);
    assert!(slots.len() == 31 || slots.is_empty() || !hashed, "{}: {} slots", config.name, slots.len());
    // In a table of Maglev everybody has a slot first, whatever the weight.
    let tolerated = if hashed { 2.0 } else { 1.0 };
    let weight = |weight: u16| if once { 1.0 } else { f64::from(weight) };
    let sum: f64 = wanted.values().map(|&w| weight(w)).sum();
    for (id, &own) in wanted {
        let found = slots.iter().filter(|slot| *slot == id).count() as f64;
        let share = weight(own) / sum * slots.len() as f64;
        assert!((found - share).abs() <= tolerated, "{}: {found} slots for {share}", config.name);
    }
}

/// A suspended backend is never the last one of its tier, and never one of too many.
fn check_suspended(view: &ServiceView, ready: &impl Fn(&&BackendView) -> bool) {
    let suspended = view.backends.iter().filter(|backend| backend.suspended);
    for backend in suspended.clone() {
        let others = view.backends.iter().filter(|other| other.tier == backend.tier && !other.suspended);
        assert!(others.filter(ready).count() > 0, "{} alone in its tier: {view:?}", backend.address);
        assert!(view.config.passive.enabled && !Mode::is_one_sided(view.config.mode as u8), "{view:?}");
    }
    let all = view.backends.iter().filter(|b| !b.leaving && b.admin == Admin::Ready).count();
    let up = view.backends.iter().filter(|b| !b.leaving && b.admin == Admin::Ready && b.health == HealthState::Up);
    let panic = up.count() * 100 < all * usize::from(view.config.passive.panic_percent);
    assert!(!panic || suspended.count() == 0, "{view:?}");
}

/// Runs 200 seeds, or as many as `LB_SIMULATION_SEEDS` says.
fn simulate(first: u64, roomy: bool) {
    let seeds = std::env::var("LB_SIMULATION_SEEDS").map_or(200, |seeds| seeds.parse().expect("a number of seeds"));
    let (mut begun, mut resets, mut faults, mut scoped, mut suspended) = (0, 0, 0, 0, 0);
    for seed in first..first + seeds {
        let told = std::panic::catch_unwind(|| {
            let mut simulation = Simulation::new(seed, roomy);
            simulation.run(250);
            simulation.finish();
            (simulation.begun, simulation.resets, simulation.dataplane.faults, simulation.scoped, simulation.suspended)
        });
        let Ok(counts) = told else { panic!("seed {seed} failed, roomy {roomy}") };
        begun += counts.0;
        resets += counts.1;
        faults += counts.2;
        scoped += counts.3;
        suspended += counts.4;
    }
    assert!(begun > 100 && resets > 10 && faults > 100, "nothing happened: {begun} {resets} {faults}");
    assert!(suspended > 10, "only {suspended} times a backend was suspended");
    assert!(scoped > 1000, "only {scoped} plans were made from the log");
}

#[test]
fn no_packet_ever_sees_half_a_service() {
    simulate(0, true);
}

#[test]
fn nor_where_everything_is_scarce() {
    simulate(1_000_000, false);
}
