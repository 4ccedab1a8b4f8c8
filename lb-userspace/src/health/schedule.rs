//! When the next probe of one key is due. Pure: time is a duration since the first probe.

use std::time::Duration;

/// Shortest interval; guards the division against a key that nobody validated.
const SHORTEST: Duration = Duration::from_millis(1);

/// Beyond half an interval, neighbouring ticks would change places.
const MOST_JITTER_PERCENT: u8 = 50;

/// Fixed-rate ticks: tick `k` lies at `phase + k * interval`, moved by the jitter of that tick alone,
/// so that neither jitter nor slow probes make the rate drift. The first probe (time zero) comes
/// before tick 0.
#[derive(Debug)]
pub struct Schedule {
    interval: Duration,
    jitter: Duration,
    phase: Duration,
    next_tick: u64,
}

impl Schedule {
    /// `phase` in `0.0..=1.0` intervals is the time of tick 0. With jitter it should be random, so
    /// that keys that start together spread out; without, the second probe comes one whole interval
    /// after the first.
    pub fn new(interval: Duration, jitter_percent: u8, phase: f64) -> Self {
        let interval = interval.max(SHORTEST);
        let jitter = interval * u32::from(jitter_percent.min(MOST_JITTER_PERCENT)) / 100;
        let phase = if jitter.is_zero() { interval } else { interval.mul_f64(phase.clamp(0.0, 1.0)) };
        Self { interval, jitter, phase, next_tick: 0 }
    }

    /// The time of the next probe, given that the last one ended at `now`. Ticks that passed while
    /// it ran are skipped. `spread` in `-1.0..=1.0` is this tick's share of the jitter.
    pub fn next(&mut self, now: Duration, spread: f64) -> Duration {
        let missed = now.saturating_sub(self.phase).as_nanos().div_ceil(self.interval.as_nanos());
        let tick = self.next_tick.max(u64::try_from(missed).unwrap_or(u64::MAX));
        self.next_tick = tick.saturating_add(1);
        let base = self.phase.saturating_add(times(self.interval, tick));
        let moved = self.jitter.mul_f64(spread.abs().min(1.0));
        if spread < 0.0 { base.saturating_sub(moved) } else { base.saturating_add(moved) }
    }
}

fn times(interval: Duration, tick: u64) -> Duration {
    let nanos = interval.as_nanos().saturating_mul(u128::from(tick));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn quick_probes_run_once_per_interval() {
        let mut schedule = Schedule::new(ms(100), 0, 0.3);
        let times: Vec<_> = [ms(1), ms(105), ms(199), ms(301)].map(|now| schedule.next(now, 0.9)).into();
        assert_eq!(times, [ms(100), ms(200), ms(300), ms(400)]);
    }

    #[test]
    fn a_slow_probe_skips_the_ticks_it_overran_and_keeps_the_grid() {
        let mut schedule = Schedule::new(ms(100), 0, 0.0);
        assert_eq!(schedule.next(ms(5), 0.0), ms(100));
        assert_eq!(schedule.next(ms(350), 0.0), ms(400));
        assert_eq!(schedule.next(ms(401), 0.0), ms(500));
    }

    #[test]
    fn a_probe_that_ends_exactly_on_a_tick_takes_that_tick() {
        let mut schedule = Schedule::new(ms(100), 0, 0.0);
        schedule.next(ms(0), 0.0);
        assert_eq!(schedule.next(ms(300), 0.0), ms(300));
        assert_eq!(schedule.next(ms(300), 0.0), ms(400), "one tick is one probe");
    }

    #[test]
    fn jitter_moves_each_tick_alone_and_never_adds_up() {
        let mut schedule = Schedule::new(ms(100), 10, 0.5);
        let mut now = ms(0);
        for tick in 0..1000_u64 {
            let spread = if tick % 3 == 0 { 1.0 } else { -1.0 };
            now = schedule.next(now, spread);
            let base = ms(50 + tick * 100);
            assert_eq!(now, if spread > 0.0 { base + ms(10) } else { base - ms(10) });
        }
    }

    #[test]
    fn excessive_jitter_cannot_reorder_ticks() {
        let mut schedule = Schedule::new(ms(100), 255, 1.0);
        let late = schedule.next(ms(0), 1.0);
        let early = schedule.next(late, -1.0);
        assert!(late <= early, "{late:?} then {early:?}");
    }

    #[test]
    fn an_interval_of_zero_does_not_spin() {
        let mut schedule = Schedule::new(Duration::ZERO, 0, 0.0);
        assert_eq!(schedule.next(Duration::ZERO, 0.0), SHORTEST);
    }
}
