//! The agent's loop over a data plane in memory, with an outside that only takes notes.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use lb_common::abi::{Granularity, Mode, Port, Protocol, Scheduler, ServiceKey};
use lb_userspace::{
    agent::{
        changes::{Author, Changes, Places, Running},
        clock::Clock,
        effective::{OwnFile, effective},
        engine::{Engine, Facts},
        last_good::Keeper,
        layer::LayerFile,
        run_loop::{AgentLoop, Finding, Inputs, Outside, Probed},
    },
    api::{
        Handle, Peer, Refusal, Reply, Request, Task, WriteOptions,
        model::{Change, CommandDone, CommandRequest, EventView, ServiceView, Status},
    },
    config::{Backend, Check, Clients, Config, Health, Limits, MssClamp, PortRange, Service, Tunnel, XdpMode},
    core::{ProbeKey, ProbeOutcome},
    dataplane::{
        Dataplane, DataplaneError, FlowCensus, Op, Tables,
        fake::{Choices, FakeDataplane},
        faulty::FaultyDataplane,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

pub const A: &str = "10.0.0.11:8080";
pub const B: &str = "10.0.0.12:8080";

pub fn config(services: Vec<Service>) -> Config {
    Config {
        interfaces: vec!["eth0".to_owned()],
        xdp_mode: XdpMode::Auto,
        manage_addresses: true,
        watch_config: false,
        dead_man: lb_userspace::config::DeadMan::default(),
        source_ports: vec![PortRange { first: 1024, last: 61_439 }],
        limits: Limits { selection_slots: 4096, ..Limits::default() },
        maglev_table_size: 251,
        services,
    }
}

/// A TCP service in mode `nat` with a TCP check, `fall` 2 and `rise` 2.
pub fn service(name: &str, listen: &str, backends: &[&str]) -> Service {
    let backend = |address: &&str| Backend {
        address: address.parse().unwrap(),
        weight: 1,
        tier: 0,
        check_address: None,
        max_connections: None,
    };
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
        backends: backends.iter().map(backend).collect(),
    }
}

pub fn web() -> Config {
    config(vec![service("web", "203.0.113.10:80", &[A, B])])
}

/// A change of the backend A of `web`.
pub fn request(change: Change) -> CommandRequest {
    CommandRequest {
        service: "web".to_owned(),
        address: A.parse().unwrap(),
        addresses: Vec::new(),
        change,
        force: false,
        reason: None,
        for_seconds: None,
        drain_seconds: None,
    }
}

pub fn places(dir: &Path) -> Places {
    let own = OwnFile { path: dir.join("lb.toml"), interfaces: Vec::new() };
    Places { own, layer: LayerFile::new(dir), keeper: Keeper::new(dir) }
}

/// The file that says the same, in the words that these tests need.
pub fn text(config: &Config) -> String {
    let names: Vec<String> = config.interfaces.iter().map(|name| format!("{name:?}")).collect();
    let mut text = format!(
        "interfaces = [{}]\nwatch-config = {}\ndead-man = \"{}\"\ndead-man-after = \"{}s\"\nsource-ports = \"1024-61439\"\nmaglev-table-size = {}\n[limits]\nselection-slots = {}\nflows = {}\n",
        names.join(", "),
        config.watch_config,
        config.dead_man.policy.name(),
        config.dead_man.after.as_secs(),
        config.maglev_table_size,
        config.limits.selection_slots,
        config.limits.flows,
    );
    for service in &config.services {
        text.push_str(&format!(
            "[[service]]\nname = \"{}\"\nlisten = \"{}\"\nmode = \"nat\"\nscheduler = \"{}\"\n[service.health]\ninterval = \"500ms\"\ntimeout = \"300ms\"\n",
            service.name,
            service.listen,
            service.scheduler.name()
        ));
        for Backend { address, weight, tier, .. } in &service.backends {
            text.push_str(&format!("[[service.backend]]\naddress = \"{address}\"\nweight = {weight}\ntier = {tier}\n"));
        }
    }
    text
}

pub fn write_config(dir: &Path, config: &Config) {
    std::fs::write(dir.join("lb.toml"), text(config)).unwrap();
}

/// A data plane that outlives the agent, and fails when it is told to.
#[derive(Clone)]
pub struct Maps(Arc<Mutex<FaultyDataplane<FakeDataplane>>>);

impl Maps {
    pub fn new() -> Self {
        let fake = FakeDataplane::new(Limits { selection_slots: 4096, ..Limits::default() });
        Self(Arc::new(Mutex::new(FaultyDataplane::new(fake, 1, 0.0))))
    }

    pub fn lock(&self) -> MutexGuard<'_, FaultyDataplane<FakeDataplane>> {
        self.0.lock().unwrap()
    }

    /// Addresses that a new flow to `listen` may go to.
    pub fn choices(&self, listen: &str) -> Vec<SocketAddr> {
        let maps = self.lock();
        let key = key(listen);
        let Choices { slots, .. } = maps.inner().choices(&key).unwrap().unwrap_or_default();
        let address = |id: &u32| {
            let backend = maps.inner().backend(*id).unwrap();
            SocketAddr::new(backend.address.into(), backend.port.get())
        };
        let chosen: BTreeSet<SocketAddr> = slots.iter().map(address).collect();
        chosen.into_iter().collect()
    }
}

pub fn key(listen: &str) -> ServiceKey {
    let listen: SocketAddr = listen.parse().unwrap();
    ServiceKey::new(listen.ip().into(), Port::new(listen.port()), Protocol::Tcp as u8)
}

impl Dataplane for Maps {
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError> {
        self.lock().apply(op)
    }

    fn read(&mut self) -> Result<Tables, DataplaneError> {
        self.lock().read()
    }

    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        self.lock().sweep()
    }

    fn beat(&mut self, rule: &lb_userspace::config::DeadMan) -> Result<(), DataplaneError> {
        self.lock().beat(rule)
    }
}

/// What the loop asked for.
#[derive(Default)]
pub struct Asked {
    pub probes: Vec<ProbeKey>,
    pub prepared: Vec<Arc<Config>>,
    /// How many of these were answered.
    pub answered: usize,
    pub placed: Vec<Arc<Config>>,
    pub pruned: usize,
    pub resolved: Vec<(u32, IpAddr)>,
    pub sweeps: usize,
    pub audits: usize,
    /// Ids of services whose next flow was asked for.
    pub awaited: Vec<u32>,
    pub receipts: Vec<EventView>,
    pub warmed: BTreeSet<IpAddr>,
}

#[derive(Clone, Default)]
pub struct Notes(Arc<Mutex<Asked>>);

impl Notes {
    pub fn lock(&self) -> MutexGuard<'_, Asked> {
        self.0.lock().unwrap()
    }
}

impl Outside for Notes {
    fn probe(&mut self, keys: Vec<ProbeKey>) {
        self.lock().probes = keys;
    }

    fn find_sources(&mut self, _backends: Vec<IpAddr>) {}

    fn prepare(&mut self, config: Arc<Config>) {
        self.lock().prepared.push(config);
    }

    fn place(&mut self, config: Arc<Config>) {
        self.lock().placed.push(config);
    }

    fn prune(&mut self) {
        self.lock().pruned += 1;
    }

    fn warm(&mut self, backends: BTreeSet<IpAddr>) {
        self.lock().warmed = backends;
    }

    fn resolve(&mut self, ifindex: u32, next_hop: IpAddr) {
        self.lock().resolved.push((ifindex, next_hop));
    }

    fn sweep(&mut self) -> bool {
        self.lock().sweeps += 1;
        true
    }

    fn audit_ports(&mut self) {
        self.lock().audits += 1;
    }

    fn await_flow(&mut self, service_id: u32) {
        self.lock().awaited.push(service_id);
    }

    fn keep_receipts(&mut self, receipts: Vec<EventView>) {
        self.lock().receipts = receipts;
    }
}

/// A running loop.
pub struct Agent {
    pub asked: Notes,
    probes: mpsc::Sender<Probed>,
    pub findings: mpsc::Sender<Finding>,
    requests: mpsc::Sender<Request>,
    pub stop: CancellationToken,
    pub task: JoinHandle<()>,
}

impl Agent {
    /// Starts as `lb run` does: takes over what the maps hold and publishes once.
    pub fn start(config: Config, maps: &Maps, state_dir: &Path) -> Self {
        let clock = Clock::start();
        let facts = Facts { config_path: "lb.toml".to_owned(), started: String::new(), interfaces: Vec::new() };
        write_config(state_dir, &config);
        let places = places(state_dir);
        let layer = places.layer.load().unwrap();
        let files = Arc::new(places.own.read().unwrap());
        let effective = effective(&places.own.name(), files, &layer, &[]).unwrap();
        if layer.added_services.is_empty() && layer.removed_services.is_empty() {
            assert_eq!(*effective.config, config, "the text says what was meant");
        }
        let running = Running::now(&effective, "start", None);
        let mut engine = Engine::new(facts, clock, effective.config, layer, maps.clone()).unwrap();
        engine.publish();
        let (probes, probed) = mpsc::channel(64);
        let (findings, found) = mpsc::channel(64);
        let (requests, inbox) = mpsc::channel(64);
        let (asked, stop) = (Notes::default(), CancellationToken::new());
        let changes = Changes::new(places, running, findings.clone());
        let agent = AgentLoop::new(clock, engine, asked.clone(), changes, stop.clone());
        let task = tokio::spawn(agent.run(Inputs { probes: probed, findings: found, requests: inbox }));
        Self { asked, probes, findings, requests, stop, task }
    }

    /// One result of the probe of `backend`, taken in before this returns.
    pub async fn probe(&self, backend: &str, up: bool) {
        self.probe_later(backend, up).await;
        self.status().await;
    }

    pub async fn probe_later(&self, backend: &str, up: bool) {
        let target: SocketAddr = backend.parse().unwrap();
        let key = self.asked.lock().probes.iter().find(|key| key.target == target).cloned();
        let key = key.unwrap_or_else(|| panic!("{backend} is not probed"));
        let result = if up { "L4OK" } else { "L4CON: Connection refused" };
        let outcome = ProbeOutcome::new(up, result, Duration::from_millis(1));
        self.probes.send(Probed { key, outcome, ended: Instant::now() }).await.unwrap();
    }

    /// Every backend up.
    pub async fn all_up(&self, backends: &[&str]) {
        // The loop asks for probes first.
        self.status().await;
        for backend in backends {
            self.probe(backend, true).await;
        }
    }

    pub async fn find(&self, finding: Finding) {
        self.findings.send(finding).await.unwrap();
        self.status().await;
    }

    /// The answer comes after everything that was sent before.
    pub async fn status(&self) -> Status {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Status(reply)).await.unwrap();
        answer.await.unwrap()
    }

    pub async fn services(&self) -> Vec<ServiceView> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Services(reply)).await.unwrap();
        answer.await.unwrap()
    }

    pub async fn command(&self, address: &str, change: Change) -> Result<CommandDone, Refusal> {
        self.begin_command(address, change).await.await.unwrap()
    }

    pub async fn begin_command(
        &self,
        address: &str,
        change: Change,
    ) -> oneshot::Receiver<Result<CommandDone, Refusal>> {
        let request = CommandRequest { address: address.parse().unwrap(), ..request(change) };
        self.ask(WriteOptions::default(), |reply| Task::Command { request, reply }).await
    }

    /// For an API in front of it.
    pub fn handle(&self) -> Handle {
        Handle::new(self.requests.clone())
    }

    /// A change, as root asks for it.
    pub async fn ask<T>(
        &self,
        options: WriteOptions,
        task: impl FnOnce(Reply<T>) -> Task,
    ) -> oneshot::Receiver<Result<T, Refusal>> {
        let (reply, answer) = oneshot::channel();
        let peer = Peer { uid: 0, pid: Some(1) };
        self.requests.send(Request::Change { task: task(reply), peer, options }).await.unwrap();
        answer
    }

    /// The same, with its answer; the host is ready whenever it is asked to be.
    pub async fn change<T>(&self, task: impl FnOnce(Reply<T>) -> Task) -> Result<T, Refusal> {
        let answer = self.ask(WriteOptions::default(), task).await;
        self.answered(answer).await
    }

    pub async fn answered<T>(&self, mut answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => return answered.unwrap(),
                () = self.make_ready() => {}
            }
        }
    }

    /// Answers what the host was asked to be prepared for since the last time.
    pub async fn make_ready(&self) {
        sleep(Duration::from_millis(1)).await;
        let next = {
            let mut asked = self.asked.lock();
            let next = asked.prepared.get(asked.answered).cloned();
            asked.answered += usize::from(next.is_some());
            next
        };
        if let Some(config) = next {
            self.findings.send(Finding::Prepared { config, result: Ok(()) }).await.unwrap();
        }
    }

    /// The configuration that the host was asked to be ready for, as the `count`th.
    pub async fn prepared(&self, count: usize) -> Arc<Config> {
        loop {
            if let Some(config) = self.asked.lock().prepared.get(count - 1) {
                return Arc::clone(config);
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Writes another file, has it read, and waits until that is over.
    pub async fn reload(&self, state_dir: &Path, config: &Config) -> Status {
        write_config(state_dir, config);
        self.reload_as_it_is().await
    }

    pub async fn reload_as_it_is(&self) -> Status {
        let before = self.status().await;
        self.findings.send(Finding::Reload(Author::Signal)).await.unwrap();
        loop {
            self.make_ready().await;
            let status = self.status().await;
            if status.config.revision != before.config.revision || status.reload_failed != before.reload_failed {
                return status;
            }
        }
    }

    /// As after SIGTERM.
    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
