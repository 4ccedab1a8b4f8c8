//! Brings the maps to the desired state. The reconciler remembers what it wrote, so that a change
//! costs only its own writes; after any error, and whenever it is told to forget, it reads first.

use lb_common::abi::Slot;

use super::{Touched, plan, plan_within};
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
        self.follow(dataplane, desired, None)
    }

    /// The same, where it is known what changed in `desired`: a small change costs little, however
    /// large the tables are. Where the maps must be read, or the log does not go back far enough, all
    /// is compared.
    ///
    /// # Errors
    /// As [`Reconciler::step`].
    pub fn step_touched(
        &mut self,
        dataplane: &mut impl Dataplane,
        desired: &Tables,
        touched: &Touched,
    ) -> Result<ReconcileReport, DataplaneError> {
        self.follow(dataplane, desired, Some(touched))
    }

    fn follow(
        &mut self,
        dataplane: &mut impl Dataplane,
        desired: &Tables,
        touched: Option<&Touched>,
    ) -> Result<ReconcileReport, DataplaneError> {
        let known = self.actual.take();
        let read = known.is_none();
        let mut actual = match known {
            Some(actual) => actual,
            None => dataplane.read()?,
        };
        // Tables that claim the same slots cannot be followed write by write: read again next time.
        let sound = !read || apart(&actual);
        let scope = touched.filter(|_| !read).and_then(|touched| touched.scope_since(actual.generation));
        let plan = match &scope {
            Some(scope) => plan_within(&actual, desired, scope),
            None => plan(&actual, desired),
        };
        dataplane.apply_all(&plan)?;
        plan.iter().for_each(|op| note(&mut actual, op));
        debug_assert!(!sound || super::plan(&actual, desired).is_empty(), "the plan was carried out: nothing is left");
        self.actual = sound.then_some(actual);
        Ok(ReconcileReport { generation: desired.generation, applied: plan.len(), read })
    }
}

/// Writes into the tables what the operation did to the maps, as [`Dataplane::read`] would show it.
fn note(tables: &mut Tables, op: &Op) {
    match op {
        Op::SetGeneration(generation) => tables.generation = *generation,
        Op::SetRoutesVary(vary) => tables.routes_vary = *vary,
        Op::SetPortPool { pool, ports } => _ = tables.port_pools.insert(*pool, ports.clone()),
        Op::ClearPortPool { pool } => _ = tables.port_pools.remove(pool),
        Op::SetBackend { id, backend } => _ = tables.backends.insert(*id, *backend),
        Op::SetServiceInfo { id, info } => _ = tables.service_info.insert(*id, *info),
        Op::ClearServiceInfo { id } => _ = tables.service_info.remove(id),
        Op::WriteSelection { base, slots } => _ = tables.selection.insert(*base, slots.clone()),
        Op::SetAddress { address, roles } => _ = tables.addresses.insert(*address, *roles),
        Op::DeleteAddress { address } => _ = tables.addresses.remove(address),
        Op::SetQuicId { key, backend } => _ = tables.quic_ids.insert(*key, *backend),
        Op::DeleteQuicId { key } => _ = tables.quic_ids.remove(key),
        Op::SetService { key, value } => {
            let slots = slots(tables, value.selection_base, value.slots());
            let old = tables.services.insert(*key, *value);
            if let Some(old) = old.filter(|old| old.slots() > 0) {
                tables.selection.remove(&old.selection_base);
            }
            tables.selection.extend(slots.map(|slots| (value.selection_base, slots)));
        }
        Op::DeleteService { key } => {
            if let Some(old) = tables.services.remove(key).filter(|old| old.slots() > 0) {
                tables.selection.remove(&old.selection_base);
            }
        }
    }
}

/// Whether no two services share slots.
fn apart(tables: &Tables) -> bool {
    let published = tables.services.values().filter(|value| value.slots() > 0);
    let mut extents: Vec<(u32, u32)> = published.map(|value| (value.selection_base, value.slots())).collect();
    extents.sort_unstable();
    extents.is_sorted_by(|(base, len), (next, _)| base.saturating_add(*len) <= *next)
}

/// A table that was written just now, or a part of one that is known.
fn slots(tables: &Tables, base: u32, len: u32) -> Option<Vec<Slot>> {
    let (first, known) = tables.selection.range(..=base).next_back().filter(|_| len > 0)?;
    let from = (base - first) as usize;
    known.get(from..from + len as usize).map(<[Slot]>::to_vec)
}

#[cfg(test)]
mod tests {
    use lb_common::abi::{Address, Port, ServiceKey, ServiceValue};

    use super::*;
    use crate::{
        config::Limits,
        dataplane::{fake::FakeDataplane, faulty::FaultyDataplane},
    };

    fn tables(generation: u32) -> Tables {
        Tables { generation, ..Tables::default() }
    }

    #[test]
    fn the_maps_are_read_once_and_then_remembered() {
        let mut fake = FakeDataplane::new(Limits::default());
        let mut reconciler = Reconciler::new();
        let first = reconciler.step(&mut fake, &tables(1)).unwrap();
        assert_eq!(first, ReconcileReport { generation: 1, applied: 1, read: true });
        let second = reconciler.step(&mut fake, &tables(1)).unwrap();
        assert_eq!(second, ReconcileReport { generation: 1, applied: 0, read: false });
    }

    #[test]
    fn what_somebody_else_changed_is_repaired_after_forgetting() {
        let mut fake = FakeDataplane::new(Limits::default());
        let mut reconciler = Reconciler::new();
        reconciler.step(&mut fake, &tables(5)).unwrap();
        fake.apply(&Op::SetGeneration(9)).unwrap();
        assert_eq!(reconciler.step(&mut fake, &tables(5)).unwrap().applied, 0);
        reconciler.forget();
        assert_eq!(reconciler.step(&mut fake, &tables(5)).unwrap().applied, 1);
        assert_eq!(fake.read().unwrap().generation, 5);
    }

    #[test]
    fn after_an_error_nothing_is_remembered() {
        let mut faulty = FaultyDataplane::new(FakeDataplane::new(Limits::default()), 1, 0.0);
        let mut reconciler = Reconciler::new();
        reconciler.step(&mut faulty, &tables(1)).unwrap();
        faulty.chance = 1.0;
        assert!(reconciler.step(&mut faulty, &tables(2)).is_err());
        assert_eq!(reconciler.actual(), None);
        faulty.chance = 0.0;
        assert!(reconciler.step(&mut faulty, &tables(2)).unwrap().read);
    }

    #[test]
    fn tables_that_share_slots_are_seen() {
        let value = |base, len| ServiceValue {
            id: 0,
            selection_base: base,
            selection_len: len,
            generation: 0,
            mode: 0,
            scheduler: 0,
            granularity: 0,
            ..ServiceValue::EMPTY
        };
        let key = |port| ServiceKey::new(Address::v4([203, 0, 113, 1]), Port::new(port), 6);
        let of = |second| Tables { services: [(key(1), value(0, 4)), (key(2), second)].into(), ..Tables::default() };
        assert!(apart(&of(value(4, 1))) && apart(&of(value(0, 0))));
        assert!(!apart(&of(value(3, 1))) && !apart(&of(value(0, 4))));
    }
}
