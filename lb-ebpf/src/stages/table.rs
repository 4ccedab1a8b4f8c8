//! The flow table: finding, taking and giving back places. The layout, and what may change hands
//! how, is told in [`lb_common::flow`]; the agent does the same through a memory mapping.

use lb_common::{
    abi::{Address, Backend, BackendState, Flow, Granularity, Port, Protocol, limits::WAYS},
    flow::{ReplyWord, Seen, State, Word, buckets, index, tag},
    hash::tuple_hash,
    verdict::Reason,
};

use super::ports;
use crate::{
    atomic::compare_exchange,
    maps::{BACKEND_STATS, BACKENDS, FLOW_WORDS, FLOWS, REPLY_WORDS},
    packet::{NO_BACKEND, Packet},
    settings::{flow_mask, hash_seed, reply_mask},
    stats,
};

/// A packet's 5-tuple, in packet order, and its hash.
#[repr(C)]
pub struct Tuple {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    pub protocol: u8,
    hash: u64,
}

impl Tuple {
    /// `extra` as in [`tuple_hash`].
    #[inline(always)]
    pub fn new(
        source: Address,
        destination: Address,
        source_port: Port,
        destination_port: Port,
        protocol: u8,
        extra: u32,
    ) -> Self {
        let hash = tuple_hash(hash_seed(), &source, &destination, source_port, destination_port, protocol, extra);
        Self { source, destination, source_port, destination_port, protocol, hash }
    }
}

/// No flow has this index.
pub const NO_PLACE: u32 = u32::MAX;

/// A flow's place in the table and its word when it was found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Place {
    pub index: u32,
    pub word: Word,
}

/// Finds the flow that the client's packet belongs to, and sets its place. Where the packet was
/// scheduled to a backend already, a flow to that backend.
#[inline(never)]
pub fn find_forward(packet: &mut Packet) -> bool {
    let hash = packet.tuple.hash;
    for bucket in buckets(hash, flow_mask()) {
        let Some(words) = FLOW_WORDS.get_ptr_mut(bucket) else { return false };
        for way in 0..WAYS {
            // SAFETY: `way` is below the bucket's length; the word may change under us, so it is read once.
            let word = Word(unsafe { (&raw const (*words).words[way]).read_volatile() });
            if word.tag() == tag(hash) && word.live(packet.now) {
                let index = index(bucket, way as u32);
                if asks(packet, index) {
                    packet.place = Place { index, word };
                    return true;
                }
            }
        }
    }
    false
}

/// Whether the packet is one that the flow's client sends.
#[inline(never)]
fn asks(packet: &Packet, index: u32) -> bool {
    let Some(flow) = flow(index) else { return false };
    let tuple = &packet.tuple;
    flow.client == tuple.source
        && flow.client_port == tuple.source_port
        && flow.service_port == tuple.destination_port
        && flow.protocol == tuple.protocol
        && flow.service_id == packet.service.id
        && if packet.backend_id == NO_BACKEND {
            flow.granularity == Granularity::Flow as u8
        } else {
            flow.granularity == Granularity::Packet as u8 && flow.backend_id == packet.backend_id
        }
}

/// Finds the flow that a backend's packet belongs to, and sets its place.
#[inline(never)]
pub fn find_reply(packet: &mut Packet) -> bool {
    let hash = packet.tuple.hash;
    for bucket in buckets(hash, reply_mask()) {
        let Some(words) = REPLY_WORDS.get_ptr_mut(bucket) else { return false };
        for way in 0..WAYS {
            // SAFETY: as in `find_forward`.
            let reply = ReplyWord(unsafe { (&raw const (*words).words[way]).read_volatile() });
            if reply.tag() == tag(hash) && reply.0 != 0 {
                let index = reply.index_or_zero();
                let word = word(index);
                if word.live(packet.now) && answers(index, &packet.tuple) {
                    packet.place = Place { index, word };
                    return true;
                }
            }
        }
    }
    false
}

/// Whether a packet of `tuple` is what the flow's backend answers.
#[inline(never)]
fn answers(index: u32, tuple: &Tuple) -> bool {
    let Some(flow) = flow(index) else { return false };
    if flow.source != tuple.destination || flow.source_port != tuple.destination_port || flow.protocol != tuple.protocol
    {
        return false;
    }
    let Some(backend) = BACKENDS.get(flow.backend_id) else { return false };
    backend.generation == flow.backend_generation
        && backend.state != BackendState::Empty as u8
        && backend.address == tuple.source
        && backend_port(backend, flow.service_port) == tuple.source_port
}

/// The port a backend listens on, for a client that asked for `service_port`.
#[inline(always)]
pub fn backend_port(backend: &Backend, service_port: Port) -> Port {
    if backend.port == Port::ANY { service_port } else { backend.port }
}

/// Takes a way for a new flow, the least valuable one of two buckets, and leaves it busy. What
/// lived there is gone, its reply word and port are free. [`NO_PLACE`]: all are being worked on.
#[inline(never)]
pub fn claim(tuple: &Tuple, now: u32) -> u32 {
    // Another CPU may take the way that was just chosen; it cannot do so each time.
    for _ in 0..3 {
        let index = least_worth(tuple.hash, now);
        let Some(place) = word_ptr(index) else { return NO_PLACE };
        // SAFETY: `place` points to an aligned word of a map value.
        let old = unsafe { place.read_volatile() };
        let worth = Word(old).worth(now);
        if worth == u32::MAX {
            continue;
        }
        // SAFETY: as above.
        if unsafe { compare_exchange(place, old, Word::busy(now).0) } != old {
            continue;
        }
        if Word(old).state() != State::Empty {
            forget(index);
            if worth > 0 {
                stats::verdict(Reason::Evicted, 0);
            }
        }
        return index;
    }
    NO_PLACE
}

/// The way to give up. Of two buckets with room, in the emptier.
#[inline(never)]
fn least_worth(hash: u64, now: u32) -> u32 {
    let mut best = NO_PLACE;
    let mut best_worth = u32::MAX;
    let mut best_taken = u32::MAX;
    for bucket in buckets(hash, flow_mask()) {
        let Some(words) = FLOW_WORDS.get_ptr_mut(bucket) else { return NO_PLACE };
        let mut taken = 0;
        let mut least = u32::MAX;
        let mut least_way = 0;
        for way in 0..WAYS {
            // SAFETY: as in `find_forward`.
            let worth = Word(unsafe { (&raw const (*words).words[way]).read_volatile() }).worth(now);
            taken += (worth > 0) as u32;
            if worth < least {
                least = worth;
                least_way = way as u32;
            }
        }
        if least < best_worth || (least == best_worth && taken < best_taken) {
            best = index(bucket, least_way);
            best_worth = least;
            best_taken = taken;
        }
    }
    best
}

/// How [`link_reply`] ended.
#[derive(PartialEq, Eq)]
pub enum Linked {
    Yes,
    /// A live flow has the same reply tuple.
    Taken,
    /// No free way.
    Full,
}

/// Makes the flow at `index` findable by its replies.
#[inline(never)]
pub fn link_reply(tuple: &Tuple, index: u32, now: u32) -> Linked {
    let tag = tag(tuple.hash);
    let mut free: *mut u64 = core::ptr::null_mut();
    for bucket in buckets(tuple.hash, reply_mask()) {
        let Some(words) = REPLY_WORDS.get_ptr_mut(bucket) else { return Linked::Full };
        for way in 0..WAYS {
            // SAFETY: `way` is below the bucket's length.
            let place = unsafe { &raw mut (*words).words[way] };
            // SAFETY: as in `find_forward`.
            let reply = ReplyWord(unsafe { place.read_volatile() });
            if reply == ReplyWord::EMPTY {
                free = place;
            } else if reply.tag() == tag {
                let other = reply.index_or_zero();
                if word(other).live(now) && answers(other, tuple) {
                    return Linked::Taken;
                }
            }
        }
    }
    if free.is_null() {
        return Linked::Full;
    }
    // SAFETY: `free` points to an aligned word of a map value.
    if unsafe { compare_exchange(free, 0, ReplyWord::new(tag, index).0) } == 0 { Linked::Yes } else { Linked::Full }
}

/// Opens a claimed way to packets, or gives it back with [`Word::EMPTY`].
#[inline(always)]
pub fn publish(index: u32, word: Word) {
    if let Some(place) = word_ptr(index) {
        // SAFETY: the way is busy, so it is ours alone to store to.
        unsafe { place.write_volatile(word.0) };
    }
}

/// The word of a new flow that `tuple` finds.
#[inline(always)]
pub fn first_word(tuple: &Tuple, tcp: bool, now: u32) -> Word {
    Word::begin(tag(tuple.hash), tcp, now)
}

/// Notes what the packet says about its flow. Returns whether the word was written: at most once a
/// tick while nothing else changes.
#[inline(never)]
pub fn touch(packet: &Packet, reply: bool) -> bool {
    let transport = &packet.transport;
    let seen = Seen { tcp: transport.protocol == Protocol::Tcp, reply, tcp_flags: transport.tcp_flags };
    let Some(pointer) = word_ptr(packet.place.index) else { return false };
    let mut word = packet.place.word;
    // The other direction may be noting something on another CPU.
    for _ in 0..3 {
        let after = word.after(seen, packet.now);
        if after == word {
            return false;
        }
        // SAFETY: `pointer` points to an aligned word of a map value.
        let found = Word(unsafe { compare_exchange(pointer, word.0, after.0) });
        if found == word {
            return true;
        }
        if found.tag() != word.tag() || found.state() <= State::Busy {
            return false;
        }
        word = found;
    }
    false
}

/// Ends the packet's flow at once, if it is still the one that was found.
#[inline(never)]
pub fn end(packet: &Packet) {
    let index = packet.place.index;
    let Some(pointer) = word_ptr(index) else { return };
    // SAFETY: `pointer` points to an aligned word of a map value.
    let current = unsafe { pointer.read_volatile() };
    if Word(current).tag() != packet.place.word.tag() || Word(current).state() <= State::Busy {
        return;
    }
    // SAFETY: as above.
    if unsafe { compare_exchange(pointer, current, Word::busy(packet.now).0) } == current {
        forget(index);
        publish(index, Word::EMPTY);
    }
}

/// Frees what the flow of a busy way holds elsewhere: its reply word and its source port.
#[inline(never)]
fn forget(index: u32) {
    let Some(flow) = flow(index) else { return };
    let Some(backend) = BACKENDS.get(flow.backend_id) else { return };
    if backend.generation != flow.backend_generation {
        // The agent emptied the backend only when no flow was left; nothing is held.
        return;
    }
    let port = backend_port(backend, flow.service_port);
    let tuple = Tuple::new(backend.address, flow.source, port, flow.source_port, flow.protocol, 0);
    unlink_reply(&tuple, index);
    ports::give_back(flow, backend.port_pool);
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(flow.backend_id) {
        // SAFETY: this CPU's element.
        unsafe { (*counters).ended += 1 };
    }
}

#[inline(never)]
pub fn unlink_reply(tuple: &Tuple, index: u32) {
    let mine = ReplyWord::new(tag(tuple.hash), index).0;
    for bucket in buckets(tuple.hash, reply_mask()) {
        let Some(words) = REPLY_WORDS.get_ptr_mut(bucket) else { return };
        for way in 0..WAYS {
            // SAFETY: `way` is below the bucket's length; nobody else removes this word, since the
            // flow's way is busy and ours.
            unsafe {
                let place = &raw mut (*words).words[way];
                if place.read_volatile() == mine {
                    place.write_volatile(0);
                    return;
                }
            }
        }
    }
}

/// The flow at a place. Its fields may be rewritten by a new owner of the place at any time: read
/// them through [`copy`] where they matter together.
#[inline(always)]
fn flow(index: u32) -> Option<&'static Flow> {
    FLOWS.get_ptr_mut(index).map(|flow| {
        // SAFETY: an array's elements live as long as the program, and every bit pattern is a Flow.
        unsafe { &*flow }
    })
}

/// Copies the packet's flow, whole: `false` when its place changed hands meanwhile.
#[inline(always)]
pub fn copy(packet: &mut Packet) -> bool {
    let place = packet.place;
    let Some(flow) = flow(place.index) else { return false };
    packet.flow = *flow;
    let now = word(place.index);
    now.tag() == place.word.tag() && now.state() > State::Busy
}

/// Keeps the link-layer address that the client's frame came from.
#[inline(always)]
pub fn remember_mac(index: u32, mac: [u8; 6]) {
    if let Some(flow) = FLOWS.get_ptr_mut(index) {
        // SAFETY: the flow was found by a packet, so nobody rewrites it but for these six bytes; a
        // torn address could only come from two routers at once, and lasts one tick.
        unsafe { (*flow).client_mac = mac };
    }
}

/// The word of a place; empty where there is no such place.
#[inline(always)]
fn word(index: u32) -> Word {
    match word_ptr(index) {
        // SAFETY: `word_ptr` gives an aligned word of a map value.
        Some(place) => Word(unsafe { place.read_volatile() }),
        None => Word::EMPTY,
    }
}

#[inline(always)]
fn word_ptr(index: u32) -> Option<*mut u64> {
    let words = FLOW_WORDS.get_ptr_mut(index / WAYS as u32)?;
    // SAFETY: the remainder is below the bucket's length.
    Some(unsafe { &raw mut (*words).words[index as usize % WAYS] })
}
