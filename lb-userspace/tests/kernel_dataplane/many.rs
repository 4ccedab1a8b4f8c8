//! Many operations at once do what they do one by one.

use bytemuck::Zeroable;
use lb_common::abi::{
    Address, AddressRoles, Backend, BackendCounters, Port, QuicKey, ServiceCounters, ServiceInfo, ServiceKey,
    ServiceValue,
};
use lb_userspace::dataplane::{Dataplane, DataplaneError, Op, Tables, kernel::Stats};

use crate::support::{BACKEND, LIMITS, PinDir};

const COUNT: u8 = 8;

fn address(n: u8) -> Address {
    Address::v4([10, 0, 0, n])
}

fn key(n: u8) -> ServiceKey {
    ServiceKey::new(Address::v4([203, 0, 113, n]), Port::new(80), 6)
}

fn quic(n: u8) -> QuicKey {
    QuicKey::new(u32::from(n), [n; 16])
}

/// In the order of a plan; each kind several times, some elements twice.
fn creations() -> Vec<Op> {
    let all = || 1..=COUNT;
    let address_op = |n, roles| Op::SetAddress { address: address(n), roles: AddressRoles(roles) };
    let info = |n: u8| ServiceInfo::new(key(n).address, Port::new(80), 6, 1);
    let value = |n: u8| ServiceValue { id: n.into(), ..ServiceValue::zeroed() };
    let backend = |n: u8| Backend { address: address(n), ..BACKEND };
    all()
        .map(|n| address_op(n, AddressRoles::SOURCE))
        .chain(all().map(|n| address_op(n, AddressRoles::NAT_BACKEND)))
        .chain(all().map(|n| Op::SetBackend { id: n.into(), backend: backend(n) }))
        .chain(all().map(|n| Op::SetQuicId { key: quic(n), backend: n.into() }))
        .chain(all().map(|n| Op::SetServiceInfo { id: n.into(), info: info(n) }))
        .chain(all().map(|n| Op::SetService { key: key(n), value: value(n) }))
        .collect()
}

/// All of what [`creations`] made but the last of each kind, and one that was never there.
fn deletions() -> Vec<Op> {
    let most = || [1, 2, 200, 3, 4, 5, 6, 7].into_iter();
    most()
        .map(|n| Op::DeleteAddress { address: address(n) })
        .chain(most().map(|n| Op::DeleteService { key: key(n) }))
        .chain((1..COUNT).map(|n| Op::ClearServiceInfo { id: n.into() }))
        .chain(most().map(|n| Op::DeleteQuicId { key: quic(n) }))
        .collect()
}

#[test]
fn the_maps_are_the_same_as_after_one_by_one() {
    let (single, many) = (PinDir::new(), PinDir::new());
    let (_loaded, _too) = (single.load(), many.load());
    let (mut single, mut many) = (single.open(), many.open());
    // Batches of backends need what a first look tells.
    assert_eq!(many.read().unwrap(), Tables::default());
    for ops in [creations(), deletions()] {
        ops.iter().for_each(|op| single.apply(op).unwrap());
        many.apply_all(&ops).unwrap();
        let expected = single.read().unwrap();
        assert!(!expected.services.is_empty() && !expected.backends.is_empty());
        assert_eq!(many.read().unwrap(), expected);
    }
}

#[test]
fn counters_begin_anew_with_other_owners_only() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.read().unwrap();
    dataplane.apply_all(&creations()).unwrap();
    crate::observe::count(&pins, 2, 5);
    let stats = Stats::open(&pins.0).unwrap();
    let (service, backend) = (stats.service(2).unwrap(), stats.backend(5).unwrap());
    assert!(service.flows > 0 && backend.flows > 0);

    let dead =
        |id: u8| Op::SetBackend { id: id.into(), backend: Backend { address: address(id), state: 2, ..BACKEND } };
    dataplane.apply_all(&[dead(4), dead(5), dead(6)]).unwrap();
    assert_eq!((stats.service(2).unwrap(), stats.backend(5).unwrap()), (service, backend));

    let other = |id: u8| Op::SetBackend { id: id.into(), backend: Backend { generation: 9, ..BACKEND } };
    let info =
        |id: u8| Op::SetServiceInfo { id: id.into(), info: ServiceInfo::new(key(id).address, Port::new(81), 6, 1) };
    dataplane.apply_all(&[other(4), other(5), info(2), info(3)]).unwrap();
    assert_eq!(stats.service(2).unwrap(), ServiceCounters::default());
    assert_eq!(stats.backend(5).unwrap(), BackendCounters::default());
}

#[test]
fn a_map_that_is_full_in_the_middle_of_many_is_reported_as_its_limit() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    let roles = AddressRoles(AddressRoles::SERVICE);
    let all = (0..=LIMITS.addresses).map(|n| Op::SetAddress { address: Address::v4(n.to_be_bytes()), roles });
    let error = dataplane.apply_all(&all.collect::<Vec<_>>()).expect_err("the map is full");
    assert!(matches!(error, DataplaneError::Limit { setting: "addresses", .. }), "{error}");
    assert_eq!(dataplane.read().unwrap().addresses.len() as u32, LIMITS.addresses, "those before were written");
}
