//! The flow table's words: where a flow lives, in which state it is, which one must give way.
//!
//! The table is three arrays. `flow_words` holds buckets of eight 64-bit words, one cache line
//! each; a word says whether the way is taken, by which tag, in which TCP state and when it expires
//! unless another packet comes. `flows` holds the flow itself at the same index (`bucket * 8 + way`), and
//! `reply_words` finds that index from the reply's tuple. A flow may live in either of two buckets
//! (two-choice hashing keeps buckets even: M. Mitzenmacher, "The power of two choices", 2001).
//!
//! A way changes hands by compare-and-swap of its word, and only so; the agent does it through a
//! memory mapping:
//!
//! - Take: swap the word that was read for [`Word::busy`]. Who succeeds owns the way. A flow of the
//!   same key that has expired but is still there is the way to take: else there were two. Otherwise
//!   it is the one of least [`Word::worth`], an empty one in the emptier bucket. If the word was not
//!   empty, its flow gives way: its reply word goes first (swapped for empty, if it still names
//!   this way), so that no reply is ever translated by half a flow.
//! - Give: write the flow, put its reply word into an empty way, and last swap the own busy word for
//!   [`Word::begin`]; or, to remove, for [`Word::EMPTY`]. If that swap fails, the owner was away for
//!   longer than the timeout of [`State::Busy`] and another has taken over: it leaves the way alone.
//!   Only programs write flows; the agent, which can be away for long, only removes.
//! - Look up: read the word, read the flow and compare its key, read the word again. Another tag or
//!   [`State::Busy`] then means that the flow was not read whole.
//! - Keep: swap the word for [`Word::after`]. A lost swap means that somebody else was faster; try
//!   again if the packet carried a flag, else let it be.
//!
//! ```text
//! flow word    63      40 39   36 35   32 31                0
//!              | expires | flags | state | tag (hash 63..32) |
//! reply word   63                      32 31                0
//!              | flow index + 1          | tag (hash 63..32) |
//! ```

use crate::abi::limits::WAYS;

/// Nanoseconds of one tick of the "expires" field, as a power of two: 2^27 ns = 134 ms.
pub const TICK_SHIFT: u32 = 27;
const EXPIRES_BITS: u32 = 24;
const EXPIRES_MASK: u64 = (1 << EXPIRES_BITS) - 1;
/// Remaining times from here on are negative: the flow has expired.
const EXPIRED: u32 = 1 << (EXPIRES_BITS - 1);
const STATE_SHIFT: u32 = 32;
const FLAGS_SHIFT: u32 = 36;
const EXPIRES_SHIFT: u32 = 40;

/// A tick count from nanoseconds of the monotonic clock; wraps after 26 days. Times are compared over
/// half of that: the agent sweeps far more often.
#[inline(always)]
pub const fn ticks(ns: u64) -> u32 {
    ((ns >> TICK_SHIFT) & EXPIRES_MASK) as u32
}

/// Ticks of an idle time in nanoseconds: never shorter, and at most a tick longer.
pub const fn idle_ticks(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32 + 1
}

/// Ticks of a time in seconds: never shorter.
pub const fn seconds(s: u64) -> u32 {
    idle_ticks(s * 1_000_000_000)
}

/// Idle times in ticks after which a flow is over, by the number of its [`State`]. Below half of what
/// the "expires" field counts (13 days). A service may have its own
/// ([`ServiceInfo::timeouts`](crate::abi::ServiceInfo::timeouts)); that of [`State::Busy`] is always
/// [`State::timeout`], because whoever works on a way does not know its service.
pub type Timeouts = [u32; 8];

/// State of a flow, in the order of rising worth: a full table gives up the least.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum State {
    /// The way is free; the whole word is zero.
    Empty = 0,
    /// Somebody is writing or removing the flow.
    Busy = 1,
    /// TCP: reset, or FIN seen from both sides. Packets still pass: the last ACK, lost data again.
    Closed = 2,
    /// TCP: SYN seen, the handshake is not over.
    Opening = 3,
    /// UDP: nothing from the backend yet.
    OneWay = 4,
    /// TCP: FIN seen from one side.
    Closing = 5,
    /// UDP: both directions seen; of a one-sided flow, the client has sent again.
    BothWays = 6,
    /// TCP: the handshake is over.
    Established = 7,
}

impl State {
    pub const ALL: [Self; 8] = [
        Self::Empty,
        Self::Busy,
        Self::Closed,
        Self::Opening,
        Self::OneWay,
        Self::Closing,
        Self::BothWays,
        Self::Established,
    ];

    #[inline(always)]
    const fn from_bits(bits: u64) -> Self {
        match bits & 0xf {
            0 => Self::Empty,
            2 => Self::Closed,
            3 => Self::Opening,
            4 => Self::OneWay,
            5 => Self::Closing,
            6 => Self::BothWays,
            7 => Self::Established,
            // Also every number that no version writes: nobody's, until it is old.
            _ => Self::Busy,
        }
    }

    /// Idle time in ticks after which the flow is over, where its service has no other. Established flows outlive the first TCP
    /// keepalive probes of Linux (7200 s + 75 s).
    #[inline(always)]
    pub const fn timeout(self) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Busy => const { seconds(10) },
            Self::Closed => const { seconds(10) },
            Self::Opening => const { seconds(30) },
            Self::OneWay => const { seconds(30) },
            Self::Closing => const { seconds(300) },
            Self::BothWays => const { seconds(180) },
            Self::Established => const { seconds(7300) },
        }
    }

    /// [`Self::timeout`] of each state, by its number.
    pub const TIMEOUTS: Timeouts = {
        let mut timeouts = [0; 8];
        let mut i = 0;
        while i < timeouts.len() {
            timeouts[i] = Self::ALL[i].timeout();
            i += 1;
        }
        timeouts
    };

    /// The word used in `lb flows`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Busy => "busy",
            Self::Closed => "closed",
            Self::Opening => "opening",
            Self::OneWay => "one-way",
            Self::Closing => "closing",
            Self::BothWays => "both-ways",
            Self::Established => "established",
        }
    }
}

/// What a packet tells about its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Of a connection that begins and ends: TCP, or SCTP in the words of [`crate::sctp::flags`].
    pub tcp: bool,
    /// From the backend.
    pub reply: bool,
    /// TCP flags as in the header's 14th byte; 0 for UDP.
    pub tcp_flags: u8,
}

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

/// A word of `flow_words`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Word(pub u64);

impl Word {
    pub const EMPTY: Self = Self(0);

    const FLAG_REPLY: u64 = 1;
    const FLAG_FIN_CLIENT: u64 = 2;
    const FLAG_FIN_BACKEND: u64 = 4;
    const FLAG_ONE_SIDED: u64 = 8;

    #[inline(always)]
    const fn with(tag: u32, state: State, flags: u64, now: u32, timeouts: &Timeouts) -> Self {
        let expires = now.wrapping_add(timeouts[state as usize]) as u64 & EXPIRES_MASK;
        Self(tag as u64 | (state as u64) << STATE_SHIFT | flags << FLAGS_SHIFT | expires << EXPIRES_SHIFT)
    }

    /// The mark of somebody at work on the way since tick `now`.
    #[inline(always)]
    pub const fn busy(now: u32) -> Self {
        Self::with(0, State::Busy, 0, now, &State::TIMEOUTS)
    }

    /// A flow that begins with its first packet from the client.
    #[inline(always)]
    pub const fn begin(tag: u32, tcp: bool, now: u32) -> Self {
        Self::with(tag, if tcp { State::Opening } else { State::OneWay }, 0, now, &State::TIMEOUTS)
    }

    /// The same of a flow whose replies take another way (DSR): the client's packets alone move it
    /// on, for as long as it lives. An ACK after the SYN ends the handshake; a FIN of the client is
    /// all that is seen of the end, and whether the backend has closed too stays unknown. So two
    /// forged packets make an established flow here, where a flow of both directions asks for the
    /// backend's SYN-ACK between them; a flood of SYNs alone evicts nothing established.
    #[inline(always)]
    pub const fn begin_one_sided(tag: u32, tcp: bool, now: u32) -> Self {
        Self(Self::begin(tag, tcp, now).0 | Self::FLAG_ONE_SIDED << FLAGS_SHIFT)
    }

    /// The same word of a flow whose last packet is of tick `now`, with the timeouts of its service.
    #[inline(always)]
    pub const fn under(self, timeouts: &Timeouts, now: u32) -> Self {
        Self::with(self.tag(), self.state(), self.flags(), now, timeouts)
    }

    /// A one-sided flow that began earlier and was not in the table: as far on as it can be, because it
    /// may be silent from now on for as long as any other.
    #[inline(always)]
    pub const fn adopt(tag: u32, tcp: bool, now: u32) -> Self {
        Self::with(
            tag,
            if tcp { State::Established } else { State::BothWays },
            Self::FLAG_ONE_SIDED,
            now,
            &State::TIMEOUTS,
        )
    }

    /// The entry of a client, which lasts `timeout` ticks.
    #[inline(always)]
    pub const fn client(tag: u32, timeout: u32, now: u32) -> Self {
        let expires = now.wrapping_add(timeout) as u64 & EXPIRES_MASK;
        Self(tag as u64 | (State::BothWays as u64) << STATE_SHIFT | expires << EXPIRES_SHIFT)
    }

    #[inline(always)]
    pub const fn tag(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn state(self) -> State {
        State::from_bits(self.0 >> STATE_SHIFT)
    }

    #[inline(always)]
    const fn flags(self) -> u64 {
        (self.0 >> FLAGS_SHIFT) & 0xf
    }

    /// Ticks until the flow expires; [`EXPIRED`] and above: it has.
    #[inline(always)]
    const fn remaining(self, now: u32) -> u32 {
        ((self.0 >> EXPIRES_SHIFT) as u32).wrapping_sub(now) & EXPIRES_MASK as u32
    }

    /// Ticks since the last packet; 0 also where the clock of another CPU was a moment ahead. Off by
    /// the difference where the timeouts were others at that packet.
    pub const fn age(self, now: u32, timeouts: &Timeouts) -> u32 {
        self.age_of(timeouts[self.state() as usize], now)
    }

    /// The same of a word that lasts `timeout` ticks: that of a client.
    pub const fn age_of(self, timeout: u32, now: u32) -> u32 {
        let age = timeout.wrapping_sub(self.remaining(now)) & EXPIRES_MASK as u32;
        if age > EXPIRES_MASK as u32 - EXPIRED / 2 { 0 } else { age }
    }

    #[inline(always)]
    pub const fn expired(self, now: u32) -> bool {
        self.remaining(now) >= EXPIRED
    }

    /// 1 while the flow has not expired.
    #[inline(always)]
    const fn fresh(self, now: u32) -> u32 {
        1 ^ self.remaining(now) >> (EXPIRES_BITS - 1)
    }

    /// The state's number.
    #[inline(always)]
    const fn number(self) -> u32 {
        (self.0 >> STATE_SHIFT) as u32 & 0xf
    }

    /// A flow that packets may use. Sums instead of branches, because the verifier follows each.
    #[inline(always)]
    pub const fn live(self, now: u32) -> bool {
        let past_busy = (self.number() + 15 - State::Busy as u32) >> 4;
        past_busy & self.fresh(now) != 0
    }

    /// The word of a live flow after a packet; the same word when nothing has changed, so that most
    /// packets do not write. For a service with the timeouts that nobody changed.
    #[inline(always)]
    pub const fn after(self, seen: Seen, now: u32) -> Self {
        self.after_under(seen, now, &State::TIMEOUTS)
    }

    /// [`Self::after`] with the timeouts of the flow's service.
    #[inline(always)]
    pub const fn after_under(self, seen: Seen, now: u32, timeouts: &Timeouts) -> Self {
        let (state, flags) = if seen.tcp {
            self.after_tcp(seen)
        } else if seen.reply || self.flags() & Self::FLAG_REPLY != 0 {
            (State::BothWays, Self::FLAG_REPLY)
        } else if self.flags() & Self::FLAG_ONE_SIDED != 0 {
            (self.after_one_sided_udp(now, timeouts), Self::FLAG_ONE_SIDED)
        } else {
            (State::OneWay, 0)
        };
        Self::with(self.tag(), state, flags, now, timeouts)
    }

    /// [`Self::after_under`] for a packet of a flow that lives and goes on as most do most of the time: an
    /// established connection without a flag that means anything, datagrams both ways. Nothing but the time
    /// of the last packet changes. `None`: more may have to.
    #[inline(always)]
    pub const fn goes_on(self, seen: Seen, now: u32, timeouts: &Timeouts) -> Option<Self> {
        let state = if seen.tcp { State::Established } else { State::BothWays };
        let told = seen.tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST) == 0;
        // Of datagrams, the one flag that stays.
        let direction = if seen.reply { Self::FLAG_REPLY } else { self.flags() & !Self::FLAG_REPLY };
        let known = seen.tcp || self.flags() == Self::FLAG_REPLY || direction == Self::FLAG_ONE_SIDED;
        if self.number() != state as u32 || !told || !known || self.fresh(now) == 0 {
            return None;
        }
        let expires = now.wrapping_add(timeouts[state as usize]) as u64 & EXPIRES_MASK;
        Some(Self(self.0 & !(EXPIRES_MASK << EXPIRES_SHIFT) | expires << EXPIRES_SHIFT))
    }

    /// A client that sends again, and not in one burst, has most likely been answered.
    #[inline(always)]
    const fn after_one_sided_udp(self, now: u32, timeouts: &Timeouts) -> State {
        let again = self.remaining(now) < timeouts[State::OneWay as usize];
        if again || matches!(self.state(), State::BothWays) { State::BothWays } else { State::OneWay }
    }

    /// The backend has not answered the first packet, as far as can be seen.
    #[inline(always)]
    pub const fn is_unanswered(self) -> bool {
        match self.state() {
            State::Opening => self.flags() & Self::FLAG_REPLY == 0,
            State::OneWay => true,
            _ => false,
        }
    }

    /// Whether the packet begins a new connection on the tuple of one that is over, or that the
    /// client has finished. [`Word::after`] then starts the flow anew on its backend; the caller may
    /// as well remove it and choose again.
    #[inline(always)]
    pub const fn restarted_by(self, seen: Seen) -> bool {
        let over = match self.state() {
            State::Closed => true,
            State::Closing => self.flags() & Self::FLAG_FIN_CLIENT != 0,
            _ => false,
        };
        over && seen.tcp && !seen.reply && seen.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN) == TCP_SYN
    }

    /// RFC 9293, 3.3.2, as seen from the middle. Sequence numbers are not looked at: a forged reset
    /// or FIN with the right tuple looks like a real one. The endpoints ignore it (RFC 5961) and their
    /// packets still pass, but an idle flow is then forgotten after the timeout of
    /// [`State::Closed`] or [`State::Closing`].
    #[inline(always)]
    const fn after_tcp(self, seen: Seen) -> (State, u64) {
        let was = self.state();
        let mut flags = self.flags();
        if self.restarted_by(seen) {
            return (State::Opening, flags & Self::FLAG_ONE_SIDED);
        }
        if seen.tcp_flags & TCP_RST != 0 {
            // The client answers an ACK that the backend sent from a connection before on the same
            // tuple (RFC 9293, 3.5.2), and begins again: its next SYN must meet the same backend,
            // where the reset has cleared the way. Where the SYN-ACK takes another way, the reset may as
            // well refuse that: the flow is over.
            let unanswered = flags & (Self::FLAG_REPLY | Self::FLAG_ONE_SIDED) == 0;
            let begins_again = matches!(was, State::Opening) && !seen.reply && unanswered;
            return (if begins_again { State::Opening } else { State::Closed }, flags);
        }
        let syn = seen.tcp_flags & TCP_SYN != 0;
        let ack = seen.tcp_flags & TCP_ACK != 0;
        if matches!(was, State::Opening) && seen.reply && syn && ack {
            flags |= Self::FLAG_REPLY;
        }
        // Before the backend's SYN-ACK nothing that comes from the client is worth more than its SYN:
        // else a forger would need two packets for a flow that outlives the honest ones. Where the
        // SYN-ACK takes another way, the client's acknowledgement has to do.
        let acknowledged = flags & Self::FLAG_ONE_SIDED != 0 && ack && !syn;
        let answered = !matches!(was, State::Opening) || flags & Self::FLAG_REPLY != 0 || acknowledged;
        if seen.tcp_flags & TCP_FIN != 0 && answered {
            flags |= if seen.reply { Self::FLAG_FIN_BACKEND } else { Self::FLAG_FIN_CLIENT };
        }
        // The client's first packet after the SYN-ACK ends the handshake: its ACK, or data if that
        // was lost.
        let confirmed = !matches!(was, State::Opening) || (answered && !seen.reply && ack && !syn);
        let fins = flags & (Self::FLAG_FIN_CLIENT | Self::FLAG_FIN_BACKEND);
        let state = if matches!(was, State::Closed) {
            State::Closed
        } else if !confirmed {
            State::Opening
        } else if fins == 0 {
            State::Established
        } else if fins == Self::FLAG_FIN_CLIENT || fins == Self::FLAG_FIN_BACKEND {
            State::Closing
        } else {
            State::Closed
        };
        (state, flags)
    }

    /// The word of one flow that two programs have seen packets of, each in a word of its own: as far on as
    /// either, with what both were told.
    pub const fn merged(self, other: Self) -> Self {
        let (further, flags) = if other.progress() > self.progress() {
            (other, self.flags())
        } else if self.progress() > other.progress() {
            (self, other.flags())
        } else {
            // As far: the later one.
            let age = self.remaining(0).wrapping_sub(other.remaining(0)) & EXPIRES_MASK as u32;
            if age >= EXPIRED { (other, self.flags()) } else { (self, other.flags()) }
        };
        Self(further.0 | flags << FLAGS_SHIFT)
    }

    /// A number that rises in the life of a flow.
    const fn progress(self) -> u32 {
        match self.state() {
            State::Empty | State::Busy => 0,
            State::Opening | State::OneWay => 1,
            State::Established | State::BothWays => 2,
            State::Closing => 3,
            State::Closed => 4,
        }
    }

    /// Whether the flow is part of its backend's load: it lives and is not closed.
    #[inline(always)]
    pub const fn open(self) -> bool {
        self.state() as u32 > State::Closed as u32
    }

    /// Worth of a way against others when one must give way; higher stays. Empty and expired ways
    /// are worth nothing, one that somebody works on is never given ([`u32::MAX`]).
    #[inline(always)]
    pub const fn worth(self, now: u32) -> u32 {
        let state = self.number();
        let taken = (state + 15) >> 4;
        let not_busy = ((state ^ State::Busy as u32) + 15) >> 4;
        let kept = taken & self.fresh(now);
        // Within a state, the one that was silent for longest goes first.
        let worth = state << EXPIRES_BITS | self.remaining(now);
        // Masks of all ones or all zeros instead of branches, as in `live`.
        (worth | not_busy.wrapping_sub(1)) & kept.wrapping_neg()
    }
}

/// A word of `reply_words`.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyWord(pub u64);

impl ReplyWord {
    pub const EMPTY: Self = Self(0);

    #[inline(always)]
    pub const fn new(tag: u32, index: u32) -> Self {
        Self(tag as u64 | (index as u64 + 1) << 32)
    }

    #[inline(always)]
    pub const fn tag(self) -> u32 {
        self.0 as u32
    }

    /// Index into `flows`; of a free way [`u32::MAX`], which no flow has.
    #[inline(always)]
    pub const fn index_or_max(self) -> u32 {
        ((self.0 >> 32) as u32).wrapping_sub(1)
    }

    /// Index into `flows`, or `None` when the way is free.
    #[inline(always)]
    pub const fn index(self) -> Option<u32> {
        match (self.0 >> 32) as u32 {
            0 => None,
            n => Some(n - 1),
        }
    }
}

/// The tag of a hash: its upper half. A tag of zero is as good as any other.
#[inline(always)]
pub const fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

/// The two buckets a hash may live in; `mask` is the number of buckets (a power of two) less one.
/// The second depends on the tag, so that it can be far from the first.
#[inline(always)]
pub const fn buckets(hash: u64, mask: u32) -> [u32; 2] {
    let first = hash as u32 & mask;
    // An odd distance: with two buckets or more the second is another one.
    let distance = (tag(hash).wrapping_mul(0x85eb_ca6b) >> 7) | 1;
    [first, first.wrapping_add(distance) & mask]
}

/// Index of a way in `flows`.
#[inline(always)]
pub const fn index(bucket: u32, way: u32) -> u32 {
    bucket * WAYS as u32 + way
}
