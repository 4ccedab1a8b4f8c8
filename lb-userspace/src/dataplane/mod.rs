//! The data path as the agent sees it: tables that can be read, and operations that change them
//! one at a time. Three implementations: the kernel's maps, an in-memory fake, and a faulty one for
//! tests.

pub mod fake;
pub mod faulty;
pub mod kernel;

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{Address, AddressRoles, Backend, HashedBy, QuicKey, ServiceInfo, ServiceKey, ServiceValue, Slot};

use crate::config::{DeadMan, PortRange};

/// The content of the maps that the agent owns. Two equal `Tables` forward packets alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    pub generation: u32,
    pub addresses: BTreeMap<Address, AddressRoles>,
    pub services: BTreeMap<ServiceKey, ServiceValue>,
    /// By service id; unused elements are absent.
    pub service_info: BTreeMap<u32, ServiceInfo>,
    /// By backend id; an element that was never used is absent, one that is over stays here in
    /// state `Empty` with its generation, so that the generation rises when the id is used again.
    pub backends: BTreeMap<u32, Backend>,
    /// Slots of each selection table that a service points at, by first slot.
    pub selection: BTreeMap<u32, Vec<Slot>>,
    /// Port pools that are ready for use, and the ports they hand out.
    pub port_pools: BTreeMap<u32, Vec<PortRange>>,
    /// Backend ids by server ids in QUIC connection IDs.
    pub quic_ids: BTreeMap<QuicKey, u32>,
    /// Packets to one backend may take different ways, so the way of each is asked for.
    pub routes_vary: bool,
}

/// One change of the maps. Each is carried out as a whole or not at all as far as a packet can see,
/// and may be repeated without harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    SetGeneration(u32),
    SetRoutesVary(bool),
    /// Makes the pool hand out these ports. Ports that live flows use stay in use.
    SetPortPool {
        pool: u32,
        ports: Vec<PortRange>,
    },
    ClearPortPool {
        pool: u32,
    },
    SetBackend {
        id: u32,
        backend: Backend,
    },
    SetServiceInfo {
        id: u32,
        info: ServiceInfo,
    },
    ClearServiceInfo {
        id: u32,
    },
    /// Writes slots that no published service points at.
    WriteSelection {
        base: u32,
        slots: Vec<Slot>,
    },
    SetService {
        key: ServiceKey,
        value: ServiceValue,
    },
    DeleteService {
        key: ServiceKey,
    },
    SetAddress {
        address: Address,
        roles: AddressRoles,
    },
    DeleteAddress {
        address: Address,
    },
    SetQuicId {
        key: QuicKey,
        backend: u32,
    },
    DeleteQuicId {
        key: QuicKey,
    },
}

/// Live flows by backend and service id, from one walk over the flow table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowCensus {
    pub live: u64,
    /// Flows removed by this walk because they were idle for too long.
    pub aged: u64,
    pub by_backend: BTreeMap<u32, u64>,
    pub by_service: BTreeMap<u32, u64>,
    /// By id of a service whose flows need no entry.
    pub entries: BTreeMap<u32, SlotEntries>,
    /// By id of a backend whose flows are over.
    pub ended: BTreeMap<u32, EndedFlows>,
    /// By backend id, of those that have any.
    pub knocks: BTreeMap<u32, KnockCounts>,
}

/// Connections that a backend did not take, since it has its id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KnockCounts {
    /// That it refused.
    pub refusals: u64,
    /// That were taken from it because it did not answer.
    pub unanswered: u64,
    /// That another backend got instead, for either reason.
    pub rescued: u64,
}

/// What has become of the flows of a backend with which they are over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndedFlows {
    /// Not told yet.
    pub left: u64,
    /// Different clients of those that were found in this walk.
    pub clients: u64,
    /// Ended so far, since the backend has its id.
    pub reset: u64,
    /// Scheduled anew so far, since the backend has its id.
    pub moved: u64,
}

/// Where flows that have an entry all the same lie in the slots of their service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotEntries {
    /// How slots were found: by this hash, in a table of so many.
    pub by: HashedBy,
    pub len: u32,
    /// Slot and backend id of each entry, once.
    pub at: BTreeSet<(u32, u32)>,
}

/// Why an operation was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The kernel refused; `source` has its words.
    #[error("{what}: {source}")]
    Kernel {
        what: String,
        #[source]
        source: std::io::Error,
    },
    /// A number lies beyond what the maps were made for.
    #[error("{what} {number} is beyond the limit of {limit}: raise `limits.{setting}` and restart")]
    Limit { what: &'static str, number: u64, limit: u64, setting: &'static str },
}

/// Where tables are published. Implementations keep no plans of their own: what was applied can be
/// read back, also by another process.
pub trait Dataplane {
    /// Carries out one operation.
    ///
    /// # Errors
    /// The operation was not carried out, or its effect is not known; read before planning anew.
    fn apply(&mut self, op: &Op) -> Result<(), DataplaneError>;

    /// Carries out operations in their order: each as if by [`Dataplane::apply`], but what was done before
    /// an error is not told.
    ///
    /// # Errors
    /// As there, of the first that failed.
    fn apply_all(&mut self, ops: &[Op]) -> Result<(), DataplaneError> {
        ops.iter().try_for_each(|op| self.apply(op))
    }

    /// Reads what the maps hold now.
    ///
    /// # Errors
    /// The maps could not be read.
    fn read(&mut self) -> Result<Tables, DataplaneError>;

    /// Walks the flow table: removes idle flows, frees their source ports, counts the others.
    ///
    /// # Errors
    /// The flow table could not be read.
    fn sweep(&mut self) -> Result<FlowCensus, DataplaneError>;

    /// A sign of life: whoever writes the tables lives, and this is to be done when no other sign
    /// comes within the rule's time.
    ///
    /// # Errors
    /// The data path did not get it.
    fn beat(&mut self, rule: &DeadMan) -> Result<(), DataplaneError>;
}
