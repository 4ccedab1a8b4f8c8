//! The flow table: finding, taking and giving back places. The layout, and what may change hands
//! how, is told in [`lb_common::flow`]; the agent does the same through a memory mapping.
//!
//! Functions with a C interface are verified once, by themselves, whatever calls them; they find
//! the packet where it is kept, so that they need no more than numbers. That keeps the verifier's
//! work a sum where it would be a product.

use lb_common::{
    abi::{Address, BackendState, Flow, Granularity, Mode, Port, limits::WAYS},
    flow::{ReplyWord, Seen, State, TCP_RST, Word, buckets, index, tag},
    hash::tuple_hash,
    verdict::Reason,
};

use super::{load, ports};
use crate::{
    atomic::compare_exchange,
    copy,
    maps::{BACKEND_STATS, BACKENDS, FLOW_WORDS, FLOWS, REPLY_WORDS, SERVICE_INFO},
    packet::Packet,
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
    pub hash: u64,
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

/// Tries to change a word that other CPUs may change first; they cannot do so each time.
const ATTEMPTS: u32 = 4;

/// No flow has this index.
pub const NO_PLACE: u32 = u32::MAX;

/// A flow's place in the table and its word when it was found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Place {
    pub index: u32,
    pub word: Word,
}

/// Finds the flow that the client's packet belongs to, or what else is sought, and sets its place.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_forward() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let hash = packet.tuple.hash;
    for bucket in buckets(hash, flow_mask()) {
        let Some(words) = FLOW_WORDS.get_ptr_mut(bucket) else { return 0 };
        for way in 0..WAYS {
            // SAFETY: `way` is below the bucket's length; the word may change under us, so it is read once.
            let word = Word(unsafe { (&raw const (*words).words[way]).read_volatile() });
            if word.tag() == tag(hash) && word.live(packet.now) {
                let index = index(bucket, way as u32);
                if asks(index) != 0 {
                    packet.place = Place { index, word };
                    return 1;
                }
            }
        }
    }
    0
}

/// Whether the packet is one that the flow's client sends.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn asks(index: u32) -> u32 {
    let (Some(packet), Some(flow)) = (Packet::current(), flow(index)) else { return 0 };
    let tuple = &packet.tuple;
    let asks = flow.client == tuple.source
        && flow.client_port == tuple.source_port
        && flow.service_port == tuple.destination_port
        && flow.protocol == tuple.protocol
        && flow.service_id == packet.service.id
        && flow.granularity as u32 == packet.sought
        && (packet.sought != Granularity::Packet as u32 || flow.backend_id == packet.backend_id);
    asks as u32
}

/// [`find_reply`]: the flow is over with its backend.
pub const ENDED: u32 = 2;

/// Finds the flow that a backend's packet belongs to, and sets its place.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_reply() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let hash = packet.tuple.hash;
    for bucket in buckets(hash, reply_mask()) {
        let Some(words) = REPLY_WORDS.get_ptr_mut(bucket) else { return 0 };
        for way in 0..WAYS {
            // SAFETY: as in `find_forward`.
            let reply = ReplyWord(unsafe { (&raw const (*words).words[way]).read_volatile() });
            if reply.tag() == tag(hash) && reply.0 != 0 {
                let index = reply.index_or_max();
                let word = word(index);
                if word.live(packet.now) {
                    let answers = answers(index, 0);
                    if answers != 0 {
                        packet.place = Place { index, word };
                        return answers;
                    }
                }
            }
        }
    }
    0
}

/// Whether the packet, or its reply (`of_reply` not 0), is what the flow's backend answers: not 0, and
/// [`ENDED`] where the flow is to be reset.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn answers(index: u32, of_reply: u32) -> u32 {
    let (Some(packet), Some(flow)) = (Packet::current(), flow(index)) else { return 0 };
    let tuple = if of_reply == 0 { &packet.tuple } else { &packet.reply_tuple };
    if flow.source != tuple.destination || flow.source_port != tuple.destination_port || flow.protocol != tuple.protocol
    {
        return 0;
    }
    let Some(backend) = BACKENDS.get(flow.backend_id) else { return 0 };
    let answers = backend.generation == flow.backend_generation
        && backend.state != BackendState::Empty as u8
        && backend.address == tuple.source
        && backend.port_for(flow.service_port) == tuple.source_port;
    (answers as u32) << (backend.state == BackendState::Dead as u8) as u32
}

/// Takes a way for a new flow, the least valuable one of two buckets, and leaves it busy. What
/// lived there is gone, its reply word and port are free. [`NO_PLACE`]: all are being worked on.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn claim() -> u32 {
    let Some(packet) = Packet::current() else { return NO_PLACE };
    let now = packet.now;
    for _ in 0..ATTEMPTS {
        let index = least_worth(packet);
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
            forget(index, old);
            if worth > 0 {
                stats::verdict(Reason::Evicted, 0);
            }
        }
        return index;
    }
    NO_PLACE
}

/// The way to give up. Of two buckets with room, one in the emptier.
#[inline(always)]
fn least_worth(packet: &Packet) -> u32 {
    let [first, second] = buckets(packet.tuple.hash, flow_mask());
    let (a, b) = (weigh(first), weigh(second));
    if b < a { index(second, way_of(b)) } else { index(first, way_of(a)) }
}

/// The least valuable way of a bucket, as a number to compare: its worth, then how many ways of the
/// bucket are taken, then its place.
///
/// What is found goes to memory at each step: the verifier does not follow values there, so that
/// its paths meet again after each way instead of doubling eight times.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn weigh(bucket: u32) -> u64 {
    let (Some(packet), Some(words)) = (Packet::current(), FLOW_WORDS.get_ptr_mut(bucket)) else { return u64::MAX };
    let least = &raw mut packet.least;
    let mut taken = 0;
    // SAFETY: `least` points into the packet, which is this CPU's alone; ways are below the
    // bucket's length, and each word is read once because it may change.
    unsafe {
        least.write_volatile(u64::MAX);
        for way in 0..WAYS {
            let worth = Word((&raw const (*words).words[way]).read_volatile()).worth(packet.now) as u64;
            // One more if the worth is not 0.
            taken += (worth + 0xffff_ffff) >> 32;
            let weight = worth << 16 | way as u64;
            if weight < least.read_volatile() {
                least.write_volatile(weight);
            }
        }
        least.read_volatile() | taken << 8
    }
}

/// The way in what [`weigh`] gives.
#[inline(always)]
fn way_of(weight: u64) -> u32 {
    (weight & 0xff) as u32
}

/// [`link_reply`] has linked.
pub const LINKED: u32 = 0;
/// A live flow has the same reply tuple.
pub const TAKEN: u32 = 1;
/// No free way.
pub const FULL: u32 = 2;

/// Makes the flow at `index` findable by the packet's reply tuple, through the emptier of its two
/// buckets.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn link_reply(index: u32) -> u32 {
    let Some(packet) = Packet::current() else { return FULL };
    let hash = packet.reply_tuple.hash;
    let [first, second] = buckets(hash, reply_mask());
    for _ in 0..ATTEMPTS {
        let (a, b) = (scan_replies(first), scan_replies(second));
        if a == BUCKET_TAKEN || b == BUCKET_TAKEN {
            return TAKEN;
        }
        let (bucket, scan) = if b < a { (second, b) } else { (first, a) };
        let Some(words) = REPLY_WORDS.get_ptr_mut(bucket) else { return FULL };
        if scan == BUCKET_FULL {
            return FULL;
        }
        // SAFETY: the way is below the bucket's length, and its word is aligned.
        let before = unsafe {
            let place = &raw mut (*words).words[scan as usize % WAYS];
            compare_exchange(place, 0, ReplyWord::new(tag(hash), index).0)
        };
        if before == 0 {
            return LINKED;
        }
    }
    FULL
}

/// [`scan_replies`]: no way of the bucket is free; every other number with a free way is below.
const BUCKET_FULL: u32 = u32::MAX - 1;
/// [`scan_replies`]: a live flow with the same reply tuple is here.
const BUCKET_TAKEN: u32 = u32::MAX;

/// How full a bucket is, as a number to compare (taken ways times 256), and a free way in it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn scan_replies(bucket: u32) -> u32 {
    let (Some(packet), Some(words)) = (Packet::current(), REPLY_WORDS.get_ptr_mut(bucket)) else { return BUCKET_FULL };
    // In memory, as in `weigh`.
    let (free, taken) = (&raw mut packet.free, &raw mut packet.taken);
    // SAFETY: both point into the packet, which is this CPU's alone; ways are below the bucket's
    // length.
    unsafe {
        free.write_volatile(BUCKET_FULL);
        taken.write_volatile(0);
        for way in 0..WAYS {
            let reply = ReplyWord((&raw const (*words).words[way]).read_volatile());
            if reply == ReplyWord::EMPTY {
                free.write_volatile(way as u32);
                continue;
            }
            taken.write_volatile(taken.read_volatile() + 1);
            if reply.tag() == tag(packet.reply_tuple.hash) {
                let other = reply.index_or_max();
                if word(other).live(packet.now) && answers(other, 1) != 0 {
                    return BUCKET_TAKEN;
                }
            }
        }
        if free.read_volatile() == BUCKET_FULL {
            return BUCKET_FULL;
        }
        taken.read_volatile() << 8 | free.read_volatile()
    }
}

/// Opens a way that was claimed at `now` to packets, or gives it back with [`Word::EMPTY`]. Somebody
/// else has it where this program stood still for longer than [`State::Busy`] lasts.
#[inline(always)]
pub fn publish(index: u32, now: u32, word: Word) {
    if let Some(place) = word_ptr(index) {
        // SAFETY: `place` points to an aligned word of a map value.
        unsafe { compare_exchange(place, Word::busy(now).0, word.0) };
    }
}

/// The word of the packet's new flow.
#[inline(always)]
pub fn first_word(packet: &Packet) -> Word {
    let (tag, tcp) = (tag(packet.tuple.hash), packet.transport.protocol.has_connections());
    let word = if packet.adopted != 0 {
        Word::adopt(tag, tcp, packet.now)
    } else if Mode::is_one_sided(packet.flow.mode) {
        Word::begin_one_sided(tag, tcp, packet.now)
    } else {
        Word::begin(tag, tcp, packet.now)
    };
    match SERVICE_INFO.get(packet.flow.service_id) {
        Some(info) => word.under(&info.timeouts, packet.now),
        None => word,
    }
}

/// Makes the entry of a client that was found last for another `timeout` ticks.
#[inline(always)]
pub fn extend(packet: &Packet, timeout: u32) {
    let Place { index, word } = packet.place;
    if let Some(place) = word_ptr(index) {
        // SAFETY: `place` points to an aligned word of a map value. If somebody else was faster, that
        // was another flow of the client, or its entry is gone.
        unsafe { compare_exchange(place, word.0, Word::client(word.tag(), timeout, packet.now).0) };
    }
}

/// Notes what the packet says about its flow. Returns whether the word was written: at most once a
/// tick while nothing else changes.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn touch(reply: u32) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let transport = &packet.transport;
    let seen = Seen { tcp: transport.protocol.has_connections(), reply: reply != 0, tcp_flags: transport.tcp_flags };
    let Some(pointer) = word_ptr(packet.place.index) else { return 0 };
    let Some(info) = SERVICE_INFO.get(packet.flow.service_id) else { return 0 };
    let mut word = packet.place.word;
    for _ in 0..ATTEMPTS {
        let after = word.after_under(seen, packet.now, &info.timeouts);
        if after == word {
            return 0;
        }
        // SAFETY: `pointer` points to an aligned word of a map value.
        let found = Word(unsafe { compare_exchange(pointer, word.0, after.0) });
        if found == word {
            load::changed(&packet.flow, word, after);
            return 1;
        }
        if found.tag() != word.tag() || found.state() <= State::Busy {
            return 0;
        }
        word = found;
    }
    0
}

/// Closes the packet's connection, whatever the packet says: its entry stays for the time in which
/// both ends may still send. Not 0: it was open until now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn close_flow() -> u32 {
    const RESET: Seen = Seen { tcp: true, reply: true, tcp_flags: TCP_RST };
    let Some(packet) = Packet::current() else { return 0 };
    let Some(pointer) = word_ptr(packet.place.index) else { return 0 };
    let Some(info) = SERVICE_INFO.get(packet.flow.service_id) else { return 0 };
    let mut word = packet.place.word;
    for _ in 0..ATTEMPTS {
        let after = word.after_under(RESET, packet.now, &info.timeouts);
        // SAFETY: `pointer` points to an aligned word of a map value.
        let found = Word(unsafe { compare_exchange(pointer, word.0, after.0) });
        if found == word {
            load::changed(&packet.flow, word, after);
            return word.open() as u32;
        }
        if found.tag() != word.tag() || found.state() <= State::Busy {
            return 0;
        }
        word = found;
    }
    0
}

/// Ends the packet's flow at once, if it is still the one that was found. Not 0: it was open until now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let index = packet.place.index;
    let Some(pointer) = word_ptr(index) else { return 0 };
    // SAFETY: `pointer` points to an aligned word of a map value.
    let current = unsafe { pointer.read_volatile() };
    if Word(current).tag() != packet.place.word.tag() || Word(current).state() <= State::Busy {
        return 0;
    }
    // SAFETY: as above.
    if unsafe { compare_exchange(pointer, current, Word::busy(packet.now).0) } == current {
        forget(index, current);
        publish(index, packet.now, Word::EMPTY);
        return Word(current).open() as u32;
    }
    0
}

/// Frees what the flow of a way that was `word` and is busy now holds elsewhere: its reply word, its
/// source port and its part of the backend's load.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn forget(index: u32, word: u64) -> u32 {
    let (Some(packet), Some(flow)) = (Packet::current(), flow(index)) else { return 0 };
    let Some(backend) = BACKENDS.get(flow.backend_id) else { return 0 };
    if backend.generation != flow.backend_generation {
        // The agent emptied the backend only when no flow was left; nothing is held.
        return 0;
    }
    if flow.has_reply() {
        let port = backend.port_for(flow.service_port);
        // Not on the stack, which is short here. The packet's own reply comes after this.
        packet.reply_tuple = Tuple::new(backend.address, flow.source, port, flow.source_port, flow.protocol, 0);
        // Here and not in a function of its own: with one more the stack does not suffice.
        unlink(&packet.reply_tuple, index);
        ports::give_back(flow, backend.port_pool);
    }
    load::changed(flow, Word(word), Word::EMPTY);
    if !flow.has_load() {
        return 0;
    }
    if let Some(counters) = BACKEND_STATS.get_ptr_mut(flow.backend_id) {
        // SAFETY: this CPU's element.
        unsafe { (*counters).ended += 1 };
    }
    0
}

#[inline(never)]
pub fn unlink_reply(tuple: &Tuple, index: u32) {
    unlink(tuple, index);
}

#[inline(always)]
fn unlink(tuple: &Tuple, index: u32) {
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
    copy::copy(flow, &mut packet.flow);
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
