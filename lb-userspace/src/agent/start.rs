//! From nothing, or from what an agent before left, to a running agent; and to its end.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    changes::{Author, Changes, Places, Running},
    clock::{Clock, timestamp},
    effective::OwnFile,
    engine::{Engine, Facts},
    file_watch,
    first::{self, First},
    host_task,
    interfaces::Interfaces,
    last_good::Keeper,
    layer::LayerFile,
    lock::AgentLock,
    outside::World,
    receipts::{ReceiptBook, ReceiptFile},
    run_loop::{AgentLoop, Finding, Inputs},
    service_manager::ServiceManager,
    vlan_sync::VlanSync,
};
use crate::{
    api::{self, ApiSocket, Handle, model::InterfaceStatus},
    config::{self, Config},
    core::OperatorLayer,
    dataplane::kernel::{self, Attachment, KernelDataplane, LoadOptions, Loaded, Pins},
    host::{self, Bpffs, Host, Link},
};

/// Messages that may wait for the loop.
const WAITING: usize = 1024;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: PathBuf,
    /// Instead of the file's `interfaces`; empty: the file decides.
    pub interfaces: Vec<String>,
    pub socket: PathBuf,
    pub pin_dir: PathBuf,
    pub state_dir: PathBuf,
    /// Whether other XDP programs on the interfaces are thrown off.
    pub replace: bool,
    /// Whether the XDP program tells every packet.
    pub datapath_log: bool,
}

impl Options {
    fn places(&self) -> Places {
        let own = OwnFile { path: self.config.clone(), interfaces: self.interfaces.clone() };
        Places { own, layer: LayerFile::new(&self.state_dir), keeper: Keeper::new(&self.state_dir) }
    }
}

/// Runs the agent until SIGTERM, SIGINT or a request to stop. The data path stays attached.
///
/// # Errors
/// Something that is needed to start is missing. Where nothing was attached before, nothing is
/// left behind.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    host::check_rights()?;
    // From here on signals wait until the agent is up: none ends it in the middle of its start.
    let signals = Signals::register()?;
    let places = options.places();
    let First { effective, layer, running } = first::choose(&places)?;
    for warning in &effective.warnings {
        tracing::warn!("{}", config::render(std::slice::from_ref(warning), config::ReportStyle::Plain).trim_end());
    }
    let config = effective.config;
    if host::ensure_bpffs(Path::new(host::BPFFS))? == Bpffs::MountedNow {
        tracing::info!(
            "mounted the BPF file system at {}; in a mount namespace of its own (as under `ip netns exec`) it ends with \
             that, and the data path with it",
            host::BPFFS
        );
    }
    let (_lock, socket) = claim(options)?;
    let fresh = kernel::attachments(&Pins::new(&options.pin_dir))?.is_empty();
    let mut host = Host::open(&options.state_dir)?;
    let mut data_path = match bring_up(options, &config, layer, &mut host).await {
        Ok(data_path) => data_path,
        Err(error) if fresh => {
            take_back(options, &mut host).await;
            return Err(error);
        }
        Err(error) => return Err(error),
    };
    take_receipts(options, &mut data_path.engine);
    tell_configuration(&places, &running, &mut data_path.engine);
    serve(options, signals, socket, host, data_path, (places, running)).await
}

/// What earlier agents left. Without it the agent can do its work.
fn take_receipts(options: &Options, engine: &mut Engine<KernelDataplane>) {
    match ReceiptFile::new(&options.state_dir).load() {
        Ok(events) => engine.keep_receipts(ReceiptBook::of(events)),
        Err(error) => engine.notices.warning(format!("receipts of earlier failovers are lost: {error}")),
    }
}

/// It runs now: it is the last good one, or it is not the agent's own.
fn tell_configuration(places: &Places, running: &Running, engine: &mut Engine<KernelDataplane>) {
    if let Some(failed) = &running.fallback {
        engine.notices.logged_warning(format!(
            "the configuration {} is not used, the last good copy runs instead: {}",
            places.own.name(),
            failed.error
        ));
    }
    if let Err(error) = first::keep(places, running) {
        engine.notices.warning(format!("no copy of the configuration could be kept: {error}"));
    }
}

/// What only one agent can have. Bound now, served when there is something to tell: a second agent
/// goes before it has changed anything, and leaves no empty folder of pins.
fn claim(options: &Options) -> anyhow::Result<(AgentLock, ApiSocket)> {
    let Options { pin_dir, state_dir, socket, .. } = options;
    let found = pin_dir.exists();
    std::fs::create_dir_all(pin_dir).with_context(|| format!("making {}", pin_dir.display()))?;
    let claimed = AgentLock::take(state_dir, pin_dir)
        .map_err(anyhow::Error::from)
        .and_then(|lock| Ok((lock, ApiSocket::bind(socket)?)));
    if claimed.is_err() && !found {
        // Only if it is empty: somebody else may have come between.
        drop(std::fs::remove_dir(pin_dir));
    }
    claimed
}

/// A data path that forwards.
struct DataPath {
    clock: Clock,
    engine: Engine<KernelDataplane>,
    loaded: Loaded,
    interfaces: Vec<InterfaceStatus>,
}

/// In this order: the maps say where packets go before the first packet meets the program, and the
/// host has and announces the service addresses when there is a program behind them.
async fn bring_up(
    options: &Options,
    config: &Arc<Config>,
    layer: OperatorLayer,
    host: &mut Host,
) -> anyhow::Result<DataPath> {
    let clock = Clock::start();
    let load = LoadOptions { pin_dir: &options.pin_dir, limits: &config.limits, debug_log: options.datapath_log };
    let prepared = host.ready(config).await?;
    let mut loaded = kernel::load(&load)?;
    if options.replace {
        loaded.replace_others();
    }
    let dataplane = KernelDataplane::open(&options.pin_dir)?;
    let facts =
        Facts { config_path: options.config.display().to_string(), started: timestamp(), interfaces: Vec::new() };
    let mut engine = Engine::new(facts, clock, Arc::clone(config), layer, dataplane)?;
    // The data path may have waited for it since an agent before.
    engine.beat()?;
    let (netlink, excluded) = (host.netlink(), host.managed_addresses());
    engine.sources(host_task::sources(&netlink, engine.wanted_sources(), &excluded).await);
    engine.routes_vary(netlink.routes_vary(engine.backend_addresses()).await?);
    engine.publish();
    if let Some(failed) = engine.last_error() {
        anyhow::bail!("the maps cannot be written: {}", failed.error);
    }
    for warning in VlanSync::open(&options.pin_dir)?.run(&netlink).await {
        engine.notices.warning(warning);
    }
    let links = netlink.below_vlans(&prepared.links).await?;
    let mut interfaces = Vec::new();
    for link in &links {
        host.record().note_attached(&link.name)?;
        interfaces.push(attached(&loaded.attach(&link.name, config.xdp_mode)?));
    }
    engine.set_interfaces(interfaces.clone());
    detach_others(options, &links, host)?;
    loaded.settle()?;
    host.place(config).await?;
    for warning in prepared.warnings {
        engine.notices.logged_warning(warning);
    }
    host_task::warm(&netlink, engine.backend_addresses(), &host.managed_addresses()).await;
    Ok(DataPath { clock, engine, loaded, interfaces })
}

/// Interfaces that an agent before was attached to, and that are configured no more.
fn detach_others(options: &Options, links: &[Link], host: &mut Host) -> anyhow::Result<()> {
    let pins = Pins::new(&options.pin_dir);
    for Attachment { interface, .. } in kernel::attachments(&pins)? {
        if links.iter().all(|link| link.name != interface) {
            kernel::detach_interface(&pins, &interface)?;
            host.record().forget_attached(&interface)?;
            tracing::info!(%interface, "XDP program taken off: the interface is configured no more");
        }
    }
    Ok(())
}

fn attached(attachment: &Attachment) -> InterfaceStatus {
    let Attachment { interface, mode, note, replaced, .. } = attachment;
    let how = if *replaced { "XDP program replaced, without a gap" } else { "XDP program attached" };
    tracing::info!(%interface, mode = mode.name(), "{how}");
    if let Some(note) = note {
        tracing::warn!("{note}");
    }
    InterfaceStatus { name: interface.clone(), xdp_mode: mode.name().to_owned(), note: note.clone() }
}

async fn serve(
    options: &Options,
    signals: Signals,
    socket: ApiSocket,
    host: Host,
    data_path: DataPath,
    (places, running): (Places, Running),
) -> anyhow::Result<()> {
    let DataPath { clock, engine, mut loaded, interfaces } = data_path;
    let stop = CancellationToken::new();
    let (findings, found) = mpsc::channel(WAITING);
    let (requests, asked) = mpsc::channel(WAITING);
    let netlink = host.netlink();
    let (world, probes) = World::start(&options.pin_dir, &options.state_dir, host, findings.clone())?;
    let _log =
        if options.datapath_log { Some(AbortOnDropHandle::new(tokio::spawn(loaded.debug_log()?))) } else { None };
    let config = engine.config();
    let watched = Interfaces::new(loaded, netlink, config.xdp_mode, config.interfaces.clone(), interfaces);
    let _interfaces = AbortOnDropHandle::new(tokio::spawn(watched.run(findings.clone())));
    let Signals { terminate, interrupt, hangup } = signals;
    let _signals = [
        AbortOnDropHandle::new(tokio::spawn(stop_on_signal(terminate, interrupt, stop.clone()))),
        AbortOnDropHandle::new(tokio::spawn(reload_on_signal(hangup, findings.clone()))),
        AbortOnDropHandle::new(tokio::spawn(file_watch::run(places.own.clone(), findings.clone()))),
    ];
    let api = tokio::spawn(api::serve(socket, Handle::new(requests), stop.clone()));
    let changes = Changes::new(places, running, findings);
    let manager = ServiceManager::of_environment();
    tell_ready(options, engine.config(), manager.as_ref());
    tokio::spawn(tell_stopping(stop.clone()));
    let agent = AgentLoop::new(clock, engine, world, changes, stop.clone()).watched_by(manager);
    agent.run(Inputs { probes, findings: found, requests: asked }).await;
    stop.cancel();
    api.await.context("the API's task")?;
    tracing::info!(
        "the agent ends; the data path stays attached and forwards as last decided. `lb detach` takes it off"
    );
    Ok(())
}

fn tell_ready(options: &Options, config: &Config, manager: Option<&ServiceManager>) {
    let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
    tracing::info!(
        services = config.services.len(),
        backends,
        interfaces = config.interfaces.join(","),
        socket = %options.socket.display(),
        "ready"
    );
    if let Some(manager) = manager {
        let (count, interfaces) = (config.services.len(), config.interfaces.join(", "));
        manager.ready(&format!("{count} services with {backends} backends on {interfaces}"));
    }
}

/// The loop, which has the other end, is over by then.
async fn tell_stopping(stop: CancellationToken) {
    stop.cancelled().await;
    if let Some(manager) = ServiceManager::of_environment() {
        manager.stopping();
    }
}

/// After a failed first start: as if it had never been.
async fn take_back(options: &Options, host: &mut Host) {
    if let Err(error) = kernel::detach(&options.pin_dir) {
        tracing::error!("what was begun could not be taken back: {error:#}; try `lb detach`");
    }
    let attached: BTreeSet<String> = host.record().changes().attached.clone();
    for interface in attached {
        if let Err(error) = host.record().forget_attached(&interface) {
            tracing::error!(%error, "the host's record could not be mended");
        }
    }
    for error in host.release().await.failed {
        tracing::error!("what was begun could not be taken back: {error}; try `lb detach`");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn register() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

async fn stop_on_signal(mut terminate: Signal, mut interrupt: Signal, stop: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
    }
    stop.cancel();
}

async fn reload_on_signal(mut hangup: Signal, findings: mpsc::Sender<Finding>) {
    while hangup.recv().await.is_some() {
        tracing::info!("SIGHUP: reading the configuration file");
        if findings.send(Finding::Reload(Author::Signal)).await.is_err() {
            return;
        }
    }
}
