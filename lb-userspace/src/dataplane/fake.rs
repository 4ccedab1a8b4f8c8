//! A test double of the kernel's maps: in memory, with their limits, and able to say what a packet
//! could meet at any moment.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{
    Address, AddressRoles, Backend, BackendState, Mode, QuicKey, ServiceInfo, ServiceKey, ServiceValue, Slot,
};

use super::{Dataplane, DataplaneError, FlowCensus, Op, Tables};
use crate::config::{DeadMan, Limits, PortRange};

/// Maps in memory. Like those of the kernel they know nothing of tables: slots are one array, and
/// what nobody points at is still there.
#[derive(Clone, Debug)]
pub struct FakeDataplane {
    limits: Limits,
    generation: u32,
    routes_vary: bool,
    addresses: BTreeMap<Address, AddressRoles>,
    services: BTreeMap<ServiceKey, ServiceValue>,
    service_info: BTreeMap<u32, ServiceInfo>,
    backends: BTreeMap<u32, Backend>,
    selection: Vec<Slot>,
    port_pools: BTreeMap<u32, Vec<PortRange>>,
    quic_ids: BTreeMap<QuicKey, u32>,
    /// What [`Dataplane::sweep`] answers.
    pub census: FlowCensus,
    /// The rule of each sign of life.
    pub beats: Vec<DeadMan>,
    /// Every operation that was carried out, in order.
    pub ops: Vec<Op>,
}

/// Where a new flow of a service may go at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// Backends of the selection table that take flows.
    pub live: BTreeSet<u32>,
    /// Backends of the selection table that take no new flows since a moment ago.
    pub dead: BTreeSet<u32>,
    /// Backends of the selection table in the order of its slots.
    pub slots: Vec<u32>,
    /// Backends of flows without an entry, that are not in the selection table.
    pub stable: BTreeSet<u32>,
}

impl FakeDataplane {
    /// Empty maps of these capacities.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            generation: 0,
            addresses: BTreeMap::new(),
            services: BTreeMap::new(),
            service_info: BTreeMap::new(),
            backends: BTreeMap::new(),
            selection: vec![Slot::clean(0); limits.selection_slots as usize],
            port_pools: BTreeMap::new(),
            quic_ids: BTreeMap::new(),
            routes_vary: false,
            census: FlowCensus::default(),
            beats: Vec::new(),
            ops: Vec::new(),
        }
    }

    /// Keys of the map `services`.
    pub fn service_keys(&self) -> Vec<ServiceKey> {
        self.services.keys().copied().collect()
    }

    /// What a packet for this key meets; `None`: there is no such service.
    ///
    /// # Errors
    /// The packet would see half of a change: a sentence says which.
    pub fn choices(&self, key: &ServiceKey) -> Result<Option<Choices>, String> {
        let Some(value) = self.services.get(key) else { return Ok(None) };
        let Some(info) = self.service_info.get(&value.id) else {
            return Err(format!("{key:?}: service {} has no constants", value.id));
        };
        if (info.address, info.port, info.protocol, info.mode) != (key.address, key.port, key.protocol, value.mode) {
            return Err(format!("{key:?}: service {} has the constants {info:?}", value.id));
        }
        let range = value.selection_base as usize..value.selection_base as usize + value.selection_len as usize;
        let Some(slots) = self.selection.get(range) else {
            return Err(format!("{key:?}: its table lies outside: {value:?}"));
        };
        let own = value.selection_base as usize..value.selection_base as usize + value.slots() as usize;
        let all = self.selection.get(own).ok_or_else(|| format!("{key:?}: its table lies outside: {value:?}"))?;
        let ids: Vec<u32> = slots.iter().map(|slot| slot.current()).filter(|id| *id != Slot::NOBODY).collect();
        let stable: BTreeSet<u32> = all.iter().filter_map(|slot| slot.stable_backend()).collect();
        if !value.has(ServiceValue::TRACKED) && !stable.is_empty() {
            return Err(format!("{key:?}: flows without an entry are at {stable:?}, and nobody looks there"));
        }
        let mut choices = Choices { slots: ids.clone(), ..Choices::default() };
        for id in stable.difference(&ids.iter().copied().collect()).copied() {
            let backend = self.backends.get(&id).ok_or_else(|| format!("{key:?}: backend {id} was never set"))?;
            if backend.state == BackendState::Empty as u8 {
                return Err(format!("{key:?}: backend {id}, of flows without an entry, is empty"));
            }
            self.check_backend(value, backend).map_err(|why| format!("{key:?}: backend {id} {why}"))?;
            choices.stable.insert(id);
        }
        for id in ids {
            let backend = self.backends.get(&id).ok_or_else(|| format!("{key:?}: backend {id} was never set"))?;
            match BackendState::from_number(backend.state) {
                Some(BackendState::Live) => _ = choices.live.insert(id),
                Some(BackendState::Dead | BackendState::Kept | BackendState::Moved) => _ = choices.dead.insert(id),
                Some(BackendState::Empty) | None => return Err(format!("{key:?}: backend {id} is empty")),
            }
            self.check_backend(value, backend).map_err(|why| format!("{key:?}: backend {id} {why}"))?;
        }
        Ok(Some(choices))
    }

    /// Checks every service, and that QUIC server ids name backends of theirs.
    ///
    /// # Errors
    /// As [`FakeDataplane::choices`], of the first service that is not whole.
    pub fn check(&self) -> Result<(), String> {
        self.services.keys().try_for_each(|key| self.choices(key).map(|_| ()))?;
        self.quic_ids.iter().try_for_each(|(key, id)| match self.backends.get(id) {
            Some(backend) if backend.service_id == key.service_id && backend.state != BackendState::Empty as u8 => {
                Ok(())
            }
            other => Err(format!("{key:?} names backend {id}: {other:?}")),
        })
    }

    /// What the map `services` says.
    pub fn service(&self, key: &ServiceKey) -> Option<&ServiceValue> {
        self.services.get(key)
    }

    /// What a slot of the map `selection` holds, whoever points at it; `None`: beyond its end.
    pub fn slot(&self, index: u32) -> Option<Slot> {
        self.selection.get(index as usize).copied()
    }

    /// Whether a port pool is ready.
    pub fn pool_ready(&self, pool: u32) -> bool {
        self.port_pools.contains_key(&pool)
    }

    /// An element of the map `backends`; `None`: never used.
    pub fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(&id)
    }

    /// Roles of an address; 0: it is not in the map.
    pub fn roles(&self, address: Address) -> u32 {
        self.addresses.get(&address).map_or(0, |roles| roles.0)
    }

    fn check_backend(&self, value: &ServiceValue, backend: &Backend) -> Result<(), String> {
        if backend.service_id != value.id {
            return Err(format!("belongs to service {}, not to {}", backend.service_id, value.id));
        }
        let (address, role) = match Mode::from_number(value.mode) {
            Some(Mode::Nat) => (backend.address, AddressRoles::NAT_BACKEND),
            Some(Mode::FullNat) if !self.port_pools.contains_key(&backend.port_pool) => {
                return Err(format!("names port pool {}, which is not ready", backend.port_pool));
            }
            Some(Mode::FullNat) => (backend.source, AddressRoles::SOURCE),
            Some(Mode::DsrIpip | Mode::DsrGue | Mode::DsrGre) if backend.source.octets() == [0; 16] => {
                return Err("has no source address for its tunnel".to_owned());
            }
            Some(Mode::DsrL2 | Mode::DsrIpip | Mode::DsrGue | Mode::DsrGre) => return Ok(()),
            None => return Err(format!("is of a service without a mode: {value:?}")),
        };
        if self.roles(address) & role == 0 {
            return Err(format!("answers to {address:?}, whose replies are not known ({})", self.roles(address)));
        }
        Ok(())
    }
}

impl Dataplane for FakeDataplane {
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError> {
        let limits = self.limits;
        match op {
            Op::SetGeneration(generation) => self.generation = *generation,
            Op::SetRoutesVary(vary) => self.routes_vary = *vary,
            Op::SetPortPool { pool, ports } => {
                within("port pool", *pool, limits.port_pools, "port-pools")?;
                self.port_pools.insert(*pool, ports.clone());
            }
            Op::ClearPortPool { pool } => _ = self.port_pools.remove(pool),
            Op::SetBackend { id, backend } => {
                within("backend", *id, limits.backends, "backends")?;
                self.backends.insert(*id, *backend);
            }
            Op::SetServiceInfo { id, info } => {
                within("service", *id, limits.services, "services")?;
                self.service_info.insert(*id, *info);
            }
            Op::ClearServiceInfo { id } => _ = self.service_info.remove(id),
            Op::WriteSelection { base, slots } => {
                let last = base.saturating_add(slots.len() as u32).saturating_sub(1);
                within("selection slot", last, limits.selection_slots, "selection-slots")?;
                self.selection[*base as usize..*base as usize + slots.len()].copy_from_slice(slots);
            }
            Op::SetService { key, value } => {
                if !self.services.contains_key(key) {
                    within("service", self.services.len() as u32, limits.services, "services")?;
                }
                self.services.insert(*key, *value);
            }
            Op::DeleteService { key } => _ = self.services.remove(key),
            Op::SetAddress { address, roles } => {
                if !self.addresses.contains_key(address) {
                    within("address", self.addresses.len() as u32, limits.addresses, "addresses")?;
                }
                self.addresses.insert(*address, *roles);
            }
            Op::DeleteAddress { address } => _ = self.addresses.remove(address),
            Op::SetQuicId { key, backend } => {
                if !self.quic_ids.contains_key(key) {
                    within("backend", self.quic_ids.len() as u32, limits.backends, "backends")?;
                }
                self.quic_ids.insert(*key, *backend);
            }
            Op::DeleteQuicId { key } => _ = self.quic_ids.remove(key),
        }
        self.ops.push(op.clone());
        Ok(())
    }

    fn read(&mut self) -> Result<Tables, DataplaneError> {
        let published = self.services.values().filter(|value| value.slots() > 0);
        let slots = |value: &ServiceValue| {
            let (base, len) = (value.selection_base as usize, value.slots() as usize);
            (value.selection_base, self.selection[base..base + len].to_vec())
        };
        Ok(Tables {
            generation: self.generation,
            addresses: self.addresses.clone(),
            services: self.services.clone(),
            service_info: self.service_info.clone(),
            backends: self.backends.clone(),
            selection: published.map(slots).collect(),
            port_pools: self.port_pools.clone(),
            quic_ids: self.quic_ids.clone(),
            routes_vary: self.routes_vary,
        })
    }

    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        Ok(self.census.clone())
    }

    fn beat(&mut self, rule: &DeadMan) -> Result<(), DataplaneError> {
        self.beats.push(*rule);
        Ok(())
    }
}

fn within(what: &'static str, number: u32, limit: u32, setting: &'static str) -> Result<(), DataplaneError> {
    if number < limit {
        return Ok(());
    }
    Err(DataplaneError::Limit { what, number: u64::from(number), limit: u64::from(limit), setting })
}
