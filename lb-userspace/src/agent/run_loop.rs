//! The loop: one task that owns every decision. Nothing in it waits for the network, a disk or
//! another process; such work is given to [`Outside`] and comes back as a [`Finding`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use lb_common::verdict::Reason;
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    changes::{Author, Candidate, Changes, Effect, Job, Step, Stored},
    clock::Clock,
    engine::{Engine, Revisions},
    freeze,
    pulse::Pulse,
    service_manager::ServiceManager,
    watch::{CounterWatch, Once, PAUSE},
};
use crate::{
    api::{
        Refusal, Request, Task, WriteOptions,
        model::{EventView, InterfaceStatus, Stopping, WaysStatus},
    },
    config::Config,
    core::{ProbeKey, ProbeOutcome, Suspect},
    dataplane::{Dataplane, FlowCensus},
};

/// Results taken in as one change, when many arrive together.
const PROBES_AT_ONCE: usize = 1024;
/// Between two questions for the same next hop.
const RESOLVE_PAUSE: Duration = Duration::from_millis(200);
const SWEEP_EVERY: Duration = Duration::from_secs(1);
const SOURCES_EVERY: Duration = Duration::from_secs(10);
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(30);

/// A probe that ended, with the time when it did.
#[derive(Clone, Debug)]
pub struct Probed {
    pub key: ProbeKey,
    pub outcome: ProbeOutcome,
    pub ended: Instant,
}

/// What work outside the loop found.
#[derive(Debug)]
pub enum Finding {
    /// The host's source address towards each backend that was asked for.
    Sources(Vec<(IpAddr, Option<IpAddr>)>),
    /// Whether packets to one backend may take different ways.
    RoutesVary(bool),
    /// A walk over the flow table ended.
    Swept(Result<Swept, String>),
    /// The data path asks for a next hop's link-layer address.
    NeighbourMissing { ifindex: u32, next_hop: IpAddr },
    /// The data path found no source port towards a backend.
    PortsExhausted { backend_id: u32 },
    /// How backends answer the connections of clients speaks against these, as was seen at this time.
    Suspects { suspects: Vec<Suspect>, at: Instant },
    /// A flow of a service began.
    FlowBegun { service_id: u32, at: Instant },
    /// The agent's own file is to be read again.
    Reload(Author),
    /// A configuration was read and tried, or refused.
    Worked(Result<Box<Candidate>, Refusal>),
    /// The host is ready for this configuration, or cannot be made so.
    Prepared { config: Arc<Config>, result: Result<(), String> },
    /// A change was written to disk, or not.
    Stored(Stored),
    /// Where the program is now; `came`: on an interface that was not there before.
    Interfaces { now: Vec<InterfaceStatus>, came: bool },
    /// Something an operator should look at.
    Warning(String),
    /// The same, where it stands in the log already.
    LoggedWarning(String),
    /// Something that was done.
    Info(String),
}

/// One walk over the flow table.
#[derive(Clone, Debug)]
pub struct Swept {
    pub census: FlowCensus,
    pub took: Duration,
    /// Packets by verdict.
    pub verdicts: BTreeMap<Reason, u64>,
}

/// Work that takes its time. No method waits; what comes of it arrives as a [`Finding`] or as
/// [`Probed`].
pub trait Outside {
    /// Ask these, and nothing else.
    fn probe(&mut self, keys: Vec<ProbeKey>);
    /// Find the host's source addresses towards these backends.
    fn find_sources(&mut self, backends: Vec<IpAddr>);
    /// Make the host ready for a configuration; answered by [`Finding::Prepared`].
    fn prepare(&mut self, config: Arc<Config>);
    /// Have and announce the service addresses of a configuration that the maps follow.
    fn place(&mut self, config: Arc<Config>);
    /// Take off the service addresses that the configuration placed last does not have.
    fn prune(&mut self);
    /// Keep the next hops towards these backends resolved, and follow whether the ways to them vary:
    /// answered by [`Finding::RoutesVary`], now and whenever the host's routes have changed.
    fn warm(&mut self, backends: BTreeSet<IpAddr>);
    /// Resolve one next hop now.
    fn resolve(&mut self, ifindex: u32, next_hop: IpAddr);
    /// Walk over the flow table; answered by [`Finding::Swept`] if this returns true.
    fn sweep(&mut self) -> bool;
    /// Look for source ports that no flow holds any more.
    fn audit_ports(&mut self);
    /// Tell the next flow of a service that begins, by its id; answered by [`Finding::FlowBegun`] if one
    /// does.
    fn await_flow(&mut self, service_id: u32);
    /// How probes get to the addresses of services; `None`: none does.
    fn probe_ways(&self) -> Option<WaysStatus> {
        None
    }
    /// Keep these receipts on disk, and no others.
    fn keep_receipts(&mut self, receipts: Vec<EventView>);
}

/// Where inputs come from.
#[derive(Debug)]
pub struct Inputs {
    pub probes: mpsc::Receiver<Probed>,
    pub findings: mpsc::Receiver<Finding>,
    pub requests: mpsc::Receiver<Request>,
}

pub struct AgentLoop<D, O> {
    clock: Clock,
    engine: Engine<D>,
    outside: O,
    changes: Changes,
    asked: Asked,
    /// Addresses of services that are configured no more, until the maps have let go of them.
    leaving: BTreeSet<IpAddr>,
    sweeping: bool,
    counters: CounterWatch,
    exhausted: Once<u32>,
    resolved: Once<(u32, IpAddr)>,
    pulse: Pulse,
    stop: CancellationToken,
}

/// What was last asked of [`Outside`].
#[derive(Default)]
struct Asked {
    revisions: Option<Revisions>,
    sources: Vec<IpAddr>,
    flows: BTreeSet<u32>,
}

impl<D: Dataplane, O: Outside> AgentLoop<D, O> {
    /// `stop` ends the loop, and a request to stop ends it through `stop`.
    pub fn new(clock: Clock, engine: Engine<D>, outside: O, changes: Changes, stop: CancellationToken) -> Self {
        Self {
            clock,
            engine,
            outside,
            changes,
            asked: Asked::default(),
            leaving: BTreeSet::new(),
            sweeping: false,
            counters: CounterWatch::default(),
            exhausted: Once::in_each(PAUSE),
            resolved: Once::in_each(RESOLVE_PAUSE),
            pulse: Pulse::new(None),
            stop,
        }
    }

    /// The same, with signs of life for the service manager too.
    pub fn watched_by(self, manager: Option<ServiceManager>) -> Self {
        Self { pulse: Pulse::new(manager), ..self }
    }

    /// Runs until it is told to stop. What is in the maps stays there.
    pub async fn run(mut self, mut inputs: Inputs) {
        let mut sweeps = every(SWEEP_EVERY);
        let mut sources = every(SOURCES_EVERY);
        let mut housekeeping = every(HOUSEKEEPING_EVERY);
        let mut probed = Vec::with_capacity(PROBES_AT_ONCE);
        self.outside.warm(self.engine.backend_addresses());
        self.sweep();
        loop {
            self.pulse.beat(&mut self.engine);
            self.ask_outside();
            let retry = self.engine.retry_at().map(|at| self.clock.instant(at));
            let due = self.changes.state.wake_at();
            let wake = self.engine.wake_at().map(|at| self.clock.instant(at));
            tokio::select! {
                // Probes first: they move traffic.
                biased;
                () = self.stop.cancelled() => {
                    self.keep_receipts();
                    return;
                }
                1.. = inputs.probes.recv_many(&mut probed, PROBES_AT_ONCE) => self.engine.probed(probed.drain(..)),
                () = wait_until(retry), if retry.is_some() => self.engine.publish(),
                () = wait_until(wake), if wake.is_some() => self.engine.tick(),
                () = wait_until(due), if due.is_some() => {
                    let step = self.changes.due(&mut self.engine);
                    self.follow(step);
                }
                Some(finding) = inputs.findings.recv() => self.found(finding),
                Some(request) = inputs.requests.recv() => self.answer(request),
                () = self.pulse.wake() => {}
                _ = sweeps.tick() => self.sweep(),
                _ = sources.tick() => self.outside.find_sources(self.engine.wanted_sources()),
                _ = housekeeping.tick() => self.keep_house(),
            }
        }
    }

    /// Passes on what has changed of what the outside should do.
    fn ask_outside(&mut self) {
        let revisions = self.engine.revisions();
        if self.asked.revisions != Some(revisions) {
            self.asked.revisions = Some(revisions);
            self.outside.probe(self.engine.probes());
            let sources = self.engine.wanted_sources();
            if sources != self.asked.sources {
                self.asked.sources.clone_from(&sources);
                self.outside.find_sources(sources);
                self.outside.warm(self.engine.backend_addresses());
            }
        }
        let awaited = self.engine.awaited_flows();
        awaited.difference(&self.asked.flows).for_each(|id| self.outside.await_flow(*id));
        self.asked.flows = awaited;
        if !self.leaving.is_empty() && self.engine.has_left(&self.leaving) {
            self.leaving.clear();
            self.outside.prune();
        }
    }

    fn found(&mut self, finding: Finding) {
        match finding {
            Finding::Sources(found) => self.engine.sources(found),
            Finding::RoutesVary(vary) => self.engine.routes_vary(vary),
            Finding::Swept(swept) => self.swept(swept),
            Finding::NeighbourMissing { ifindex, next_hop } => {
                // Each packet to it may have asked.
                if self.resolved.allow((ifindex, next_hop), self.clock.now()) {
                    self.outside.resolve(ifindex, next_hop);
                }
            }
            Finding::PortsExhausted { backend_id } => self.ports_exhausted(backend_id),
            Finding::Suspects { suspects, at } => self.engine.suspected(suspects, at),
            Finding::FlowBegun { service_id, at } => self.engine.flow_begun(service_id, at),
            Finding::Reload(author) => self.reload(author),
            Finding::Worked(result) => {
                let step = self.changes.worked(&mut self.engine, result);
                self.follow(step);
            }
            Finding::Prepared { config, result } => {
                let step = self.changes.prepared(&mut self.engine, &config, result);
                self.follow(step);
            }
            Finding::Stored(stored) => {
                let step = self.changes.stored(&mut self.engine, stored);
                self.follow(step);
            }
            Finding::Interfaces { now, came } => self.interfaces(now, came),
            Finding::Warning(text) => self.engine.notices.warning(text),
            Finding::LoggedWarning(text) => self.engine.notices.logged_warning(text),
            Finding::Info(text) => self.engine.notices.info(text),
        }
    }

    /// An interface that comes back has none of its settings and addresses any more.
    fn interfaces(&mut self, now: Vec<InterfaceStatus>, came: bool) {
        self.engine.set_interfaces(now);
        if came {
            // Nobody waits for this answer: a change under way has a configuration of its own.
            self.outside.prepare(Arc::clone(self.engine.config()));
            self.outside.place(Arc::clone(self.engine.config()));
            self.outside.find_sources(self.engine.wanted_sources());
            self.outside.warm(self.engine.backend_addresses());
        }
    }

    fn answer(&mut self, request: Request) {
        // Whoever asked may be gone by now; that is no concern of ours.
        match request {
            Request::Status(reply) => {
                let config = self.changes.state.status(&self.engine);
                let mut status = self.engine.status(config);
                status.data_path.ways = self.outside.probe_ways();
                drop(reply.send(status));
            }
            Request::Services(reply) => drop(reply.send(self.engine.services())),
            Request::Events(reply) => drop(reply.send(self.engine.receipts.views())),
            Request::Freeze { name, lasts, peer, options, reply } => {
                let answered = freeze::freeze(&mut self.engine, &self.changes.state, name, lasts, peer, &options);
                drop(reply.send(answered));
            }
            Request::Config(reply) => drop(reply.send(self.changes.state.printer(&self.engine))),
            Request::Change { task, peer, options } => {
                let step = self.changes.ask(&mut self.engine, Job { task, author: Author::Peer(peer), options });
                self.follow(step);
            }
            Request::Stop { peer, reply } => {
                tracing::info!(target: "audit", uid = peer.uid, pid = peer.pid, user = peer.name(), "stop");
                drop(reply.send(Stopping { pid: std::process::id() }));
                self.stop.cancel();
            }
        }
    }

    fn keep_receipts(&mut self) {
        if let Some(receipts) = self.engine.receipts.to_store() {
            self.outside.keep_receipts(receipts);
        }
    }

    fn sweep(&mut self) {
        self.keep_receipts();
        // One at a time: a table that takes longer than the interval is walked less often.
        if !self.sweeping {
            self.sweeping = self.outside.sweep();
        }
    }

    fn swept(&mut self, swept: Result<Swept, String>) {
        self.sweeping = false;
        match swept {
            Ok(Swept { census, took, verdicts }) => {
                for warning in self.counters.look(&verdicts, self.clock.now()) {
                    self.engine.notices.warning(warning);
                }
                self.engine.census(census, took);
            }
            Err(error) => tracing::error!(%error, "the flow table could not be swept"),
        }
    }

    fn ports_exhausted(&mut self, backend_id: u32) {
        if !self.exhausted.allow(backend_id, self.clock.now()) {
            return;
        }
        let services = self.engine.services();
        let mut backends = services.iter().flat_map(|service| &service.backends);
        let name = backends
            .find(|backend| backend.id == Some(backend_id))
            .map_or_else(|| format!("backend id {backend_id}"), |b| format!("{} {}", b.service, b.address));
        self.engine.notices.warning(format!(
            "{name}: no source port is left towards it, new flows go elsewhere or fail; add backends or widen `source-ports`"
        ));
    }

    /// The agent's own file, again.
    fn reload(&mut self, author: Author) {
        if author == Author::Watch && !self.engine.config().watch_config {
            return;
        }
        let step =
            self.changes.ask(&mut self.engine, Job { task: Task::Reload, author, options: WriteOptions::default() });
        self.follow(step);
    }

    /// Does what the change under way needs next.
    fn follow(&mut self, mut step: Option<Step>) {
        while let Some(next) = step.take() {
            match next {
                Step::Prepare(config) => self.outside.prepare(config),
                Step::Effect(effect) => {
                    self.put_into_effect(effect);
                    step = self.changes.in_effect(&mut self.engine);
                }
            }
        }
    }

    fn put_into_effect(&mut self, Effect { config, layer }: Effect) {
        let configured = config.is_some();
        if configured {
            self.leaving.extend(self.engine.service_addresses());
        }
        self.engine.take_over(config, layer);
        self.pulse.hurry();
        self.pulse.beat(&mut self.engine);
        if configured {
            for wanted in self.engine.service_addresses() {
                self.leaving.remove(&wanted);
            }
            self.outside.place(Arc::clone(self.engine.config()));
            self.outside.warm(self.engine.backend_addresses());
        }
    }

    fn keep_house(&mut self) {
        self.engine.full_sync();
        // Again: it may have failed, and others change addresses too.
        self.outside.place(Arc::clone(self.engine.config()));
        self.outside.warm(self.engine.backend_addresses());
        self.outside.audit_ports();
    }
}

/// Ticks for the first time after one period.
pub(super) fn every(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

async fn wait_until(instant: Option<Instant>) {
    if let Some(instant) = instant {
        sleep_until(instant).await;
    }
}
