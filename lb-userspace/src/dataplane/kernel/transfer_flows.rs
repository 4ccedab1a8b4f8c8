//! The flow table, from one size or layout to another: every flow gets a place of its own there, found as
//! the data path finds it. See [`lb_common::flow`] for the words, and [`super::transfer`] for the steps.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use bytemuck::Zeroable as _;
use lb_common::{
    abi::{Address, Backend, Flow, Granularity, limits::WAYS},
    flow::{ReplyWord, State, Word, buckets, index, tag},
    hash::{CLIENT_EXTRA, backend_extra, tuple_hash},
};

use super::{flow_table::FlowTable, mmap::RawArray};

const NOWHERE: u32 = u32::MAX;

/// The maps `flow_words`, `reply_words` and `flows` of one layout.
pub(super) struct FlowMaps {
    words: RawArray,
    replies: RawArray,
    flows: RawArray,
}

impl FlowMaps {
    /// # Errors
    /// One cannot be mapped into memory.
    pub(super) fn map([words, replies, flows]: [&MapData; 3]) -> Result<Self> {
        let map = |data| RawArray::map(data).context("mapping the flow table into memory");
        Ok(Self { words: map(words)?, replies: map(replies)?, flows: map(flows)? })
    }

    fn len(&self) -> u32 {
        self.words.len() * WAYS as u32
    }

    fn word(&self, at: u32) -> Word {
        Word(slot(&self.words, at).load(Ordering::Acquire))
    }

    /// The beginning of the element that this version knows.
    fn flow(&self, at: u32) -> Flow {
        let mut flow = Flow::zeroed();
        let units: &mut [u32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut flow));
        for (unit, stored) in units.iter_mut().zip(self.flows.units(at).unwrap_or_default()) {
            *unit = stored.load(Ordering::Acquire);
        }
        flow
    }

    /// Writes all of an element; what the other layout does not have is zero.
    fn write(&self, at: u32, from: &Self, from_at: u32) {
        let old = from.flows.units(from_at).unwrap_or_default();
        for (i, unit) in self.flows.units(at).unwrap_or_default().iter().enumerate() {
            unit.store(old.get(i).map_or(0, |unit| unit.load(Ordering::Acquire)), Ordering::Release);
        }
    }

    fn clear(&self) {
        for table in [&self.words, &self.replies] {
            for word in (0..table.len()).filter_map(|bucket| table.words(bucket)).flatten() {
                word.store(0, Ordering::Release);
            }
        }
    }

    /// How many flows are live.
    pub(super) fn live(&self) -> u32 {
        self.live_flows().count() as u32
    }

    /// Live flows, as far as this version knows them.
    pub(super) fn live_flows(&self) -> impl Iterator<Item = (u32, Flow)> + '_ {
        let now = FlowTable::now();
        (0..self.len()).filter(move |at| self.word(*at).live(now)).map(|at| (at, self.flow(at)))
    }

    /// Whether a flow that was found at a place is live there, and its way the same.
    pub(super) fn still_holds(&self, at: u32, flow: &Flow) -> bool {
        self.word(at).live(FlowTable::now()) && is_same(&self.flow(at), flow)
    }
}

/// Whether they are of the same client and service, and go the same way.
fn is_same(a: &Flow, b: &Flow) -> bool {
    let key = |flow: &Flow| (flow.client, flow.client_port, flow.service_port, flow.protocol, flow.service_id);
    let way = |flow: &Flow| (flow.backend_id, flow.backend_generation, flow.source, flow.source_port);
    key(a) == key(b) && way(a) == way(b) && a.granularity == b.granularity
}

/// What became of the flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowsMoved {
    /// Live ones that have a place.
    pub kept: u32,
    /// Live ones that gave way to more valuable ones: the table is too small for them.
    pub evicted: u32,
    /// Live ones whose key is of no service that is there.
    pub lost: u32,
}

/// Services by id, and backends.
pub(super) struct Known {
    pub(super) seed: u64,
    pub(super) services: BTreeMap<u32, Address>,
    pub(super) backends: Vec<Backend>,
}

pub(super) struct FlowTransfer {
    from: FlowMaps,
    to: FlowMaps,
    known: Known,
    /// By place in `from`: the word that was dealt with last, and the place in `to`.
    done: Vec<(Word, u32)>,
    moved: FlowsMoved,
}

impl FlowTransfer {
    pub(super) fn new(from: FlowMaps, to: FlowMaps, known: Known) -> Self {
        let done = vec![(Word::EMPTY, NOWHERE); from.len() as usize];
        Self { from, to, known, done, moved: FlowsMoved::default() }
    }

    /// Empties the table to be filled, then fills it.
    pub(super) fn copy(&mut self) -> FlowsMoved {
        self.to.clear();
        self.pass(false)
    }

    /// What has changed since the last time. `live`: packets may meet the new table by now.
    pub(super) fn pass(&mut self, live: bool) -> FlowsMoved {
        let now = FlowTable::now();
        for at in 0..self.from.len() {
            let word = self.from.word(at);
            let (before, place) = self.done[at as usize];
            if word == before {
                continue;
            }
            let same = place != NOWHERE && before.tag() == word.tag() && self.same(at, place);
            if same && word.live(now) {
                self.go_on(place, word);
                self.done[at as usize].0 = word;
                continue;
            }
            // It is over, or its way has changed hands.
            if place != NOWHERE && !live && self.to.word(place).tag() == before.tag() {
                self.remove(place);
                self.moved.kept = self.moved.kept.saturating_sub(1);
            }
            let place = if word.live(now) { self.place(at, word, now) } else { NOWHERE };
            self.done[at as usize] = (word, place);
        }
        self.moved
    }

    /// Whether both places hold the same flow.
    fn same(&self, at: u32, place: u32) -> bool {
        is_same(&self.from.flow(at), &self.to.flow(place))
    }

    /// The flow has gone on where it was.
    fn go_on(&self, place: u32, word: Word) {
        let slot = slot(&self.to.words, place);
        for _ in 0..8 {
            let there = Word(slot.load(Ordering::Acquire));
            let merged = there.merged(word);
            if there.tag() != word.tag()
                || there.state() <= State::Busy
                || slot.compare_exchange(there.0, merged.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                return;
            }
        }
    }

    /// Gives a flow a place.
    fn place(&mut self, at: u32, word: Word, now: u32) -> u32 {
        let flow = self.from.flow(at);
        let whole = self.from.word(at).tag() == word.tag();
        let Some(hash) = self.hash(&flow, word).filter(|_| whole) else {
            self.moved.lost += 1;
            return NOWHERE;
        };
        let Some(place) = self.claim(hash, word, now) else {
            self.moved.evicted += 1;
            return NOWHERE;
        };
        self.to.write(place, &self.from, at);
        if let Some((reply, hash)) = self.reply(&flow, place) {
            self.link(reply, hash);
        }
        let slot = slot(&self.to.words, place);
        // Refused, somebody else has it by now.
        let _ = slot.compare_exchange(Word::busy(now).0, word.0, Ordering::AcqRel, Ordering::Relaxed);
        self.moved.kept += 1;
        place
    }

    /// The hash that the flow's tag is of; `None`: its service is not there any more.
    fn hash(&self, flow: &Flow, word: Word) -> Option<u64> {
        let service = self.known.services.get(&flow.service_id)?;
        let extra = if flow.granularity == Granularity::Client as u8 {
            CLIENT_EXTRA
        } else if flow.granularity == Granularity::Packet as u8 {
            backend_extra(flow.backend_id)
        } else {
            0
        };
        let of = |extra| {
            let (from, to) = (flow.client_port, flow.service_port);
            tuple_hash(self.known.seed, &flow.client, service, from, to, flow.protocol, extra)
        };
        Some(of(extra)).filter(|hash| tag(*hash) == word.tag())
    }

    /// A way of two buckets, left busy: an empty one of the emptier, else that of least worth, if it is
    /// worth less.
    fn claim(&mut self, hash: u64, word: Word, now: u32) -> Option<u32> {
        for _ in 0..8 {
            let ways = buckets(hash, self.to.words.len() - 1).map(|bucket| {
                let worths = (0..WAYS as u32).map(|way| (self.to.word(index(bucket, way)).worth(now), way));
                let taken = worths.clone().filter(|(worth, _)| *worth != 0).count();
                let (worth, way) = worths.min().unwrap_or((u32::MAX, 0));
                (worth, taken, index(bucket, way))
            });
            let (worth, _, place) = if ways[1] < ways[0] { ways[1] } else { ways[0] };
            if worth >= word.worth(now) {
                return None;
            }
            let there = self.to.word(place);
            let slot = slot(&self.to.words, place);
            if slot.compare_exchange(there.0, Word::busy(now).0, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            if there.live(now) {
                self.moved.evicted += 1;
                self.moved.kept = self.moved.kept.saturating_sub(1);
            }
            if there != Word::EMPTY {
                self.unlink(place);
            }
            return Some(place);
        }
        None
    }

    fn remove(&self, place: u32) {
        self.unlink(place);
        slot(&self.to.words, place).store(Word::EMPTY.0, Ordering::Release);
    }

    /// The reply word of a flow at `place`, and its hash.
    fn reply(&self, flow: &Flow, place: u32) -> Option<(ReplyWord, u64)> {
        let backend = self.known.backends.get(flow.backend_id as usize).filter(|_| flow.has_reply())?;
        if backend.generation != flow.backend_generation {
            return None;
        }
        let port = backend.port_for(flow.service_port);
        let seed = self.known.seed;
        let hash = tuple_hash(seed, &backend.address, &flow.source, port, flow.source_port, flow.protocol, 0);
        Some((ReplyWord::new(tag(hash), place), hash))
    }

    fn link(&self, reply: ReplyWord, hash: u64) {
        let free = |bucket: u32| -> Vec<u32> {
            let ways = (0..WAYS as u32).map(|way| index(bucket, way));
            ways.filter(|at| slot(&self.to.replies, *at).load(Ordering::Acquire) == 0).collect()
        };
        let [first, second] = buckets(hash, self.to.replies.len() - 1).map(free);
        let (more, fewer) = if second.len() > first.len() { (second, first) } else { (first, second) };
        for at in more.into_iter().chain(fewer) {
            let slot = slot(&self.to.replies, at);
            if slot.compare_exchange(0, reply.0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    fn unlink(&self, place: u32) {
        let Some((reply, hash)) = self.reply(&self.to.flow(place), place) else { return };
        for bucket in buckets(hash, self.to.replies.len() - 1) {
            for way in 0..WAYS as u32 {
                let slot = slot(&self.to.replies, index(bucket, way));
                // Refused where it is another flow's.
                let _ = slot.compare_exchange(reply.0, ReplyWord::EMPTY.0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

/// The word of a way. Callers stay below the table's length.
fn slot(table: &RawArray, at: u32) -> &std::sync::atomic::AtomicU64 {
    &table.words(at / WAYS as u32).expect("a way of the table")[at as usize % WAYS]
}
