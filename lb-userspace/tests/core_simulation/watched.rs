//! Asks a packet after every write what it would meet.

use std::collections::BTreeMap;

use lb_common::abi::{Address, AddressRoles, BackendState, Mode, ServiceKey, ServiceValue, Slot};
use lb_userspace::dataplane::{
    Dataplane, DataplaneError, FlowCensus, Op, Tables,
    fake::{Choices, FakeDataplane},
    faulty::FaultyDataplane,
};

/// A flow as the data path remembers it.
#[derive(Clone, Debug)]
pub struct Flow {
    pub service_address: Address,
    pub service_id: u32,
    /// [`Mode`]
    pub mode: u8,
    pub backend: u32,
    pub generation: u32,
    pub address: Address,
    pub source: Option<Address>,
    pub pool: Option<u32>,
}

pub fn choices(fake: &FakeDataplane) -> BTreeMap<ServiceKey, Choices> {
    let of = |key: ServiceKey| Some((key, fake.choices(&key).unwrap_or_else(|error| panic!("{error}"))?));
    fake.service_keys().into_iter().filter_map(of).collect()
}

/// Asks a packet after every write.
pub struct Watched<'a> {
    pub inner: &'a mut FaultyDataplane<FakeDataplane>,
    pub before: BTreeMap<ServiceKey, Choices>,
    pub desired: &'a Tables,
    pub flows: &'a [Flow],
}

impl Watched<'_> {
    fn check(&self, op: &Op) {
        let now = choices(self.inner.inner());
        for (key, choices) in &now {
            let old = self.before.get(key).map(|choices| choices.slots.clone());
            let new = self.desired.services.get(key).map(|value| slots(self.desired, value));
            assert!(
                old.as_ref() == Some(&choices.slots) || new.as_ref() == Some(&choices.slots),
                "{key:?} shows neither old {old:?} nor new {new:?} but {choices:?} after {op:?}"
            );
            let live = |id: &u32| self.desired.backends.get(id).map(|b| b.state) == Some(BackendState::Live as u8);
            let survivor = self.before.get(key).is_some_and(|choices| choices.live.iter().any(live));
            if survivor && new.as_ref().is_some_and(|slots| !slots.is_empty()) {
                assert!(!choices.live.is_empty(), "{key:?} has nobody after {op:?}");
            }
        }
        for key in self.before.keys().filter(|key| self.desired.services.contains_key(key)) {
            assert!(now.contains_key(key), "{key:?} is gone for a moment after {op:?}");
        }
        check_flows(self.inner.inner(), self.flows);
    }
}

/// Backends of new flows, slot by slot.
pub fn slots(tables: &Tables, value: &ServiceValue) -> Vec<u32> {
    let slots = tables.selection.get(&value.selection_base).filter(|_| value.selection_len > 0);
    let turns = slots.map_or(&[][..], |slots| &slots[..value.selection_len as usize]);
    turns.iter().map(|slot| slot.current()).filter(|id| *id != Slot::NOBODY).collect()
}

impl Dataplane for Watched<'_> {
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError> {
        let result = self.inner.apply(op);
        if let Err(error @ DataplaneError::Limit { .. }) = &result {
            panic!("the core went over a limit: {error} by {op:?}");
        }
        self.check(op);
        result
    }

    fn read(&mut self) -> Result<Tables, DataplaneError> {
        self.inner.read()
    }

    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError> {
        self.inner.sweep()
    }

    fn beat(&mut self, rule: &lb_userspace::config::DeadMan) -> Result<(), DataplaneError> {
        self.inner.beat(rule)
    }
}

/// Whatever a flow needs stays while it lives.
pub fn check_flows(fake: &FakeDataplane, flows: &[Flow]) {
    for flow in flows {
        let backend = fake.backend(flow.backend).unwrap_or_else(|| panic!("{flow:?}: its backend was never there"));
        assert_ne!(backend.state, BackendState::Empty as u8, "{flow:?} lives on an empty id");
        assert_eq!(
            (backend.generation, backend.address, backend.service_id),
            (flow.generation, flow.address, flow.service_id),
            "{flow:?} met another backend"
        );
        assert_ne!(fake.roles(flow.service_address) & AddressRoles::SERVICE, 0, "{flow:?} is not seen any more");
        match (flow.source, flow.pool) {
            (Some(source), Some(pool)) => {
                assert_ne!(fake.roles(source) & AddressRoles::SOURCE, 0, "replies to {flow:?} are not seen");
                assert!(fake.pool_ready(pool), "the pool of {flow:?} is gone");
                assert_eq!(backend.port_pool, pool, "{flow:?} frees its port in another pool");
            }
            _ if Mode::is_one_sided(flow.mode) => {}
            _ => assert_ne!(fake.roles(flow.address) & AddressRoles::NAT_BACKEND, 0, "replies of {flow:?}"),
        }
    }
}
