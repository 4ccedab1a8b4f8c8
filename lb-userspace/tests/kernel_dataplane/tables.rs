use std::{collections::BTreeMap, net::Ipv6Addr};

use bytemuck::Zeroable;
use lb_common::abi::{
    Address, AddressRoles, Backend, BackendCounters, Port, ServiceCounters, ServiceInfo, ServiceKey, ServiceValue,
    Slot, names,
};
use lb_userspace::{
    config::PortRange,
    dataplane::{Dataplane, DataplaneError, Op, Tables, kernel::Stats},
};
use proptest::{collection::btree_map, prelude::*, strategy::ValueTree as _};

use crate::support::{BACKEND, LIMITS, PinDir};

#[test]
fn fresh_maps_read_as_empty_tables() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    assert_eq!(pins.open().read().unwrap(), Tables::default());
}

#[test]
fn what_is_applied_is_read_back_also_after_it_changed() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 64, ..Default::default() });
    // Each case goes from the tables of the one before: ids are taken, changed and given up.
    let strategy = any_tables();
    let mut before = Tables::default();
    for _ in 0..64 {
        let tables = strategy.new_tree(&mut runner).unwrap().current();
        for op in change(&before, &tables) {
            dataplane.apply(&op).unwrap();
            // Everything may be repeated without harm.
            dataplane.apply(&op).unwrap();
        }
        let expected = Tables { backends: with_former(&before, &tables), ..tables };
        assert_eq!(dataplane.read().unwrap(), expected);
        assert_eq!(pins.open().read().unwrap(), expected, "another process sees something else");
        before = expected;
    }
}

#[test]
fn numbers_beyond_a_limit_name_the_setting() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    let cases = [
        (Op::SetBackend { id: LIMITS.backends, backend: BACKEND }, "limits.backends"),
        (Op::SetServiceInfo { id: LIMITS.services, info: ServiceInfo::zeroed() }, "limits.services"),
        (Op::ClearServiceInfo { id: LIMITS.services }, "limits.services"),
        (
            Op::WriteSelection { base: LIMITS.selection_slots - 1, slots: [1, 2].map(Slot::clean).to_vec() },
            "limits.selection-slots",
        ),
        (Op::WriteSelection { base: u32::MAX, slots: [1, 2].map(Slot::clean).to_vec() }, "limits.selection-slots"),
        (Op::SetPortPool { pool: LIMITS.port_pools, ports: vec![] }, "limits.port-pools"),
        (Op::ClearPortPool { pool: LIMITS.port_pools }, "limits.port-pools"),
    ];
    for (op, setting) in cases {
        let error = dataplane.apply(&op).expect_err("beyond the limit");
        assert!(matches!(error, DataplaneError::Limit { .. }), "{op:?}: {error}");
        assert!(error.to_string().contains(setting), "{op:?}: {error}");
    }
    assert_eq!(dataplane.read().unwrap(), Tables::default());
}

#[test]
fn a_full_map_is_reported_as_its_limit() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    let mut set = |n: u32| {
        dataplane.apply(&Op::SetAddress {
            address: Address::v4(n.to_be_bytes()),
            roles: AddressRoles(AddressRoles::SERVICE),
        })
    };
    for n in 0..LIMITS.addresses {
        set(n).unwrap();
    }
    let error = set(LIMITS.addresses).expect_err("the map is full");
    assert_eq!(error.to_string(), "addresses 65 is beyond the limit of 64: raise `limits.addresses` and restart");
    set(0).expect("what is there may be changed");
}

#[test]
fn counters_begin_anew_with_another_owner_only() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    let info = ServiceInfo::new(Address::v4([203, 0, 113, 10]), Port::new(80), 6, 1);
    dataplane.apply(&Op::SetServiceInfo { id: 2, info }).unwrap();
    dataplane.apply(&Op::SetBackend { id: 5, backend: BACKEND }).unwrap();
    crate::observe::count(&pins, 2, 5);
    let stats = Stats::open(&pins.0).unwrap();
    let service = stats.service(2).unwrap();
    let backend = stats.backend(5).unwrap();
    assert!(service.flows > 0 && backend.flows > 0);

    dataplane.apply(&Op::SetServiceInfo { id: 2, info: ServiceInfo { timeouts: [7; 8], ..info } }).unwrap();
    dataplane.apply(&Op::SetBackend { id: 5, backend: Backend { state: 2, ..BACKEND } }).unwrap();
    assert_eq!((stats.service(2).unwrap(), stats.backend(5).unwrap()), (service, backend));

    dataplane.apply(&Op::SetServiceInfo { id: 2, info: ServiceInfo { port: Port::new(81), ..info } }).unwrap();
    dataplane.apply(&Op::SetBackend { id: 5, backend: Backend { generation: 4, ..BACKEND } }).unwrap();
    assert_eq!(stats.service(2).unwrap(), ServiceCounters::default());
    assert_eq!(stats.backend(5).unwrap(), BackendCounters::default());
}

#[test]
fn a_selection_that_does_not_lie_in_the_map_is_not_listed() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let key = ServiceKey::new(Address::v4([203, 0, 113, 10]), Port::new(80), 6);
    let value = ServiceValue { selection_base: u32::MAX, selection_len: 7, ..ServiceValue::zeroed() };
    pins.hash(names::SERVICES).insert(key, value, 0).unwrap();
    let tables = pins.open().read().unwrap();
    assert_eq!(tables.services, BTreeMap::from([(key, value)]));
    assert!(tables.selection.is_empty());
}

/// The operations that lead from one state to another, in the order of the design.
fn change(from: &Tables, to: &Tables) -> Vec<Op> {
    let mut ops = Vec::new();
    ops.extend(from.services.keys().map(|key| Op::DeleteService { key: *key }));
    ops.extend(from.addresses.keys().map(|address| Op::DeleteAddress { address: *address }));
    ops.extend(from.service_info.keys().map(|id| Op::ClearServiceInfo { id: *id }));
    let gone = from.port_pools.keys().filter(|pool| !to.port_pools.contains_key(pool));
    ops.extend(gone.map(|pool| Op::ClearPortPool { pool: *pool }));
    ops.extend(to.port_pools.iter().map(|(pool, ports)| Op::SetPortPool { pool: *pool, ports: ports.clone() }));
    ops.extend(to.backends.iter().map(|(id, backend)| Op::SetBackend { id: *id, backend: *backend }));
    ops.extend(to.service_info.iter().map(|(id, info)| Op::SetServiceInfo { id: *id, info: *info }));
    ops.extend(to.selection.iter().map(|(base, slots)| Op::WriteSelection { base: *base, slots: slots.clone() }));
    ops.extend(to.services.iter().map(|(key, value)| Op::SetService { key: *key, value: *value }));
    ops.extend(to.addresses.iter().map(|(address, roles)| Op::SetAddress { address: *address, roles: *roles }));
    ops.push(Op::SetGeneration(to.generation));
    ops.push(Op::SetRoutesVary(to.routes_vary));
    ops
}

/// Backends are never removed, only overwritten.
fn with_former(before: &Tables, after: &Tables) -> BTreeMap<u32, Backend> {
    let mut backends = before.backends.clone();
    backends.extend(after.backends.iter().map(|(id, backend)| (*id, *backend)));
    backends
}

fn any_tables() -> impl Strategy<Value = Tables> {
    let services = btree_map(any_key(), (0u32..LIMITS.services, 0usize..=8, 0u8..2), 0..LIMITS.services as usize);
    let addresses = btree_map(any_address(), (1u32..16).prop_map(AddressRoles), 0..LIMITS.addresses as usize);
    let infos = btree_map(0..LIMITS.services, any_info(), 0..LIMITS.services as usize);
    let backends = btree_map(0..LIMITS.backends, any_backend(), 0..LIMITS.backends as usize);
    let pools = btree_map(0..LIMITS.port_pools, any_ranges(), 0..LIMITS.port_pools as usize);
    ((any::<u32>(), any::<bool>()), services, addresses, infos, backends, pools).prop_map(
        |((generation, routes_vary), wanted, addresses, service_info, backends, port_pools)| {
            let mut tables =
                Tables { generation, routes_vary, addresses, service_info, backends, port_pools, ..Tables::default() };
            let mut base = 0;
            for (key, (id, slots, mode)) in wanted {
                let slots: Vec<Slot> = (0..slots as u32).map(|slot| any_slot(slot * 7 + id)).collect();
                let value = ServiceValue {
                    id,
                    selection_base: base,
                    selection_len: slots.len() as u32,
                    generation,
                    mode,
                    ..ServiceValue::zeroed()
                };
                tables.services.insert(key, value);
                if !slots.is_empty() {
                    base += slots.len() as u32;
                    tables.selection.insert(value.selection_base, slots);
                }
            }
            tables
        },
    )
}

/// Every kind of slot.
fn any_slot(id: u32) -> Slot {
    match id % 3 {
        0 => Slot::clean(id),
        1 => Slot::unsettled(id, id / 2),
        _ => Slot::gone(id),
    }
}

fn any_address() -> impl Strategy<Value = Address> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(Address::v4),
        any::<[u8; 16]>().prop_map(|octets| Address::from(std::net::IpAddr::from(Ipv6Addr::from(octets)))),
    ]
}

fn any_key() -> impl Strategy<Value = ServiceKey> {
    (any_address(), any::<u16>(), prop_oneof![Just(6u8), Just(17u8)])
        .prop_map(|(address, port, protocol)| ServiceKey::new(address, Port::new(port), protocol))
}

fn any_info() -> impl Strategy<Value = ServiceInfo> {
    (any_key(), 0u8..2).prop_map(|(key, mode)| ServiceInfo::new(key.address, key.port, key.protocol, mode))
}

fn any_backend() -> impl Strategy<Value = Backend> {
    let state = 0u8..5;
    (any_address(), any_address(), any::<u16>(), state, 1u32.., 0..LIMITS.services, 0..LIMITS.port_pools).prop_map(
        |(address, source, port, state, generation, service_id, port_pool)| Backend {
            address,
            source,
            port: Port::new(port),
            state,
            cause: 0,
            generation,
            service_id,
            port_pool,
            weight: service_id + 1,
            tunnel_port: Port::ANY,
            dont_fragment: 0,
            source_bits: 0,
            max_flows: 0,
            reserved: 0,
        },
    )
}

fn any_ranges() -> impl Strategy<Value = Vec<PortRange>> {
    // Up to 14 ranges, sorted and apart.
    proptest::collection::btree_set(1024u16..=u16::MAX, 0..=28).prop_map(|ports| {
        let ports: Vec<_> = ports.into_iter().collect();
        ports.chunks_exact(2).map(|pair| PortRange { first: pair[0], last: pair[1] }).collect()
    })
}
