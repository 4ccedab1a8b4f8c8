//! Counters of the data path, summed over the CPUs. Need no agent.

use std::{collections::BTreeMap, path::Path};

use aya::{
    Pod,
    maps::{MapData, PerCpuArray, PerCpuValues},
};
use lb_common::{
    abi::{BackendCounters, DirectionCounters, ServiceCounters, VerdictCounters, names},
    verdict::Reason,
};

use super::{
    maps::{kernel, open_per_cpu},
    pins::Pins,
};
use crate::dataplane::DataplaneError;

/// Reader of the three maps of counters.
pub struct Stats {
    services: PerCpuArray<MapData, ServiceCounters>,
    backends: PerCpuArray<MapData, BackendCounters>,
    verdicts: PerCpuArray<MapData, VerdictCounters>,
}

impl Stats {
    /// From the pins of a data path that was loaded before, also by another process.
    ///
    /// # Errors
    /// A map is not pinned or may not be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        let pins = &Pins::new(pin_dir);
        Ok(Self {
            services: open_per_cpu(pins, names::SERVICE_STATS)?,
            backends: open_per_cpu(pins, names::BACKEND_STATS)?,
            verdicts: open_per_cpu(pins, names::VERDICT_STATS)?,
        })
    }

    /// Counters of the service with this id.
    ///
    /// # Errors
    /// The id is beyond the limit, or the kernel refuses.
    pub fn service(&self, id: u32) -> Result<ServiceCounters, DataplaneError> {
        Ok(values(&self.services, "service counters", id)?.iter().fold(ServiceCounters::default(), |sum, cpu| {
            ServiceCounters {
                forward: add(sum.forward, cpu.forward),
                reply: add(sum.reply, cpu.reply),
                flows: sum.flows.wrapping_add(cpu.flows),
                refused: sum.refused.wrapping_add(cpu.refused),
                dropped: sum.dropped.wrapping_add(cpu.dropped),
                rescued: sum.rescued.wrapping_add(cpu.rescued),
            }
        }))
    }

    /// Counters of the backend with this id, since the id was given to it.
    ///
    /// # Errors
    /// The id is beyond the limit, or the kernel refuses.
    pub fn backend(&self, id: u32) -> Result<BackendCounters, DataplaneError> {
        Ok(values(&self.backends, "backend counters", id)?.iter().fold(BackendCounters::default(), |sum, cpu| {
            BackendCounters {
                forward: add(sum.forward, cpu.forward),
                reply: add(sum.reply, cpu.reply),
                flows: sum.flows.wrapping_add(cpu.flows),
                ended: sum.ended.wrapping_add(cpu.ended),
                reset: sum.reset.wrapping_add(cpu.reset),
                moved: sum.moved.wrapping_add(cpu.moved),
                refusals: sum.refusals.wrapping_add(cpu.refusals),
                unanswered: sum.unanswered.wrapping_add(cpu.unanswered),
                rescued: sum.rescued.wrapping_add(cpu.rescued),
            }
        }))
    }

    /// Packets and bytes by reason; every reason is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn verdicts(&self) -> Result<BTreeMap<Reason, VerdictCounters>, DataplaneError> {
        let sum = |reason: &Reason| {
            let per_cpu = values(&self.verdicts, "verdict counters", *reason as u32)?;
            let sum = per_cpu.iter().fold(VerdictCounters::default(), |sum, cpu| VerdictCounters {
                packets: sum.packets.wrapping_add(cpu.packets),
                bytes: sum.bytes.wrapping_add(cpu.bytes),
            });
            Ok((*reason, sum))
        };
        Reason::ALL.iter().map(sum).collect()
    }
}

fn add(a: DirectionCounters, b: DirectionCounters) -> DirectionCounters {
    DirectionCounters { packets: a.packets.wrapping_add(b.packets), bytes: a.bytes.wrapping_add(b.bytes) }
}

fn values<V: Pod>(map: &PerCpuArray<MapData, V>, what: &str, id: u32) -> Result<PerCpuValues<V>, DataplaneError> {
    map.get(&id, 0).map_err(|error| kernel(format!("reading {what} {id}"), error))
}
