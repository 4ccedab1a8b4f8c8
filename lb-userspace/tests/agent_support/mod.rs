//! The agent's loop over a data plane in memory, with an outside that only takes notes.

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
        clock::Clock,
        engine::{Engine, Facts},
        layer::LayerFile,
        operations::Operations,
        run_loop::{AgentLoop, Finding, Inputs, Outside, Probed},
    },
    api::{
        Peer, Refusal, Request,
        model::{Change, CommandDone, CommandRequest, ServiceView, Status},
    },
    config::{Backend, Check, Config, Health, Limits, PortRange, Service, XdpMode},
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
    time::Instant,
};
use tokio_util::sync::CancellationToken;

pub const A: &str = "10.0.0.11:8080";
pub const B: &str = "10.0.0.12:8080";

pub fn config(services: Vec<Service>) -> Config {
    Config {
        interfaces: vec!["eth0".to_owned()],
        xdp_mode: XdpMode::Auto,
        manage_addresses: true,
        source_ports: vec![PortRange { first: 1024, last: 61_439 }],
        limits: Limits { selection_slots: 4096, ..Limits::default() },
        maglev_table_size: 251,
        services,
    }
}

/// A TCP service in mode `nat` with a TCP check, `fall` 2 and `rise` 2.
pub fn service(name: &str, listen: &str, backends: &[&str]) -> Service {
    let backend =
        |address: &&str| Backend { address: address.parse().unwrap(), weight: 1, tier: 0, check_address: None };
    Service {
        name: name.to_owned(),
        listen: listen.parse().unwrap(),
        protocol: Protocol::Tcp,
        mode: Mode::Nat,
        scheduler: Scheduler::RoundRobin,
        granularity: Granularity::Flow,
        health: Health {
            check: Check::Tcp,
            interval: Duration::from_millis(500),
            timeout: Duration::from_millis(300),
            ..Health::default()
        },
        role: None,
        backends: backends.iter().map(backend).collect(),
    }
}

pub fn web() -> Config {
    config(vec![service("web", "203.0.113.10:80", &[A, B])])
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
}

/// What the loop asked for.
#[derive(Default)]
pub struct Asked {
    pub probes: Vec<ProbeKey>,
    pub prepared: Vec<Arc<Config>>,
    pub placed: Vec<Arc<Config>>,
    pub pruned: usize,
    pub resolved: Vec<(u32, IpAddr)>,
    pub sweeps: usize,
    pub audits: usize,
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
        let layer = LayerFile::new(state_dir).load().unwrap();
        let mut engine = Engine::new(facts, clock, Arc::new(config), layer, maps.clone()).unwrap();
        engine.publish();
        let (probes, probed) = mpsc::channel(64);
        let (findings, found) = mpsc::channel(64);
        let (requests, inbox) = mpsc::channel(64);
        let (asked, stop) = (Notes::default(), CancellationToken::new());
        let operations = Operations::new(LayerFile::new(state_dir), findings.clone());
        let agent = AgentLoop::new(clock, engine, asked.clone(), operations, stop.clone());
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
        let (reply, answer) = oneshot::channel();
        let request =
            CommandRequest { service: "web".to_owned(), address: address.parse().unwrap(), change, force: false };
        let peer = Peer { uid: 0, pid: Some(1) };
        self.requests.send(Request::Command { request, peer, reply }).await.unwrap();
        answer
    }

    /// As after SIGTERM.
    pub async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}
