//! Copies of services where packets find them by one read (see [`ServiceLine`]). Each has one of two places;
//! where both are taken, the service in one of them moves on to its other place, and so on. What finds none
//! is looked up in the map: slower, and as right.

use std::{collections::HashMap, sync::atomic::Ordering};

use bytemuck::Zeroable as _;
use lb_common::{
    abi::{ServiceKey, ServiceLine, ServiceValue, names},
    hash::service_lines,
};

use super::{maps::open_shared, mmap::SharedArray, pins::Pins};
use crate::dataplane::DataplaneError;

/// Services that move at most to make room for one.
const MOVES: usize = 64;

/// The 32-bit unit of a line that is its version.
const VERSION: usize = size_of::<ServiceKey>() / 4;

pub(super) struct ServiceLines {
    lines: SharedArray<ServiceLine>,
    places: HashMap<ServiceKey, u32>,
    keys: HashMap<u32, ServiceKey>,
    taken_over: bool,
}

impl ServiceLines {
    /// Opens the pinned array; nothing is written before [`Self::take_over`], because who opens the maps to
    /// read must not write where the agent writes at this moment.
    pub(super) fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        let lines = open_shared(pins, names::SERVICE_LINES)?;
        Ok(Self { lines, places: HashMap::new(), keys: HashMap::new(), taken_over: false })
    }

    pub(super) fn is_taken_over(&self) -> bool {
        self.taken_over
    }

    /// Makes the lines say what the map says: from here on we are the only one that writes them.
    pub(super) fn take_over(&mut self, services: impl IntoIterator<Item = (ServiceKey, ServiceValue)>) {
        self.taken_over = true;
        self.places.clear();
        self.keys.clear();
        let mut missing: HashMap<ServiceKey, ServiceValue> = services.into_iter().collect();
        for at in 0..self.lines.len() {
            let Some(line) = self.lines.read(at) else { continue };
            let whole = line.version.is_multiple_of(2);
            if whole && missing.get(&line.key) == Some(&line.value) && service_lines(&line.key).contains(&at) {
                missing.remove(&line.key);
                self.places.insert(line.key, at);
                self.keys.insert(at, line.key);
            } else if line.key != ServiceKey::zeroed() || !whole {
                self.write(at, &ServiceKey::zeroed(), &ServiceValue::zeroed());
            }
        }
        for (key, value) in missing {
            self.put(&key, &value);
        }
    }

    /// A write has failed, and what the map says now is not known: before the next one all is compared again.
    pub(super) fn doubt(&mut self) {
        self.taken_over = false;
    }

    /// From here on packets look the service up in the map.
    pub(super) fn withdraw(&self, key: &ServiceKey) {
        if let Some(&at) = self.places.get(key) {
            self.open_line(at);
        }
    }

    /// From here on packets find this of the service. The map has it already.
    pub(super) fn put(&mut self, key: &ServiceKey, value: &ServiceValue) {
        let Some(at) = self.places.get(key).copied().or_else(|| self.make_room(key)) else { return };
        self.write(at, key, value);
        self.places.insert(*key, at);
        self.keys.insert(at, *key);
    }

    pub(super) fn remove(&mut self, key: &ServiceKey) {
        let Some(at) = self.places.remove(key) else { return };
        self.keys.remove(&at);
        self.write(at, &ServiceKey::zeroed(), &ServiceValue::zeroed());
    }

    /// A free line for a service.
    fn make_room(&mut self, key: &ServiceKey) -> Option<u32> {
        let way = service_lines(key).into_iter().find_map(|first| self.way_from(first))?;
        // From the end: a service is at its new place before another takes the old one.
        for step in way.windows(2).rev() {
            self.move_line(step[0], step[1]);
        }
        way.first().copied()
    }

    /// Lines of which each one's service can move on to the next; the last is free.
    fn way_from(&self, first: u32) -> Option<Vec<u32>> {
        let mut way = vec![first];
        while let Some(key) = self.keys.get(way.last()?) {
            let [one, other] = service_lines(key);
            let next = if way.last() == Some(&one) { other } else { one };
            if way.contains(&next) || way.len() > MOVES {
                return None;
            }
            way.push(next);
        }
        Some(way)
    }

    fn move_line(&mut self, from: u32, to: u32) {
        let (Some(key), Some(line)) = (self.keys.remove(&from), self.lines.read(from)) else { return };
        self.write(to, &key, &line.value);
        self.places.insert(key, to);
        self.keys.insert(to, key);
    }

    fn write(&self, at: u32, key: &ServiceKey, value: &ServiceValue) {
        let Some(version) = self.open_line(at) else { return };
        // Each unit is stored after the one before it, as all see it.
        self.lines.write(at, &ServiceLine { key: *key, version, value: *value, zero: [0; 2] });
        if let Some(units) = self.lines.units(at) {
            units[VERSION].store(version.wrapping_add(1), Ordering::Release);
        }
    }

    /// Makes the version odd; gives it.
    fn open_line(&self, at: u32) -> Option<u32> {
        let unit = &self.lines.units(at)?[VERSION];
        let version = unit.load(Ordering::Acquire) | 1;
        unit.store(version, Ordering::Release);
        Some(version)
    }
}
