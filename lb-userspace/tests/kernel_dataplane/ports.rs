use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use lb_common::flow::Word;
use lb_userspace::{
    config::PortRange,
    dataplane::{Dataplane, Op, kernel::Audit},
};

use crate::support::{BACKEND, HandTable, PinDir, ago, flow};

const LOW: PortRange = PortRange { first: 1024, last: 2047 };
const HIGH: PortRange = PortRange { first: 60_000, last: 65_535 };

fn pool(ports: &[PortRange]) -> Op {
    Op::SetPortPool { pool: 1, ports: ports.to_vec() }
}

#[test]
fn a_new_pool_is_open_within_its_ranges_only() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.apply(&pool(&[LOW, HIGH])).unwrap();
    let table = HandTable::open(&pins);
    for port in 0..=u16::MAX {
        let inside = (1024..=2047).contains(&port) || port >= 60_000;
        assert_eq!(table.port_taken(port), !inside, "port {port}");
    }
}

#[test]
fn a_cleared_pool_hands_out_nothing() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.apply(&pool(&[LOW])).unwrap();
    dataplane.apply(&Op::ClearPortPool { pool: 1 }).unwrap();
    assert!(dataplane.read().unwrap().port_pools.is_empty());
    let table = HandTable::open(&pins);
    assert!((1..=u16::MAX).all(|port| table.port_taken(port)));
    dataplane.apply(&pool(&[HIGH])).unwrap();
    assert!(table.port_taken(1024) && !table.port_taken(60_000));
}

#[test]
fn changed_ranges_keep_the_ports_of_live_flows() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.apply(&Op::SetBackend { id: 5, backend: BACKEND }).unwrap();
    dataplane.apply(&pool(&[LOW])).unwrap();
    let table = HandTable::open(&pins);
    table.store(&flow(1030), |tag| Word::begin(tag, true, ago(0)));

    dataplane.apply(&pool(&[HIGH])).unwrap();
    assert!((1024..=2047).all(|port| table.port_taken(port)), "what is outside is closed");
    assert!(!table.port_taken(60_000));
    dataplane.apply(&pool(&[LOW, HIGH])).unwrap();
    let taken: Vec<_> = (1024..=2047).filter(|port| table.port_taken(*port)).collect();
    assert_eq!(taken, [1030], "only the live flow's port stays taken");
    dataplane.apply(&pool(&[LOW, HIGH])).unwrap();
    assert!(table.port_taken(1030));
}

#[test]
fn a_pool_that_is_made_anew_keeps_the_ports_of_live_flows() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.apply(&Op::SetBackend { id: 5, backend: BACKEND }).unwrap();
    dataplane.apply(&pool(&[LOW])).unwrap();
    let table = HandTable::open(&pins);
    table.store(&flow(1030), |tag| Word::begin(tag, true, ago(0)));
    dataplane.apply(&Op::ClearPortPool { pool: 1 }).unwrap();
    dataplane.apply(&pool(&[LOW])).unwrap();
    let taken: Vec<_> = (1024..=2047).filter(|port| table.port_taken(*port)).collect();
    assert_eq!(taken, [1030]);
}

#[test]
fn a_port_taken_while_the_ranges_change_is_never_opened() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.apply(&pool(&[LOW])).unwrap();
    let table = HandTable::open(&pins);
    let done = AtomicBool::new(false);
    // A data path that takes ports and, unlike flows in the table, never gives them back.
    thread::scope(|scope| {
        let taker = scope.spawn(|| {
            let mut mine = HashSet::new();
            let words = table.pools.words(1).unwrap();
            while !done.load(Ordering::Relaxed) {
                for port in LOW.first..=LOW.last {
                    let bit = 1u64 << (port % 64);
                    if words[port as usize / 64].fetch_or(bit, Ordering::AcqRel) & bit == 0 {
                        assert!(mine.insert(port), "port {port} was handed out twice");
                    }
                }
            }
            mine
        });
        for _ in 0..200 {
            dataplane.apply(&pool(&[LOW, HIGH])).unwrap();
            dataplane.apply(&pool(&[PortRange { first: 1024, last: 3000 }])).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(!taker.join().unwrap().is_empty());
    });
}

#[test]
fn the_audit_frees_a_port_without_owner_the_second_time() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.apply(&Op::SetBackend { id: 5, backend: BACKEND }).unwrap();
    dataplane.apply(&pool(&[LOW])).unwrap();
    let table = HandTable::open(&pins);
    table.store(&flow(1030), |tag| Word::begin(tag, true, ago(0)));
    table.set_port(1040, true);

    assert_eq!(dataplane.audit_ports().unwrap(), Audit::default());
    assert!(table.port_taken(1040), "a flow may be about to begin");
    table.set_port(1041, true);
    assert_eq!(dataplane.audit_ports().unwrap(), Audit { ports: 1, replies: 0 });
    assert!(!table.port_taken(1040) && table.port_taken(1041) && table.port_taken(1030));
    assert_eq!(dataplane.audit_ports().unwrap(), Audit { ports: 1, replies: 0 });
    assert!(!table.port_taken(1041));
    assert_eq!(dataplane.audit_ports().unwrap(), Audit::default());
}

#[test]
fn a_sweep_closes_ports_that_were_given_back_outside_the_ranges() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    dataplane.apply(&pool(&[LOW])).unwrap();
    let table = HandTable::open(&pins);
    table.set_port(61_000, false);
    dataplane.sweep().unwrap();
    assert!(table.port_taken(61_000));
}

#[test]
fn ranges_that_cannot_be_kept_are_refused() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    let many: Vec<_> = (0..15).map(|n| PortRange { first: 2000 + n * 10, last: 2005 + n * 10 }).collect();
    for ranges in [&[PortRange { first: 0, last: 10 }][..], &[PortRange { first: 9, last: 8 }], &many] {
        let error = dataplane.apply(&pool(ranges)).expect_err("not a pool");
        assert!(error.to_string().contains("source ports"), "{error}");
    }
    assert!(dataplane.read().unwrap().port_pools.is_empty());
}
