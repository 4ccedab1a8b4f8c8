//! Everything that is handed out (ids, slots, pools, roles of addresses) and the tables it goes
//! into. What leaves the tables rests: it is handed out again only when the maps no longer hold it
//! and a second has passed, so that no packet under way meets it in a new meaning.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use lb_common::abi::{
    Address, AddressRoles, Backend, BackendState, Port, QuicKey, ServiceInfo, ServiceKey, ServiceValue, Slot,
};

use super::{
    Now,
    extents::{Extent, Extents},
    ids::Ids,
    pools::{Host, Pools},
    roles::Roles,
    service::{Leave, Shape, Table, empty_entry},
    touched::{Element, Touched},
};
use crate::{
    config::{Limits, PortRange},
    dataplane::{FlowCensus, Tables},
};

/// Time between leaving the maps and being handed out again.
const REST: Duration = Duration::from_secs(1);

/// What can rest.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resource {
    ServiceId(u32),
    BackendId(u32),
    Pool(u32),
    Slots(Extent),
    Address(Address),
}

#[derive(Clone, Debug)]
pub(super) struct Ledger {
    desired: Tables,
    /// Whether `desired` differs from its generation's first state.
    changed: bool,
    /// Every element that differs, by generation.
    touched: Touched,
    pub service_ids: Ids,
    pub backend_ids: Ids,
    pub extents: Extents,
    pub pools: Pools,
    pub roles: Roles,
    /// `full-nat`: the host's source address towards backends, where it was told.
    pub sources: BTreeMap<IpAddr, Option<IpAddr>>,
    /// `full-nat`: ports of every pool.
    ports: Vec<PortRange>,
    /// In the order of their generations.
    resting: VecDeque<(u32, Resource)>,
    /// Generations and when they were found in the maps, for the last second.
    published: VecDeque<(u32, Now)>,
    /// The last generation that has been in the maps for a second.
    settled: u32,
    /// The last walk over the flow table.
    pub flows: FlowCensus,
    /// `full-nat`: source addresses of flows from before the last restart.
    pub old_sources: Vec<(Address, Leave)>,
}

impl Ledger {
    /// Begins with tables that are in the maps; what is in use there must still be reserved.
    pub(super) fn new(limits: &Limits, ports: &[PortRange], inherited: &Tables) -> Self {
        let of_services = inherited.services.values().map(|value| value.generation);
        let generation = of_services.fold(inherited.generation, u32::max);
        Self {
            desired: Tables { generation, ..inherited.clone() },
            changed: false,
            touched: Touched::since(inherited.generation),
            service_ids: Ids::new(limits.services),
            backend_ids: Ids::new(limits.backends),
            extents: Extents::new(limits.selection_slots),
            pools: Pools::new(limits.port_pools),
            roles: Roles::new(limits.addresses),
            sources: BTreeMap::new(),
            ports: ports.to_vec(),
            resting: VecDeque::new(),
            published: VecDeque::new(),
            settled: generation,
            flows: FlowCensus::default(),
            old_sources: Vec::new(),
        }
    }

    pub(super) fn desired(&self) -> &Tables {
        &self.desired
    }

    /// What changed in [`Ledger::desired`] lately.
    pub(super) fn touched(&self) -> &Touched {
        &self.touched
    }

    /// The generation that changes made now will have.
    pub(super) fn next_generation(&self) -> u32 {
        self.desired.generation.wrapping_add(1)
    }

    /// Whether what left the tables with this generation is out of every packet's sight.
    pub(super) fn settled(&self, generation: u32) -> bool {
        reached(self.settled, generation)
    }

    /// The maps hold this generation.
    pub(super) fn publish(&mut self, generation: u32, now: Now) {
        let last = self.published.back().map_or(self.settled, |&(last, _)| last);
        if generation != last && reached(generation, last) && reached(self.desired.generation, generation) {
            self.published.push_back((generation, now));
        }
        self.touched.forget_until(generation);
        self.advance(now);
    }

    /// Follows the clock.
    pub(super) fn advance(&mut self, now: Now) {
        while let Some(&(generation, at)) = self.published.front()
            && now >= at + REST
        {
            self.settled = generation;
            self.published.pop_front();
        }
    }

    /// Hands back what has rested. Returns whether anything was.
    pub(super) fn release(&mut self, now: Now) -> bool {
        self.advance(now);
        let mut released = false;
        while let Some(&(generation, resource)) = self.resting.front()
            && self.settled(generation)
        {
            self.resting.pop_front();
            released = true;
            match resource {
                Resource::BackendId(id) if self.flows.by_backend.get(&id).is_some_and(|&flows| flows > 0) => {
                    self.rest(resource);
                }
                Resource::ServiceId(id) if self.flows.by_service.get(&id).is_some_and(|&flows| flows > 0) => {
                    self.rest(resource);
                }
                Resource::BackendId(id) => self.backend_ids.give_back(id),
                Resource::ServiceId(id) => self.service_ids.give_back(id),
                Resource::Pool(id) => self.pools.give_back(id),
                Resource::Slots(extent) => self.extents.give_back(extent),
                Resource::Address(address) => self.roles.forget(address),
            }
        }
        released
    }

    /// The resource leaves the tables with the next generation.
    pub(super) fn rest(&mut self, resource: Resource) {
        self.touch();
        self.resting.push_back((self.next_generation(), resource));
    }

    /// There will be a next generation, even if nothing else changes.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    /// The element differs from the next generation on.
    fn mark(&mut self, element: Element) {
        self.touched.note(self.next_generation(), element);
        self.changed = true;
    }

    /// Ends a round of changes: they get their generation.
    pub(super) fn close_round(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.desired.generation = self.next_generation();
        }
    }

    pub(super) fn set_routes_vary(&mut self, vary: bool) {
        self.changed |= std::mem::replace(&mut self.desired.routes_vary, vary) != vary;
    }

    pub(super) fn set_backend(&mut self, id: u32, backend: Backend) {
        if self.desired.backends.insert(id, backend) != Some(backend) {
            self.mark(Element::Backend(id));
        }
    }

    /// Ends the use of a backend's element.
    pub(super) fn clear_backend(&mut self, id: u32) {
        let generation = self.desired.backends.get(&id).map_or(0, |backend| backend.generation);
        self.set_backend(id, empty_entry(generation));
        self.rest(Resource::BackendId(id));
    }

    /// Generation of a new user of a backend's element: one more than the last one's.
    pub(super) fn backend_generation(&self, id: u32) -> u32 {
        let last = self.desired.backends.get(&id).map_or(0, |backend| backend.generation);
        last.wrapping_add(1)
    }

    pub(super) fn set_service_info(&mut self, id: u32, info: ServiceInfo) {
        if self.desired.service_info.insert(id, info) != Some(info) {
            self.mark(Element::ServiceInfo(id));
        }
    }

    pub(super) fn clear_service_info(&mut self, id: u32) {
        if self.desired.service_info.remove(&id).is_some() {
            self.mark(Element::ServiceInfo(id));
        }
        self.rest(Resource::ServiceId(id));
    }

    /// The server ids of a service's backends, all of them.
    pub(super) fn set_server_ids(&mut self, service_id: u32, server_ids: BTreeMap<QuicKey, u32>) {
        let all = |server_id| QuicKey::new(service_id, server_id);
        let old = self.desired.quic_ids.range(all([0; 16])..=all([0xff; 16]));
        if old.clone().eq(server_ids.iter()) {
            return;
        }
        let old = old.map(|(key, _)| *key);
        let stray: Vec<QuicKey> = old.filter(|key| !server_ids.contains_key(key)).collect();
        for key in stray {
            self.desired.quic_ids.remove(&key);
            self.mark(Element::QuicId(key));
        }
        for (key, backend) in server_ids {
            if self.desired.quic_ids.insert(key, backend) != Some(backend) {
                self.mark(Element::QuicId(key));
            }
        }
    }

    /// Publishes a service; its generation is set here when anything else differs.
    pub(super) fn set_service(&mut self, key: ServiceKey, value: ServiceValue) {
        let old = self.desired.services.get(&key);
        if old.is_some_and(|old| ServiceValue { generation: old.generation, ..value } == *old) {
            return;
        }
        self.desired.services.insert(key, ServiceValue { generation: self.next_generation(), ..value });
        self.mark(Element::Service(key));
    }

    /// Takes a key off the tables if it still is this service's.
    pub(super) fn delete_service(&mut self, key: &ServiceKey, id: u32) {
        if self.owner(key) == Some(id) {
            self.desired.services.remove(key);
            self.mark(Element::Service(*key));
        }
    }

    /// Id of the service that has the key in the tables.
    pub(super) fn owner(&self, key: &ServiceKey) -> Option<u32> {
        self.desired.services.get(key).map(|value| value.id)
    }

    /// One more holder of roles of an address.
    pub(super) fn hold_roles(&mut self, address: Address, roles: u32) {
        self.roles.hold(address, roles);
        self.show_roles(address);
    }

    /// One holder less of roles of an address.
    pub(super) fn release_roles(&mut self, address: Address, roles: u32) {
        if self.roles.release(address, roles) {
            self.rest(Resource::Address(address));
        }
        self.show_roles(address);
    }

    /// Whether older flows alone keep a source address. One that new flows use too leaves with its last
    /// user, and then there is another generation.
    pub(super) fn sources_leave(&self) -> bool {
        self.old_sources.iter().any(|(address, _)| self.roles.holders(*address, AddressRoles::SOURCE) == 1)
    }

    /// Takes a walk over the flow table in.
    pub(super) fn walked(&mut self, census: FlowCensus) {
        let mut sources = std::mem::take(&mut self.old_sources);
        sources.retain_mut(|(address, leave)| {
            if self.settled(leave.generation) {
                leave.walked(census.live);
            }
            if leave.over() {
                self.release_roles(*address, AddressRoles::SOURCE);
            }
            !leave.over()
        });
        self.old_sources = sources;
        self.flows = census;
    }

    /// The pool for one more user of an endpoint; `None`: no pool is free.
    pub(super) fn join_pool(&mut self, host: Host, port: Port) -> Option<u32> {
        let pool = self.pools.join(host, port)?;
        if !self.desired.port_pools.contains_key(&pool) {
            self.desired.port_pools.insert(pool, self.ports.clone());
            self.mark(Element::Pool(pool));
        }
        Some(pool)
    }

    /// One user of a pool less.
    pub(super) fn part_pool(&mut self, host: Host, pool: u32) {
        if self.pools.part(host, pool) {
            self.desired.port_pools.remove(&pool);
            self.mark(Element::Pool(pool));
            self.rest(Resource::Pool(pool));
        }
    }

    /// All pools hand out these ports from now on.
    pub(super) fn set_ports(&mut self, ports: &[PortRange]) {
        self.ports = ports.to_vec();
        let others = self.desired.port_pools.iter_mut().filter(|(_, held)| *held != ports);
        let changed: Vec<u32> = others
            .map(|(pool, held)| {
                *held = ports.to_vec();
                *pool
            })
            .collect();
        changed.into_iter().for_each(|pool| self.mark(Element::Pool(pool)));
    }

    /// Keeps of the inherited tables what has been reserved; the rest leaves the maps, and rests like
    /// everything that does.
    pub(super) fn keep_reserved(&mut self, tables: &[Table], pools: &[u32]) {
        let kept: BTreeSet<u32> = tables.iter().map(|table| table.base).collect();
        let stray = self.desired.selection.keys().copied().filter(|base| !kept.contains(base));
        for base in stray.collect::<Vec<u32>>() {
            self.desired.selection.remove(&base);
            self.mark(Element::Selection(base));
        }
        let (quic_ids, backends) = (&self.desired.quic_ids, &self.desired.backends);
        let stray = quic_ids.iter().filter(|(key, id)| {
            !backends.get(*id).is_some_and(|backend| in_use(backend) && backend.service_id == key.service_id)
        });
        for key in stray.map(|(key, _)| *key).collect::<Vec<QuicKey>>() {
            self.desired.quic_ids.remove(&key);
            self.mark(Element::QuicId(key));
        }
        let stray: Vec<u32> = self.desired.port_pools.keys().copied().filter(|id| !pools.contains(id)).collect();
        for id in stray {
            self.desired.port_pools.remove(&id);
            self.mark(Element::Pool(id));
            self.pools.reserve(id);
            self.rest(Resource::Pool(id));
        }
        // An earlier agent may have been stopped between two writes: roles may be missing too.
        let mut known: BTreeSet<Address> = self.desired.addresses.keys().copied().collect();
        known.extend(self.roles.addresses());
        for address in known {
            if self.roles.of(address).is_none() {
                self.roles.remember_removed(address);
                self.rest(Resource::Address(address));
            }
            self.show_roles(address);
        }
    }

    fn show_roles(&mut self, address: Address) {
        let old = match self.roles.of(address) {
            Some(roles) => self.desired.addresses.insert(address, roles),
            None => self.desired.addresses.remove(&address),
        };
        if old != self.roles.of(address) {
            self.mark(Element::Address(address));
        }
    }
}

/// Selection tables.
impl Ledger {
    /// The slots of a published table.
    pub(super) fn slots(&self, table: &Table) -> &[Slot] {
        self.desired.selection.get(&table.base).map_or(&[], Vec::as_slice)
    }

    /// Puts a table into free slots; `None`: no room, or no slots to place. The caller retires the old one.
    pub(super) fn place_table(&mut self, slots: &[Slot]) -> Option<Table> {
        let len = u32::try_from(slots.len()).ok().filter(|&len| len > 0)?;
        let extent = self.extents.take(len)?;
        self.desired.selection.insert(extent.base, slots.to_vec());
        self.mark(Element::Selection(extent.base));
        Some(Table { extent, base: extent.base, len, shape: Shape::plain(len) })
    }

    /// Makes a part of the table the whole of it; no slot changes its content.
    pub(super) fn narrow_table(&mut self, table: &Table, first: u32, len: u32) -> Table {
        if let Some(mut slots) = self.desired.selection.remove(&table.base) {
            slots.drain(..first as usize);
            slots.truncate(len as usize);
            self.desired.selection.insert(table.base + first, slots);
        }
        self.mark(Element::Selection(table.base));
        self.mark(Element::Selection(table.base + first));
        Table { base: table.base + first, len, shape: Shape::plain(len), ..*table }
    }

    /// The table leaves the tables, and the slots it was in rest.
    pub(super) fn retire_table(&mut self, table: Table) {
        self.desired.selection.remove(&table.base);
        self.mark(Element::Selection(table.base));
        self.rest(Resource::Slots(table.extent));
    }
}

/// Whether the backend's element is in use.
pub(super) fn in_use(backend: &Backend) -> bool {
    backend.state != BackendState::Empty as u8
}

/// Whether counting generations up from `wanted` has come to `generation`; numbers wrap.
fn reached(generation: u32, wanted: u32) -> bool {
    generation.wrapping_sub(wanted) as i32 >= 0
}
