//! What the data path has seen of a backend speaks against it: new flows go elsewhere, and probes in
//! quick succession find out what is true.
//!
//! Suspicion never makes a backend dead: flows that are there stay. It ends with the health that probes
//! find, or when enough of them succeed; and where nothing can be asked, after a while.

use std::time::Duration;

use lb_common::abi::{Mode, Port};

use super::{
    Admin, Core, HealthState, Notice, Now, Suspect, SuspectFor,
    service::{Member, Probes, Service, ServiceRef, probes},
};
use crate::config::{self, Check, Passive};

/// From one probe to the next while a backend is suspected.
const BURST: Duration = Duration::from_millis(25);
/// Longest time until a suspicion ends that nothing has confirmed.
const LONGEST: Duration = Duration::from_secs(30);
/// What the data path has seen is at most so old.
const SETTLES: Duration = Duration::from_secs(2);
/// After so many false alarms in a row the time between them is no longer doubled.
const DOUBLINGS: u32 = 6;

/// What is held against a backend.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicion {
    /// New flows go elsewhere, for this reason.
    pub suspended: Option<String>,
    /// What was seen, for the receipt; kept when probes have confirmed it.
    pub evidence: Option<Evidence>,
    /// It is probed in quick succession.
    burst: Option<Burst>,
    alarms: Alarms,
}

/// What the data path has seen of a backend, with its times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Evidence {
    pub seen: SuspectFor,
    /// When the first packet came that was refused or not answered.
    pub first: Now,
    /// When the backend last answered one.
    pub answered: Option<Now>,
    pub clients: u32,
}

impl Evidence {
    fn of(suspect: &Suspect, now: Now) -> Self {
        Self {
            seen: suspect.seen,
            first: now.saturating_sub(suspect.first),
            answered: suspect.answered.map(|ago| now.saturating_sub(ago)),
            clients: suspect.clients,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Burst {
    since: Now,
    /// Probes in a row that succeeded.
    successes: u32,
}

/// Suspicions in a row that were wrong.
#[derive(Clone, Copy, Debug, Default)]
struct Alarms {
    count: u32,
    /// Until then nothing is taken as another one.
    quiet_until: Now,
    /// How long that was.
    quiet: Duration,
}

impl Alarms {
    fn add(&mut self, back_off: Duration, now: Now) {
        self.quiet = back_off * (1 << self.count.min(DOUBLINGS));
        self.count += 1;
        self.quiet_until = now + self.quiet;
    }

    fn quiet(&mut self, now: Now) -> bool {
        if now > self.quiet_until + self.quiet {
            self.count = 0;
        }
        now < self.quiet_until
    }
}

impl Suspicion {
    /// Whether probes are asked for in quick succession.
    pub(super) fn is_open(&self) -> bool {
        self.burst.is_some()
    }

    /// Takes a probe in. `None`: nothing follows from it; else whether the suspicion was wrong.
    fn record(&mut self, up: bool, state: HealthState, rise: u32) -> Option<bool> {
        let burst = self.burst.as_mut()?;
        if state == HealthState::Down {
            return Some(false);
        }
        burst.successes = if up { burst.successes + 1 } else { 0 };
        (burst.successes >= rise.max(1)).then_some(true)
    }

    /// Nothing is held against the backend any more. Gives whether it was out of turn.
    fn end(&mut self) -> bool {
        self.burst = None;
        self.suspended.take().is_some()
    }

    /// The backend takes new flows again, or is decided about anew: there is nothing to tell any more.
    pub(super) fn settle(&mut self) {
        if !self.is_open() {
            self.evidence = None;
        }
    }
}

impl Core {
    /// Takes in what the data path has seen of a backend.
    pub(super) fn suspected(&mut self, suspect: &Suspect, now: Now) {
        let Some(me) = self.service_of(suspect.backend_id) else { return };
        let Some(service) = self.services.get_mut(&me) else { return };
        let Some(config) = service.config.clone() else { return };
        let Some(at) =
            service.members.iter().position(|m| m.place.as_ref().is_some_and(|p| p.id == suspect.backend_id))
        else {
            return;
        };
        let policy = config.passive;
        let member = &service.members[at];
        let open = member.suspicion.is_open() || member.suspicion.suspended.is_some();
        if !policy.enabled || suspect.clients < u32::from(policy.clients) || open || !member.able() {
            return;
        }
        // What was seen before it came up says nothing.
        let up_since = service.members[at].health.since;
        let seen_before = suspect.seen == SuspectFor::Repeated || now.saturating_sub(suspect.first) < up_since;
        let just_up = now < up_since + SETTLES;
        if just_up && seen_before || service.members[at].suspicion.alarms.quiet(now) {
            return;
        }
        let suspends = tells_enough(me, suspect.seen) && may_suspend(service, at, &policy);
        let member = &mut service.members[at];
        member.suspicion.evidence = Some(Evidence::of(suspect, now));
        let why = suspect.to_string();
        let text = if suspends {
            member.suspicion.suspended = Some(why.clone());
            self.dirty.insert(me);
            format!("suspended: {why}; probes decide")
        } else {
            format!("suspected: {why}; it stays in turn, and probes decide")
        };
        member.suspicion.burst = Some(Burst { since: now, successes: 0 });
        let wanted = member_probes(member, &config);
        self.indexes.set_probes(me, member, wanted);
        self.notices.push(Notice { service: config.name, backend: Some(member.address), text });
    }

    /// The service of a backend's element of the maps.
    fn service_of(&self, backend_id: u32) -> Option<ServiceRef> {
        let service_id = self.ledger.desired().backends.get(&backend_id)?.service_id;
        self.services.iter().find(|(_, service)| service.id == Some(service_id)).map(|(me, _)| *me)
    }

    /// Ends suspicions that nothing has confirmed for too long: where nothing can be asked, after the
    /// back-off.
    pub(super) fn expire_suspicions(&mut self, now: Now) {
        for (me, service) in &mut self.services {
            let Some(config) = &service.config else { continue };
            for member in &mut service.members {
                let Some(burst) = member.suspicion.burst else { continue };
                let asked = config.health.check != Check::None;
                let longest = if asked { LONGEST } else { config.passive.back_off };
                if now < burst.since + longest {
                    continue;
                }
                member.suspicion.alarms.add(config.passive.back_off, now);
                member.suspicion.evidence = None;
                if member.suspicion.end() {
                    self.dirty.insert(*me);
                    let text = format!("in turn again: nothing was found for {longest:?}");
                    self.notices.push(Notice { service: config.name.clone(), backend: Some(member.address), text });
                }
                let wanted = member_probes(member, config);
                self.indexes.set_probes(*me, member, wanted);
            }
        }
    }
}

/// Takes in how a suspected backend's probe ended, after its health has. Gives the text of what follows,
/// and whether its probes are others from now on.
pub(super) fn judge(member: &mut Member, up: bool, rise: u32, policy: &Passive, now: Now) -> (Option<String>, bool) {
    let Some(wrong) = member.suspicion.record(up, member.health.state, rise) else { return (None, false) };
    if wrong {
        member.suspicion.alarms.add(policy.back_off, now);
        member.suspicion.evidence = None;
    } else {
        member.suspicion.alarms = Alarms::default();
    }
    let was_out = member.suspicion.end();
    ((was_out && wrong).then(|| format!("in turn again: {} probes in a row succeeded", rise.max(1))), true)
}

/// What to ask about a member: more often while it is suspected.
pub(super) fn member_probes(member: &Member, service: &config::Service) -> Probes {
    let mut wanted = probes(member.address, member.check_address, service);
    if let (true, Some(key)) = (member.suspicion.is_open(), &mut wanted.health) {
        let pace = service.health.fast_interval.unwrap_or(BURST).min(BURST).min(key.interval);
        (key.interval, key.fast, key.jitter_percent) = (pace, None, 0);
    }
    wanted
}

/// Forgets what was held against a member, which is decided about anew.
pub(super) fn forget(member: &mut Member) {
    member.suspicion.end();
    member.suspicion.settle();
}

/// Whether a backend is out of turn for this at all. With direct server return nobody sees whether it
/// answers others; and of a service on every port a refusal is about a port and not about the backend.
fn tells_enough(me: ServiceRef, seen: SuspectFor) -> bool {
    let of_a_port = matches!(seen, SuspectFor::Refused | SuspectFor::Unreachable) && me.key.port == Port::ANY;
    !Mode::is_one_sided(me.mode) && !of_a_port
}

/// The guards: not the last one in turn of its tier, not too many, not where too few are up.
fn may_suspend(service: &Service, at: usize, policy: &Passive) -> bool {
    let tier = service.members[at].tier;
    let others = service.members.iter().enumerate().filter(|(n, m)| *n != at && m.tier == tier && m.ready());
    if others.count() == 0 {
        return false;
    }
    let wanted = || service.members.iter().filter(|m| m.leaving.is_none() && m.admin == Admin::Ready);
    let all = wanted().count();
    let up = wanted().filter(|m| m.health.state == HealthState::Up).count();
    let out = wanted().filter(|m| m.suspicion.suspended.is_some()).count();
    let most = match policy.max_suspended_percent {
        0 => 0,
        percent => (all * usize::from(percent) / 100).max(1),
    };
    up * 100 >= all * usize::from(policy.panic_percent) && out < most
}

/// Takes suspended backends into turn again where nobody else is: in tiers that have no other one, and
/// where too few are up. Their probes go on. Gives their addresses.
pub(super) fn lift(service: &mut Service) -> Vec<std::net::SocketAddr> {
    if service.members.iter().all(|member| member.suspicion.suspended.is_none()) {
        return Vec::new();
    }
    let Some(policy) = service.config.as_ref().map(|config| config.passive) else { return Vec::new() };
    let wanted: Vec<&Member> =
        service.members.iter().filter(|m| m.leaving.is_none() && m.admin == Admin::Ready).collect();
    let up = wanted.iter().filter(|m| m.health.state == HealthState::Up).count();
    let panic = !policy.enabled || up * 100 < wanted.len() * usize::from(policy.panic_percent);
    let served: Vec<u8> = service.members.iter().filter(|member| member.ready()).map(|member| member.tier).collect();
    let mut lifted = Vec::new();
    for member in &mut service.members {
        let alone = !served.contains(&member.tier);
        if member.suspicion.suspended.is_some() && (panic || alone) {
            member.suspicion.suspended = None;
            lifted.push(member.address);
        }
    }
    lifted
}

impl std::fmt::Display for Suspect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let clients = format!("{} {}", self.clients, if self.clients == 1 { "client" } else { "clients" });
        match self.seen {
            SuspectFor::Refused => write!(f, "refused connections of {clients}"),
            SuspectFor::Unreachable => write!(f, "unreachable for {clients}, as ICMP says"),
            SuspectFor::Silent { waited } => {
                write!(f, "{clients} without an answer for {} ms", waited.as_millis())
            }
            SuspectFor::Repeated => write!(f, "{clients} sent their first packet again"),
        }
    }
}
