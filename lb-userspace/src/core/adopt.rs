//! Taking over what is in the maps. Everything found there is kept as leaving at first; what is
//! configured is then found again by its key and comes back with its id, flows and health.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    abi::{Address, AddressRoles, Backend, BackendState, EndCause, HashedBy, Port, ServiceKey, ServiceValue, Slot},
    quic::ServerId,
};

use super::{
    Now,
    ending::Ending,
    extents::Extent,
    freeze::{FREEZE_MAX, Frozen},
    health::Health,
    ledger::{Ledger, in_use},
    service::{Leave, Member, Place, Service, ServiceRef, Shape, Table},
    tracked::{Hash, Tracked},
    tunnel::Tunnel,
};
use crate::dataplane::Tables;

/// No [`lb_common::abi::Mode`]: of a service that the maps do not describe.
const UNKNOWN_MODE: u8 = 0xff;

/// Services and backends as found; their ids, slots, pools and roles are reserved in the ledger.
pub(super) fn adopt(inherited: &Tables, ledger: &mut Ledger, now: Now) -> BTreeMap<ServiceRef, Service> {
    let leave = Leave::at(ledger.next_generation());
    let published: BTreeMap<u32, &ServiceKey> = inherited.services.iter().map(|(key, v)| (v.id, key)).collect();
    let mut services = BTreeMap::new();
    let mut ids: BTreeMap<u32, ServiceRef> = BTreeMap::new();
    let mut known: Vec<u32> = inherited.service_info.keys().copied().collect();
    known.extend(inherited.backends.values().filter(|backend| in_use(backend)).map(|backend| backend.service_id));
    // Published ones first: of two ids for one key the published one is the service.
    for &id in published.keys().chain(&known) {
        if ids.contains_key(&id) {
            continue;
        }
        let mut me = identity(inherited, published.get(&id).copied(), id);
        if services.contains_key(&me) {
            me.leftover = id.saturating_add(1);
        }
        ledger.service_ids.reserve(id);
        services.insert(me, adopt_service(inherited, me, id, published.get(&id).copied(), (leave, now), ledger));
        ids.insert(id, me);
    }
    adopt_backends(inherited, &ids, &mut services, leave, ledger, now);
    adopt_sources(inherited, leave, ledger);
    let tables: Vec<Table> = services.values().filter_map(|service| service.table).collect();
    let places = services.values().flat_map(|service| &service.members).filter_map(|member| member.place.as_ref());
    let pools: Vec<u32> = places.filter_map(|place| place.pool).collect();
    ledger.keep_reserved(&tables, &pools);
    services
}

fn identity(inherited: &Tables, key: Option<&ServiceKey>, id: u32) -> ServiceRef {
    if let Some(key) = key {
        let mode = inherited.services.get(key).map_or(UNKNOWN_MODE, |value| value.mode);
        return ServiceRef { key: *key, mode, leftover: 0 };
    }
    match inherited.service_info.get(&id) {
        Some(info) => {
            let key = ServiceKey::new(info.address, info.port, info.protocol);
            ServiceRef { key, mode: info.mode, leftover: 0 }
        }
        None => {
            let key = ServiceKey::new(Address::v6([0; 16]), Port::ANY, 0);
            ServiceRef { key, mode: UNKNOWN_MODE, leftover: id.saturating_add(1) }
        }
    }
}

fn adopt_service(
    inherited: &Tables,
    me: ServiceRef,
    id: u32,
    key: Option<&ServiceKey>,
    (leave, now): (Leave, Now),
    ledger: &mut Ledger,
) -> Service {
    let mut service = Service::new();
    service.id = Some(id);
    service.leaving = Some(leave);
    let Some(value) = key.and_then(|key| inherited.services.get(key)) else { return service };
    ledger.roles.hold(me.key.address, me.own_roles());
    service.holds_address = true;
    let parked = inherited.service_info.get(&id).filter(|_| value.has(ServiceValue::PARKED));
    // How much of it is left the data path knows.
    service.frozen = parked.map(|info| Frozen { until: now + FREEZE_MAX, tick: info.parked_until });
    let extent = Extent { base: value.selection_base, len: value.slots() };
    let slots = inherited.selection.get(&extent.base).filter(|slots| slots.len() == extent.len as usize);
    if let Some(slots) = slots {
        service.tracked = adopt_tracked(inherited, value, slots, leave.generation);
    }
    // Slots that another table claims too are left to it: this one gets new ones.
    if slots.is_some() && ledger.extents.reserve(extent) {
        let paired = value.has(ServiceValue::PAIRED);
        let hash = service.tracked.as_ref().map(|tracked| tracked.hash);
        let shape = Shape { turns: value.selection_len, stable: value.stable_len, hash, paired };
        service.table = Some(Table { extent, base: extent.base, len: extent.len, shape });
    }
    service
}

/// Where flows without an entry are: the timeouts of those that were left behind begin anew.
fn adopt_tracked(inherited: &Tables, value: &ServiceValue, slots: &[Slot], generation: u32) -> Option<Tracked> {
    let by = HashedBy::from_number(value.stable_hash).filter(|_| value.has(ServiceValue::TRACKED))?;
    let hash = Hash { by, client_bits: (value.client_prefix_v4, value.client_prefix_v6) };
    let lives = |id| inherited.backends.get(&id).is_some_and(|backend| backend.state == BackendState::Live as u8);
    let slots = slots.get(..value.stable_len as usize)?;
    Some(Tracked::adopt(hash, slots, value.has(ServiceValue::PAIRED), lives, generation))
}

fn adopt_backends(
    inherited: &Tables,
    ids: &BTreeMap<u32, ServiceRef>,
    services: &mut BTreeMap<ServiceRef, Service>,
    leave: Leave,
    ledger: &mut Ledger,
    now: Now,
) {
    let server_ids: BTreeMap<u32, ServerId> = inherited.quic_ids.iter().map(|(key, &id)| (id, key.server_id)).collect();
    let selected: BTreeSet<u32> = inherited.selection.values().flatten().map(|slot| slot.current()).collect();
    for (&id, backend) in inherited.backends.iter().filter(|(_, backend)| in_use(backend)) {
        let Some((me, service)) = ids.get(&backend.service_id).and_then(|me| Some((*me, services.get_mut(me)?))) else {
            continue;
        };
        ledger.backend_ids.reserve(id);
        let mut member = adopt_backend(backend, id, me, selected.contains(&id), now);
        if let Some(place) = &mut member.place {
            place.server_id = server_ids.get(&id).copied();
        }
        member.leaving = Some(leave);
        if let Some(pool) = member.place.as_ref().and_then(|place| place.pool) {
            ledger.pools.adopt(pool, (member.ip(), me.key.protocol), member.port());
        }
        if let Some((address, role)) = member.own_role(me) {
            ledger.roles.hold(address, role);
        }
        // Of two elements for one endpoint the selected one comes last: it is found again.
        let position = if selected.contains(&id) { service.members.len() } else { 0 };
        service.members.insert(position, member);
    }
}

fn adopt_backend(backend: &Backend, id: u32, me: ServiceRef, selected: bool, now: Now) -> Member {
    let ending = Ending {
        state: BackendState::from_number(backend.state).unwrap_or(BackendState::Live),
        cause: EndCause::from_number(backend.cause).unwrap_or(EndCause::None),
    };
    let health = if ending.cause == EndCause::Down {
        Health::down("inherited: was down before the restart", now)
    } else if selected {
        Health::up("inherited: was up before the restart", now)
    } else {
        Health::unknown("inherited: took no new flows before the restart", now)
    };
    let address = SocketAddr::new(IpAddr::from(backend.address), backend.port.get());
    let mut member = Member::new(address, health);
    member.inherited = ending;
    member.demoted = ending.cause == EndCause::Demoted;
    member.weight = u16::try_from(backend.weight).unwrap_or(u16::MAX);
    member.max_flows = backend.max_flows;
    member.place = Some(Place {
        id,
        generation: backend.generation,
        source: me.needs_source().then_some(backend.source),
        old_sources: Vec::new(),
        pool: me.full_nat().then_some(backend.port_pool),
        tunnel: Tunnel::adopted(backend),
        server_id: None,
    });
    member
}

/// Older flows may use any source address that is found, whichever backend names it now; which ones
/// do is not known after a restart. So all keep their role until no flow is left at all.
fn adopt_sources(inherited: &Tables, leave: Leave, ledger: &mut Ledger) {
    let sources = inherited.addresses.iter().filter(|(_, roles)| roles.has(AddressRoles::SOURCE));
    for (&address, _) in sources {
        ledger.roles.hold(address, AddressRoles::SOURCE);
        ledger.old_sources.push((address, leave));
    }
}
