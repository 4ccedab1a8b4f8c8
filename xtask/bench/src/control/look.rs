//! Looks at the maps themselves, as the data path does: whether a packet finds what it should.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, HashMap as Table, Map, MapData, MapError};
use lb_common::abi::{
    Address, AddressRoles, Backend, BackendState, Port, Protocol, ServiceKey, ServiceValue, Slot, names,
};
use lb_userspace::dataplane::kernel::{Pins, SharedArray};

use super::scene::Service;

/// Between two looks.
const PAUSE: Duration = Duration::from_micros(100);

/// The pinned maps, opened to read.
pub struct Maps {
    services: Table<MapData, ServiceKey, ServiceValue>,
    backends: Array<MapData, Backend>,
    addresses: Table<MapData, Address, AddressRoles>,
    selection: SharedArray<Slot>,
}

/// What packets to a service should find.
#[derive(Clone, Debug)]
pub struct Expected {
    key: ServiceKey,
    /// Backends that take new flows.
    live: BTreeSet<(Address, Port)>,
}

impl Expected {
    /// The service with these of its backends, and these besides.
    pub fn of(
        service: &Service,
        with: impl Fn(&super::scene::Backend) -> bool,
        more: impl IntoIterator<Item = SocketAddr>,
    ) -> Self {
        let listen = service.listen;
        let key = ServiceKey::new(listen.ip().into(), Port::new(listen.port()), Protocol::Tcp as u8);
        let own = service.backends.iter().filter(|backend| with(backend)).map(|backend| backend.address);
        let live = own.chain(more).map(|at| (at.ip().into(), Port::new(at.port()))).collect();
        Self { key, live }
    }
}

impl Maps {
    /// # Errors
    /// The maps are not there (yet).
    pub fn open(pin_dir: &Path) -> Result<Self> {
        let pins = Pins::new(pin_dir);
        let data = |name| MapData::from_pin(pins.map(name)).with_context(|| format!("opening the map {name}"));
        Ok(Self {
            services: Table::try_from(Map::HashMap(data(names::SERVICES)?))?,
            backends: Array::try_from(Map::Array(data(names::BACKENDS)?))?,
            addresses: Table::try_from(Map::HashMap(data(names::ADDRESSES)?))?,
            selection: SharedArray::map(&data(names::SELECTION)?)?,
        })
    }

    /// Waits until packets to all of these services find exactly what they should; the time at which the
    /// look began that found it so.
    ///
    /// # Errors
    /// It is not so in time.
    pub fn until_right(&self, expected: &[Expected], patience: Duration) -> Result<Instant> {
        let deadline = Instant::now() + patience;
        // The agent writes services in the order of their keys: the last one is the last to be right.
        let mut wrong = expected.len().saturating_sub(1);
        loop {
            let began = Instant::now();
            if self.is_right(&expected[wrong])? {
                match self.first_wrong(expected)? {
                    None => return Ok(began),
                    Some(other) => wrong = other,
                }
            }
            if began > deadline {
                let Expected { key, live } = &expected[wrong];
                bail!("{key:?} is not as it should be within {patience:?}: {} backends", live.len());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn first_wrong(&self, expected: &[Expected]) -> Result<Option<usize>> {
        for (n, expected) in expected.iter().enumerate() {
            if !self.is_right(expected)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    }

    /// Its address and those of its backends have their roles, and its table names the live backends and
    /// nobody else.
    fn is_right(&self, expected: &Expected) -> Result<bool> {
        let Some(value) = found(self.services.get(&expected.key, 0))? else { return Ok(false) };
        if !self.has_role(&expected.key.address, AddressRoles::SERVICE)? {
            return Ok(false);
        }
        let mut ids: HashMap<u32, bool> = HashMap::new();
        for index in value.selection_base..value.selection_base + value.selection_len {
            let Some(slot) = self.selection.read(index) else { return Ok(false) };
            ids.insert(slot.current(), true);
        }
        if ids.len() != expected.live.len() {
            return Ok(false);
        }
        for id in ids.into_keys() {
            let Some(backend) = found(self.backends.get(&id, 0))? else { return Ok(false) };
            let live = backend.state == BackendState::Live as u8 && backend.service_id == value.id;
            let wanted = expected.live.contains(&(backend.address, backend.port));
            if !live || !wanted || !self.has_role(&backend.address, AddressRoles::NAT_BACKEND)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_role(&self, address: &Address, role: u32) -> Result<bool> {
        Ok(found(self.addresses.get(address, 0))?.is_some_and(|roles| roles.has(role)))
    }
}

fn found<T>(result: Result<T, MapError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context("reading a map"),
    }
}
