//! Who of the ready backends takes new flows, and how much: tiers, backups that step in, backends that are
//! held back after they have returned, and those whose share still grows.

use std::time::Duration;

use super::{
    Admin, HealthState, Now,
    maglev::Turn,
    service::{Member, Place, Service},
};
use crate::config::Failover;

/// Steps in which the share of a backend that has come back grows to its whole.
const STEPS: u16 = 4;

impl Service {
    /// Backends that take new flows with their weights, by id: all of the lowest tier that has any, and
    /// as many of the next ones as are missing. Notes when that changes by time alone.
    pub(super) fn turns(&mut self, now: Now) -> Vec<Turn> {
        self.due = None;
        if self.leaving.is_some() {
            return Vec::new();
        }
        let Some(failover) = self.config.as_ref().map(|config| config.failover) else { return Vec::new() };
        let due = self.follow_readiness(&failover, now);
        let chosen = self.chosen(&failover);
        let grown = chosen.iter().filter(|(member, _)| member.step == STEPS).count();
        // Where all are new there is nobody to take the others' part.
        let some_grow = grown > 0 && grown < chosen.len();
        let turn = |(member, place): &(&Member, &Place)| {
            let weight = if some_grow { member.share().saturating_mul(member.step) } else { member.share() };
            Turn { address: member.address, id: place.id, weight }
        };
        let mut turns: Vec<Turn> = chosen.iter().map(turn).collect();
        turns.sort_unstable_by_key(|turn| turn.id);
        // Who serves, or stands behind those that do, is not held back.
        let last = chosen.iter().map(|(member, _)| member.tier).max();
        for member in &mut self.members {
            member.held &= last.is_some_and(|last| member.tier < last);
        }
        self.due = due;
        turns
    }

    /// Since when each backend is ready, and what follows for it. Returns when that changes next.
    fn follow_readiness(&mut self, failover: &Failover, now: Now) -> Option<Now> {
        let latest = self.members.iter().filter(|member| member.used && member.ready()).map(|member| member.tier).max();
        let mut due: Option<Now> = None;
        let mut wake = |at: Now| due = Some(due.map_or(at, |due| due.min(at)));
        for member in &mut self.members {
            member.was_out |= member.health.state == HealthState::Down || member.admin == Admin::Maintenance;
            if !member.ready() {
                (member.ready_since, member.serves_since) = (None, None);
                (member.held, member.step) = (false, STEPS);
                continue;
            }
            let since = *member.ready_since.get_or_insert(now);
            let returned = member.was_out && !member.used;
            let held_until = since + failover.failback_delay;
            member.held = returned && now < held_until && latest.is_some_and(|latest| member.tier < latest);
            if member.held {
                wake(held_until);
                continue;
            }
            // Its share grows from the moment in which it serves.
            let serves = *member.serves_since.get_or_insert(now);
            let passed = now.saturating_sub(serves);
            if !member.was_out || passed >= failover.slow_start {
                member.step = STEPS;
                continue;
            }
            let step = passed.as_nanos() * u128::from(STEPS - 1) / failover.slow_start.as_nanos();
            member.step = u16::try_from(step).unwrap_or(STEPS) + 1;
            // Not a moment too early: the division above is rounded down.
            let next = failover.slow_start * u32::from(member.step) / u32::from(STEPS - 1);
            wake(serves + next + Duration::from_nanos(1));
        }
        due
    }

    fn chosen(&self, failover: &Failover) -> Vec<(&Member, &Place)> {
        let ready = || {
            let ready = self.members.iter().filter(|member| member.ready());
            ready.filter_map(|member| Some((member, member.place.as_ref()?)))
        };
        let mut candidates: Vec<(&Member, &Place)> = ready().filter(|(member, _)| !member.held).collect();
        if candidates.is_empty() {
            candidates = ready().collect();
        }
        // In the order of the file within a tier.
        candidates.sort_by_key(|(member, _)| member.tier);
        let Some(first) = candidates.first().map(|(member, _)| member.tier) else { return candidates };
        let whole = candidates.iter().take_while(|(member, _)| member.tier == first).count();
        candidates.truncate(whole.max(failover.min_ready as usize));
        candidates
    }
}

impl Member {
    /// Its share while it grows; for schedulers that compare loads.
    pub(super) fn grown_share(&self) -> u16 {
        let grown = u32::from(self.share()) * u32::from(self.step);
        u16::try_from(grown.div_ceil(u32::from(STEPS))).unwrap_or(u16::MAX)
    }
}

/// Of a backend that never was out.
pub(super) const WHOLE: u16 = STEPS;
