//! The flow table as the agent sees it, through memory mappings: the same words, claimed by the same
//! rule, as in the data path (see [`lb_common::flow`]).

use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, Map};
use lb_common::{
    abi::{Backend, Flow, Mode, Port, Settings, limits::WAYS, names},
    flow::{ReplyWord, State, Word, buckets, index, tag, ticks},
    hash::tuple_hash,
};

use super::{
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

    /// Becomes the owner of a way, unless its word has changed.
    pub fn claim(&self, at: u32, seen: Word, now: u32) -> bool {
        self.slot(at).compare_exchange(seen.0, Word::busy(now).0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Ends the flow of a way that the caller has claimed: its reply word, then its source port,
    /// then the way. `before` is the word before the claim. A way that somebody left busy keeps its
    /// port, which may have been given to another flow already; the audit frees it otherwise.
    pub fn release(&self, at: u32, before: Word, backend: Option<&Backend>, pools: &Pools) {
        let flow = self.flow(at);
        if let Some(backend) = backend.filter(|backend| owns(backend, &flow)) {
            self.remove_reply(&self.reply_place(at, &flow, backend));
            if flow.mode == Mode::FullNat as u8 && before.state() != State::Busy {
                pools.free(backend.port_pool, flow.source_port.get());
            }
        }
        self.slot(at).store(Word::EMPTY.0, Ordering::Release);
    }

    /// Where the reply word of a flow belongs.
    pub fn reply_place(&self, at: u32, flow: &Flow, backend: &Backend) -> ReplyPlace {
        let port = if backend.port == Port::ANY { flow.service_port } else { backend.port };
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

    fn slot(&self, at: u32) -> &AtomicU64 {
        slot(&self.words, at)
    }
}

/// Whether the flow was begun with this backend, not with one that had its id before.
pub(super) fn owns(backend: &Backend, flow: &Flow) -> bool {
    backend.generation == flow.backend_generation && backend.generation != 0
}

/// The word of a way. Callers stay below the table's length.
fn slot(table: &SharedArray<Bucket>, at: u32) -> &AtomicU64 {
    &table.words(at / WAYS as u32).expect("a way of the table")[at as usize % WAYS]
}
