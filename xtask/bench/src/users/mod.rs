//! What users see: `cargo xtask bench users`. The same load through each balancer in turn, in one world
//! and on one CPU, each time between two runs without a balancer.
//!
//! ```text
//! client -- eth0 [balancer] eth1 -- switch -- backend (nginx)
//!    '------------- past ------------'
//! ```

mod balancers;
pub(crate) mod cpu;
mod load;
mod stage;
mod udp;

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result};

pub use self::balancers::DIRECT;
use self::{
    balancers::{Door, Running, Which},
    load::{Kind, Load, Outcome},
    stage::Stage,
};
use crate::{
    packets::{last_cpu, pin_to},
    result::UserResult,
    statistics::median,
};

/// How much load.
#[derive(Clone, Copy, Debug)]
pub struct UserEffort {
    /// How often each balancer is set up.
    pub rounds: u32,
    /// How often each load runs then, each time between two runs without a balancer.
    pub turns: u32,
    pub connections: usize,
    pub requests: usize,
    /// Large answers.
    pub files: usize,
    pub frames: u32,
}

impl UserEffort {
    pub const QUICK: Self =
        Self { rounds: 1, turns: 3, connections: 3000, requests: 10_000, files: 6, frames: 1 << 19 };
    pub const FULL: Self =
        Self { rounds: 3, turns: 3, connections: 5000, requests: 20_000, files: 16, frames: 1 << 20 };
    /// For tests of the bench itself.
    pub const LEAST: Self = Self { rounds: 1, turns: 1, connections: 40, requests: 40, files: 2, frames: 1 << 14 };
}

/// Most processor time that ours may add to a new connection.
const TARGET_US: f64 = 7.0;

/// Loads by name, each with what is asked.
const LOADS: [(&str, Kind, &str, usize); 3] = [
    ("connections", Kind::Connections, "/", 32),
    ("keep-alive", Kind::KeepAlive, "/", 32),
    ("large answers", Kind::KeepAlive, "/files/large", 2),
];

/// One run of one load through one door.
struct Sample {
    outcome: Outcome,
    /// Of all parts.
    cpu: Duration,
    /// Of the balancer's processes alone.
    own: Duration,
    /// Microseconds of a request without a balancer, just before and just after.
    direct_us: Option<f64>,
}

impl Sample {
    /// Processor time of a request.
    fn each_us(&self) -> f64 {
        self.of_each(self.cpu)
    }

    fn of_each(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.outcome.answered.max(1) as f64
    }
}

/// Samples by load, and in the order of the doors.
type Samples = BTreeMap<(usize, usize), (String, Vec<Sample>)>;

/// Runs all balancers, or those doors that are wanted; ours with this `lb`.
///
/// # Errors
/// Something does not start.
pub fn users(program: &Path, effort: UserEffort, wanted: &dyn Fn(&str) -> bool) -> Result<Vec<UserResult>> {
    // Everything that is started from here stays there too.
    let cpu = last_cpu();
    pin_to(cpu)?;
    let mut stage = Stage::new(program)?;
    let mut samples = Samples::new();
    let mut frames = Vec::new();
    for _ in 0..effort.rounds {
        let mut first = 0;
        for which in Which::ALL {
            let all = which.names();
            let here: Vec<_> = (first..).zip(&all).filter(|(_, name)| wanted(name)).collect();
            first += all.len();
            if here.is_empty() {
                continue;
            }
            stage.set_far_end("decap")?;
            let running = Running::start(&mut stage, which).with_context(|| format!("{which:?}"))?;
            let doors: Vec<_> = here
                .iter()
                .flat_map(|(at, name)| running.doors.iter().find(|door| door.name == **name).map(|door| (*at, door)))
                .collect();
            for (at, door) in &doors {
                for (number, load) in LOADS.iter().enumerate() {
                    let entry = samples.entry((number, *at)).or_insert_with(|| (door.name.clone(), Vec::new()));
                    entry.1.extend(turns(&stage, &running, door, load, effort, cpu)?);
                }
            }
            if which.forwards_udp() {
                stage.set_far_end("sink")?;
                for (_, door) in &doors {
                    stage.lead(door.past)?;
                    frames.extend(udp::run(&mut stage, door, effort.frames)?);
                }
                stage.set_far_end("decap")?;
            }
            running.stop(&mut stage)?;
        }
    }
    let results = samples.iter().filter_map(|((load, _), (name, samples))| result(name, LOADS[*load].0, samples));
    let mut results: Vec<_> = results.collect();
    results.extend(udp::results(&frames));
    Ok(results)
}

type NamedLoad = (&'static str, Kind, &'static str, usize);

/// Runs a load through a door several times, each time between two runs without a balancer. What goes first
/// is not counted: caches are cold, and an agent that was just started has things to do.
fn turns(
    stage: &Stage,
    running: &Running,
    door: &Door,
    load: &NamedLoad,
    effort: UserEffort,
    cpu: usize,
) -> Result<Vec<Sample>> {
    let once = |door: &Door, part: usize| run(stage, running, door, load, effort, part, cpu);
    once(door, 4)?;
    let none = Door::direct();
    let mut before = once(&none, 1)?;
    let mut samples = Vec::new();
    for _ in 0..effort.turns {
        let sample = once(door, 1)?;
        let after = once(&none, 1)?;
        let direct_us = (door.name != DIRECT).then(|| (before.each_us() + after.each_us()) / 2.0);
        samples.push(Sample { direct_us, ..sample });
        before = after;
    }
    Ok(samples)
}

/// Runs a load, or the so-manieth part of it.
fn run(
    stage: &Stage,
    running: &Running,
    door: &Door,
    (_, kind, path, parallel): &NamedLoad,
    effort: UserEffort,
    part: usize,
    cpu: usize,
) -> Result<Sample> {
    let count = match (kind, *path) {
        (Kind::Connections, _) => effort.connections,
        (Kind::KeepAlive, "/") => effort.requests,
        _ => effort.files,
    };
    stage.lead(door.past)?;
    let load = Load { target: door.target, path, kind: *kind, parallel: *parallel, count: count.div_ceil(part) };
    let web = [stage.web.pid()];
    let (outcome, cpu, own) = stage.world.client.enter(|| {
        let (before, own_before) = (cpu::used(&web, cpu), cpu::of_processes(&running.pids()));
        let outcome = load.run();
        let own = cpu::of_processes(&running.pids()).saturating_sub(own_before);
        (outcome, cpu::used(&web, cpu).saturating_sub(before) + own, own)
    });
    Ok(Sample { outcome: outcome.with_context(|| format!("through {}", door.name))?, cpu, own, direct_us: None })
}

/// The medians of some runs.
fn result(balancer: &str, load: &str, samples: &[Sample]) -> Option<UserResult> {
    let each = |of: &dyn Fn(&Sample) -> f64| median(&samples.iter().map(of).collect::<Vec<_>>());
    let answered = |sample: &Sample| sample.outcome.answered.max(1) as f64;
    let over_direct_us = each(&|sample| sample.direct_us.map_or(0.0, |direct| sample.each_us() - direct))?;
    let gigabytes = |sample: &Sample| (sample.outcome.bytes as f64 / 1e9).max(f64::MIN_POSITIVE);
    let bounded = load == LOADS[0].0 && lb_common::abi::Mode::ALL.iter().any(|mode| mode.name() == balancer);
    Some(UserResult {
        balancer: balancer.to_owned(),
        load: load.to_owned(),
        per_second: each(&|sample| answered(sample) / sample.outcome.took.as_secs_f64())?.round(),
        p50_us: each(&|sample| latency(&sample.outcome, 0.5)),
        p99_us: each(&|sample| latency(&sample.outcome, 0.99)),
        cpu_us: hundredths(each(&Sample::each_us)?),
        over_direct_us: hundredths(over_direct_us),
        own_us: each(&|sample| sample.of_each(sample.own)).map(hundredths),
        cpu_s_per_gb: if load == LOADS[2].0 {
            each(&|sample| sample.cpu.as_secs_f64() / gigabytes(sample)).map(hundredths)
        } else {
            None
        },
        failed: samples.iter().map(|sample| sample.outcome.failed as u64).sum(),
        target: bounded.then(|| format!("<= {TARGET_US} us over direct")),
        met: bounded.then_some(over_direct_us <= TARGET_US),
    })
}

/// Microseconds; 0 where nothing was answered.
fn latency(outcome: &Outcome, share: f64) -> f64 {
    let last = outcome.latencies.len().saturating_sub(1);
    let at = (last as f64 * share).floor() as usize;
    outcome.latencies.get(at).map_or(0.0, |latency| latency.as_micros() as f64)
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(answered: usize, cpu_ms: u64) -> Sample {
        let latencies = (1..=answered as u64).map(Duration::from_micros).collect();
        let took = Duration::from_secs(1);
        Sample {
            outcome: Outcome { answered, failed: 1, took, latencies, bytes: 1_000_000_000 },
            cpu: Duration::from_millis(cpu_ms),
            own: Duration::from_millis(1),
            direct_us: Some(30.0),
        }
    }

    #[test]
    fn a_balancers_part_is_what_comes_on_top_of_none() {
        let samples = [sample(1000, 40), sample(1000, 36), sample(1000, 38)];
        let result = result("full-nat", "connections", &samples).unwrap();
        assert_eq!((result.cpu_us, result.over_direct_us, result.failed), (38.0, 8.0, 3));
        assert_eq!((result.p50_us, result.p99_us), (Some(500.0), Some(990.0)));
        assert_eq!((result.own_us, result.met), (Some(1.0), Some(false)));
    }

    #[test]
    fn only_ours_has_a_target_and_only_large_answers_a_cost_by_volume() {
        let samples = [sample(10, 40)];
        assert_eq!(result("haproxy", "connections", &samples).unwrap().target, None);
        assert_eq!(result("nat", "keep-alive", &samples).unwrap().target, None);
        assert_eq!(result("nat", "large answers", &samples).unwrap().cpu_s_per_gb, Some(0.04));
    }
}
