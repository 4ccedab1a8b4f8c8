//! The flow table as the agent sees it, through memory mappings: the same words, claimed by the same
//! rule, as in the data path (see [`lb_common::flow`]).

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, Map};
use lb_common::{
    abi::{Backend, Flow, Mode, Settings, limits::WAYS, names},
    flow::{ReplyWord, State, Word, buckets, index, tag, ticks},
    hash::tuple_hash,
};

use super::{
    loads::Loads,
    maps::{kernel, open, open_shared},
    mmap::SharedArray,
    pins::Pins,
    ports::Pools,
    sys,
};
use crate::dataplane::DataplaneError;

type Bucket = [u64; WAYS];

pub(super) struct FlowTable {
    words: SharedArray<Bucket>,
    replies: SharedArray<Bucket>,
    flows: SharedArray<Flow>,
    pub loads: Loads,
    seed: u64,
}

/// Where the reply of a flow is found.
pub(super) struct ReplyPlace {
    pub word: ReplyWord,
    buckets: [u32; 2],
}

impl FlowTable {
    pub fn open(pins: &Pins) -> Result<Self, DataplaneError> {
        let settings = open(pins, names::SETTINGS)?.0;
        let settings: Array<_, Settings> =
            Array::try_from(Map::Array(settings)).map_err(|error| kernel(names::SETTINGS, error))?;
        let seed = settings.get(&0, 0).map_err(|error| kernel("reading the settings", error))?.hash_seed;
        Ok(Self {
            words: open_shared(pins, names::FLOW_WORDS)?,
            replies: open_shared(pins, names::REPLY_WORDS)?,
            flows: open_shared(pins, names::FLOWS)?,
            loads: Loads::open(pins)?,
            seed,
        })
    }

    /// The clock of the words.
    pub fn now() -> u32 {
        ticks(sys::coarse_ns())
    }

    /// Places for flows.
    pub fn len(&self) -> u32 {
        self.flows.len().min(self.words.len() * WAYS as u32)
    }

    pub fn word(&self, at: u32) -> Word {
        Word(self.slot(at).load(Ordering::Acquire))
    }

    /// The flow of a way, as it stands: settled only for somebody who has claimed the way, or who
    /// finds its word unchanged afterwards.
    pub fn flow(&self, at: u32) -> Flow {
        self.flows.read(at).unwrap_or_else(bytemuck::Zeroable::zeroed)
    }

    /// Every taken way with its word, in order.
    pub fn taken(&self) -> impl Iterator<Item = (u32, Word)> + '_ {
        (0..self.len()).map(|at| (at, self.word(at))).filter(|(_, word)| *word != Word::EMPTY)
    }

    /// The flow of a way whose word was `word`; `None`: the way has changed hands meanwhile.
    pub fn whole_flow(&self, at: u32, word: Word) -> Option<Flow> {
        let flow = self.flow(at);
        let after = self.word(at);
        (after.tag() == word.tag() && after.state() > State::Busy).then_some(flow)
    }

    /// Removes a flow whose word is still `seen`: takes the way, then frees the reply word, the way
    /// and the source port, in this order. Killed in between, the agent leaves something taken
    /// without an owner, which the audit frees, but never frees what another has taken since. For
    /// the same reason a way that somebody left busy keeps its port and its part of the load.
    ///
    /// `false`: somebody else was faster, the flow lives or is gone.
    pub fn remove(&self, at: u32, seen: Word, now: u32, backends: &[Backend], pools: &Pools) -> bool {
        let busy = Word::busy(now);
        if !self.swap(at, seen, busy) {
            return false;
        }
        let flow = self.flow(at);
        let backend = backends.get(flow.backend_id as usize).filter(|backend| owns(backend, &flow));
        if let Some(backend) = backend {
            self.remove_reply(&self.reply_place(at, &flow, backend));
        }
        if !self.swap(at, busy, Word::EMPTY) {
            return false;
        }
        if let Some(backend) = backend.filter(|_| seen.state() != State::Busy) {
            if seen.open() {
                self.loads.ended(&flow);
            }
            if flow.mode == Mode::FullNat as u8 && flow.has_reply() {
                pools.free(backend.port_pool, flow.source_port.get());
            }
        }
        true
    }

    /// Where the reply word of a flow belongs.
    pub fn reply_place(&self, at: u32, flow: &Flow, backend: &Backend) -> ReplyPlace {
        let port = backend.port_for(flow.service_port);
        let hash = tuple_hash(self.seed, &backend.address, &flow.source, port, flow.source_port, flow.protocol, 0);
        ReplyPlace { word: ReplyWord::new(tag(hash), at), buckets: buckets(hash, self.replies.len() - 1) }
    }

    /// Every taken way of the reply table with its word.
    pub fn replies(&self) -> impl Iterator<Item = (u32, ReplyWord)> + '_ {
        (0..self.replies.len() * WAYS as u32)
            .map(|at| (at, ReplyWord(slot(&self.replies, at).load(Ordering::Acquire))))
            .filter(|(_, word)| *word != ReplyWord::EMPTY)
    }

    /// Whether a way of the reply table is one where the word belongs.
    pub fn belongs(&self, at: u32, word: ReplyWord, place: &ReplyPlace) -> bool {
        word == place.word && place.buckets.contains(&(at / WAYS as u32))
    }

    /// Empties a way of the reply table if it still holds `word`.
    pub fn remove_reply_at(&self, at: u32, word: ReplyWord) -> bool {
        slot(&self.replies, at)
            .compare_exchange(word.0, ReplyWord::EMPTY.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn remove_reply(&self, place: &ReplyPlace) {
        for bucket in place.buckets {
            for way in 0..WAYS as u32 {
                self.remove_reply_at(index(bucket, way), place.word);
            }
        }
    }

    fn swap(&self, at: u32, from: Word, to: Word) -> bool {
        self.slot(at).compare_exchange(from.0, to.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    fn slot(&self, at: u32) -> &AtomicU64 {
        slot(&self.words, at)
    }
}

/// Whether the flow was begun with this backend, not with one that had its id before.
pub(super) fn owns(backend: &Backend, flow: &Flow) -> bool {
    backend.generation == flow.backend_generation
}

/// The word of a way. Callers stay below the table's length.
fn slot(table: &SharedArray<Bucket>, at: u32) -> &AtomicU64 {
    &table.words(at / WAYS as u32).expect("a way of the table")[at as usize % WAYS]
}
