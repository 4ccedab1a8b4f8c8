//! Health of one backend: what probes said, counted as its service wants it counted.

use super::{HealthState, Now, ProbeOutcome};

/// One backend's health. The first result decides at once; after that `fall` failures or `rise`
/// successes in a row are needed.
#[derive(Clone, Debug)]
pub(super) struct Health {
    pub state: HealthState,
    /// The last probe's result, or why there is none.
    pub reason: String,
    /// When `state` last changed.
    pub since: Now,
    /// Results in a row that speak against `state`.
    streak: u32,
    /// The next result decides alone.
    first: bool,
}

impl Health {
    pub(super) fn unknown(reason: &str, now: Now) -> Self {
        Self { state: HealthState::Unknown, reason: reason.to_owned(), since: now, streak: 0, first: true }
    }

    /// Known from elsewhere: it takes `fall` failures to take it down.
    pub(super) fn up(reason: &str, now: Now) -> Self {
        Self { state: HealthState::Up, first: false, ..Self::unknown(reason, now) }
    }

    /// Known from elsewhere: it takes `rise` successes to bring it back.
    pub(super) fn down(reason: &str, now: Now) -> Self {
        Self { state: HealthState::Down, first: false, ..Self::unknown(reason, now) }
    }

    /// Takes a result in. Returns the change in words when the state changed.
    pub(super) fn record(&mut self, outcome: &ProbeOutcome, fall: u32, rise: u32, now: Now) -> Option<String> {
        let to = if outcome.up { HealthState::Up } else { HealthState::Down };
        let needed = if self.first || self.state == HealthState::Unknown {
            1
        } else if outcome.up {
            rise.max(1)
        } else {
            fall.max(1)
        };
        self.first = false;
        self.reason.clone_from(&outcome.result);
        if to == self.state {
            self.streak = 0;
            return None;
        }
        self.streak += 1;
        let count = format!("{}, {} of {needed}", outcome.result, self.streak);
        if self.streak < needed {
            self.reason = count;
            return None;
        }
        let from = self.state;
        if needed > 1 {
            self.reason.clone_from(&count);
        }
        self.streak = 0;
        self.state = to;
        self.since = now;
        Some(format!("health {} -> {} ({})", word(from), word(to), self.reason))
    }

    /// No probe is needed: up. Returns whether the state changed.
    pub(super) fn not_checked(&mut self, now: Now) -> bool {
        let changed = self.state != HealthState::Up;
        let since = if changed { now } else { self.since };
        *self = Self { since, ..Self::up("not checked", now) };
        changed
    }

    /// Probes stop: nothing is known of a backend that was up, and one that was down stays down.
    pub(super) fn pause(&mut self, reason: &str, now: Now) {
        if self.state == HealthState::Up {
            *self = Self::unknown(reason, now);
        }
        self.reason = reason.to_owned();
        self.first = true;
    }

    /// Probes of another kind follow: what is known stays, the count begins anew.
    pub(super) fn restart_count(&mut self) {
        self.streak = 0;
    }
}

pub(super) fn word(state: HealthState) -> &'static str {
    match state {
        HealthState::Unknown => "unknown",
        HealthState::Up => "up",
        HealthState::Down => "down",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Now = Duration::from_secs(9);

    fn ok() -> ProbeOutcome {
        ProbeOutcome::new(true, "L4OK", Duration::ZERO)
    }

    fn refused() -> ProbeOutcome {
        ProbeOutcome::new(false, "L4CON: Connection refused", Duration::ZERO)
    }

    #[test]
    fn the_first_result_decides_at_once() {
        for (outcome, text, state) in [
            (ok(), "health unknown -> up (L4OK)", HealthState::Up),
            (refused(), "health unknown -> down (L4CON: Connection refused)", HealthState::Down),
        ] {
            let mut health = Health::unknown("no result yet", Now::ZERO);
            assert_eq!(health.record(&outcome, 3, 3, NOW).as_deref(), Some(text));
            assert_eq!((health.state, health.since), (state, NOW));
        }
    }

    #[test]
    fn failures_count_only_in_a_row() {
        let mut health = Health::up("L4OK", Now::ZERO);
        assert_eq!(health.record(&refused(), 2, 1, NOW), None);
        assert_eq!(health.reason, "L4CON: Connection refused, 1 of 2");
        assert_eq!(health.record(&ok(), 2, 1, NOW), None);
        assert_eq!(health.record(&refused(), 2, 1, NOW), None);
        assert_eq!((health.state, health.since), (HealthState::Up, Now::ZERO));
        let text = health.record(&refused(), 2, 1, NOW);
        assert_eq!(text.as_deref(), Some("health up -> down (L4CON: Connection refused, 2 of 2)"));
        assert_eq!((health.state, health.since), (HealthState::Down, NOW));
    }

    #[test]
    fn coming_back_takes_rise_successes_in_a_row() {
        let mut health = Health::down("L4CON", Now::ZERO);
        assert_eq!(health.record(&ok(), 1, 2, NOW), None);
        assert_eq!(health.record(&refused(), 1, 2, NOW), None);
        assert_eq!(health.record(&ok(), 1, 2, NOW), None);
        assert_eq!(health.record(&ok(), 1, 2, NOW).as_deref(), Some("health down -> up (L4OK, 2 of 2)"));
    }

    #[test]
    fn a_pause_forgets_up_and_keeps_down_until_the_next_result() {
        let mut up = Health::up("L4OK", Now::ZERO);
        up.pause("maintenance", NOW);
        assert_eq!((up.state, up.reason.as_str()), (HealthState::Unknown, "maintenance"));
        let mut down = Health::down("L4CON", Now::ZERO);
        down.pause("maintenance", NOW);
        assert_eq!(down.state, HealthState::Down);
        assert!(down.record(&ok(), 3, 3, NOW).is_some(), "the first result after a pause decides");
    }

    #[test]
    fn counts_of_zero_behave_like_one() {
        let mut health = Health::up("L4OK", Now::ZERO);
        assert!(health.record(&refused(), 0, 0, NOW).is_some());
    }
}
