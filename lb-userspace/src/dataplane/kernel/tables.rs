//! The maps that the agent publishes, behind the [`Dataplane`] contract.

use std::{io, path::Path};

use aya::maps::{MapData, MapError, PerCpuArray, PerCpuValues};
use bytemuck::Zeroable;
use lb_common::abi::{
    Address, AddressRoles, Backend, BackendCounters, QuicKey, ServiceCounters, ServiceInfo, ServiceKey, ServiceValue,
    Settings, Slot, limits::PORT_RANGES, names,
};

use super::{
    address_bits::AddressBits,
    dead_man,
    flow_table::FlowTable,
    many::Many,
    maps::{List, Table, io_error, kernel, open_per_cpu, open_shared},
    mmap::SharedArray,
    pins::Pins,
    ports::Pools,
    service_lines::ServiceLines,
    sweep::{Audit, Sweeper, owned_ports},
};
use crate::{
    config::{DeadMan, PortRange},
    dataplane::{Dataplane, DataplaneError, FlowCensus, Op, Tables},
};

/// `mode` of an element of `service_info` that is not in use.
pub(super) const UNUSED_MODE: u8 = 0xff;

/// The data path in the kernel, reached through its pinned maps.
///
/// In use is an element of `service_info` whose protocol is not 0 (arrays begin as zeros), an
/// element of `backends` that is not all zero, and a port pool whose bit of port 0 is set. A
/// selection table is what a service points at: one of no slots is not listed.
pub struct KernelDataplane {
    settings: List<Settings>,
    pub(super) addresses: Table<Address, AddressRoles>,
    pub(super) address_bits: AddressBits,
    pub(super) services: Table<ServiceKey, ServiceValue>,
    pub(super) service_lines: ServiceLines,
    pub(super) service_info: List<ServiceInfo>,
    pub(super) backends: List<Backend>,
    pub(super) quic_ids: Table<QuicKey, u32>,
    selection: SharedArray<Slot>,
    pools: Pools,
    service_stats: PerCpuArray<MapData, ServiceCounters>,
    backend_stats: PerCpuArray<MapData, BackendCounters>,
    pub(super) table: FlowTable,
    sweeper: Sweeper,
    pub(super) many: Many,
}

impl KernelDataplane {
    /// From the pins of a data path that was loaded before, also by another process.
    ///
    /// # Errors
    /// A map is not pinned or may not be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        let pins = &Pins::new(pin_dir);
        let settings = List::open(pins, names::SETTINGS)?;
        let addresses: Table<Address, AddressRoles> = Table::open(pins, names::ADDRESSES)?;
        let published = addresses.read_all().map_err(failed("reading the addresses"))?;
        Ok(Self {
            settings,
            address_bits: AddressBits::open(pins, published.into_iter().map(|(address, _)| address))?,
            addresses,
            services: Table::open(pins, names::SERVICES)?,
            service_lines: ServiceLines::open(pins)?,
            service_info: List::open(pins, names::SERVICE_INFO)?,
            backends: List::open(pins, names::BACKENDS)?,
            quic_ids: Table::open(pins, names::QUIC_IDS)?,
            selection: open_shared(pins, names::SELECTION)?,
            pools: Pools(open_shared(pins, names::PORT_POOLS)?),
            service_stats: open_per_cpu(pins, names::SERVICE_STATS)?,
            backend_stats: open_per_cpu(pins, names::BACKEND_STATS)?,
            table: FlowTable::open(pins)?,
            many: Many::open(pins)?,
            sweeper: Sweeper::from_pins(pins)?,
        })
    }

    /// See [`Sweeper::audit`].
    ///
    /// # Errors
    /// The backends could not be read.
    pub fn audit_ports(&mut self) -> Result<Audit, DataplaneError> {
        self.sweeper.audit()
    }

    /// Open flows that the data path's schedulers count for a backend; `None` beyond the limit. Of
    /// services whose scheduler does not ask for them it is what the last walk found.
    pub fn backend_load(&self, id: u32) -> Option<i64> {
        self.table.loads.of(id)
    }

    /// The agent is the only one that writes them.
    fn change_settings(&mut self, what: &str, change: impl FnOnce(&mut Settings)) -> Result<(), DataplaneError> {
        let mut settings = self.settings.map.get(&0, 0).map_err(|error| kernel(what, error))?;
        change(&mut settings);
        self.settings.map.set(0, settings, 0).map_err(|error| kernel(what, error))
    }

    fn set_port_pool(&mut self, pool: u32, ports: &[PortRange]) -> Result<(), DataplaneError> {
        check("port pool", pool, self.pools.0.len(), "port-pools")?;
        let refused = |why: String| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, why);
            Err(DataplaneError::Kernel { what: format!("port pool {pool}"), source })
        };
        if ports.len() > PORT_RANGES {
            return refused(format!("{} ranges of source ports, at most {PORT_RANGES} fit: join some", ports.len()));
        }
        if let Some(range) = ports.iter().find(|range| range.first == 0 || range.first > range.last) {
            return refused(format!("{}-{} is not a range of source ports", range.first, range.last));
        }
        let mut unread = None;
        self.pools.set(pool, ports, || match read(&self.backends, "reading the backends") {
            Ok(backends) => {
                let backends: Vec<_> = backends.into_iter().map(|(_, backend)| backend).collect();
                owned_ports(&self.table, &backends).remove(&pool).unwrap_or_default()
            }
            Err(error) => {
                unread = Some(error);
                // Any port may be in use then.
                (0..=u16::MAX).collect()
            }
        });
        unread.map_or(Ok(()), Err)
    }

    fn clear_port_pool(&mut self, pool: u32) -> Result<(), DataplaneError> {
        check("port pool", pool, self.pools.0.len(), "port-pools")?;
        self.pools.clear(pool);
        Ok(())
    }

    /// Counters and load of a backend begin anew with each generation.
    fn set_backend(&mut self, id: u32, backend: &Backend) -> Result<(), DataplaneError> {
        check("backend id", id, self.backends.map.len(), "backends")?;
        let what = || format!("writing backend {id}");
        let generation = match self.many.generation(id) {
            Some(known) => known,
            None => self.backends.map.get(&id, 0).map_err(|error| kernel(what(), error))?.generation,
        };
        if generation != backend.generation {
            reset_counters(&mut self.backend_stats, id, BackendCounters::default())?;
            self.table.loads.reset(id);
        }
        self.backends.map.set(id, backend, 0).map_err(|error| kernel(what(), error))?;
        self.many.note_backend(id, backend);
        Ok(())
    }

    /// No line says what the map does not say any more: it is withdrawn first, and comes back last.
    fn set_service(&mut self, key: &ServiceKey, value: &ServiceValue) -> Result<(), DataplaneError> {
        self.service_lines.withdraw(key);
        let result = self.services.map.insert(key, value, 0);
        inserted("services", self.services.capacity, "services", result).inspect_err(|_| self.service_lines.doubt())?;
        self.service_lines.put(key, value);
        Ok(())
    }

    /// Who changes something for the first time makes the lines of services what the map says: the one that
    /// wrote them before may have ended in between.
    pub(super) fn take_over_lines(&mut self) -> Result<(), DataplaneError> {
        if self.service_lines.is_taken_over() {
            return Ok(());
        }
        let services = self.services.read_all().map_err(failed("reading the services"))?;
        self.service_lines.take_over(services);
        Ok(())
    }

    /// Counters of a service begin anew when the id is given to another one.
    fn set_service_info(&mut self, id: u32, info: &ServiceInfo) -> Result<(), DataplaneError> {
        check("service id", id, self.service_info.map.len(), "services")?;
        let what = || format!("writing service info {id}");
        let before = self.service_info.map.get(&id, 0).map_err(|error| kernel(what(), error))?;
        if !before.is_same_service(info) && info.mode != UNUSED_MODE {
            reset_counters(&mut self.service_stats, id, ServiceCounters::default())?;
        }
        self.service_info.map.set(id, info, 0).map_err(|error| kernel(what(), error))?;
        self.many.note_info(id, info);
        Ok(())
    }

    fn write_selection(&mut self, base: u32, slots: &[Slot]) -> Result<(), DataplaneError> {
        if let Some(last) = slots.len().checked_sub(1) {
            let last = base as u64 + last as u64;
            check("selection slot", last, self.selection.len(), "selection-slots")?;
        }
        for (at, slot) in (base..).zip(slots) {
            self.selection.write(at, slot);
        }
        Ok(())
    }

    /// Slots of one selection table; `None` where it has none or does not lie within the map.
    fn selection_of(&self, service: &ServiceValue) -> Option<Vec<Slot>> {
        let end = service.selection_base.checked_add(service.slots())?;
        let slots = (service.selection_base..end).map(|at| self.selection.read(at)).collect::<Option<Vec<_>>>()?;
        (!slots.is_empty()).then_some(slots)
    }
}

impl Dataplane for KernelDataplane {
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError> {
        self.take_over_lines()?;
        match op {
            Op::SetGeneration(generation) => {
                self.change_settings("writing the generation", |settings| settings.generation = *generation)
            }
            Op::SetRoutesVary(vary) => self.change_settings("writing whether routes vary", |settings| {
                settings.flags =
                    settings.flags & !Settings::ROUTES_VARY | if *vary { Settings::ROUTES_VARY } else { 0 };
            }),
            Op::SetPortPool { pool, ports } => self.set_port_pool(*pool, ports),
            Op::ClearPortPool { pool } => self.clear_port_pool(*pool),
            Op::SetBackend { id, backend } => self.set_backend(*id, backend),
            Op::SetServiceInfo { id, info } => self.set_service_info(*id, info),
            Op::ClearServiceInfo { id } => self.set_service_info(*id, &unused_info()),
            Op::WriteSelection { base, slots } => self.write_selection(*base, slots),
            Op::SetService { key, value } => self.set_service(key, value),
            Op::DeleteService { key } => {
                self.service_lines.remove(key);
                removed("deleting a service", self.services.map.remove(key))
            }
            Op::SetAddress { address, roles } => {
                self.address_bits.set(*address);
                let result = self.addresses.map.insert(address, roles, 0);
                inserted("addresses", self.addresses.capacity, "addresses", result)
            }
            Op::DeleteAddress { address } => {
                removed("deleting an address", self.addresses.map.remove(address))?;
                self.address_bits.clear(address);
                Ok(())
            }
            Op::SetQuicId { key, backend } => {
                let result = self.quic_ids.map.insert(key, backend, 0);
                inserted("QUIC server ids", self.quic_ids.capacity, "backends", result)
            }
            Op::DeleteQuicId { key } => removed("deleting a QUIC server id", self.quic_ids.map.remove(key)),
        }
    }

    fn apply_all(&mut self, ops: &[Op]) -> Result<(), DataplaneError> {
        self.apply_many(ops)
    }

    fn read(&mut self) -> Result<Tables, DataplaneError> {
        let settings = self.settings.map.get(&0, 0).map_err(|error| kernel("reading the settings", error))?;
        let services: Vec<(ServiceKey, ServiceValue)> =
            self.services.read_all().map_err(failed("reading the services"))?;
        let selection = services
            .iter()
            .filter_map(|(_, service)| Some((service.selection_base, self.selection_of(service)?)))
            .collect();
        let service_info = read(&self.service_info, "reading the service infos")?;
        let backends = read(&self.backends, "reading the backends")?;
        self.many.know(&backends, &service_info);
        Ok(Tables {
            generation: settings.generation,
            routes_vary: settings.flags & Settings::ROUTES_VARY != 0,
            addresses: self.addresses.read_all().map_err(failed("reading the addresses"))?.into_iter().collect(),
            services: services.into_iter().collect(),
            service_info: service_info.into_iter().filter(|(_, info)| info.protocol != 0).collect(),
            backends: backends.into_iter().filter(|(_, backend)| *backend != Backend::zeroed()).collect(),
            selection,
            quic_ids: self.quic_ids.read_all().map_err(failed("reading the QUIC server ids"))?.into_iter().collect(),
            port_pools: (0..self.pools.0.len()).filter_map(|pool| Some((pool, self.pools.ranges(pool)?))).collect(),
        })
    }

    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        self.sweeper.sweep()
    }

    fn beat(&mut self, rule: &DeadMan) -> Result<(), DataplaneError> {
        dead_man::beat(&mut self.settings, rule)
    }
}

/// An element of `service_info` that was in use.
pub(super) fn unused_info() -> ServiceInfo {
    ServiceInfo { mode: UNUSED_MODE, ..Zeroable::zeroed() }
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> DataplaneError {
    move |source| DataplaneError::Kernel { what: what.into(), source }
}

fn read<V: aya::Pod + bytemuck::Pod>(list: &List<V>, what: &str) -> Result<Vec<(u32, V)>, DataplaneError> {
    list.read_all().map_err(|source| DataplaneError::Kernel { what: what.into(), source })
}

pub(super) fn check(
    what: &'static str,
    number: impl Into<u64>,
    limit: u32,
    setting: &'static str,
) -> Result<(), DataplaneError> {
    let (number, limit) = (number.into(), limit.into());
    if number < limit { Ok(()) } else { Err(DataplaneError::Limit { what, number, limit, setting }) }
}

/// A full map is a limit, everything else is the kernel's.
fn inserted(
    what: &'static str,
    capacity: u32,
    setting: &'static str,
    result: Result<(), MapError>,
) -> Result<(), DataplaneError> {
    result.map_err(|error| not_inserted(what, capacity, setting, io_error(error)))
}

pub(super) fn not_inserted(
    what: &'static str,
    capacity: u32,
    setting: &'static str,
    source: io::Error,
) -> DataplaneError {
    if source.raw_os_error() == Some(libc::E2BIG) {
        return DataplaneError::Limit { what, number: u64::from(capacity) + 1, limit: capacity.into(), setting };
    }
    DataplaneError::Kernel { what: format!("writing to the {what}"), source }
}

/// What is not there need not be deleted.
fn removed(what: &'static str, result: Result<(), MapError>) -> Result<(), DataplaneError> {
    match result.map_err(io_error) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| DataplaneError::Kernel { what: what.into(), source }),
    }
}

fn reset_counters<V: aya::Pod>(map: &mut PerCpuArray<MapData, V>, id: u32, value: V) -> Result<(), DataplaneError> {
    let what = "resetting counters";
    let cpus = aya::util::nr_cpus().map_err(|(_, source)| DataplaneError::Kernel { what: what.into(), source })?;
    let values = PerCpuValues::try_from(vec![value; cpus])
        .map_err(|source| DataplaneError::Kernel { what: what.into(), source })?;
    map.set(id, values, 0).map_err(|error| kernel(what, error))
}
