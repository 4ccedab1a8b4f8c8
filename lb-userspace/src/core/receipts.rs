//! Receipts: for every backend that stops taking new flows, when that was found, when the maps followed,
//! when clients were served again, and what became of its flows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    Admin, Core, HealthState, Now, SuspectFor,
    service::{Member, Service, ServiceRef},
};
use crate::dataplane::{EndedFlows, FlowCensus};

/// Receipts that may still change; of more, the oldest are closed as they are.
const OPEN: usize = 1024;
/// Backends that a receipt names as those that serve instead.
const NAMED: usize = 8;

/// One failover of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Rises with time; unique among those of one state directory.
    pub id: u64,
    pub service: String,
    pub backend: SocketAddr,
    pub cause: FailoverCause,
    /// In words, as the backend's state tells it.
    pub reason: String,
    /// What becomes of its flows: `reset`, `rehome` or `keep`.
    pub policy: &'static str,
    /// The end of its last good probe before, or where clients' packets told, the last answer to one;
    /// `None`: there was none.
    pub last_good: Option<Now>,
    /// When the data path saw the first packet that was refused or not answered; `None`: that is not what
    /// told.
    pub first_bad: Option<Now>,
    /// Different clients to whom that happened until it was decided, at least.
    pub witnesses: u32,
    /// When it was decided.
    pub detected: Now,
    /// When the maps held the decision.
    pub switched: Option<Now>,
    /// When a new flow began elsewhere after that.
    pub first_good: Option<Now>,
    /// When it took new flows again.
    pub back: Option<Now>,
    /// Who serves instead, at most eight of them.
    pub serving: Vec<SocketAddr>,
    pub flows: ReceiptFlows,
}

/// What became of the flows that the backend had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiptFlows {
    /// Those there were at the last walk before.
    pub before: u64,
    pub reset: u64,
    pub rehomed: u64,
    /// That go on, at the last walk.
    pub kept: u64,
    /// To be ended, and not ended yet.
    pub left: u64,
    /// Different clients whose flows are ended by the agent, where it saw them.
    pub clients: u64,
    /// Connections that it refused or did not answer, and that went to another backend, since the last
    /// walk before.
    pub rescued: u64,
}

/// Why a backend stopped taking new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailoverCause {
    Down,
    Demoted,
    Drain,
    Maintenance,
    Removed,
    Agent,
    NoRoute,
    /// Out of turn on suspicion: it refused connections,
    Refused,
    /// or ICMP said that it cannot be reached,
    Unreachable,
    /// or it did not answer.
    Unanswered,
}

impl FailoverCause {
    /// The word used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Demoted => "demoted",
            Self::Drain => "drain",
            Self::Maintenance => "maintenance",
            Self::Removed => "removed",
            Self::Agent => "agent",
            Self::NoRoute => "no-route",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Unanswered => "unanswered",
        }
    }

    /// Whether it follows from what clients' packets met with, and probes have yet to confirm it.
    pub const fn is_suspicion(self) -> bool {
        matches!(self, Self::Refused | Self::Unreachable | Self::Unanswered)
    }

    const fn seen(seen: SuspectFor) -> Self {
        match seen {
            SuspectFor::Refused => Self::Refused,
            SuspectFor::Unreachable => Self::Unreachable,
            SuspectFor::Silent { .. } | SuspectFor::Repeated => Self::Unanswered,
        }
    }

    /// The first reason, in the order in which an operator would ask; `None`: the backend may take new
    /// flows, or an operator gave it no share.
    fn of(service: &Service, member: &Member) -> Option<(Self, String)> {
        if member.leaving.is_some() || service.leaving.is_some() {
            return Some((Self::Removed, "removed".to_owned()));
        }
        let by = member.overridden.as_ref().and_then(super::Override::shown).map(|mark| format!(" by {}", mark.by));
        match member.admin {
            Admin::Drain => return Some((Self::Drain, format!("drain{}", by.unwrap_or_default()))),
            Admin::Maintenance => return Some((Self::Maintenance, format!("maintenance{}", by.unwrap_or_default()))),
            Admin::Ready => {}
        }
        if member.health.state != HealthState::Up {
            return Some((Self::Down, member.health.reason.clone()));
        }
        if let (Some(why), Some(evidence)) = (&member.suspicion.suspended, &member.suspicion.evidence) {
            return Some((Self::seen(evidence.seen), why.clone()));
        }
        if let Some(refused) = member.agent.refuses() {
            return Some((Self::Agent, refused));
        }
        if !member.elected {
            let why = service.not_elected(member).unwrap_or_else(|| "not elected".to_owned());
            return Some((Self::Demoted, why));
        }
        member.no_route.then(|| (Self::NoRoute, "no route to it".to_owned()))
    }
}

/// Receipts, and what they wait for.
#[derive(Clone, Debug, Default)]
pub(super) struct Receipts {
    /// Of the last one.
    last_id: u64,
    /// By number.
    open: BTreeMap<u64, Open>,
    /// Their numbers: a rack that fails opens a thousand, and each of its services looks for its own.
    of_service: BTreeMap<ServiceRef, BTreeSet<u64>>,
    /// Changed since they were told last.
    changed: BTreeSet<u64>,
    /// Closed, and not told yet.
    closed: Vec<Receipt>,
    /// When counters were last taken in.
    walked_at: Option<Now>,
}

#[derive(Clone, Debug)]
struct Open {
    receipt: Receipt,
    me: ServiceRef,
    service_id: u32,
    backend_id: u32,
    /// The generation that holds the decision.
    generation: u32,
    /// Flows ended before, since the backend has its id.
    ended_before: EndedFlows,
    /// Connections rescued before, likewise.
    rescued_before: u64,
    /// Of one that was suspected: the reason says what came of it.
    followed: bool,
}

impl Core {
    /// Receipts get numbers above this one.
    pub fn number_receipts_after(&mut self, id: u64) {
        self.receipts.last_id = self.receipts.last_id.max(id);
    }

    /// Receipts that are new or have changed since the last call, by number.
    pub fn take_receipts(&mut self) -> Vec<Receipt> {
        let receipts = &mut self.receipts;
        let mut told = std::mem::take(&mut receipts.closed);
        let changed = std::mem::take(&mut receipts.changed);
        told.extend(changed.iter().filter_map(|id| receipts.open.get(id)).map(|open| open.receipt.clone()));
        told.sort_by_key(|receipt| receipt.id);
        told
    }

    /// Ids of services whose clients wait to be served: their next new flow is wanted as
    /// [`super::Input::FlowBegun`].
    pub fn awaited_flows(&self) -> BTreeSet<u32> {
        let waits = |open: &&Open| {
            let Receipt { switched, first_good, serving, .. } = &open.receipt;
            switched.is_some() && first_good.is_none() && !serving.is_empty()
        };
        self.receipts.open.values().filter(waits).map(|open| open.service_id).collect()
    }

    /// Notes who of a service that was just published takes new flows.
    pub(super) fn note_use(&mut self, me: ServiceRef, now: Now) {
        let generation = self.ledger.next_generation();
        let Some(service) = self.services.get_mut(&me) else { return };
        let Some(service_id) = service.id else { return };
        let used: BTreeSet<u32> = match &service.made {
            Some(made) if service.table.is_some() => made.turns.iter().map(|turn| turn.id).collect(),
            _ => service.table.map_or(&[][..], |table| self.ledger.slots(&table)).iter().map(|s| s.current()).collect(),
        };
        let is_used = |member: &Member| member.place.as_ref().is_some_and(|place| used.contains(&place.id));
        let serving: Vec<SocketAddr> =
            service.members.iter().filter(|member| is_used(member)).map(|member| member.address).take(NAMED).collect();
        let mut gone = Vec::new();
        let mut back = Vec::new();
        for member in &mut service.members {
            let now_used = is_used(member);
            match (std::mem::replace(&mut member.used, now_used), now_used) {
                (true, false) => gone.push(member.address),
                (false, true) => {
                    back.push(member.address);
                    member.suspicion.settle();
                }
                _ => {}
            }
        }
        let service = &self.services[&me];
        for address in gone {
            // Of two that are called so, the one that stays comes first.
            let Some(member) = service.members.iter().find(|member| member.address == address) else { continue };
            if let (Some((cause, reason)), Some(place)) = (FailoverCause::of(service, member), &member.place) {
                let evidence =
                    member.suspicion.evidence.filter(|_| cause.is_suspicion() || cause == FailoverCause::Down);
                let receipt = Receipt {
                    id: 0,
                    service: service.name().to_owned(),
                    backend: address,
                    cause,
                    reason,
                    policy: member.policy(service.flow_policies()),
                    last_good: evidence.and_then(|evidence| evidence.answered).or(member.last_good),
                    first_bad: evidence.map(|evidence| evidence.first),
                    witnesses: evidence.map_or(0, |evidence| evidence.clients),
                    detected: now,
                    switched: None,
                    first_good: None,
                    back: None,
                    serving: Vec::new(),
                    flows: ReceiptFlows { before: member.live_flows, ..ReceiptFlows::default() },
                };
                // The last walk may have come after the first of them.
                let is_in_last =
                    evidence.zip(self.receipts.walked_at).is_some_and(|(evidence, at)| evidence.first <= at);
                let rescued_before = if is_in_last { member.rescued_earlier } else { member.knocks.rescued };
                let (backend_id, ended_before) = (place.id, member.ended);
                let followed = !cause.is_suspicion();
                self.receipts.open(Open {
                    receipt,
                    me,
                    service_id,
                    backend_id,
                    generation,
                    ended_before,
                    rescued_before,
                    followed,
                });
            }
        }
        self.receipts.follow_suspicions(me, service);
        self.receipts.follow(me, &serving, &back, now);
    }

    /// The maps hold a generation.
    pub(super) fn receipts_published(&mut self, generation: u32, now: Now) {
        self.receipts.change(|open| {
            let held = generation.wrapping_sub(open.generation) as i32 >= 0;
            let news = open.receipt.switched.is_none() && held;
            if news {
                open.receipt.switched = Some(now);
            }
            news
        });
    }

    /// A new flow of a service was seen.
    pub(super) fn flow_begun(&mut self, service_id: u32, at: Now) {
        self.receipts.change(|open| {
            let Receipt { switched, first_good, serving, .. } = &mut open.receipt;
            let after = switched.is_some_and(|switched| switched <= at);
            let news = open.service_id == service_id && first_good.is_none() && after && !serving.is_empty();
            if news {
                *first_good = Some(at);
            }
            news
        });
    }

    /// What a walk over the flow table tells of those that are gone.
    pub(super) fn receipts_walked(&mut self, census: &FlowCensus, now: Now) {
        self.receipts.walked_at = Some(now);
        self.receipts.change(|open| {
            let alive = census.by_backend.get(&open.backend_id).copied().unwrap_or(0);
            let flows = &mut open.receipt.flows;
            let before = *flows;
            let rescued = census.knocks.get(&open.backend_id).map_or(0, |knocks| knocks.rescued);
            flows.rescued = flows.rescued.max(rescued.saturating_sub(open.rescued_before));
            if open.receipt.back.is_some() {
                return *flows != before;
            }
            let Some(ended) = census.ended.get(&open.backend_id) else {
                (flows.kept, flows.left) = (alive, 0);
                return *flows != before;
            };
            flows.reset = ended.reset.saturating_sub(open.ended_before.reset);
            flows.rehomed = ended.moved.saturating_sub(open.ended_before.moved);
            flows.clients = flows.clients.max(ended.clients);
            (flows.left, flows.kept) = (ended.left, 0);
            *flows != before
        });
        self.receipts.close();
        for service in self.services.values_mut() {
            for member in &mut service.members {
                let Some(id) = member.place.as_ref().map(|place| place.id) else { continue };
                member.ended = census.ended.get(&id).copied().unwrap_or(member.ended);
                member.rescued_earlier = member.knocks.rescued;
                member.knocks = census.knocks.get(&id).copied().unwrap_or_default();
            }
        }
    }
}

impl Receipts {
    fn open(&mut self, mut open: Open) {
        self.last_id += 1;
        open.receipt.id = self.last_id;
        if self.open.len() == OPEN
            && let Some((_, oldest)) = self.open.pop_first()
        {
            self.forget(&oldest);
            self.closed.push(oldest.receipt);
        }
        self.changed.insert(open.receipt.id);
        self.of_service.entry(open.me).or_default().insert(open.receipt.id);
        self.open.insert(open.receipt.id, open);
    }

    /// No longer one of its service.
    fn forget(&mut self, open: &Open) {
        if let Some(ids) = self.of_service.get_mut(&open.me) {
            ids.remove(&open.receipt.id);
            if ids.is_empty() {
                self.of_service.remove(&open.me);
            }
        }
    }

    /// Says in the receipts of those that were out of turn on suspicion what came of it.
    fn follow_suspicions(&mut self, me: ServiceRef, service: &Service) {
        self.change_of(me, |open| {
            if open.followed || open.receipt.back.is_some() {
                return false;
            }
            let Some(member) = service.members.iter().find(|member| member.address == open.receipt.backend) else {
                return false;
            };
            let told = FailoverCause::of(service, member).filter(|(cause, _)| !cause.is_suspicion());
            let Some((cause, reason)) = told else { return false };
            open.followed = true;
            open.receipt.reason += &format!("; then {}: {reason}", cause.name());
            open.receipt.policy = member.policy(service.flow_policies());
            true
        });
    }

    /// Lets go of those of backends that are back, once a walk has told the last of them.
    fn close(&mut self) {
        for (_, open) in self.open.extract_if(.., |_, open| open.receipt.back.is_some()).collect::<Vec<_>>() {
            self.forget(&open);
            self.closed.push(open.receipt);
        }
    }

    /// Who serves now, and who is back.
    fn follow(&mut self, me: ServiceRef, serving: &[SocketAddr], back: &[SocketAddr], now: Now) {
        self.change_of(me, |open| {
            let Receipt { serving: told, back: told_back, backend, .. } = &mut open.receipt;
            let serves = told.is_empty() && !serving.is_empty();
            if serves {
                *told = serving.to_vec();
            }
            let is_back = told_back.is_none() && back.contains(backend);
            if is_back {
                *told_back = Some(now);
            }
            serves || is_back
        });
    }

    /// `change` says whether it changed something.
    fn change(&mut self, mut change: impl FnMut(&mut Open) -> bool) {
        let changed = self.open.iter_mut().filter_map(|(id, open)| change(open).then_some(*id));
        self.changed.extend(changed);
    }

    /// The same for those of one service.
    fn change_of(&mut self, me: ServiceRef, mut change: impl FnMut(&mut Open) -> bool) {
        for id in self.of_service.get(&me).into_iter().flatten() {
            if self.open.get_mut(id).is_some_and(&mut change) {
                self.changed.insert(*id);
            }
        }
    }
}
