//! Which backends of a service with roles may take new flows: at most one primary, and no replica
//! that is too far behind.
//!
//! A backend begins without a role. It has one after `rise` answers in a row that claim it, and
//! loses it at the first answer that claims another, or when it is down. While it does not answer
//! and is not down yet it keeps its role: nothing contrary is known.

use std::{net::SocketAddr, time::Duration};

use super::{
    Now,
    report::{Role, RoleReport},
    service::{Member, Service},
};
use crate::config::{MaxLag, OnMultiplePrimaries, RolePolicy, WantedRole};

/// The role of one backend.
#[derive(Clone, Debug)]
pub(super) struct RoleState {
    pub role: Role,
    /// Why it has this role, or none.
    pub reason: String,
    /// The last answer.
    pub report: Option<RoleReport>,
    pub lag_bytes: Option<u64>,
    pub lag_time: Option<Duration>,
    /// What its answers claim instead of `role`, and how many in a row.
    claim: (Role, u32),
    /// When the server last said how far it is behind.
    delay_told: Option<(Now, Duration)>,
    /// Too far behind to be read; back after `rise` answers that are not.
    late: Option<u32>,
}

impl Default for RoleState {
    fn default() -> Self {
        Self {
            role: Role::None,
            reason: "no answer yet".to_owned(),
            report: None,
            lag_bytes: None,
            lag_time: None,
            claim: (Role::None, 0),
            delay_told: None,
            late: None,
        }
    }
}

impl RoleState {
    /// Known from elsewhere: the first contrary answer ends it.
    pub(super) fn inherited(role: Role) -> Self {
        Self { role, reason: "inherited: had it before the restart".to_owned(), ..Self::default() }
    }

    /// Takes an answer in. Returns the change in words when the role changed.
    pub(super) fn record(&mut self, report: &RoleReport, rise: u32, now: Now) -> Option<String> {
        let from = self.role;
        let claimed = report.role;
        self.report = Some(report.clone());
        if let Some(delay) = report.delay {
            self.delay_told = Some((now, delay));
        }
        if claimed == self.role {
            self.claim = (claimed, 0);
            self.reason.clone_from(&report.why);
            return None;
        }
        self.role = Role::None;
        let before = if self.claim.0 == claimed { self.claim.1 } else { 0 };
        self.claim = (claimed, before + 1);
        let needed = rise.max(1);
        if claimed == Role::None || self.claim.1 >= needed {
            self.role = claimed;
            self.claim = (claimed, 0);
            self.reason.clone_from(&report.why);
        } else {
            self.reason = format!("says {} ({}), {} of {needed}", claimed.name(), report.why, self.claim.1);
        }
        self.changed(from)
    }

    /// A probe brought no answer: claims count only in a row.
    pub(super) fn unanswered(&mut self) {
        self.claim = (Role::None, 0);
    }

    /// Nothing is known of it any more.
    pub(super) fn forget(&mut self, why: &str) -> Option<String> {
        let from = self.role;
        *self = Self { reason: why.to_owned(), ..Self::default() };
        self.changed(from)
    }

    /// Judges how far it is behind the backend that is `furthest` ahead.
    fn judge_lag(&mut self, limit: Option<MaxLag>, furthest: Option<u64>, rise: u32, now: Now) {
        let position = self.report.as_ref().and_then(|report| report.position);
        self.lag_bytes = furthest.zip(position).map(|(furthest, position)| furthest.saturating_sub(position));
        // A server that lost its primary does not know: it falls behind as time passes.
        self.lag_time = match (self.lag_bytes, self.delay_told) {
            (Some(0), Some(_)) => Some(Duration::ZERO),
            (_, told) => told.map(|(at, delay)| match self.report.as_ref().and_then(|report| report.delay) {
                Some(delay) => delay,
                None => delay + now.saturating_sub(at),
            }),
        };
        let within = match limit {
            None => true,
            Some(MaxLag::Bytes(most)) => self.lag_bytes.is_some_and(|lag| lag <= most),
            Some(MaxLag::Time(most)) => self.lag_time.is_some_and(|lag| lag <= most),
        };
        self.late = match (within, self.late) {
            (false, _) => Some(0),
            (true, Some(times)) if times + 1 < rise => Some(times + 1),
            (true, _) => None,
        };
    }

    fn changed(&self, from: Role) -> Option<String> {
        (from != self.role).then(|| format!("role {} -> {} ({})", from.name(), self.role.name(), self.reason))
    }

    fn lag_words(&self) -> String {
        match (self.lag_bytes, self.lag_time) {
            (_, Some(time)) => format!("{} behind", humantime::format_duration(Duration::from_millis(millis(time)))),
            (Some(bytes), None) => format!("{bytes} bytes behind"),
            (None, None) => "how far it is behind is not known".to_owned(),
        }
    }
}

/// How the last election ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// The one primary.
    primary: Option<SocketAddr>,
    /// Several claim to be.
    conflict: Option<String>,
}

impl Service {
    /// Judges the lag of the backend that has just answered.
    pub(super) fn judge_lag(&mut self, answered: SocketAddr, now: Now) {
        let Some((policy, rise)) = self.config.as_ref().and_then(|c| Some((c.role.as_ref()?, c.health.rise))) else {
            return;
        };
        let limit = policy.max_lag;
        let of = |role: Option<Role>| {
            let counted = self.members.iter().filter(|member| member.leaving.is_none());
            let known = counted.filter(|member| role.is_none_or(|role| member.role.role == role));
            known.filter_map(|member| member.role.report.as_ref()?.position).max()
        };
        // The last position of a dead primary may be beyond what anybody else ever got.
        let furthest = of(Some(Role::Primary)).or_else(|| of(Some(Role::Replica))).or_else(|| of(None));
        let answered = self.members.iter_mut().filter(|member| member.address == answered);
        answered.for_each(|member| member.role.judge_lag(limit, furthest, rise, now));
    }

    /// Decides anew who may take new flows. Returns what is worth telling; whether anything has
    /// changed is in [`Member::elected`].
    pub(super) fn elect(&mut self) -> Vec<String> {
        let Some(policy) = self.config.as_ref().and_then(|config| config.role.clone()) else {
            for member in &mut self.members {
                (member.elected, member.demoted) = (true, false);
            }
            self.standing = Standing::default();
            return Vec::new();
        };
        let (primary, conflict) = self.one_primary(&policy);
        let standing = Standing { primary, conflict };
        let replicas = || self.members.iter().filter(|member| fit(member));
        let fallback = policy.replica_fallback && !replicas().any(Member::able);
        for member in &mut self.members {
            let is_primary = member.leaving.is_none() && Some(member.address) == primary;
            member.elected = match policy.role {
                WantedRole::Primary => is_primary,
                WantedRole::Replica => fit(member) || (fallback && is_primary),
            };
            member.judge_demotion(policy.role, primary.is_some_and(|primary| primary != member.address));
        }
        let old = std::mem::replace(&mut self.standing, standing);
        news(&old, &self.standing)
    }

    /// Why the backend may not take new flows; `None`: it may.
    pub(super) fn not_elected(&self, member: &Member) -> Option<String> {
        let policy = self.config.as_ref()?.role.as_ref().filter(|_| !member.elected)?;
        let RoleState { role, reason, late, .. } = &member.role;
        Some(match (policy.role, role) {
            (WantedRole::Primary, Role::Primary) => {
                self.standing.conflict.clone().unwrap_or_else(|| "not elected yet".to_owned())
            }
            (WantedRole::Replica, Role::Replica) if late.is_some() => {
                format!("too far behind: {}", member.role.lag_words())
            }
            (wanted, role) => format!("role {}, not {} ({reason})", role.name(), wanted.name()),
        })
    }

    /// The primary, if there is exactly one or the policy knows which; and the conflict, if any.
    fn one_primary(&self, policy: &RolePolicy) -> (Option<SocketAddr>, Option<String>) {
        let claim = |member: &&Member| member.leaving.is_none() && member.role.role == Role::Primary;
        let claimants: Vec<&Member> = self.members.iter().filter(claim).collect();
        if let [] | [_] = claimants[..] {
            return (claimants.first().map(|member| member.address), None);
        }
        let names: Vec<String> = claimants.iter().map(|member| member.address.to_string()).collect();
        let chosen = match policy.on_multiple_primaries {
            OnMultiplePrimaries::Block => None,
            OnMultiplePrimaries::KeepCurrent => {
                self.standing.primary.filter(|current| claimants.iter().any(|member| member.address == *current))
            }
            OnMultiplePrimaries::HighestEpoch => ahead_of_all(&claimants),
        };
        let names = names.join(" and ");
        let what = match chosen {
            None => format!("{names} say that they are the primary: none of them gets new flows"),
            Some(chosen) => format!("{names} say that they are the primary: new flows go to {chosen} only"),
        };
        (chosen, Some(what))
    }
}

/// The one whose history holds the whole of every other's, and more.
fn ahead_of_all(claimants: &[&Member]) -> Option<SocketAddr> {
    let epoch = |member: &Member| member.role.report.as_ref().and_then(|report| report.epoch.clone());
    let ahead = |one: &&&Member| {
        let others = claimants.iter().filter(|other| other.address != one.address);
        others
            .map(|other| (epoch(one), epoch(other)))
            .all(|pair| matches!(pair, (Some(ours), Some(theirs)) if ours > theirs))
    };
    claimants.iter().find(ahead).map(|member| member.address)
}

/// A replica that may be read.
fn fit(member: &Member) -> bool {
    member.leaving.is_none() && member.role.role == Role::Replica && member.role.late.is_none()
}

fn news(old: &Standing, new: &Standing) -> Vec<String> {
    let mut texts = Vec::new();
    if old.conflict != new.conflict {
        texts.push(
            new.conflict
                .clone()
                .unwrap_or_else(|| "no longer: several backends say that they are the primary".to_owned()),
        );
    }
    if old.primary != new.primary {
        texts.push(match (old.primary, new.primary) {
            (_, Some(primary)) => format!("the primary is {primary}"),
            (Some(old), None) => format!("there is no primary any more: it was {old}"),
            (None, None) => String::new(),
        });
    }
    texts
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Duration::from_secs(100);

    fn answer(role: Role) -> RoleReport {
        RoleReport::new(role, "it says so")
    }

    #[test]
    fn a_role_takes_rise_answers_in_a_row_and_is_lost_at_the_first_contrary_one() {
        let mut state = RoleState::default();
        assert_eq!(state.record(&answer(Role::Primary), 2, NOW), None);
        assert_eq!(state.reason, "says primary (it says so), 1 of 2");
        state.unanswered();
        assert_eq!(state.record(&answer(Role::Primary), 2, NOW), None, "a gap begins the count anew");
        assert_eq!(state.record(&answer(Role::Primary), 2, NOW).as_deref(), Some("role none -> primary (it says so)"));
        let lost = state.record(&answer(Role::Replica), 2, NOW);
        assert_eq!(lost.as_deref(), Some("role primary -> none (says replica (it says so), 1 of 2)"));
        assert!(state.record(&answer(Role::Replica), 2, NOW).is_some());
        assert_eq!(state.role, Role::Replica);
    }

    #[test]
    fn a_server_that_tells_no_delay_falls_behind_as_time_passes() {
        let second = Duration::from_secs(1);
        let limit = Some(MaxLag::Time(second * 5));
        let mut state = RoleState::inherited(Role::Replica);
        state.judge_lag(limit, None, 1, NOW);
        assert!(state.late.is_some(), "not known is too much");
        state.record(&RoleReport { delay: Some(second), ..answer(Role::Replica) }, 1, NOW);
        state.judge_lag(limit, None, 1, NOW);
        assert_eq!((state.lag_time, state.late), (Some(second), None));
        state.record(&answer(Role::Replica), 1, NOW + second * 4);
        state.judge_lag(limit, None, 1, NOW + second * 4);
        assert_eq!((state.lag_time, state.late), (Some(second * 5), None));
        state.judge_lag(limit, None, 1, NOW + second * 5);
        assert!(state.late.is_some());
    }

    #[test]
    fn a_replica_comes_back_after_rise_answers_within_the_limit() {
        let mut state = RoleState::inherited(Role::Replica);
        let limit = Some(MaxLag::Bytes(10));
        let at = |position| RoleReport { position: Some(position), ..answer(Role::Replica) };
        for (position, late) in [(80, true), (95, true), (99, false), (89, true)] {
            state.record(&at(position), 2, NOW);
            state.judge_lag(limit, Some(100), 2, NOW);
            assert_eq!(state.late.is_some(), late, "at {position}");
        }
        assert_eq!(state.lag_bytes, Some(11));
    }
}
