//! Copies of services where packets look first say what the map says, whoever wrote them.

use std::collections::BTreeMap;

use lb_common::{
    abi::{Address, Port, ServiceKey, ServiceLine, ServiceValue, names},
    hash::service_lines,
};
use lb_userspace::{
    config::Limits,
    dataplane::{Dataplane, Op, kernel::SharedArray},
};

use crate::support::{LIMITS, PinDir};

const SERVICES: u32 = 12_000;
const MANY: Limits = Limits { services: 16_384, ..LIMITS };

fn key(number: u32) -> ServiceKey {
    let address = Address::v4((0x0a00_0000 + number / 3).to_be_bytes());
    ServiceKey::new(address, Port::new(80 + (number % 3) as u16), 6)
}

fn value(id: u32, generation: u32) -> ServiceValue {
    ServiceValue { id, generation, ..ServiceValue::EMPTY }
}

/// What packets find, at places where they look; lines that are being written are none of these.
fn found(lines: &SharedArray<ServiceLine>) -> BTreeMap<ServiceKey, ServiceValue> {
    let mut found = BTreeMap::new();
    for at in 0..lines.len() {
        let line = lines.read(at).unwrap();
        assert_eq!(line.version % 2, 0, "line {at} was left open");
        if line.key.protocol != 0 {
            assert!(service_lines(&line.key).contains(&at), "{:?} is at {at}", line.key);
            assert_eq!(found.insert(line.key, line.value), None, "{:?} has two lines", line.key);
        }
    }
    found
}

#[test]
fn nearly_every_one_of_many_services_has_a_line_and_each_says_what_the_map_says() {
    let pins = PinDir::new();
    let _loaded = pins.try_load(&MANY).expect("the data path loads");
    let mut dataplane = pins.open();
    let lines: SharedArray<ServiceLine> = pins.shared(names::SERVICE_LINES);
    let mut expected = BTreeMap::new();
    for id in 0..SERVICES {
        dataplane.apply(&Op::SetService { key: key(id), value: value(id, 1) }).unwrap();
        expected.insert(key(id), value(id, 1));
    }
    let all = found(&lines);
    assert!(all.len() as u32 > SERVICES - SERVICES / 100, "{} of {SERVICES} have a line", all.len());
    for id in (0..SERVICES).step_by(2) {
        dataplane.apply(&Op::SetService { key: key(id), value: value(id, 2) }).unwrap();
        expected.insert(key(id), value(id, 2));
    }
    for id in (0..SERVICES).step_by(5) {
        dataplane.apply(&Op::DeleteService { key: key(id) }).unwrap();
        expected.remove(&key(id));
    }
    let left = found(&lines);
    assert!(left.iter().all(|(key, value)| expected.get(key) == Some(value)), "a line says something else");
    assert!(left.len() * 100 > expected.len() * 99, "{} of {} have a line", left.len(), expected.len());
}

#[test]
fn who_writes_first_mends_what_another_has_left_and_who_reads_changes_nothing() {
    let pins = PinDir::new();
    let _loaded = pins.load();
    let mut dataplane = pins.open();
    let lines: SharedArray<ServiceLine> = pins.shared(names::SERVICE_LINES);
    for id in 0..3 {
        dataplane.apply(&Op::SetService { key: key(id), value: value(id, 1) }).unwrap();
    }
    drop(dataplane);
    let at =
        |number: u32| service_lines(&key(number)).into_iter().find(|at| lines.read(*at).unwrap().key == key(number));
    let places = [0, 1, 2].map(|number| at(number).expect("it has a line"));
    let broken = |place: u32, change: &dyn Fn(&mut ServiceLine)| {
        let mut line = lines.read(place).unwrap();
        change(&mut line);
        lines.write(place, &line);
    };
    // One that is open, one of a service that is gone, one that is behind the map.
    broken(places[0], &|line| line.version |= 1);
    broken(places[1], &|line| line.key = key(100));
    broken(places[2], &|line| line.value.generation = 7);
    let before: Vec<_> = places.iter().map(|place| lines.read(*place).unwrap()).collect();
    let mut dataplane = pins.open();
    dataplane.read().unwrap();
    assert_eq!(before, places.iter().map(|place| lines.read(*place).unwrap()).collect::<Vec<_>>());
    dataplane.apply(&Op::SetGeneration(2)).unwrap();
    assert_eq!(found(&lines), (0..3).map(|id| (key(id), value(id, 1))).collect());
}
