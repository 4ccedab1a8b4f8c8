//! Many operations of a plan: neighbours of one kind go into one system call, in their order, so that each
//! step of the plan is done before the next begins. Where the kernel cannot do that they go one by one.

use std::{mem::discriminant, os::fd::AsFd as _};

use aya::maps::MapData;
use bytemuck::Pod;
use lb_common::abi::{Backend, BackendCounters, ServiceCounters, ServiceInfo, ServiceKey, ServiceValue, names};

use super::{
    batch::{self, Refused},
    maps::{cpus, open},
    pins::Pins,
    tables::{KernelDataplane, check, not_inserted, unused_info},
};
use crate::dataplane::{DataplaneError, Op};

/// What batches need besides the maps.
pub(super) struct Many {
    service_stats: MapData,
    backend_stats: MapData,
    cpus: usize,
    /// Of every backend's element, by id; empty: not known yet. The agent is the only one that writes them.
    generations: Vec<u32>,
    infos: Vec<ServiceInfo>,
}

impl Many {
    pub fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        Ok(Self {
            service_stats: open(pins, names::SERVICE_STATS)?.0,
            backend_stats: open(pins, names::BACKEND_STATS)?.0,
            cpus: cpus()?,
            generations: Vec::new(),
            infos: Vec::new(),
        })
    }

    /// The whole of both arrays, as they were just read.
    pub fn know(&mut self, backends: &[(u32, Backend)], infos: &[(u32, ServiceInfo)]) {
        self.generations = backends.iter().map(|(_, backend)| backend.generation).collect();
        self.infos = infos.iter().map(|(_, info)| *info).collect();
    }

    /// Of a backend's element, where it is known.
    pub fn generation(&self, id: u32) -> Option<u32> {
        self.generations.get(id as usize).copied()
    }

    pub fn note_backend(&mut self, id: u32, backend: &Backend) {
        if let Some(known) = self.generations.get_mut(id as usize) {
            *known = backend.generation;
        }
    }

    pub fn note_info(&mut self, id: u32, info: &ServiceInfo) {
        if let Some(known) = self.infos.get_mut(id as usize) {
            *known = *info;
        }
    }
}

impl KernelDataplane {
    pub(super) fn apply_many(&mut self, ops: &[Op]) -> Result<(), DataplaneError> {
        use crate::dataplane::Dataplane as _;
        for run in ops.chunk_by(|a, b| discriminant(a) == discriminant(b)) {
            if run.len() == 1 || !self.apply_run(run)? {
                run.iter().try_for_each(|op| self.apply(op))?;
            }
        }
        Ok(())
    }

    /// Operations of one kind. Returns false where they must go one by one; nothing was done then, or
    /// nothing that may not be repeated.
    fn apply_run(&mut self, run: &[Op]) -> Result<bool, DataplaneError> {
        match run[0] {
            Op::SetBackend { .. } => self.set_backends(&of(run, |op| match op {
                Op::SetBackend { id, backend } => Some((*id, *backend)),
                _ => None,
            })),
            Op::SetServiceInfo { .. } => self.set_service_infos(&of(run, |op| match op {
                Op::SetServiceInfo { id, info } => Some((*id, *info)),
                _ => None,
            })),
            Op::ClearServiceInfo { .. } => self.set_service_infos(&of(run, |op| match op {
                Op::ClearServiceInfo { id } => Some((*id, unused_info())),
                _ => None,
            })),
            Op::SetService { .. } => {
                let (keys, values) = split(run, |op| match op {
                    Op::SetService { key, value } => Some((*key, *value)),
                    _ => None,
                });
                self.set_services(&keys, &values)
            }
            Op::SetAddress { .. } => {
                let (keys, values) = split(run, |op| match op {
                    Op::SetAddress { address, roles } => Some((*address, *roles)),
                    _ => None,
                });
                keys.iter().for_each(|address| self.address_bits.set(*address));
                let written = batch::update(self.addresses.handle.fd().as_fd(), &keys, &values);
                judge(written, |source| not_inserted("addresses", self.addresses.capacity, "addresses", source))
            }
            Op::SetQuicId { .. } => {
                let (keys, values) = split(run, |op| match op {
                    Op::SetQuicId { key, backend } => Some((*key, *backend)),
                    _ => None,
                });
                let written = batch::update(self.quic_ids.handle.fd().as_fd(), &keys, &values);
                judge(written, |source| not_inserted("QUIC server ids", self.quic_ids.capacity, "backends", source))
            }
            Op::DeleteService { .. } | Op::DeleteAddress { .. } | Op::DeleteQuicId { .. } => self.delete_run(run),
            // In memory that is shared with the data path, or never many.
            Op::WriteSelection { .. }
            | Op::SetPortPool { .. }
            | Op::ClearPortPool { .. }
            | Op::SetGeneration(_)
            | Op::SetRoutesVary(_) => Ok(false),
        }
    }

    /// No line says what the map does not say any more, as for a single service.
    fn set_services(&mut self, keys: &[ServiceKey], values: &[ServiceValue]) -> Result<bool, DataplaneError> {
        self.take_over_lines()?;
        keys.iter().for_each(|key| self.service_lines.withdraw(key));
        let written = batch::update(self.services.handle.fd().as_fd(), keys, values);
        let done = judge(written, |source| not_inserted("services", self.services.capacity, "services", source));
        if matches!(done, Ok(true)) {
            keys.iter().zip(values).for_each(|(key, value)| self.service_lines.put(key, value));
        } else {
            self.service_lines.doubt();
        }
        done
    }

    fn delete_run(&mut self, run: &[Op]) -> Result<bool, DataplaneError> {
        let failed = |what: &'static str| move |source| DataplaneError::Kernel { what: what.into(), source };
        match run[0] {
            Op::DeleteService { .. } => {
                let keys = of(run, |op| if let Op::DeleteService { key } = op { Some(*key) } else { None });
                self.take_over_lines()?;
                keys.iter().for_each(|key| self.service_lines.remove(key));
                judge(batch::delete(self.services.handle.fd().as_fd(), &keys), failed("deleting services"))
            }
            Op::DeleteAddress { .. } => {
                let keys = of(run, |op| if let Op::DeleteAddress { address } = op { Some(*address) } else { None });
                let deleted = batch::delete(self.addresses.handle.fd().as_fd(), &keys);
                let done = judge(deleted, failed("deleting addresses"))?;
                if done {
                    keys.iter().for_each(|address| self.address_bits.clear(address));
                }
                Ok(done)
            }
            _ => {
                let keys = of(run, |op| if let Op::DeleteQuicId { key } = op { Some(*key) } else { None });
                judge(batch::delete(self.quic_ids.handle.fd().as_fd(), &keys), failed("deleting QUIC server ids"))
            }
        }
    }

    /// Counters and load of a backend begin anew with each generation.
    fn set_backends(&mut self, backends: &[(u32, Backend)]) -> Result<bool, DataplaneError> {
        let limit = self.backends.map.len();
        for (id, _) in backends {
            check("backend id", *id, limit, "backends")?;
        }
        if self.many.generations.is_empty() {
            return Ok(false);
        }
        let new = |(id, backend): &&(u32, Backend)| self.many.generation(*id) != Some(backend.generation);
        let begun: Vec<u32> = backends.iter().filter(new).map(|(id, _)| *id).collect();
        if !self.zero::<BackendCounters>(&self.many.backend_stats, &begun)? {
            return Ok(false);
        }
        begun.iter().for_each(|id| self.table.loads.reset(*id));
        let (ids, values): (Vec<u32>, Vec<Backend>) = backends.iter().copied().unzip();
        let written = batch::update(self.backends.handle.fd().as_fd(), &ids, &values);
        let done = judge(written, |source| DataplaneError::Kernel { what: "writing backends".into(), source })?;
        if done {
            backends.iter().for_each(|(id, backend)| self.many.note_backend(*id, backend));
        }
        Ok(done)
    }

    /// Counters of a service begin anew when the id is given to another one.
    fn set_service_infos(&mut self, infos: &[(u32, ServiceInfo)]) -> Result<bool, DataplaneError> {
        let limit = self.service_info.map.len();
        for (id, _) in infos {
            check("service id", *id, limit, "services")?;
        }
        let unused = unused_info().mode;
        let mut begun = Vec::new();
        for (id, info) in infos {
            let Some(before) = self.many.infos.get(*id as usize) else { return Ok(false) };
            if !before.is_same_service(info) && info.mode != unused {
                begun.push(*id);
            }
        }
        if !self.zero::<ServiceCounters>(&self.many.service_stats, &begun)? {
            return Ok(false);
        }
        let (ids, values): (Vec<u32>, Vec<ServiceInfo>) = infos.iter().copied().unzip();
        let written = batch::update(self.service_info.handle.fd().as_fd(), &ids, &values);
        let done = judge(written, |source| DataplaneError::Kernel { what: "writing service infos".into(), source })?;
        if done {
            infos.iter().for_each(|(id, info)| self.many.note_info(*id, info));
        }
        Ok(done)
    }

    /// Counters `V` of these ids begin anew.
    fn zero<V>(&self, map: &MapData, ids: &[u32]) -> Result<bool, DataplaneError> {
        let bytes = size_of::<V>().next_multiple_of(8) * self.many.cpus;
        let zeroed = batch::zero(map.fd().as_fd(), ids, bytes);
        judge(zeroed, |source| DataplaneError::Kernel { what: "resetting counters".into(), source })
    }
}

/// What each operation of a run is about.
fn of<T>(run: &[Op], part: impl Fn(&Op) -> Option<T>) -> Vec<T> {
    run.iter().filter_map(part).collect()
}

fn split<K: Pod, V: Pod>(run: &[Op], part: impl Fn(&Op) -> Option<(K, V)>) -> (Vec<K>, Vec<V>) {
    run.iter().filter_map(part).unzip()
}

/// Whether a batch was done; false: the kernel has none.
fn judge(
    result: Result<(), Refused>,
    error: impl FnOnce(std::io::Error) -> DataplaneError,
) -> Result<bool, DataplaneError> {
    match result {
        Ok(()) => Ok(true),
        Err(Refused::Unknown) => Ok(false),
        Err(Refused::At(_, source)) => Err(error(source)),
    }
}
