//! From attempts to figures.

use std::time::Duration;

use super::load::{Attempt, Ended};

/// What a client notices.
pub const SLOW: Duration = Duration::from_millis(50);

/// What happened when, since the load's beginning.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// The backend that was lost, from 1.
    pub lost: u32,
    pub fault: Duration,
    pub repaired: Duration,
}

/// What one trial says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trial {
    /// Connections that were open when the fault came, or began later.
    pub attempts: u32,
    /// Refused, reset, or given up after a second.
    pub failed: u32,
    /// Answered, after more than 50 ms.
    pub slow: u32,
    pub worst: Duration,
    /// From the fault to the beginning of the last that failed or was slow.
    pub last_bad: Option<Duration>,
    /// From the repair to the first answer of the backend; `None`: not while somebody looked.
    pub back: Option<Duration>,
    /// That failed or were slow before there was a fault: what else the machine does.
    pub noise: u32,
}

impl Trial {
    pub fn of(attempts: &[Attempt], course: &Course) -> Self {
        let bad = |attempt: &&Attempt| attempt.took > SLOW || matches!(attempt.ended, Ended::Failed(_));
        let failed = |attempt: &&&Attempt| matches!(attempt.ended, Ended::Failed(_));
        let (met, before): (Vec<&Attempt>, Vec<&Attempt>) =
            attempts.iter().partition(|attempt| attempt.over() >= course.fault);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let bad_ones: Vec<&Attempt> = met.iter().copied().filter(bad).collect();
        let lost_ones = bad_ones.iter().filter(failed).count();
        let back = met.iter().filter(|attempt| attempt.ended == Ended::Answered(course.lost));
        Self {
            attempts: count(met.len()),
            failed: count(lost_ones),
            slow: count(bad_ones.len() - lost_ones),
            worst: met.iter().map(|attempt| attempt.took).max().unwrap_or_default(),
            last_bad: bad_ones.iter().map(|attempt| attempt.begun.saturating_sub(course.fault)).max(),
            back: back.filter_map(|attempt| attempt.over().checked_sub(course.repaired)).min(),
            noise: count(before.into_iter().filter(|attempt| bad(attempt)).count()),
        }
    }
}

/// The middle one of the trials; of two in the middle the greater. Without a number ("never") comes last.
pub fn middle<T: PartialOrd + Copy>(numbers: &[Option<T>]) -> Option<T> {
    let mut sorted: Vec<T> = numbers.iter().flatten().copied().collect();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(numbers.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const COURSE: Course = Course { lost: 2, fault: ms(1000), repaired: ms(4000) };

    fn answered(begun: u64, took: u64, by: u32) -> Attempt {
        Attempt { begun: ms(begun), took: ms(took), ended: Ended::Answered(by) }
    }

    fn failed(begun: u64, took: u64) -> Attempt {
        Attempt { begun: ms(begun), took: ms(took), ended: Ended::Failed(ErrorKind::TimedOut) }
    }

    #[test]
    fn what_was_over_before_the_fault_does_not_count_and_what_it_met_does() {
        let attempts =
            [failed(10, 900), answered(500, 60, 2), answered(995, 3, 2), failed(999, 5), answered(1100, 2, 1)];
        let trial = Trial::of(&attempts, &COURSE);
        assert_eq!((trial.attempts, trial.failed, trial.slow, trial.noise), (2, 1, 0, 2));
        assert_eq!(trial.last_bad, Some(Duration::ZERO));
    }

    #[test]
    fn slow_ones_failed_ones_and_the_last_of_them_are_told() {
        let attempts = [answered(1001, 51, 1), answered(1200, 50, 1), failed(1300, 1000), answered(1400, 900, 3)];
        let trial = Trial::of(&attempts, &COURSE);
        assert_eq!((trial.failed, trial.slow, trial.worst), (1, 2, ms(1000)));
        assert_eq!(trial.last_bad, Some(ms(400)));
        assert_eq!(trial.back, None, "nobody saw it again");
    }

    #[test]
    fn it_is_back_with_its_first_answer_after_the_repair() {
        let attempts = [answered(1100, 2, 2), answered(3999, 2, 3), answered(4100, 20, 2), answered(4200, 2, 2)];
        assert_eq!(Trial::of(&attempts, &COURSE).back, Some(ms(120)));
    }

    #[test]
    fn the_middle_of_trials_counts_never_as_the_greatest() {
        assert_eq!(middle(&[Some(3), Some(1), Some(2)]), Some(2));
        assert_eq!(middle(&[Some(3), None, Some(2)]), Some(3));
        assert_eq!(middle(&[None, None, Some(2)]), None);
        assert_eq!(middle::<u32>(&[]), None);
        assert_eq!(middle(&[Some(7)]), Some(7));
    }
}
