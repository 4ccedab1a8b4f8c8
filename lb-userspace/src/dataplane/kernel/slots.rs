//! Where flows with an entry lie in the slots of services whose flows need none.

use std::collections::{BTreeMap, HashMap, HashSet};

use lb_common::{
    abi::{Address, Flow, HashedBy, ServiceKey, ServiceValue},
    hash::{selection_slot, slot_hash},
};

use super::maps::Table;
use crate::dataplane::{DataplaneError, SlotEntries};

/// Services whose flows need no entry, by id, and what was found of them.
pub(super) struct Slots(HashMap<u32, Found>);

struct Found {
    address: Address,
    value: ServiceValue,
    at: HashSet<(u32, u32)>,
}

impl Slots {
    /// # Errors
    /// The services could not be read.
    pub fn of(services: &Table<ServiceKey, ServiceValue>) -> Result<Self, DataplaneError> {
        let read: Result<Vec<(ServiceKey, ServiceValue)>, _> = services.read_all();
        let read = read.map_err(|source| DataplaneError::Kernel { what: "reading the services".into(), source })?;
        let tracked = read.into_iter().filter(|(_, value)| value.has(ServiceValue::TRACKED));
        let found = tracked.map(|(key, value)| (value.id, Found { address: key.address, value, at: HashSet::new() }));
        Ok(Self(found.collect()))
    }

    /// Takes a live flow in, as the data path would find its slot.
    pub fn found(&mut self, flow: &Flow) {
        let Some(Found { address, value, at }) = self.0.get_mut(&flow.service_id) else { return };
        let (from, to) = (flow.client_port, flow.service_port);
        let hash = slot_hash(value.stable_hash, value, &flow.client, address, from, to, flow.protocol);
        at.insert((selection_slot(hash, 0, value.stable_len), flow.backend_id));
    }

    /// By service id.
    pub fn finish(self) -> BTreeMap<u32, SlotEntries> {
        let entries = |found: Found| {
            let by = HashedBy::from_number(found.value.stable_hash)?;
            Some(SlotEntries { by, len: found.value.stable_len, at: found.at.into_iter().collect() })
        };
        self.0.into_iter().filter_map(|(id, found)| Some((id, entries(found)?))).collect()
    }
}
