//! What happens in the world: configurations, operators, servers, routes, packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::abi::{BackendState, Mode, Scheduler, ServiceKey, Slot};
use lb_userspace::{
    config::{Check, FlowPolicies, FlowPolicy, Service},
    core::{Command, Core, Input, Suspect, SuspectFor},
    dataplane::{Dataplane, FlowCensus, Tables},
};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};

use super::{
    Packet, Simulation, UNDER_WAY,
    core_support::{SOURCE, backend, key_of, ok, refused, service, slot_entries},
    watched::{Flow, check_flows},
};

impl Simulation {
    pub fn change_config(&mut self) {
        let mut services = self.random_services();
        if self.random.random_bool(0.7) && !self.config.services.is_empty() {
            // Mostly a small change.
            services.truncate(1);
            let taken: BTreeSet<ServiceKey> = services.iter().map(key_of).collect();
            let names: BTreeSet<String> = services.iter().map(|service| service.name.clone()).collect();
            let kept = self.config.services.iter().filter(|s| !taken.contains(&key_of(s)) && !names.contains(&s.name));
            services.extend(kept.cloned());
        }
        self.config.services = services;
        self.input(Input::Config(Arc::new(self.config.clone())));
    }

    pub fn random_services(&mut self) -> Vec<Service> {
        let mut services: BTreeMap<ServiceKey, Service> = BTreeMap::new();
        for n in 0..self.random.random_range(1..6) {
            let port = *[80, 81, 0].choose(&mut self.random).unwrap();
            let listen = format!("203.0.113.{}:{port}", self.random.random_range(1..4));
            let mut service = service(&format!("s{n}"), &listen, &[]);
            let random = &mut self.random;
            service.mode = *Mode::ALL.choose(random).unwrap();
            service.scheduler = *Scheduler::ALL.choose(random).unwrap();
            service.health.fall = random.random_range(1..4);
            service.health.rise = random.random_range(1..4);
            service.failover.flows = random_policies(random);
            service.health.port = (port == 0).then_some(80);
            if random.random_bool(0.1) {
                service.health.check = Check::None;
            }
            let mut addresses = BTreeSet::new();
            for _ in 0..random.random_range(0..6) {
                let port = if port == 0 && random.random_bool(0.7) { 0 } else { random.random_range(80..82) };
                addresses.insert(format!("10.0.0.{}:{port}", random.random_range(1..6)));
            }
            service.backends = addresses
                .iter()
                .map(|address| backend(address, random.random_range(0..6), random.random_range(0..3)))
                .collect();
            services.insert(key_of(&service), service);
        }
        services.into_values().collect()
    }

    pub fn command(&mut self) {
        let Some(config) = self.config.services.choose(&mut self.random).cloned() else { return };
        let random = &mut self.random;
        let service = config.name.clone();
        let known = self.core.service(&service).map(|view| view.backends).unwrap_or_default();
        let known = known.choose(random).map(|backend| backend.address);
        let address = known.unwrap_or_else(|| format!("10.0.0.{}:80", random.random_range(1..9)).parse().unwrap());
        let command = match random.random_range(0..6) {
            0 => Command::Add {
                service,
                address: format!("10.0.0.{}:80", random.random_range(1..9)).parse().unwrap(),
                weight: random.random_range(0..4),
                tier: random.random_range(0..2),
            },
            1 => Command::Remove { service, address },
            2 => Command::Drain { service, address },
            3 => Command::Maintenance { service, address },
            4 => Command::Weight { service, address, weight: random.random_range(0..4) },
            _ => Command::Ready { service, address },
        };
        let force = random.random_bool(0.5);
        let layer = self.core.operator_layer();
        let Ok(layer) = self.core.apply_command(layer, &command, "alice", "now", force) else { return };
        let before = used(&self.core, command.service());
        self.input(Input::Operator(layer));
        if !force && self.roomy && before > 0 {
            assert!(used(&self.core, command.service()) > 0, "{command} emptied the service");
        }
    }

    pub fn flip_a_server(&mut self) {
        let address: SocketAddr =
            format!("10.0.0.{}:{}", self.random.random_range(1..9), self.random.random_range(80..82)).parse().unwrap();
        let alive = self.alive.entry(address).or_insert(true);
        *alive = !*alive;
    }

    /// Results of some probes, one by one or as one change.
    pub fn probe(&mut self) {
        let mut inputs = Vec::new();
        for key in self.core.probes() {
            if self.random.random_bool(0.5) {
                let outcome = if *self.alive.get(&key.target).unwrap_or(&true) { ok() } else { refused() };
                inputs.push(Input::Probe { key, outcome });
            }
        }
        if self.random.random_bool(0.5) {
            self.core.handle_all(inputs, self.now);
            self.check_desired();
        } else {
            inputs.into_iter().for_each(|input| self.input(input));
        }
    }

    /// The data path has seen something, true or not, of some backends.
    pub fn suspect(&mut self) {
        let ids: Vec<u32> = self.core.desired().backends.keys().copied().collect();
        for _ in 0..self.random.random_range(1..4) {
            let Some(&backend_id) = ids.choose(&mut self.random) else { return };
            let seen = match self.random.random_range(0..3) {
                0 => SuspectFor::Refused,
                1 => SuspectFor::Silent { waited: Duration::from_millis(30) },
                _ => SuspectFor::Repeated,
            };
            let clients = self.random.random_range(1..9);
            let (first, answered) = (Duration::from_millis(60), Some(Duration::from_millis(61)));
            self.input(Input::Suspect(Suspect { backend_id, seen, clients, first, answered }));
            self.suspended += self.core.view().iter().flat_map(|s| &s.backends).filter(|b| b.suspended).count() as u64;
        }
    }

    pub fn route(&mut self) {
        for backend in self.core.wanted_sources() {
            let source = match self.random.random_range(0..20) {
                0 => None,
                1 => Some("10.255.0.2".parse().unwrap()),
                2..16 => Some(SOURCE.parse().unwrap()),
                _ => continue,
            };
            self.input(Input::Source { backend, source });
        }
    }

    pub fn walk(&mut self) {
        let mut census = FlowCensus { live: self.flows.len() as u64, ..FlowCensus::default() };
        for flow in &self.flows {
            *census.by_backend.entry(flow.backend).or_default() += 1;
            *census.by_service.entry(flow.service_id).or_default() += 1;
        }
        census.entries = slot_entries(self.dataplane.inner());
        self.input(Input::Flows(census));
    }

    /// Packets of new flows set out.
    pub fn send(&mut self) {
        for _ in 0..self.random.random_range(1..6) {
            let keys = self.dataplane.inner().service_keys();
            let Some(key) = keys.choose(&mut self.random).copied() else { return };
            let value = *self.dataplane.inner().service(&key).unwrap();
            if value.selection_len > 0 {
                let slot = value.selection_base + self.random.random_range(0..value.selection_len);
                self.packets.push(Packet { key, value, slot, since: self.now });
            }
        }
    }

    /// Packets arrive, some at once and some much later: what they name must still be meant.
    pub fn deliver(&mut self) {
        for packet in std::mem::take(&mut self.packets) {
            if self.now > packet.since + UNDER_WAY {
                continue;
            }
            if self.random.random_bool(0.5) {
                self.packets.push(packet);
                continue;
            }
            let fake = self.dataplane.inner();
            let id = fake.slot(packet.slot).unwrap().current();
            if id == Slot::NOBODY {
                continue;
            }
            let backend = *fake.backend(id).unwrap();
            assert_eq!(backend.service_id, packet.value.id, "{packet:?} was sent to another service");
            assert_ne!(backend.state, BackendState::Empty as u8, "{packet:?} found nobody");
            if backend.state != BackendState::Live as u8 || fake.roles(packet.key.address) == 0 {
                continue;
            }
            let full_nat = packet.value.mode == Mode::FullNat as u8;
            self.begun += 1;
            self.flows.push(Flow {
                service_address: packet.key.address,
                service_id: packet.value.id,
                mode: packet.value.mode,
                backend: id,
                generation: backend.generation,
                address: backend.address,
                source: full_nat.then_some(backend.source),
                pool: full_nat.then_some(backend.port_pool),
            });
        }
        // Flows that are over with their backend are ended by their next packet.
        let fake = self.dataplane.inner();
        let before = self.flows.len();
        self.flows.retain(|flow| fake.backend(flow.backend).is_some_and(|b| BackendState::keeps_flows(b.state)));
        self.resets += (before - self.flows.len()) as u64;
        check_flows(self.dataplane.inner(), &self.flows);
    }

    pub fn end_flows(&mut self) {
        let random = &mut self.random;
        self.flows.retain(|_| random.random_bool(0.5));
    }

    /// Every suspended backend that is healthy returns, by its probes alone.
    fn healthy_ones_return(&self) {
        let mut core = self.core.clone();
        for _ in 0..10 {
            for key in core.probes() {
                core.handle(Input::Probe { key, outcome: ok() }, self.now);
            }
        }
        let asked = core.view().into_iter().filter(|service| service.config.health.check != Check::None);
        let suspended: Vec<_> = asked.flat_map(|service| service.backends).filter(|b| b.suspended).collect();
        assert!(suspended.is_empty(), "healthy, and suspended all the same: {suspended:?}");
    }

    /// Faults stop: the maps come right. Then everything goes, and nothing is left behind.
    pub fn finish(&mut self) {
        self.dataplane.chance = 0.0;
        self.reconcile();
        self.reconciler.forget();
        self.reconcile();
        assert_eq!(&self.dataplane.inner_mut().read().unwrap(), self.core.desired());
        self.healthy_ones_return();
        // Whoever was suspected is believed again when nothing more is seen.
        let mut core = self.core.clone();
        for second in 1..40 {
            core.handle(Input::Flows(FlowCensus::default()), self.now + Duration::from_secs(second));
        }
        let suspended = core.view().into_iter().flat_map(|s| s.backends).filter(|b| b.suspended).count();
        assert_eq!(suspended, 0, "suspended for ever");
        self.flows.clear();
        self.packets.clear();
        self.config.services.clear();
        self.input(Input::Config(Arc::new(self.config.clone())));
        for step in 0..24 {
            // Flows without an entry are over when they may have been silent for long enough.
            let idle = if step == 8 { 8000 } else { 0 };
            self.now += Duration::from_millis(1100) + Duration::from_secs(idle);
            self.walk();
            self.reconcile();
        }
        let tables = self.dataplane.inner_mut().read().unwrap();
        let empty = BackendState::Empty as u8;
        assert!(tables.backends.values().all(|backend| backend.state == empty), "{tables:?}");
        let left = Tables { generation: tables.generation, backends: tables.backends.clone(), ..Tables::default() };
        assert_eq!(tables, left);
        assert!(self.core.probes().is_empty() && self.core.wanted_sources().is_empty());
    }
}

fn random_policies(random: &mut StdRng) -> FlowPolicies {
    let mut policy = || *FlowPolicy::ALL.choose(random).unwrap();
    let (on_down, on_demote) = (policy(), policy());
    FlowPolicies { on_down, on_demote, on_drain_timeout: policy(), on_remove: policy() }
}

fn used(core: &Core, service: &str) -> usize {
    core.service(service).map_or(0, |view| view.backends.iter().filter(|backend| backend.used).count())
}
