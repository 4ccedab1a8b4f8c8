//! Connections that wait for their first answer: which backends owe one, and sending the client's SYN
//! again, so that the data path takes it to another backend.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use aya::{
    TestRun as _,
    maps::{MapData, PerCpuArray},
    programs::{TestRunAttrs, TestRunOptions, Xdp},
};
use aya_obj::programs::XdpAttachType;
use lb_common::abi::{
    Backend, Handshakes, Knock, ServiceInfo, Silence,
    limits::{KNOCK_KEPT_NS, KNOCK_PATIENCE_NS},
    names,
};

use super::{
    maps::{List, kernel, open_per_cpu, open_shared},
    mmap::SharedArray,
    pins::Pins,
    sys,
};
use crate::{
    core::{Suspect, SuspectFor},
    dataplane::DataplaneError,
};

/// What was seen longer ago counts no more.
const FRESH: u64 = 2_000_000_000;
/// The shortest time after which a backend owes an answer, and the longest.
const PATIENCE_MIN: u64 = KNOCK_PATIENCE_NS;
/// Whoever has owed an answer for less than this before that is seen at the next look.
const BETWEEN: u64 = 10_000_000;
const PATIENCE_MAX: u64 = KNOCK_KEPT_NS;
/// Where too few handshakes were seen to know better.
const PATIENCE_UNKNOWN: u64 = 50_000_000;
/// Handshakes that are enough to know better, and what is made of them: twice the time that 99 % took.
const ENOUGH: u64 = 100;
const SLOWEST: u64 = 99;
const TIMES: u64 = 2;
/// For so long the times of a service's handshakes are not asked for again.
const KNOWN_FOR: u64 = 1_000_000_000;
/// Between two reports of the same about one backend.
const REPEAT: u64 = 200_000_000;
/// Backends of which nothing is known that one look looks at: of 131,072 each comes within 8 looks.
const TURN: u32 = 16_384;
/// SYNs that one look sends again at most.
const AT_ONCE: usize = 128;

/// Words of [`Silence`].
const SINCE: usize = 0;
const WAITING: usize = 2;
const REFUSED: usize = 3;
const REPEATED: usize = 5;
const UNREACHABLE: usize = 7;
const DENIED_SINCE: usize = 9;

/// What one look found.
#[derive(Debug, Default)]
pub struct Looked {
    pub suspects: Vec<Suspect>,
    /// SYNs that were sent again.
    pub sent_again: usize,
    /// Time until a backend of those that owe an answer has had the time for it.
    pub next: Option<Duration>,
}

/// Looks at what the data path has noted; of use to the agent only, once every few milliseconds.
pub struct Knocks {
    silences: SharedArray<Silence>,
    knocks: SharedArray<Knock>,
    handshakes: PerCpuArray<MapData, Handshakes>,
    backends: List<Backend>,
    services: List<ServiceInfo>,
    program: Xdp,
    /// By service id: nanoseconds, and when they were found out.
    patience: BTreeMap<u32, (u64, u64)>,
    /// By backend id: clients, and when they were told.
    told: BTreeMap<u32, (u32, u64)>,
    /// Backends about which something was noted.
    noted: BTreeSet<u32>,
    /// Which backend's turn it is next.
    turn: u32,
}

impl Knocks {
    /// From the pins.
    ///
    /// # Errors
    /// A map or the program is not pinned or may not be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        let pins = &Pins::new(pin_dir);
        let program = Xdp::from_pin(pins.program(), XdpAttachType::Interface).map_err(|error| {
            let what = format!("opening the pinned program {}", pins.program().display());
            DataplaneError::Kernel { what, source: std::io::Error::other(error) }
        })?;
        Ok(Self {
            silences: open_shared(pins, names::SILENCES)?,
            knocks: open_shared(pins, names::KNOCKS)?,
            handshakes: open_per_cpu(pins, names::HANDSHAKES)?,
            backends: List::open(pins, names::BACKENDS)?,
            services: List::open(pins, names::SERVICE_INFO)?,
            program,
            patience: BTreeMap::new(),
            told: BTreeMap::new(),
            noted: BTreeSet::new(),
            turn: 0,
        })
    }

    /// Looks once: at backends that the data path has just `named`, at those about which something was noted
    /// before, and at the next [`TURN`] of all. As long as nobody owes an answer that is one read for each.
    ///
    /// # Errors
    /// The kernel's.
    pub fn look(&mut self, named: &[u32]) -> Result<Looked, DataplaneError> {
        let now = sys::monotonic_ns();
        let mut looked = Looked::default();
        let mut overdue = BTreeMap::new();
        let len = self.silences.len();
        let turn = self.turn.min(len)..self.turn.saturating_add(TURN).min(len);
        self.turn = if turn.end == len { 0 } else { turn.end };
        let mut candidates = std::mem::take(&mut self.noted);
        candidates.retain(|id| self.is_noted(*id));
        candidates.extend(named.iter().copied().chain(turn).filter(|id| self.is_noted(*id)));
        for &id in &candidates {
            if let Some(suspect) = self.judge(id, now, &mut overdue, &mut looked.next)?
                && self.news(id, suspect.clients, now)
            {
                looked.suspects.push(suspect);
            }
        }
        self.noted = candidates;
        if !overdue.is_empty() {
            looked.sent_again = self.send_again(&overdue, now)?;
        }
        Ok(looked)
    }

    fn is_noted(&self, id: u32) -> bool {
        self.silences.words(id).is_some_and(|words| {
            [SINCE, REFUSED, REPEATED, UNREACHABLE].iter().any(|word| words[*word].load(Ordering::Relaxed) != 0)
        })
    }

    /// What speaks against a backend, and how many clients it happened to. What is old is taken out. A backend
    /// that owes an answer comes into `overdue` with the time (nanoseconds) that it had; the time that others
    /// still have goes into `next`, the shortest.
    fn judge(
        &mut self,
        id: u32,
        now: u64,
        overdue: &mut BTreeMap<u32, u64>,
        next: &mut Option<Duration>,
    ) -> Result<Option<Suspect>, DataplaneError> {
        let Some(noted) = self.silences.read(id) else { return Ok(None) };
        let old = |at: u64| now.saturating_sub(at) > FRESH;
        let ago = |at: u64| Duration::from_nanos(now.saturating_sub(at));
        // What happened to most clients; of equal ones the last, which says most.
        let mut seen: Option<(SuspectFor, u64, u64)> = None;
        let mut take = |sign: SuspectFor, clients: u64, first: u64| {
            if seen.is_none_or(|(_, before, _)| clients.count_ones() >= before.count_ones()) {
                seen = Some((sign, clients, first));
            }
        };
        if noted.repeated != 0 && old(noted.repeated_at) {
            self.clear(id, &[REPEATED]);
        } else if noted.repeated != 0 {
            take(SuspectFor::Repeated, noted.repeated, noted.repeated_at);
        }
        let waited = now.saturating_sub(noted.since);
        if noted.since != 0 && old(noted.asked_at) {
            self.clear(id, &[SINCE, WAITING]);
        } else if noted.since != 0 && waited + BETWEEN >= PATIENCE_MIN {
            let patience = self.patience_with(id, now)?;
            if waited >= patience {
                overdue.insert(id, patience);
                take(SuspectFor::Silent { waited: ago(noted.since) }, noted.waiting, noted.since);
            } else {
                let left = Duration::from_nanos(patience - waited);
                *next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        if noted.unreachable != 0 && old(noted.unreachable_at) {
            self.clear(id, &[UNREACHABLE]);
        } else if noted.unreachable != 0 {
            take(SuspectFor::Unreachable, noted.unreachable, noted.denied_since);
        }
        if noted.refused != 0 && old(noted.refused_at) {
            self.clear(id, &[REFUSED]);
        } else if noted.refused != 0 {
            take(SuspectFor::Refused, noted.refused, noted.denied_since);
        }
        if noted.denied_since != 0 && noted.refused == 0 && noted.unreachable == 0 {
            self.clear(id, &[DENIED_SINCE]);
        }
        let answered = (noted.answered_at != 0).then(|| ago(noted.answered_at));
        Ok(seen.map(|(seen, clients, first)| Suspect {
            backend_id: id,
            seen,
            clients: clients.count_ones(),
            first: ago(first),
            answered,
        }))
    }

    fn clear(&self, id: u32, marks: &[usize]) {
        if let Some(words) = self.silences.words(id) {
            marks.iter().for_each(|word| words[*word].store(0, Ordering::Relaxed));
        }
    }

    /// Whether the core is to hear of it.
    fn news(&mut self, id: u32, clients: u32, now: u64) -> bool {
        let told = self.told.get(&id);
        let news = told.is_none_or(|(before, at)| clients > *before || now.saturating_sub(*at) > REPEAT);
        if news {
            self.told.insert(id, (clients, now));
        }
        news
    }

    /// How long the answers of a backend are waited for (nanoseconds).
    fn patience_with(&mut self, backend_id: u32, now: u64) -> Result<u64, DataplaneError> {
        let backend = self.backends.map.get(&backend_id, 0).map_err(|error| kernel("reading a backend", error))?;
        let service = backend.service_id;
        if let Some((patience, at)) = self.patience.get(&service)
            && now.saturating_sub(*at) < KNOWN_FOR
        {
            return Ok(*patience);
        }
        let info = self.services.map.get(&service, 0).map_err(|error| kernel("reading a service", error))?;
        if info.answer_within != 0 {
            // Nothing is known of how long answers take but what the configuration says.
            let patience = u64::from(info.answer_within) * 1_000_000;
            self.patience.insert(service, (patience, now));
            return Ok(patience);
        }
        let per_cpu = self.handshakes.get(&service, 0).map_err(|error| kernel("reading handshakes", error))?;
        let mut all = Handshakes::default();
        for cpu in per_cpu.iter() {
            all.counts.iter_mut().zip(cpu.counts).for_each(|(sum, count)| *sum = sum.wrapping_add(count));
        }
        let slowest = all.percentile(SLOWEST, ENOUGH);
        let patience = slowest.map_or(PATIENCE_UNKNOWN, |ns| (ns * TIMES).clamp(PATIENCE_MIN, PATIENCE_MAX));
        self.patience.insert(service, (patience, now));
        Ok(patience)
    }

    /// Sends the SYNs again that these backends have not answered in their time: the data path takes each
    /// for its client's and gives it to another backend. Each is sent once by whoever looks: the next word
    /// is the client's.
    fn send_again(&mut self, overdue: &BTreeMap<u32, u64>, now: u64) -> Result<usize, DataplaneError> {
        let mut sent = 0;
        for index in 0..self.knocks.len() {
            let Some(stamp) = self.knocks.words(index).map(|words| words[0].load(Ordering::Acquire)) else { break };
            if stamp == Knock::FREE || stamp == Knock::BUSY {
                continue;
            }
            let Some(knock) = self.knocks.read(index) else { break };
            let tries = usize::from(knock.tries).clamp(1, knock.tried.len());
            let Some(patience) = overdue.get(&knock.tried[tries - 1]) else { continue };
            let still = self.knocks.words(index).is_some_and(|words| words[0].load(Ordering::Acquire) == stamp);
            let is_due = now.saturating_sub(knock.sent_at) >= *patience && knock.ifindex != 0 && knock.len != 0;
            if !still || knock.stamp != stamp || !is_due {
                continue;
            }
            if self.run(&knock)? {
                sent += 1;
            }
            // Where it stayed with its backend it is not sent every time: forget it.
            if self.knocks.read(index).is_some_and(|after| after.stamp == stamp && after.sent_at == knock.sent_at)
                && let Some(words) = self.knocks.words(index)
            {
                let _ = words[0].compare_exchange(stamp, Knock::FREE, Ordering::AcqRel, Ordering::Relaxed);
            }
            if sent >= AT_ONCE {
                break;
            }
        }
        Ok(sent)
    }

    /// Lets the data path have the SYN as if it had come from its client just now (Linux 5.18). `false`: the
    /// interface is gone.
    fn run(&self, knock: &Knock) -> Result<bool, DataplaneError> {
        let kind: [u8; 2] = if knock.v4 != 0 { [8, 0] } else { [0x86, 0xdd] };
        let len = usize::from(knock.len).min(knock.headers.len());
        let frame = [&[0; 6][..], &knock.client_mac, &kind, &knock.headers[..len]].concat();
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&knock.ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        };
        match self.program.test_run(options) {
            Ok(_) => Ok(true),
            Err(aya::programs::ProgramError::SyscallError(error))
                if matches!(error.io_error.raw_os_error(), Some(libc::ENODEV | libc::EINVAL)) =>
            {
                Ok(false)
            }
            Err(error) => {
                let what = "sending a SYN again".to_owned();
                Err(DataplaneError::Kernel { what, source: std::io::Error::other(error) })
            }
        }
    }
}
