//! What came in, which services it concerns, and what follows for the tables.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use lb_common::abi::{Port, ServiceKey};

use super::{
    Input, Notice, Now, OperatorLayer, ProbeKey, Touched, adopt,
    index::Indexes,
    ledger::Ledger,
    publish::{Outcome, Round},
    receipts::Receipts,
    service::{Service, ServiceRef},
};
use crate::{config::Config, dataplane::Tables};

/// Every decision of the agent. Inputs concern few services each; only those are decided anew.
#[derive(Clone, Debug)]
pub struct Core {
    pub(super) config: Arc<Config>,
    pub(super) layer: OperatorLayer,
    pub(super) services: BTreeMap<ServiceRef, Service>,
    /// Configured services by name.
    pub(super) names: BTreeMap<String, ServiceRef>,
    /// Configured services by key.
    pub(super) keys: BTreeMap<ServiceKey, ServiceRef>,
    pub(super) indexes: Indexes,
    pub(super) ledger: Ledger,
    /// To be asked before publishing who of their backends may take new flows.
    pub(super) elections: BTreeSet<ServiceRef>,
    /// To be published before the next answer.
    pub(super) dirty: BTreeSet<ServiceRef>,
    /// When a service is to be decided anew, whatever happens: those few that wait for a time.
    pub(super) timers: BTreeMap<ServiceRef, Now>,
    /// To be tried again when something is handed back.
    starved: BTreeSet<ServiceRef>,
    pub(super) notices: Vec<Notice>,
    pub(super) receipts: Receipts,
    published_services: u64,
    /// When the last walk over the flow table was taken in.
    pub(super) walked_at: Now,
}

impl Core {
    /// Takes over what is in the maps (an earlier agent's work, or nothing): ids, generations, places
    /// of selection tables, port pools, and as far as the maps tell the health of backends. What is
    /// in the maps and not configured leaves as if it had just been removed.
    ///
    /// Limits are those of `config` for the whole life of the core, as they are of the maps.
    pub fn new(config: Arc<Config>, operator: OperatorLayer, inherited: &Tables, now: Now) -> Self {
        let mut ledger = Ledger::new(&config.limits, &config.source_ports, inherited);
        let services = adopt::adopt(inherited, &mut ledger, now);
        ledger.set_ports(&config.source_ports);
        let mut core = Self {
            config: Arc::clone(&config),
            layer: operator,
            elections: BTreeSet::new(),
            dirty: services.keys().copied().collect(),
            timers: BTreeMap::new(),
            services,
            names: BTreeMap::new(),
            keys: BTreeMap::new(),
            indexes: Indexes::default(),
            ledger,
            starved: BTreeSet::new(),
            notices: Vec::new(),
            receipts: Receipts::default(),
            published_services: 0,
            walked_at: now,
        };
        core.configure(config, now);
        core.inherit_roles();
        if core.anything_leaves() {
            // What leaves waits for a generation that no longer offers it.
            core.ledger.touch();
        }
        core.settle(now);
        // At the start everything is new; only what went wrong is news.
        core.notices = core.problems();
        core
    }

    /// Takes one input in. Returns what is worth telling about its consequences.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Notice> {
        self.handle_all([input], now)
    }

    /// Takes several inputs in, as one change with one generation. Where many results arrive
    /// together (a rack fails) this makes one selection table of each service instead of many.
    pub fn handle_all(&mut self, inputs: impl IntoIterator<Item = Input>, now: Now) -> Vec<Notice> {
        for input in inputs {
            match input {
                Input::Config(config) => self.configure(config, now),
                Input::Operator(layer) => self.operate(layer, now),
                Input::Probe { key, outcome } => self.probed(&key, &outcome, now),
                Input::Source { backend, source } => self.source_found(backend, source),
                Input::RoutesVary(vary) => self.ledger.set_routes_vary(vary),
                Input::Flows(census) => self.walked(census, now),
                Input::Suspect(suspect) => self.suspected(&suspect, now),
                Input::Published { generation } => {
                    self.ledger.publish(generation, now);
                    self.receipts_published(generation, now);
                }
                Input::FlowBegun { service_id, at } => self.flow_begun(service_id, at),
                Input::Freeze { service, lasts, tick } => self.freeze(&service, lasts, tick, now),
                Input::Thaw { service } => self.thaw(&service),
                Input::Tick => {}
            }
        }
        self.settle(now);
        std::mem::take(&mut self.notices)
    }

    /// The probes to run: each one once, however many backends it answers for. None for backends in
    /// maintenance; leaving ones are probed until their flows are over, so that those are reset when
    /// the backend dies.
    pub fn probes(&self) -> Vec<ProbeKey> {
        self.indexes.probes.keys().cloned().collect()
    }

    /// Raised whenever [`Core::probes`] changes.
    pub fn probes_revision(&self) -> u64 {
        self.indexes.probes_revision
    }

    /// Addresses of backends in `full-nat` and tunnels: the host's source address towards each is wanted as
    /// [`Input::Source`], at once and whenever it changes.
    pub fn wanted_sources(&self) -> Vec<IpAddr> {
        self.indexes.hosts.keys().copied().collect()
    }

    /// What should be in the maps.
    pub fn desired(&self) -> &Tables {
        self.ledger.desired()
    }

    /// What changed in [`Core::desired`] since a generation that the maps held.
    pub fn touched(&self) -> &Touched {
        self.ledger.touched()
    }

    /// When [`Input::Tick`] is wanted, at the latest.
    pub fn wake_at(&self) -> Option<Now> {
        self.timers.values().min().copied()
    }

    /// How often a service was decided anew since the start: the work done.
    pub fn published_services(&self) -> u64 {
        self.published_services
    }
}

impl Core {
    fn source_found(&mut self, backend: IpAddr, source: Option<IpAddr>) {
        // A source of the other family cannot be: as good as none.
        let source = source.filter(|source| source.is_ipv4() == backend.is_ipv4());
        if self.ledger.sources.insert(backend, source) != Some(source) {
            self.dirty.extend(self.indexes.hosts.concerned(&backend));
        }
    }

    /// Publishes every service that something has changed for, and closes the generation.
    fn settle(&mut self, now: Now) {
        self.thaw_due(now);
        self.dirty.extend(self.timers.iter().filter(|(_, at)| **at <= now).map(|(me, _)| *me));
        self.hold_elections();
        if self.ledger.release(now) {
            self.dirty.append(&mut self.starved);
        }
        while let Some(me) = self.dirty.pop_first() {
            let keeps_key = self.keeps_key(me);
            let Some(service) = self.services.get_mut(&me) else { continue };
            self.published_services += 1;
            let held = service.holds_address;
            let mut round = Round {
                ledger: &mut self.ledger,
                indexes: &mut self.indexes,
                notices: &mut self.notices,
                now,
                maglev_table: self.config.maglev_table_size,
            };
            let outcome = round.publish(me, service, keeps_key);
            let took_address = service.holds_address != held;
            self.note_use(me, now);
            if took_address {
                self.wake_leaving(me);
            }
            match outcome {
                Outcome::Done => _ = self.starved.remove(&me),
                Outcome::Starved => _ = self.starved.insert(me),
                Outcome::Over => {
                    self.starved.remove(&me);
                    self.services.remove(&me);
                }
            }
            self.set_timer(me);
        }
        self.ledger.close_round();
    }

    /// Follows what a service that was just published waits for.
    fn set_timer(&mut self, me: ServiceRef) {
        let service = self.services.get(&me);
        let thaws = service.and_then(|service| service.frozen).map(|frozen| frozen.until);
        match service.and_then(|service| service.due).into_iter().chain(thaws).min() {
            Some(at) => _ = self.timers.insert(me, at),
            None => _ = self.timers.remove(&me),
        }
    }

    /// A key of this address was taken or given up: leaving services there may have to let go of
    /// theirs, or to take it for their flows.
    fn wake_leaving(&mut self, me: ServiceRef) {
        let first = ServiceRef { key: ServiceKey::new(me.key.address, Port::ANY, 0), mode: 0, leftover: 0 };
        let here = self.services.range(first..).take_while(|(other, _)| other.key.address == me.key.address);
        let leaving = here.filter(|(other, service)| **other != me && service.leaving.is_some());
        self.dirty.extend(leaving.map(|(other, _)| *other));
    }

    /// A configured service has its key. A leaving one has it too, with an empty table, because the
    /// data path finds flows only behind a key; unless a configured service takes those packets.
    fn keeps_key(&self, me: ServiceRef) -> bool {
        let Some(service) = self.services.get(&me) else { return false };
        if service.leaving.is_none() {
            return true;
        }
        let published = |key| {
            let configured = self.keys.get(key).and_then(|other| self.services.get(other));
            configured.is_some_and(|other| other.holds_address)
        };
        let known = me.leftover == 0 && service.id.is_some();
        let free = self.ledger.owner(&me.key).is_none_or(|owner| Some(owner) == service.id);
        let taken = published(&me.key) || published(&ServiceKey { port: Port::ANY, ..me.key });
        known && free && !taken && self.ledger.roles.fits(me.key.address)
    }

    fn anything_leaves(&self) -> bool {
        let leaves = |service: &Service| {
            let waits = service.leaving.is_some() || service.tracked.is_some();
            waits || service.members.iter().any(|member| member.leaving.is_some())
        };
        self.ledger.sources_leave() || self.services.values().any(leaves)
    }

    fn problems(&self) -> Vec<Notice> {
        let mut notices = Vec::new();
        for service in self.services.values() {
            let mut tell = |backend, problem: &Option<String>| {
                if let Some(text) = problem.clone() {
                    notices.push(Notice { service: service.name().to_owned(), backend, text });
                }
            };
            tell(None, &service.problem);
            service.members.iter().for_each(|member| tell(Some(member.address), &member.problem));
        }
        notices
    }
}
