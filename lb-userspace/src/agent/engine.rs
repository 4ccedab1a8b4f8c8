//! What the agent knows and does, without waiting for anything: inputs go to the core, and what it
//! decides goes to the data path before the call returns.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use lb_common::{abi::AddressRoles, flow::idle_ticks};
use tokio::time::Instant;

use super::{
    clock::{Clock, micros, timestamp},
    notices::Notices,
    publisher::Publisher,
    receipts::ReceiptBook,
    run_loop::Probed,
};
use crate::{
    api::{
        backend_view,
        model::{
            AgentStatus, BackendView, ConfigStatus, DataPathStatus, DeadManStatus, Failed, InterfaceStatus,
            ProbedChange, ServiceSummary, ServiceView, Status,
        },
        service_view,
    },
    config::Config,
    core::{Command, CommandError, Core, Input, Mark, Notice, Now, OperatorLayer, ProbeKey, Suspect},
    dataplane::{Dataplane, DataplaneError, FlowCensus, kernel},
};

/// Steps in a row when each publication lets the core decide more.
const ROUNDS: usize = 8;

/// What does not change while the agent runs.
#[derive(Clone, Debug)]
pub struct Facts {
    pub config_path: String,
    pub started: String,
    pub interfaces: Vec<InterfaceStatus>,
}

/// Tells cheaply whether the outside has to be asked anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Revisions {
    probes: u64,
    decisions: u64,
}

#[derive(Debug)]
pub struct Engine<D> {
    facts: Facts,
    clock: Clock,
    config: Arc<Config>,
    layer: OperatorLayer,
    core: Core,
    publisher: Publisher<D>,
    pub notices: Notices,
    pub receipts: ReceiptBook,
    /// Decisions that nobody was told of yet: what there is to say can be long, and the maps come first.
    untold: Vec<Notice>,
    /// A decision that probes made and the maps do not hold yet.
    moving: Option<(Notice, Instant)>,
    /// The same, and how long it took until they did.
    moved: Option<(Notice, Duration)>,
    last_change: Option<ProbedChange>,
    reload_failed: Option<Failed>,
    /// Configurations and layers that were taken in.
    decisions: u64,
    live_flows: u64,
    sweep_took: Duration,
}

impl<D: Dataplane> Engine<D> {
    /// Takes over what `dataplane` holds and decides for the first time; nothing is written yet.
    ///
    /// # Errors
    /// The data path cannot be read.
    pub fn new(
        facts: Facts,
        clock: Clock,
        config: Arc<Config>,
        layer: OperatorLayer,
        mut dataplane: D,
    ) -> anyhow::Result<Self> {
        let inherited = dataplane.read()?;
        let core = Core::new(Arc::clone(&config), layer.clone(), &inherited, clock.now());
        Ok(Self {
            facts,
            clock,
            config,
            layer,
            core,
            publisher: Publisher::new(dataplane),
            notices: Notices::default(),
            receipts: ReceiptBook::default(),
            untold: Vec::new(),
            moving: None,
            moved: None,
            last_change: None,
            reload_failed: None,
            decisions: 0,
            live_flows: 0,
            sweep_took: Duration::ZERO,
        })
    }

    /// Goes on with the receipts of an earlier agent.
    pub fn keep_receipts(&mut self, book: ReceiptBook) {
        self.core.number_receipts_after(book.last_id());
        self.receipts = book;
    }

    /// Where the program is, once it is.
    pub fn set_interfaces(&mut self, interfaces: Vec<InterfaceStatus>) {
        self.facts.interfaces = interfaces;
    }

    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub fn layer(&self) -> &OperatorLayer {
        &self.layer
    }

    /// Whether the maps hold what the core wants.
    pub fn in_step(&self) -> bool {
        self.publisher.holds(self.core.desired())
    }

    /// When to call [`Engine::publish`] again, after a failure.
    pub fn retry_at(&self) -> Option<Now> {
        self.publisher.retry_at()
    }

    pub fn last_error(&self) -> Option<&Failed> {
        self.publisher.failed()
    }

    /// Probes that ended, taken in as one change.
    pub fn probed(&mut self, results: impl IntoIterator<Item = Probed>) {
        let before = self.core.desired().generation;
        let mut first_ended = None;
        let inputs: Vec<Input> = results
            .into_iter()
            .map(|Probed { key, outcome, ended }| {
                first_ended = Some(first_ended.map_or(ended, |first: Instant| first.min(ended)));
                Input::Probe { key, outcome }
            })
            .collect();
        let notices = self.core.handle_all(inputs, self.clock.now());
        if self.core.desired().generation != before
            && let (Some(first), Some(ended)) = (notices.first(), first_ended)
        {
            self.moving = Some((first.clone(), ended));
        }
        self.untold.extend(notices);
        self.publish_if_changed(before);
        self.tell();
    }

    /// Source addresses of the host towards backends; `None`: no route.
    pub fn sources(&mut self, found: Vec<(IpAddr, Option<IpAddr>)>) {
        self.take_in(found.into_iter().map(|(backend, source)| Input::Source { backend, source }));
    }

    /// What the data path has seen of backends; their times count from `at` back.
    pub fn suspected(&mut self, suspects: Vec<Suspect>, at: Instant) {
        let since = at.elapsed();
        self.take_in(suspects.into_iter().map(|suspect| Input::Suspect(suspect.later(since))));
    }

    /// Whether packets to one backend may take different ways.
    pub fn routes_vary(&mut self, vary: bool) {
        self.take_in([Input::RoutesVary(vary)]);
    }

    /// A walk over the flow table.
    pub fn census(&mut self, census: FlowCensus, took: Duration) {
        self.live_flows = census.live;
        self.sweep_took = took;
        self.take_in([Input::Flows(census)]);
    }

    /// Services whose next new flow a receipt waits for, by id.
    pub fn awaited_flows(&self) -> BTreeSet<u32> {
        self.core.awaited_flows()
    }

    /// A flow of a service began.
    pub fn flow_begun(&mut self, service_id: u32, at: Instant) {
        let at = self.clock.at(at);
        self.take_in([Input::FlowBegun { service_id, at }]);
    }

    /// No flow of the service begins for so long; `None`: flows begin again.
    pub fn freeze(&mut self, service: String, lasts: Option<Duration>) {
        let input = match lasts {
            Some(lasts) => {
                let nanos = u64::try_from(lasts.as_nanos()).unwrap_or(u64::MAX);
                let tick = kernel::tick().wrapping_add(idle_ticks(nanos));
                Input::Freeze { service, lasts, tick }
            }
            None => Input::Thaw { service },
        };
        self.take_in([input]);
    }

    /// When [`Engine::tick`] is wanted.
    pub fn wake_at(&self) -> Option<Now> {
        self.core.wake_at()
    }

    /// A time has come that the core waits for.
    pub fn tick(&mut self) {
        self.take_in([Input::Tick]);
    }

    /// A configuration, a layer or both, already checked against what runs, and stored: one change.
    pub fn take_over(&mut self, config: Option<Arc<Config>>, layer: Option<OperatorLayer>) {
        let mut inputs = Vec::new();
        if let Some(config) = config {
            self.config = Arc::clone(&config);
            inputs.push(Input::Config(config));
        }
        if let Some(layer) = layer {
            self.layer = layer.clone();
            inputs.push(Input::Operator(layer));
        }
        if !inputs.is_empty() {
            self.decisions += 1;
            self.take_in(inputs);
        }
    }

    /// Tells that a configuration was taken over from `source`, by whom.
    pub fn taken_over(&mut self, source: &str, by: &str) {
        self.reload_failed = None;
        self.notices.info(format!("the configuration was taken over from {source} (by {by})"));
    }

    /// Tells that the last change of the configuration was taken back.
    pub fn rolled_back(&mut self, source: &str, why: &str) {
        self.notices
            .warning(format!("the last change of the configuration was taken back, {source} runs again: {why}"));
    }

    /// A configuration that could not be taken over.
    pub fn configuration_refused(&mut self, error: String) {
        self.notices.warning(format!("the configuration stays as it was: {error}"));
        self.reload_failed = Some(Failed { at: timestamp(), error });
    }

    /// What `commands` make of the layer; nothing is changed.
    ///
    /// # Errors
    /// Why the core refuses them.
    pub fn plan_commands(&self, commands: &[Command], mark: &Mark, force: bool) -> Result<OperatorLayer, CommandError> {
        self.core.apply_commands(&self.layer, commands, mark, force)
    }

    /// A copy of the core to try a change on, and its time.
    pub fn copy_to_try(&self) -> (Box<Core>, Now) {
        (Box::new(self.core.clone()), self.clock.now())
    }

    /// Changes of configuration and layer so far.
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// Reads the data path anew and mends what differs.
    pub fn full_sync(&mut self) {
        self.publisher.forget();
        self.publish();
    }

    /// Brings the maps to what the core wants.
    pub fn publish(&mut self) {
        self.bring_into_step();
        self.tell();
    }

    fn bring_into_step(&mut self) {
        for _ in 0..ROUNDS {
            let desired = self.core.desired();
            let generation = desired.generation;
            let began = Instant::now();
            match self.publisher.step(desired, self.core.touched(), self.clock.now()) {
                Ok(operations) => {
                    if operations > 0 {
                        tracing::debug!(generation, operations, took = ?began.elapsed(), "maps published");
                    }
                }
                Err(error) => {
                    tracing::error!(generation, %error, "the maps could not be brought up to date: trying again");
                    return;
                }
            }
            self.note_moved();
            self.untold.extend(self.core.handle(Input::Published { generation }, self.clock.now()));
            if self.in_step() {
                return;
            }
        }
    }

    /// Gives the data path a sign of life.
    ///
    /// # Errors
    /// It did not get it.
    pub fn beat(&mut self) -> Result<(), DataplaneError> {
        self.publisher.beat(&self.config.dead_man)
    }

    /// What the prober should ask.
    pub fn probes(&self) -> Vec<ProbeKey> {
        self.core.probes()
    }

    /// Others whenever [`Engine::probes`] or [`Engine::wanted_sources`] may have changed.
    pub fn revisions(&self) -> Revisions {
        Revisions { probes: self.core.probes_revision(), decisions: self.decisions }
    }

    /// Backends whose source address the core wants to know.
    pub fn wanted_sources(&self) -> Vec<IpAddr> {
        self.core.wanted_sources()
    }

    /// Addresses that clients connect to.
    pub fn service_addresses(&self) -> BTreeSet<IpAddr> {
        self.config.services.iter().map(|service| service.listen.ip()).collect()
    }

    /// Whether the maps hold none of these service addresses any more.
    pub fn has_left(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        let roles = &self.core.desired().addresses;
        let serves = |ip: &IpAddr| roles.get(&(*ip).into()).is_some_and(|roles| roles.has(AddressRoles::SERVICE));
        self.in_step() && !addresses.iter().any(serves)
    }

    /// Addresses that packets are sent to.
    pub fn backend_addresses(&self) -> BTreeSet<IpAddr> {
        self.core.backend_addresses()
    }

    pub fn services(&self) -> Vec<ServiceView> {
        let now = self.clock.now();
        self.core.view().iter().map(|service| service_view(service, now)).collect()
    }

    /// One service; `None`: none has this name.
    pub fn service(&self, name: &str) -> Option<ServiceView> {
        self.core.service(name).map(|service| service_view(&service, self.clock.now()))
    }

    /// Some backends of one service; `None` for one that it does not have.
    pub fn backends(&self, service: &str, addresses: &[SocketAddr]) -> Vec<Option<BackendView>> {
        let now = self.clock.now();
        let found = self.core.backends(service, addresses);
        found.into_iter().map(|backend| Some(backend_view(service, &backend?, now))).collect()
    }

    /// `config`: where the configuration comes from.
    pub fn status(&self, config: ConfigStatus) -> Status {
        let now = self.clock.now();
        let frozen = |until: Now| u64::try_from(until.saturating_sub(now).as_millis()).unwrap_or(u64::MAX);
        let services = self.core.view().into_iter().map(|service| ServiceSummary {
            frozen_millis: service.frozen_until.map(frozen),
            used: service.backends.iter().filter(|backend| backend.used).count(),
            backends: service.backends.len(),
            active_tier: service.active_tier,
            live_flows: service.live_flows,
            name: service.config.name,
            listen: service.config.listen,
            protocol: service.config.protocol.name().to_owned(),
        });
        Status {
            agent: AgentStatus {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                started: self.facts.started.clone(),
                uptime_seconds: self.clock.now().as_secs(),
                config: self.facts.config_path.clone(),
            },
            data_path: DataPathStatus {
                generation: self.core.desired().generation,
                in_step: self.in_step(),
                last_error: self.publisher.failed().cloned(),
                interfaces: self.facts.interfaces.clone(),
                live_flows: self.live_flows,
                flow_capacity: self.config.limits.flows.into(),
                sweep_micros: micros(self.sweep_took),
                dead_man: DeadManStatus::of(&self.config.dead_man),
                ways: None,
            },
            services: services.collect(),
            config,
            last_change: self.last_change.clone(),
            reload_failed: self.reload_failed.clone(),
            notices: self.notices.views(),
        }
    }

    /// Inputs as one change, all the way to the maps.
    fn take_in(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let before = self.core.desired().generation;
        self.untold.extend(self.core.handle_all(inputs, self.clock.now()));
        self.publish_if_changed(before);
        self.tell();
    }

    /// Says what has been decided, after the maps hold it or could not be made to.
    fn tell(&mut self) {
        for receipt in self.core.take_receipts() {
            self.receipts.take(&receipt, &self.clock);
        }
        for notice in std::mem::take(&mut self.untold) {
            self.notices.decision(&notice);
        }
        if let Some((notice, took)) = self.moved.take() {
            self.tell_moved(notice, took);
        }
    }

    /// After an input, before which the core wanted the generation `before`.
    fn publish_if_changed(&mut self, before: u32) {
        // After a failure the timer decides when to repeat; a new decision does not wait for it.
        let decided = self.core.desired().generation != before;
        if !self.in_step() && (decided || self.retry_at().is_none()) {
            self.bring_into_step();
        }
    }

    /// The maps hold what probes decided: how long did that take?
    fn note_moved(&mut self) {
        self.moved = self.moving.take().map(|(notice, ended)| (notice, ended.elapsed())).or(self.moved.take());
    }

    fn tell_moved(&mut self, notice: Notice, took: Duration) {
        let Notice { service, backend, text } = notice;
        tracing::info!(
            %service,
            backend = backend.map(tracing::field::display),
            micros = micros(took),
            "in the maps {:.2} ms after the probe",
            took.as_secs_f64() * 1e3
        );
        self.last_change =
            Some(ProbedChange { at: timestamp(), service, backend, text, detect_to_written_micros: micros(took) });
    }
}
