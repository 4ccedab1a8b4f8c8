//! The work around the loop: probes, the host, walks over the flow table. Each has a task or thread
//! of its own, so that a slow one holds up nothing else.

use std::{collections::BTreeSet, net::IpAddr, path::Path, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    failover_watch::{FlowWatch, ReceiptWriter},
    host_queue::HostQueue,
    host_task::{self, HostJob},
    knock_thread::{KnockThread, KnockWaker},
    receipts::ReceiptFile,
    route_watch,
    run_loop::{Finding, Outside, Probed},
    sweep_thread::{SweepJob, SweepThread},
    vlan_sync::VlanSync,
    way_keeper::WayKeeper,
};
use crate::{
    api::model::{EventView, WaysStatus},
    config::Config,
    core::ProbeKey,
    dataplane::kernel::{DataplaneEvent, Events},
    health::Prober,
    host::Host,
};

/// Jobs that may wait for the host's task, and events that may wait for the loop.
const WAITING: usize = 1024;

/// The real world.
pub struct World {
    prober: Prober,
    host: HostQueue,
    /// Whose ways are looked at.
    ways: watch::Sender<BTreeSet<IpAddr>>,
    sweeps: SweepThread,
    _knocks: KnockThread,
    flows: FlowWatch,
    receipts: ReceiptWriter,
    probe_ways: WayKeeper,
    _tasks: [AbortOnDropHandle<()>; 5],
}

impl World {
    /// Starts everything. What it finds goes to `findings`, results of probes to the receiver that
    /// is returned. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The pinned maps cannot be opened, or a thread cannot be started.
    pub fn start(
        pin_dir: &Path,
        state_dir: &Path,
        host: Host,
        findings: mpsc::Sender<Finding>,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Probed>)> {
        let events = Events::open(pin_dir)?;
        let vlans = VlanSync::open(pin_dir)?;
        let sweeps = SweepThread::start(pin_dir, findings.clone())?;
        let knocks = KnockThread::start(pin_dir, findings.clone())?;
        let flows = FlowWatch::open(pin_dir, findings.clone())?;
        let receipts = ReceiptWriter::start(ReceiptFile::new(state_dir))?;
        let (outcomes, results) = mpsc::channel(WAITING);
        let (probed, probes) = mpsc::channel(WAITING);
        let (jobs, inbox) = mpsc::channel(WAITING);
        let (ways, backends) = watch::channel(BTreeSet::new());
        let spawn = |task| AbortOnDropHandle::new(task);
        let (probe_ways, keeping) = WayKeeper::new(host.netlink(), findings.clone());
        let tasks = [
            spawn(tokio::spawn(keeping)),
            spawn(tokio::spawn(stamp(results, probed))),
            spawn(tokio::spawn(route_watch::run(host.netlink(), backends, findings.clone()))),
            spawn(tokio::spawn(host_task::run(host, vlans, inbox, findings.clone()))),
            spawn(tokio::spawn(pass_events(events, knocks.waker(), findings.clone()))),
        ];
        let host = HostQueue::new(jobs, findings);
        Ok((
            Self {
                prober: Prober::new(outcomes).with_ways(probe_ways.ways()),
                host,
                ways,
                sweeps,
                flows,
                receipts,
                probe_ways,
                _knocks: knocks,
                _tasks: tasks,
            },
            probes,
        ))
    }
}

impl Outside for World {
    fn probe(&mut self, keys: Vec<ProbeKey>) {
        self.probe_ways.keep(&keys);
        self.prober.set(keys);
    }

    fn find_sources(&mut self, backends: Vec<IpAddr>) {
        if !backends.is_empty() {
            self.host.ask(HostJob::Sources(backends));
        }
    }

    fn prepare(&mut self, config: Arc<Config>) {
        self.host.prepare(config);
    }

    fn place(&mut self, config: Arc<Config>) {
        self.host.ask(HostJob::Place(config));
    }

    fn prune(&mut self) {
        self.host.insist(HostJob::Prune);
    }

    fn warm(&mut self, backends: BTreeSet<IpAddr>) {
        self.ways.send_replace(backends.clone());
        self.host.ask(HostJob::Warm(backends));
    }

    fn resolve(&mut self, ifindex: u32, next_hop: IpAddr) {
        self.host.ask(HostJob::Resolve { ifindex, next_hop });
    }

    fn sweep(&mut self) -> bool {
        self.sweeps.ask(SweepJob::Sweep)
    }

    fn audit_ports(&mut self) {
        self.sweeps.ask(SweepJob::Audit);
    }

    fn await_flow(&mut self, service_id: u32) {
        self.flows.watch(service_id);
    }

    fn probe_ways(&self) -> Option<WaysStatus> {
        self.probe_ways.status()
    }

    fn keep_receipts(&mut self, receipts: Vec<EventView>) {
        self.receipts.write(receipts);
    }
}

/// Notes when each probe ended, however long the loop takes to get to it.
async fn stamp(mut results: mpsc::Receiver<(ProbeKey, crate::core::ProbeOutcome)>, probed: mpsc::Sender<Probed>) {
    while let Some((key, outcome)) = results.recv().await {
        if probed.send(Probed { key, outcome, ended: Instant::now() }).await.is_err() {
            return;
        }
    }
}

async fn pass_events(mut events: Events, knocks: KnockWaker, findings: mpsc::Sender<Finding>) {
    loop {
        let finding = match events.next().await {
            Ok(DataplaneEvent::NeighbourMissing { ifindex, address }) => {
                Finding::NeighbourMissing { ifindex, next_hop: address }
            }
            Ok(DataplaneEvent::PortsExhausted { backend_id, .. }) => Finding::PortsExhausted { backend_id },
            Ok(DataplaneEvent::Suspect { backend_id }) => {
                knocks.look_at(backend_id);
                continue;
            }
            Err(error) => {
                let text = format!("the data path's events can no longer be read: {error}; restart the agent");
                drop(findings.send(Finding::Warning(text)).await);
                return;
            }
        };
        if findings.send(finding).await.is_err() {
            return;
        }
    }
}
