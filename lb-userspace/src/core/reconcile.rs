//! Brings the maps to the desired state. The reconciler remembers what it wrote, so that a change
//! costs only its own writes; after any error, and whenever it is told to forget, it reads first.

use super::plan;
use crate::dataplane::{Dataplane, DataplaneError, Op, Tables};

/// Keeps what is in the maps, as far as it is known.
#[derive(Debug, Default)]
pub struct Reconciler {
    actual: Option<Tables>,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReconcileReport {
    /// The generation that is in the maps now, as a whole; tell the core by
    /// [`super::Input::Published`].
    pub generation: u32,
    /// Operations carried out; 0: the maps were right.
    pub applied: usize,
    /// Whether the maps were read first.
    pub read: bool,
}

impl Reconciler {
    /// Knows nothing yet: the first step reads.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is in the maps; `None`: not known, the next step reads it.
    pub fn actual(&self) -> Option<&Tables> {
        self.actual.as_ref()
    }

    /// Trusts nothing that is remembered: the next step is a full synchronisation, which also
    /// repairs what somebody else changed in the maps.
    pub fn forget(&mut self) {
        self.actual = None;
    }

    /// Makes the maps equal to `desired`. May be repeated at any time; a step that failed has done a
    /// part of its plan, in an order that leaves every service whole.
    ///
    /// # Errors
    /// Reading or one operation failed; what is in the maps is read anew by the next step.
    pub fn step(
        &mut self,
        dataplane: &mut impl Dataplane,
        desired: &Tables,
    ) -> Result<ReconcileReport, DataplaneError> {
        let known = self.actual.take();
        let read = known.is_none();
        let mut actual = match known {
            Some(actual) => actual,
            None => dataplane.read()?,
        };
        let plan = plan(&actual, desired);
        for op in &plan {
            dataplane.apply(op)?;
            note(&mut actual, op);
        }
        debug_assert!(super::plan(&actual, desired).is_empty(), "a plan that was carried out leaves nothing to do");
        self.actual = Some(actual);
        Ok(ReconcileReport { generation: desired.generation, applied: plan.len(), read })
    }
}

/// Writes into the tables what the operation did to the maps, as [`Dataplane::read`] would show it.
fn note(tables: &mut Tables, op: &Op) {
    match op {
        Op::SetGeneration(generation) => tables.generation = *generation,
        Op::SetPortPool { pool, ports } => _ = tables.port_pools.insert(*pool, ports.clone()),
        Op::ClearPortPool { pool } => _ = tables.port_pools.remove(pool),
        Op::SetBackend { id, backend } => _ = tables.backends.insert(*id, *backend),
        Op::SetServiceInfo { id, info } => _ = tables.service_info.insert(*id, *info),
        Op::ClearServiceInfo { id } => _ = tables.service_info.remove(id),
        Op::WriteSelection { base, slots } => _ = tables.selection.insert(*base, slots.clone()),
        Op::SetAddress { address, roles } => _ = tables.addresses.insert(*address, *roles),
        Op::DeleteAddress { address } => _ = tables.addresses.remove(address),
        Op::SetService { key, value } => {
            let slots = slots(tables, value.selection_base, value.selection_len);
            let old = tables.services.insert(*key, *value);
            if let Some(old) = old.filter(|old| old.selection_len > 0) {
                tables.selection.remove(&old.selection_base);
            }
            tables.selection.extend(slots.map(|slots| (value.selection_base, slots)));
        }
        Op::DeleteService { key } => {
            if let Some(old) = tables.services.remove(key).filter(|old| old.selection_len > 0) {
                tables.selection.remove(&old.selection_base);
            }
        }
    }
}

/// A table that was written just now, or a part of one that is known.
fn slots(tables: &Tables, base: u32, len: u32) -> Option<Vec<u32>> {
    let (first, known) = tables.selection.range(..=base).next_back().filter(|_| len > 0)?;
    let from = (base - first) as usize;
    known.get(from..from + len as usize).map(<[u32]>::to_vec)
}
