//! Walks over the flow table: ageing, counting, and the audit that mends what a crash left behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::AsFd as _,
    path::Path,
};

use aya::maps::{MapData, PerCpuArray};
use lb_common::{
    abi::{Backend, BackendCounters, BackendState, Flow, Mode, ServiceInfo, ServiceKey, ServiceValue, names},
    flow::{ReplyWord, State},
};

use super::{
    batch,
    ending::{Endings, Fate},
    flow_table::{FlowTable, owns},
    maps::{List, Table, cpus, open, open_per_cpu, open_shared},
    pins::Pins,
    ports::{OwnedPorts, Pools},
    slots::Slots,
};
use crate::dataplane::{DataplaneError, EndedFlows, FlowCensus, KnockCounts};

/// Ages flows. Independent of [`super::KernelDataplane`], so that a long walk can have a thread of
/// its own.
pub struct Sweeper {
    table: FlowTable,
    backends: List<Backend>,
    services: Table<ServiceKey, ServiceValue>,
    service_info: List<ServiceInfo>,
    stats: PerCpuArray<MapData, BackendCounters>,
    /// The same, to be read at once.
    counters: MapData,
    cpus: usize,
    endings: Endings,
    pools: Pools,
    pool_count: u32,
    /// What the last audit found without an owner.
    suspect_ports: BTreeSet<(u32, u16)>,
    suspect_replies: BTreeSet<(u32, u64)>,
}

/// What an audit has freed: found without an owner twice in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Source ports.
    pub ports: u64,
    /// Words of the reply table.
    pub replies: u64,
}

impl Sweeper {
    /// From the pins of a data path that was loaded before, also by another process.
    ///
    /// # Errors
    /// A map is not pinned or may not be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        Self::from_pins(&Pins::new(pin_dir))
    }

    pub(super) fn from_pins(pins: &Pins) -> Result<Self, DataplaneError> {
        let pools = open_shared(pins, names::PORT_POOLS)?;
        Ok(Self {
            table: FlowTable::open(pins)?,
            backends: List::open(pins, names::BACKENDS)?,
            services: Table::open(pins, names::SERVICES)?,
            service_info: List::open(pins, names::SERVICE_INFO)?,
            stats: open_per_cpu(pins, names::BACKEND_STATS)?,
            counters: open(pins, names::BACKEND_STATS)?.0,
            cpus: cpus()?,
            endings: Endings::default(),
            pool_count: pools.len(),
            pools: Pools(pools),
            suspect_ports: BTreeSet::new(),
            suspect_replies: BTreeSet::new(),
        })
    }

    /// Removes flows that were idle for too long and ways that somebody left busy; counts the rest.
    /// Brings connections that are over with their backend to speak, and removes other flows that are.
    /// A flow of a backend that has gone (its id was given to another) counts for its service only.
    /// Of services whose flows need no entry it tells the slots of those that have one. Also closes ports that were given back outside the ranges of their pool, and mends what the
    /// data path's schedulers know about the backends' loads.
    ///
    /// # Errors
    /// The backends could not be read; nothing was changed then.
    pub fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        let backends = self.read_backends()?;
        let mut slots = Slots::of(&self.services)?;
        for pool in 0..self.pool_count {
            self.pools.close(pool);
        }
        let loads = self.table.loads.snapshot();
        let now = FlowTable::now();
        let mut census = FlowCensus::default();
        let mut open = BTreeMap::new();
        let services = self.read_services()?;
        let mut endings = self.endings.walk(&services);
        for (at, word) in self.table.taken() {
            if word.expired(now) {
                let removed = self.table.remove(at, word, now, &backends, &self.pools);
                census.aged += u64::from(removed && word.state() != State::Busy);
            } else if let Some(flow) = self.table.whole_flow(at, word) {
                let backend = backends.get(flow.backend_id as usize).filter(|backend| owns(backend, &flow));
                if let Some(backend) = backend
                    && endings.meet(at, word, &flow, backend) == Fate::Remove
                    && self.table.remove(at, word, now, &backends, &self.pools)
                {
                    endings.removed(&flow, backend);
                    continue;
                }
                census.live += 1;
                *census.by_service.entry(flow.service_id).or_default() += 1;
                if backend.is_some() {
                    *census.by_backend.entry(flow.backend_id).or_default() += 1;
                    slots.found(&flow);
                    *open.entry(flow.backend_id).or_default() += i64::from(flow.has_load() && word.open());
                }
            }
        }
        self.table.loads.mend(&loads, &open);
        census.entries = slots.finish();
        census.ended = endings.finish(&backends, |id| counted(&self.stats, id));
        census.knocks = self.knocks(&backends);
        Ok(census)
    }

    /// Connections that backends did not take.
    fn knocks(&self, backends: &[Backend]) -> BTreeMap<u32, KnockCounts> {
        let there = |backend: &Backend| backend.state != BackendState::Empty as u8;
        let len = backends.iter().rposition(there).map_or(0, |last| last as u32 + 1);
        let mut knocks = BTreeMap::new();
        let mut take = |id: u32, per_cpu: &[BackendCounters]| {
            let counted = per_cpu.iter().fold(KnockCounts::default(), |sum, cpu| KnockCounts {
                refusals: sum.refusals.wrapping_add(cpu.refusals),
                unanswered: sum.unanswered.wrapping_add(cpu.unanswered),
                rescued: sum.rescued.wrapping_add(cpu.rescued),
            });
            if counted != KnockCounts::default() && backends.get(id as usize).is_some_and(there) {
                knocks.insert(id, counted);
            }
        };
        let read = batch::read_per_cpu(self.counters.fd().as_fd(), len, self.cpus, &mut take);
        if read.is_err() {
            // One by one, as before Linux 5.13.
            for id in 0..len {
                if backends.get(id as usize).is_some_and(there)
                    && let Ok(per_cpu) = self.stats.get(&id, 0)
                {
                    take(id, &per_cpu);
                }
            }
        }
        knocks
    }

    /// Frees source ports and reply words that no flow owned in this audit nor in the one before;
    /// what a process leaves when it is killed in the middle of its work. Run it every few minutes.
    ///
    /// # Errors
    /// The backends could not be read; nothing was changed then.
    pub fn audit(&mut self) -> Result<Audit, DataplaneError> {
        let backends = self.read_backends()?;
        let mut audit = Audit::default();
        // What is taken is read before the owners: a flow that begins in between owns what it took.
        let taken: Vec<_> = (0..self.pool_count).filter_map(|pool| Some((pool, self.pools.taken(pool)?))).collect();
        let owned = owned_ports(&self.table, &backends);
        let orphans: BTreeSet<_> = taken
            .into_iter()
            .flat_map(|(pool, ports)| ports.into_iter().map(move |port| (pool, port)))
            .filter(|(pool, port)| !owned.get(pool).is_some_and(|ports| ports.contains(port)))
            .collect();
        for (pool, port) in orphans.intersection(&self.suspect_ports) {
            self.pools.free(*pool, *port);
            audit.ports += 1;
        }
        self.suspect_ports = orphans.difference(&self.suspect_ports).copied().collect();

        let stale = self.stale_replies(&backends);
        for (at, word) in stale.intersection(&self.suspect_replies) {
            audit.replies += u64::from(self.table.remove_reply_at(*at, ReplyWord(*word)));
        }
        self.suspect_replies = stale.difference(&self.suspect_replies).copied().collect();
        Ok(audit)
    }

    /// Reply words that lead to an empty way, or to a flow with another reply.
    fn stale_replies(&self, backends: &[Backend]) -> BTreeSet<(u32, u64)> {
        let stale = |(at, reply): &(u32, ReplyWord)| {
            let Some(target) = reply.index().filter(|target| *target < self.table.len()) else { return true };
            match self.table.word(target).state() {
                State::Empty => true,
                State::Busy => false,
                _ => {
                    let flow = self.table.flow(target);
                    let backend = backends.get(flow.backend_id as usize).filter(|backend| owns(backend, &flow));
                    backend.is_none_or(|backend| {
                        !self.table.belongs(*at, *reply, &self.table.reply_place(target, &flow, backend))
                    })
                }
            }
        };
        self.table.replies().filter(stale).map(|(at, word)| (at, word.0)).collect()
    }

    fn read_services(&self) -> Result<Vec<ServiceInfo>, DataplaneError> {
        let read = self.service_info.read_all();
        let read = read.map_err(|source| DataplaneError::Kernel { what: "reading the services".into(), source })?;
        Ok(read.into_iter().map(|(_, info)| info).collect())
    }

    fn read_backends(&self) -> Result<Vec<Backend>, DataplaneError> {
        let read = self.backends.read_all();
        let read = read.map_err(|source| DataplaneError::Kernel { what: "reading the backends".into(), source })?;
        Ok(read.into_iter().map(|(_, backend)| backend).collect())
    }
}

/// Flows of a backend that the data path has ended with it.
fn counted(stats: &PerCpuArray<MapData, BackendCounters>, id: u32) -> Option<EndedFlows> {
    let per_cpu = stats.get(&id, 0).ok()?;
    let sum = |of: fn(&BackendCounters) -> u64| per_cpu.iter().map(of).fold(0, u64::wrapping_add);
    Some(EndedFlows { reset: sum(|cpu| cpu.reset), moved: sum(|cpu| cpu.moved), ..EndedFlows::default() })
}

/// Source ports of every flow in the table, by pool; a flow that is being written or removed counts.
pub(super) fn owned_ports(table: &FlowTable, backends: &[Backend]) -> OwnedPorts {
    let mut owned = OwnedPorts::new();
    for (at, _) in table.taken() {
        let flow: Flow = table.flow(at);
        let backend = backends.get(flow.backend_id as usize);
        let holds_port = flow.mode == Mode::FullNat as u8 && flow.has_reply();
        if let Some(backend) = backend.filter(|backend| holds_port && owns(backend, &flow)) {
            owned.entry(backend.port_pool).or_default().insert(flow.source_port.get());
        }
    }
    owned
}
