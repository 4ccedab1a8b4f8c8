//! From what is in the maps to what should be: operations in an order in which a packet sees the
//! old state or the new state of a service, never half of each (invariant 3 of the design).
//!
//! | step | why here |
//! | --- | --- |
//! | live and dead backends | one write each, and the fastest way to stop traffic to a dead one |
//! | whether routes vary | concerns every packet, and nothing depends on it |
//! | generation | never below the generation of a service: an agent that restarts counts on from it |
//! | port pools | ready before a backend names them |
//! | roles that replies need | the first reply may follow the first packet at once |
//! | backends | complete before a table lists them |
//! | QUIC server ids | of backends that are there |
//! | service constants | found by the id that the service is about to publish |
//! | selection tables | into slots that no published service points at |
//! | services | the swap: one write, old or new |
//! | roles of services | packets come when everything is in place |
//! | deletions | all of the above in reverse |

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
};

use lb_common::abi::{Address, AddressRoles, Backend, BackendState, ServiceKey, ServiceValue, Slot};

use super::{service::empty_entry, touched::Scope};
use crate::dataplane::{Op, Tables};

/// Operations that turn `actual` into `desired`; none when they are equal.
///
/// `desired` must not give slots, ids or pools that `actual` publishes another meaning: [`super::Core`]
/// rests them. If something else wrote the maps and slots are contested all the same, services that
/// point there are emptied first: refusing flows is better than sending them anywhere.
pub fn plan(actual: &Tables, desired: &Tables) -> Vec<Op> {
    Steps::between(Pair { actual, desired, scope: None }).in_order()
}

/// The same where nothing but the elements of `scope` differs, in time that grows with those only.
/// Tables of `actual` must not share slots.
pub fn plan_within(actual: &Tables, desired: &Tables, scope: &Scope) -> Vec<Op> {
    Steps::between(Pair { actual, desired, scope: Some(scope) }).in_order()
}

/// What is compared.
#[derive(Clone, Copy)]
struct Pair<'a> {
    actual: &'a Tables,
    desired: &'a Tables,
    /// `None`: everything.
    scope: Option<&'a Scope>,
}

impl<'a> Pair<'a> {
    /// Elements that may differ, in the order of their keys.
    fn each<K: Ord, V>(
        self,
        elements: impl Fn(&'a Tables) -> &'a BTreeMap<K, V>,
        touched: impl Fn(&'a Scope) -> &'a BTreeSet<K>,
    ) -> Box<dyn Iterator<Item = Both<'a, K, V>> + 'a> {
        let (old, new) = (elements(self.actual), elements(self.desired));
        match self.scope {
            None => Box::new(join(old, new)),
            Some(scope) => Box::new(touched(scope).iter().filter_map(|key| match (old.get(key), new.get(key)) {
                (None, None) => None,
                (old, new) => Some((key, old, new)),
            })),
        }
    }
}

/// Operations by step.
#[derive(Default)]
struct Steps {
    flips: Vec<Op>,
    ways: Vec<Op>,
    generation: Vec<Op>,
    pools: Vec<Op>,
    reply_roles: Vec<Op>,
    backends: Vec<Op>,
    quic_ids: Vec<Op>,
    constants: Vec<Op>,
    selection: Vec<Op>,
    services: Vec<Op>,
    service_roles: Vec<Op>,
    delete_roles: Vec<Op>,
    delete_services: Vec<Op>,
    clear_constants: Vec<Op>,
    delete_quic_ids: Vec<Op>,
    empty_backends: Vec<Op>,
    clear_pools: Vec<Op>,
}

impl Steps {
    fn between(pair: Pair<'_>) -> Self {
        let mut steps = Self::default();
        steps.backends(pair);
        steps.pools_and_constants(pair);
        steps.selection(pair);
        steps.quic_ids(pair);
        for (&key, old, new) in pair.each(|tables| &tables.services, |scope| &scope.services) {
            match new {
                Some(&value) if old != Some(&value) => steps.services.push(Op::SetService { key, value }),
                Some(_) => {}
                None => steps.delete_services.push(Op::DeleteService { key }),
            }
        }
        for (&address, old, new) in pair.each(|tables| &tables.addresses, |scope| &scope.addresses) {
            steps.roles(address, old.copied(), new.copied());
        }
        if pair.actual.routes_vary != pair.desired.routes_vary {
            steps.ways.push(Op::SetRoutesVary(pair.desired.routes_vary));
        }
        if pair.actual.generation != pair.desired.generation {
            steps.generation.push(Op::SetGeneration(pair.desired.generation));
        }
        steps
    }

    fn in_order(self) -> Vec<Op> {
        let creations = [
            self.flips,
            self.ways,
            self.generation,
            self.pools,
            self.reply_roles,
            self.backends,
            self.quic_ids,
            self.constants,
            self.selection,
            self.services,
            self.service_roles,
        ];
        let deletions = [
            self.delete_roles,
            self.delete_services,
            self.clear_constants,
            self.delete_quic_ids,
            self.empty_backends,
            self.clear_pools,
        ];
        creations.into_iter().chain(deletions).flatten().collect()
    }

    fn backends(&mut self, pair: Pair<'_>) {
        const EMPTY: u8 = BackendState::Empty as u8;
        for (&id, old, new) in pair.each(|tables| &tables.backends, |scope| &scope.backends) {
            let set = |backend: &Backend| Op::SetBackend { id, backend: *backend };
            match (old, new) {
                (old, new) if old == new => {}
                (Some(old), Some(new)) if is_flip(old, new) => self.flips.push(set(new)),
                (_, Some(new)) if new.state == EMPTY => self.empty_backends.push(set(new)),
                (_, Some(new)) => self.backends.push(set(new)),
                (Some(old), None) if old.state != EMPTY => self.empty_backends.push(set(&empty_entry(old.generation))),
                (_, None) => {}
            }
        }
    }

    fn pools_and_constants(&mut self, pair: Pair<'_>) {
        for (&pool, old, new) in pair.each(|tables| &tables.port_pools, |scope| &scope.port_pools) {
            match new {
                Some(ports) if old != Some(ports) => self.pools.push(Op::SetPortPool { pool, ports: ports.clone() }),
                Some(_) => {}
                None => self.clear_pools.push(Op::ClearPortPool { pool }),
            }
        }
        for (&id, old, new) in pair.each(|tables| &tables.service_info, |scope| &scope.service_info) {
            match new {
                Some(&info) if old != Some(&info) => self.constants.push(Op::SetServiceInfo { id, info }),
                Some(_) => {}
                None => self.clear_constants.push(Op::ClearServiceInfo { id }),
            }
        }
    }

    fn quic_ids(&mut self, pair: Pair<'_>) {
        for (&key, old, new) in pair.each(|tables| &tables.quic_ids, |scope| &scope.quic_ids) {
            match new {
                Some(&backend) if old != Some(&backend) => self.quic_ids.push(Op::SetQuicId { key, backend }),
                Some(_) => {}
                None => self.delete_quic_ids.push(Op::DeleteQuicId { key }),
            }
        }
    }

    /// New selection tables; whoever stands in their way is emptied first.
    fn selection(&mut self, pair: Pair<'_>) {
        let actual = pair.actual;
        let changed = pair.each(|tables| &tables.selection, |scope| &scope.selection);
        let changed = changed.filter(|(_, old, new)| new.is_some() && old != new);
        let mut written: Vec<(u32, &Vec<Slot>)> = changed.filter_map(|(&base, _, new)| Some((base, new?))).collect();
        written.retain(|&(base, slots)| !holds(actual, base, slots));
        let apart = pair.scope.is_some();
        if !apart || written.iter().any(|&(base, slots)| contested(actual, base, slots.len())) {
            self.empty_contested(actual, &written);
        }
        let write = |(base, slots): (u32, &Vec<Slot>)| Op::WriteSelection { base, slots: slots.clone() };
        self.selection.extend(written.into_iter().map(write));
    }

    /// Takes the slots from published services that point at some that are about to be written.
    fn empty_contested(&mut self, actual: &Tables, written: &[(u32, &Vec<Slot>)]) {
        if written.is_empty() {
            return;
        }
        let published = actual.services.iter().filter(|(_, value)| value.slots() > 0);
        let published: BTreeMap<u32, (&ServiceKey, &ServiceValue)> =
            published.map(|(key, value)| (value.selection_base, (key, value))).collect();
        for &(base, slots) in written {
            let end = u64::from(base) + slots.len() as u64;
            let reach = |value: &ServiceValue| u64::from(value.selection_base) + u64::from(value.slots());
            // Tables do not overlap: of those that begin before `base` only the last can reach it.
            let before = published.range(..base).next_back().filter(|(_, (_, value))| reach(value) > u64::from(base));
            let within = published.range(base..).take_while(|(first, _)| u64::from(**first) < end);
            for (_, (key, value)) in before.into_iter().chain(within) {
                let value = value.without_slots();
                self.selection.push(Op::SetService { key: **key, value });
            }
        }
    }

    /// Roles come in two steps and go in one; between them an address has the old and the new ones.
    fn roles(&mut self, address: Address, old: Option<AddressRoles>, new: Option<AddressRoles>) {
        let Some(new) = new else {
            self.delete_roles.push(Op::DeleteAddress { address });
            return;
        };
        let mut now = old;
        let mut make = |step: &mut Vec<Op>, roles: u32| {
            if now != Some(AddressRoles(roles)) {
                step.push(Op::SetAddress { address, roles: AddressRoles(roles) });
                now = Some(AddressRoles(roles));
            }
        };
        let old = old.map_or(0, |roles| roles.0);
        let for_replies = new.0 & (AddressRoles::SOURCE | AddressRoles::NAT_BACKEND);
        if for_replies != 0 {
            make(&mut self.reply_roles, old | for_replies);
        }
        make(&mut self.service_roles, old | new.0);
        make(&mut self.delete_roles, new.0);
    }
}

/// Whether the slots are there already, as a part of a longer table.
fn holds(actual: &Tables, base: u32, slots: &[Slot]) -> bool {
    let Some((&first, longer)) = actual.selection.range(..=base).next_back() else { return false };
    longer.get((base - first) as usize..).is_some_and(|rest| rest.starts_with(slots))
}

/// Whether a table, none of which overlap, has some of these slots: the last one that begins before
/// their end.
fn contested(actual: &Tables, base: u32, len: usize) -> bool {
    let end = u64::from(base) + len as u64;
    let before = actual.selection.range(..u32::try_from(end).unwrap_or(u32::MAX)).next_back();
    before.is_some_and(|(&first, slots)| u64::from(first) + slots.len() as u64 > u64::from(base))
}

/// The same element, declared dead or live again.
fn is_flip(old: &Backend, new: &Backend) -> bool {
    let empty = BackendState::Empty as u8;
    old.state != empty && new.state != empty && Backend { state: old.state, cause: old.cause, ..*new } == *old
}

/// Both maps side by side, in the order of their keys, in one pass.
fn join<'a, K: Ord, V>(left: &'a BTreeMap<K, V>, right: &'a BTreeMap<K, V>) -> impl Iterator<Item = Both<'a, K, V>> {
    let (mut left, mut right) = (left.iter().peekable(), right.iter().peekable());
    std::iter::from_fn(move || next_pair(&mut left, &mut right))
}

/// An element as it is and as it should be.
type Both<'a, K, V> = (&'a K, Option<&'a V>, Option<&'a V>);

fn next_pair<'a, K: Ord, V>(
    left: &mut Peekable<impl Iterator<Item = (&'a K, &'a V)>>,
    right: &mut Peekable<impl Iterator<Item = (&'a K, &'a V)>>,
) -> Option<Both<'a, K, V>> {
    let order = match (left.peek(), right.peek()) {
        (Some((a, _)), Some((b, _))) => a.cmp(b),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => return None,
    };
    match order {
        Ordering::Less => left.next().map(|(key, value)| (key, Some(value), None)),
        Ordering::Greater => right.next().map(|(key, value)| (key, None, Some(value))),
        Ordering::Equal => left.next().zip(right.next()).map(|((key, a), (_, b))| (key, Some(a), Some(b))),
    }
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Port, QuicKey, ServiceInfo};

    use super::*;

    const VIP: Address = Address::v4([203, 0, 113, 1]);
    const SERVER: Address = Address::v4([10, 0, 0, 1]);

    fn backend(state: BackendState) -> Backend {
        Backend { address: SERVER, port: Port::new(80), state: state as u8, ..empty_entry(1) }
    }

    fn value(base: u32, len: u32) -> ServiceValue {
        ServiceValue {
            id: 0,
            selection_base: base,
            selection_len: len,
            generation: 1,
            mode: 0,
            scheduler: 0,
            granularity: 0,
            ..ServiceValue::EMPTY
        }
    }

    fn key() -> ServiceKey {
        ServiceKey::new(VIP, Port::new(80), 6)
    }

    fn slots(backends: &[u32]) -> Vec<Slot> {
        backends.iter().copied().map(Slot::clean).collect()
    }

    /// One `nat` service with one backend and a table at slot 4.
    fn tables() -> Tables {
        let info = ServiceInfo::new(VIP, Port::new(80), 6, 0);
        Tables {
            generation: 1,
            addresses: [(VIP, AddressRoles::SERVICE), (SERVER, AddressRoles::NAT_BACKEND)]
                .map(|(address, role)| (address, AddressRoles(role)))
                .into(),
            services: [(key(), value(4, 1))].into(),
            service_info: [(0, info)].into(),
            backends: [(0, backend(BackendState::Live))].into(),
            selection: [(4, slots(&[0]))].into(),
            port_pools: [(0, Vec::new())].into(),
            quic_ids: [(QuicKey::new(0, [7; 16]), 0)].into(),
            routes_vary: true,
        }
    }

    fn names(plan: &[Op]) -> Vec<String> {
        let name = |op: &Op| format!("{op:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
        plan.iter().map(name).collect()
    }

    #[test]
    fn equal_tables_need_nothing() {
        assert_eq!(plan(&tables(), &tables()), []);
    }

    #[test]
    fn a_service_is_built_from_the_ground_and_taken_down_in_reverse() {
        let built = names(&plan(&Tables::default(), &tables()));
        assert_eq!(
            built,
            [
                "SetRoutesVary",
                "SetGeneration",
                "SetPortPool",
                "SetAddress",
                "SetBackend",
                "SetQuicId",
                "SetServiceInfo",
                "WriteSelection",
                "SetService",
                "SetAddress"
            ]
        );
        let gone = Tables { generation: 1, backends: [(0, empty_entry(1))].into(), ..Tables::default() };
        let taken_down = names(&plan(&tables(), &gone));
        assert_eq!(
            taken_down,
            [
                "SetRoutesVary",
                "DeleteAddress",
                "DeleteAddress",
                "DeleteService",
                "ClearServiceInfo",
                "DeleteQuicId",
                "SetBackend",
                "ClearPortPool"
            ]
        );
    }

    #[test]
    fn a_dead_backend_is_declared_before_anything_else() {
        let mut desired = tables();
        desired.generation = 2;
        desired.backends.insert(0, backend(BackendState::Dead));
        desired.backends.insert(1, backend(BackendState::Live));
        desired.services.insert(key(), value(5, 1));
        desired.selection = [(5, slots(&[1]))].into();
        let plan = plan(&tables(), &desired);
        assert_eq!(plan[0], Op::SetBackend { id: 0, backend: backend(BackendState::Dead) });
        assert_eq!(names(&plan)[1..], ["SetGeneration", "SetBackend", "WriteSelection", "SetService"]);
    }

    #[test]
    fn a_part_of_a_table_is_pointed_at_without_a_write() {
        let mut actual = tables();
        actual.services.insert(key(), value(4, 3));
        actual.selection = [(4, slots(&[1, 0, 2]))].into();
        let mut desired = actual.clone();
        desired.services.insert(key(), value(5, 1));
        desired.selection = [(5, slots(&[0]))].into();
        assert_eq!(plan(&actual, &desired), [Op::SetService { key: key(), value: value(5, 1) }]);
    }

    #[test]
    fn a_contested_table_is_emptied_before_it_is_overwritten() {
        let mut desired = tables();
        desired.services.insert(key(), ServiceValue { generation: 2, ..value(4, 2) });
        desired.selection = [(4, slots(&[1, 2]))].into();
        let plan = plan(&tables(), &desired);
        assert_eq!(plan[0], Op::SetService { key: key(), value: value(0, 0) });
        assert_eq!(names(&plan)[1..], ["WriteSelection", "SetService"]);
    }

    #[test]
    fn roles_are_never_missing_while_they_change() {
        let set = |roles| Op::SetAddress { address: VIP, roles: AddressRoles(roles) };
        let mut actual = tables();
        actual.addresses = [(VIP, AddressRoles(AddressRoles::SOURCE))].into();
        let mut desired = actual.clone();
        let (source, nat, service) = (AddressRoles::SOURCE, AddressRoles::NAT_BACKEND, AddressRoles::SERVICE);
        desired.addresses = [(VIP, AddressRoles(nat | service))].into();
        assert_eq!(plan(&actual, &desired), [set(source | nat), set(source | nat | service), set(nat | service)]);
    }
}
