//! Where flows are that have no entry in the flow table, slot by slot of a table of hashes (the idea is
//! that of G. Mendelson and others, "Load balancing with JET: just enough tracking for connection
//! consistency", CoNEXT 2020; here a slot is tracked, not a server).
//!
//! ```text
//! clean(A) -- table says B --> B, stable A -- idle timeout over --> B, stable B -- entries gone --> clean(B)
//! ```
//!
//! - Clean: every flow of the slot is at `current`, and none has an entry elsewhere.
//! - `stable` is another one: flows without an entry began before the change and are there. Flows that
//!   begin now get an entry, and so do old ones with their next packet. After the idle timeout nobody is
//!   left without: then `stable` becomes `current`.
//! - `stable` is nobody: every flow has an entry, and may go anywhere. So slots begin, while the backends
//!   of a service come up one by one; ten seconds after the last change `stable` becomes `current`.
//! - `stable` is `current`: flows without an entry are there, only those elsewhere have one. When two
//!   walks over the flow table have found none of those, the slot is clean.
//!
//! Whatever the table says in between, `stable` stays where it is: flows that began since have entries.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lb_common::abi::{HashedBy, Slot};

use super::Now;
use crate::dataplane::SlotEntries;

/// As a backend's id: none, and nobody's flows.
const NOBODY: u32 = Slot::NOBODY;
/// As a backend's id: one that has gone for good; its flows are refused.
const GONE: u32 = u32::MAX - 1;
/// Walks in a row, begun after the slot's last change, that found no entry elsewhere.
const WALKS: u8 = 2;
/// Least time between two tables that only tell which slots have settled.
const SETTLE_EVERY: Duration = Duration::from_secs(10);
/// Time without a change after which flows of a slot that has begun need entries no more.
const CALM: Duration = Duration::from_secs(10);

/// How the slot of a flow is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hash {
    pub by: HashedBy,
    /// Bits of an address that name one client: IPv4, IPv6.
    pub client_bits: (u8, u8),
}

#[derive(Clone, Debug)]
pub(super) struct Tracked {
    pub hash: Hash,
    slots: Vec<State>,
    /// Generations in which flows without an entry were left behind, and since when they are in the
    /// maps.
    epochs: BTreeMap<u32, Option<Now>>,
    /// The generation that moved clients last, while those may not know yet.
    clients_moved: Option<u32>,
    settled_at: Option<Now>,
    /// The generation of the last change of the maps; changes are not in the maps before it.
    placed: Option<u32>,
    /// Whether the maps are not to know the last change yet.
    pub stale: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    current: u32,
    stable: u32,
    /// The generation since which `stable` is another one; while it is nobody, that of the last change.
    since: u32,
    /// The generation of the last change.
    changed: u32,
    walks: u8,
    clean: bool,
}

/// What a walk over the flow table means for the slots of a service.
pub(super) struct Walk<'a> {
    pub entries: Option<&'a SlotEntries>,
    pub now: Now,
    /// The generation of what follows from the walk.
    pub generation: u32,
    /// Silence after which a flow is over.
    pub idle: Duration,
    /// Time in which a client is remembered; `None`: flows are scheduled one by one.
    pub client_timeout: Option<Duration>,
}

impl Tracked {
    /// Slots of a scheduler that begins: flows of another one may have entries anywhere, and every flow
    /// has one.
    pub(super) fn begin(hash: Hash, table: &[u32], generation: u32) -> Self {
        let state = |&id: &u32| State {
            current: id,
            stable: NOBODY,
            since: generation,
            changed: generation,
            walks: 0,
            clean: false,
        };
        let mut tracked = Self::of(hash, table.iter().map(state).collect());
        tracked.note_epoch(generation);
        tracked
    }

    /// Slots as they were found in the maps. A clean one whose backend does not live may have flows
    /// elsewhere.
    pub(super) fn adopt(
        hash: Hash,
        slots: &[Slot],
        paired: bool,
        lives: impl Fn(u32) -> bool,
        generation: u32,
    ) -> Self {
        let state = |slot: &Slot| {
            let current = if paired { slot.current() } else { NOBODY };
            let stable = match slot.stable_backend() {
                Some(stable) => stable,
                None if slot.is_clean() => slot.current(),
                None => NOBODY,
            };
            let clean = paired && slot.is_clean() && (current == NOBODY || lives(current));
            State { current, stable, since: generation, changed: generation, walks: 0, clean }
        };
        let mut tracked = Self::of(hash, slots.iter().map(state).collect());
        tracked.note_epoch(generation);
        tracked.clients_moved = Some(generation);
        tracked
    }

    fn of(hash: Hash, slots: Vec<State>) -> Self {
        Self { hash, slots, epochs: BTreeMap::new(), clients_moved: None, settled_at: None, placed: None, stale: true }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Slots that are not clean.
    pub(super) fn unsettled(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.clean).count()
    }

    /// New flows go by this table from `generation` on. `None`: by none, until another call; flows
    /// without an entry stay where they are.
    pub(super) fn follow(&mut self, table: Option<&[u32]>, generation: u32) {
        debug_assert!(table.is_none_or(|table| table.len() == self.slots.len()));
        let mut changed = false;
        for (i, slot) in self.slots.iter_mut().enumerate() {
            let new = table.and_then(|table| table.get(i)).copied().unwrap_or(NOBODY);
            if slot.current == new {
                continue;
            }
            if slot.stable == slot.current || slot.stable == NOBODY {
                slot.since = generation;
            }
            *slot = State { current: new, changed: generation, walks: 0, clean: false, ..*slot };
            changed = true;
        }
        self.stale |= changed;
        if changed {
            self.note_epoch(generation);
            self.clients_moved = Some(generation);
        }
    }

    /// These backends have gone for good: flows without an entry that were there are over.
    pub(super) fn forget(&mut self, gone: &BTreeSet<u32>) {
        for slot in self.slots.iter_mut().filter(|slot| slot.stable != slot.current && gone.contains(&slot.stable)) {
            slot.stable = GONE;
            self.stale = true;
        }
    }

    /// Takes a walk over the flow table in; `settled` says of a generation whether every packet sees it.
    /// Slots change no more often than every ten seconds.
    pub(super) fn walked(&mut self, walk: &Walk<'_>, settled: impl Fn(u32) -> bool) {
        if self.stale || !self.placed.is_none_or(&settled) {
            return;
        }
        for (_, at) in self.epochs.iter_mut().filter(|(generation, at)| at.is_none() && settled(**generation)) {
            *at = Some(walk.now);
        }
        self.count_walk(walk, settled);
        if self.settled_at.is_none_or(|at| walk.now >= at + SETTLE_EVERY) {
            self.settle(walk);
        }
    }

    /// The maps are to hold the slots as they are, from this generation on; `None`: they do already.
    pub(super) fn placed(&mut self, generation: Option<u32>) {
        self.placed = generation.or(self.placed);
        self.stale = false;
    }

    /// The slots for the maps. Of a scheduler without a table of hashes, `turns` are its slots.
    pub(super) fn slots(&self, turns: Option<&[u32]>) -> Vec<Slot> {
        let half = |slot: &State, current: u32| match slot.stable {
            GONE | NOBODY => Slot::gone(current),
            stable => Slot::unsettled(current, stable),
        };
        let Some(turns) = turns else {
            let slot = |slot: &State| if slot.clean { Slot::clean(slot.current) } else { half(slot, slot.current) };
            return self.slots.iter().map(slot).collect();
        };
        let len = self.slots.len().max(turns.len());
        let turn = |i: usize| turns.get(i).copied().unwrap_or(NOBODY);
        (0..len).map(|i| self.slots.get(i).map_or(Slot::clean(turn(i)), |slot| half(slot, turn(i)))).collect()
    }

    /// Backends that may have flows without an entry.
    pub(super) fn backends(&self) -> BTreeSet<u32> {
        distinct(self.slots.iter().map(|slot| slot.stable).filter(|stable| *stable < GONE))
    }

    /// Whether nothing is left to tell: new flows go elsewhere, and there are none without an entry.
    pub(super) fn over(&self) -> bool {
        self.slots.iter().all(|slot| slot.current == NOBODY && slot.stable == NOBODY)
    }

    /// Whether clients that have no entry yet must be taken for old ones.
    pub(super) fn clients_stay(&self) -> bool {
        self.clients_moved.is_some()
    }

    /// Time until the last flow without an entry can be left behind no more; `None`: none is, or the
    /// maps do not know of it yet.
    pub(super) fn settles_in(&self, now: Now, idle: Duration) -> Option<Duration> {
        let left_behind = self.slots.iter().filter(|slot| slot.stable != slot.current && slot.stable != NOBODY);
        let last = left_behind.filter_map(|slot| *self.epochs.get(&slot.since)?).max()?;
        Some((last + idle).saturating_sub(now))
    }
}

/// Each id once. Tables name few backends in very many slots: those seen are marked by bits.
pub(super) fn distinct(ids: impl Iterator<Item = u32>) -> BTreeSet<u32> {
    let mut seen: Vec<u64> = Vec::new();
    let mut distinct = Vec::new();
    for id in ids {
        let (word, bit) = (id as usize / 64, 1 << (id % 64));
        if word >= seen.len() {
            seen.resize(word + 1, 0);
        }
        if seen[word] & bit == 0 {
            seen[word] |= bit;
            distinct.push(id);
        }
    }
    distinct.into_iter().collect()
}

impl Tracked {
    fn note_epoch(&mut self, generation: u32) {
        self.epochs.entry(generation).or_insert(None);
    }

    fn count_walk(&mut self, walk: &Walk<'_>, settled: impl Fn(u32) -> bool) {
        let Some(entries) = walk.entries else { return };
        if (entries.by, entries.len as usize) != (self.hash.by, self.slots.len()) {
            return;
        }
        // Generations that slots name are few.
        let mut known: BTreeMap<u32, bool> = BTreeMap::new();
        for slot in self.slots.iter_mut().filter(|slot| !slot.clean && slot.stable == slot.current) {
            if *known.entry(slot.changed).or_insert_with(|| settled(slot.changed)) {
                slot.walks = slot.walks.saturating_add(1);
            }
        }
        for &(slot, backend) in &entries.at {
            if let Some(slot) = self.slots.get_mut(slot as usize).filter(|slot| slot.current != backend) {
                // An entry where none was expected: be careful.
                self.stale |= std::mem::take(&mut slot.clean);
                slot.walks = 0;
            }
        }
    }

    fn settle(&mut self, walk: &Walk<'_>) {
        let due = |at: &Option<Now>, time: Duration| at.is_some_and(|at| walk.now >= at + time);
        let after = |time: Duration| -> BTreeSet<u32> {
            self.epochs.iter().filter(|(_, at)| due(at, time)).map(|(generation, _)| *generation).collect()
        };
        let (over, calm) = (after(walk.idle), after(CALM));
        let mut changed = false;
        let mut named = BTreeSet::new();
        for slot in &mut self.slots {
            let ended = if slot.stable == NOBODY { &calm } else { &over };
            if slot.stable != slot.current && ended.contains(&slot.since) {
                *slot = State { stable: slot.current, changed: walk.generation, walks: 0, ..*slot };
                changed = true;
            } else if !slot.clean && slot.stable == slot.current && slot.walks >= WALKS {
                slot.clean = true;
                changed = true;
            }
            if slot.stable != slot.current {
                named.insert(slot.since);
            }
        }
        if let Some(moved) = self.clients_moved {
            let timeout = walk.client_timeout.unwrap_or_default();
            if self.epochs.get(&moved).is_none_or(|at| due(at, timeout)) {
                self.clients_moved = None;
                changed |= walk.client_timeout.is_some();
            } else {
                named.insert(moved);
            }
        }
        self.epochs.retain(|generation, _| named.contains(generation));
        if changed {
            self.stale = true;
            self.settled_at = Some(walk.now);
        }
    }
}
