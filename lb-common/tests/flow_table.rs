//! The protocol of the flow table (see `flow`), with real threads on a table that is far too small:
//! no way is ever owned by two, no flow is lost, no reply finds half a flow.
use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
    thread,
};

use lb_common::{
    abi::limits::WAYS,
    flow::{ReplyWord, Seen, State, TCP_ACK, TCP_RST, TCP_SYN, Word, buckets, index, tag},
};

const BUCKETS: u32 = 32;
/// As in the real table: the reply words never evict.
const REPLY_BUCKETS: u32 = BUCKETS * 2;
const THREADS: u64 = 4;
/// Together six times what the table holds.
const KEYS: u64 = 384;
const ROUNDS: u64 = 60_000;

/// The three arrays. A flow is its key twice, the second time inverted, so that half a flow shows.
struct Table {
    words: Vec<AtomicU64>,
    replies: Vec<AtomicU64>,
    flows: Vec<[AtomicU64; 2]>,
    /// Who owns the way: no part of the real table.
    owners: Vec<AtomicU64>,
    now: AtomicU32,
}

/// What one thread did to every key.
#[derive(Default)]
struct Ledger {
    inserted: HashMap<u64, u64>,
    removed: HashMap<u64, u64>,
    evicted: HashMap<u64, u64>,
    /// Expired flows whose way was taken for the same key.
    renewed: u64,
    found: u64,
    replied: u64,
}

fn mixed(key: u64, salt: u64) -> u64 {
    let mut hash = (key ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 29
}

fn forward_hash(key: u64) -> u64 {
    mixed(key, 0)
}

fn reply_hash(key: u64) -> u64 {
    mixed(key, 0x5eed)
}

fn ways(hash: u64, buckets_in_all: u32) -> impl Iterator<Item = usize> {
    buckets(hash, buckets_in_all - 1)
        .into_iter()
        .flat_map(|bucket| (0..WAYS as u32).map(move |way| index(bucket, way) as usize))
}

impl Table {
    fn new() -> Self {
        let zeros = |n: u32| (0..n * WAYS as u32).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let flows = (0..BUCKETS * WAYS as u32).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect();
        Self {
            words: zeros(BUCKETS),
            replies: zeros(REPLY_BUCKETS),
            flows,
            owners: zeros(BUCKETS),
            now: AtomicU32::new(1),
        }
    }

    fn now(&self) -> u32 {
        self.now.load(Ordering::Relaxed)
    }

    fn word(&self, at: usize) -> Word {
        Word(self.words[at].load(Ordering::Acquire))
    }

    fn swap(&self, at: usize, old: Word, new: Word) -> bool {
        self.words[at].compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Take: gives the busy word by which the way is owned.
    fn take(&self, at: usize, old: Word, thread: u64) -> Option<Word> {
        let busy = Word::busy(self.now());
        if !self.swap(at, old, busy) {
            return None;
        }
        // In BPF a compare-and-swap is a full barrier; here the flow must not be seen before the mark.
        fence(Ordering::SeqCst);
        let owner = self.owners[at].swap(thread, Ordering::SeqCst);
        assert_eq!(owner, 0, "way {at} was owned by thread {owner} when thread {thread} took it");
        Some(busy)
    }

    /// Give, or remove.
    fn give(&self, at: usize, busy: Word, new: Word, thread: u64) {
        let owner = self.owners[at].swap(0, Ordering::SeqCst);
        assert_eq!(owner, thread, "way {at} of thread {thread} was taken");
        assert!(self.swap(at, busy, new), "the word of an owned way changed");
    }

    /// The ways and words of a key's flows, live or not, read whole. One, but while another thread
    /// moves it.
    fn all(&self, key: u64) -> impl Iterator<Item = (usize, Word)> {
        let hash = forward_hash(key);
        ways(hash, BUCKETS).map(|at| (at, self.word(at))).filter(move |&(at, word)| {
            word.state() > State::Busy && word.tag() == tag(hash) && self.read_whole(at, word.tag()) == Some(key)
        })
    }

    fn find(&self, key: u64) -> Option<(usize, Word)> {
        self.all(key).next()
    }

    /// The flow of a way, if it was read whole.
    fn read_whole(&self, at: usize, tag: u32) -> Option<u64> {
        if at.is_multiple_of(5) {
            // Somebody else's turn at the worst moment.
            thread::yield_now();
        }
        let [key, inverted] = [0, 1].map(|half| self.flows[at][half].load(Ordering::Relaxed));
        fence(Ordering::SeqCst);
        let again = self.word(at);
        if again.state() <= State::Busy || again.tag() != tag {
            return None;
        }
        assert_eq!(key, !inverted, "half a flow behind a word that did not change");
        Some(key)
    }

    /// The key that a reply finds.
    fn find_by_reply(&self, key: u64) -> Option<u64> {
        let hash = reply_hash(key);
        ways(hash, REPLY_BUCKETS).find_map(|at| {
            let reply = ReplyWord(self.replies[at].load(Ordering::Acquire));
            let flow = reply.index().filter(|_| reply.tag() == tag(hash))? as usize;
            let word = self.word(flow);
            if !word.live(self.now()) {
                return None;
            }
            self.read_whole(flow, word.tag()).filter(|&found| found == key)
        })
    }

    fn add_reply(&self, key: u64, flow: usize) -> bool {
        let hash = reply_hash(key);
        let new = ReplyWord::new(tag(hash), flow as u32).0;
        ways(hash, REPLY_BUCKETS).any(|at| {
            self.replies[at].compare_exchange(ReplyWord::EMPTY.0, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })
    }

    fn remove_reply(&self, key: u64, flow: usize) {
        let hash = reply_hash(key);
        let old = ReplyWord::new(tag(hash), flow as u32).0;
        let removed = ways(hash, REPLY_BUCKETS).any(|at| {
            self.replies[at].compare_exchange(old, ReplyWord::EMPTY.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        assert!(removed, "the reply word of key {key} is gone");
    }

    /// False when every way is owned by somebody, or the reply words are full.
    fn insert(&self, key: u64, thread: u64, ledger: &mut Ledger) -> bool {
        for _ in 0..64 {
            let now = self.now();
            let found = self.find(key);
            assert!(self.all(key).count() <= 1, "key {key}, which only thread {thread} inserts, has two flows");
            if found.is_some_and(|(_, word)| word.live(now)) {
                return true;
            }
            // The key's own expired way, else the one of least worth.
            let (at, old) = found.unwrap_or_else(|| {
                ways(forward_hash(key), BUCKETS)
                    .map(|at| (at, self.word(at)))
                    .min_by_key(|(_, word)| word.worth(now))
                    .expect("sixteen ways")
            });
            // Time runs fast here and a thread may be descheduled for longer than a busy mark holds;
            // taking over from one that is gone has a test of its own.
            if old.state() == State::Busy {
                thread::yield_now();
                continue;
            }
            let Some(busy) = self.take(at, old, thread) else { continue };
            if old.state() != State::Empty {
                let victim = self.flows[at][0].load(Ordering::Relaxed);
                self.remove_reply(victim, at);
                *ledger.evicted.entry(victim).or_default() += 1;
                ledger.renewed += u64::from(victim == key);
            }
            self.flows[at][0].store(key, Ordering::Relaxed);
            if at.is_multiple_of(5) {
                thread::yield_now();
            }
            self.flows[at][1].store(!key, Ordering::Relaxed);
            if !self.add_reply(key, at) {
                self.give(at, busy, Word::EMPTY, thread);
                return false;
            }
            *ledger.inserted.entry(key).or_default() += 1;
            self.give(at, busy, Word::begin(tag(forward_hash(key)), true, now), thread);
            return true;
        }
        false
    }

    fn remove(&self, key: u64, thread: u64, ledger: &mut Ledger) {
        let Some((at, word)) = self.find(key) else { return };
        let Some(busy) = self.take(at, word, thread) else { return };
        assert_eq!(self.flows[at][0].load(Ordering::Relaxed), key, "the word did not change, but its flow did");
        self.remove_reply(key, at);
        *ledger.removed.entry(key).or_default() += 1;
        self.give(at, busy, Word::EMPTY, thread);
    }

    fn keep(&self, key: u64, seen: Seen) {
        let now = self.now();
        if let Some((at, word)) = self.find(key).filter(|(_, word)| word.live(now)) {
            self.swap(at, word, word.after(seen, now));
        }
    }
}

/// One thread: packets of its own keys, and replies to everybody's.
fn work(table: &Table, thread: u64) -> Ledger {
    let mut ledger = Ledger::default();
    let mut random = thread;
    for round in 0..ROUNDS {
        random = mixed(random, round);
        let own = (random >> 8) % KEYS * THREADS + thread;
        let any = (random >> 24) % (KEYS * THREADS) + 1;
        let packet = |reply, tcp_flags| Seen { tcp: true, reply, tcp_flags };
        match random % 16 {
            0..6 => {
                if table.insert(own, thread, &mut ledger) {
                    table.keep(own, packet(true, TCP_SYN | TCP_ACK));
                }
            }
            6..9 => table.keep(own, packet(false, TCP_ACK)),
            9 => table.keep(any, packet(true, TCP_RST)),
            10..12 => table.remove(own, thread, &mut ledger),
            // Somebody else's, as the agent does.
            12 => table.remove(any, thread, &mut ledger),
            13 => ledger.found += u64::from(table.find(any).is_some()),
            14 => ledger.replied += u64::from(table.find_by_reply(any).is_some()),
            // Time passes: flows expire under way.
            _ if thread == 1 && round % 8 == 0 => drop(table.now.fetch_add(100, Ordering::Relaxed)),
            _ => thread::yield_now(),
        }
    }
    ledger
}

#[test]
fn no_way_has_two_owners_and_no_flow_is_lost() {
    let table = Table::new();
    let start = Barrier::new(THREADS as usize);
    let ledgers: Vec<Ledger> = thread::scope(|scope| {
        let workers: Vec<_> = (1..=THREADS)
            .map(|thread| {
                let (table, start) = (&table, &start);
                scope.spawn(move || {
                    start.wait();
                    work(table, thread)
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no thread fails")).collect()
    });

    let sum = |part: fn(&Ledger) -> &HashMap<u64, u64>, key| -> u64 {
        ledgers.iter().filter_map(|ledger| part(ledger).get(&key)).sum()
    };
    let mut present = 0;
    for key in 1..=THREADS * (KEYS + 1) {
        let at: Vec<usize> = (0..table.words.len())
            .filter(|&at| table.word(at) != Word::EMPTY && table.flows[at][0].load(Ordering::Relaxed) == key)
            .collect();
        let expected = sum(|l| &l.inserted, key) - sum(|l| &l.removed, key) - sum(|l| &l.evicted, key);
        assert_eq!(at.len() as u64, expected, "key {key} is at {at:?}");
        assert!(expected <= 1, "key {key} has {expected} flows");
        for &at in &at {
            present += 1;
            let reply = ReplyWord::new(tag(reply_hash(key)), at as u32).0;
            let named = table.replies.iter().filter(|word| word.load(Ordering::Relaxed) == reply).count();
            assert_eq!(named, 1, "reply words of key {key}");
            assert!(table.word(at).state() > State::Busy, "somebody forgot a busy way");
        }
    }
    let replies = table.replies.iter().filter(|word| word.load(Ordering::Relaxed) != 0).count();
    assert_eq!(replies, present, "reply words of flows that are gone");

    // The test did what it is for.
    let total = |part: fn(&Ledger) -> &HashMap<u64, u64>| -> u64 {
        ledgers.iter().flat_map(|ledger| part(ledger).values()).sum()
    };
    let done = [total(|l| &l.inserted), total(|l| &l.removed), total(|l| &l.evicted)];
    assert!(done.iter().all(|&n| n > 1_000), "inserted, removed, evicted: {done:?}");
    assert!(ledgers.iter().any(|l| l.renewed > 0), "no flow expired and came back");
    assert!(ledgers.iter().map(|l| l.found).sum::<u64>() > 100 && ledgers.iter().map(|l| l.replied).sum::<u64>() > 100);
    assert!(present > table.words.len() / 2, "only {present} flows at the end");
}
