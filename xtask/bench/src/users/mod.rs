//! What users see: `cargo xtask bench users`. The same load through each balancer in turn, in one world
//! and on one CPU.
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

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};

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
    pub rounds: u32,
    pub connections: usize,
    pub requests: usize,
    /// Large answers.
    pub files: usize,
    pub frames: u32,
}

impl UserEffort {
    pub const QUICK: Self = Self { rounds: 1, connections: 4000, requests: 20_000, files: 16, frames: 1 << 19 };
    pub const FULL: Self = Self { rounds: 3, connections: 10_000, requests: 60_000, files: 64, frames: 1 << 20 };
    /// For tests of the bench itself.
    pub const LEAST: Self = Self { rounds: 1, connections: 40, requests: 40, files: 2, frames: 1 << 14 };
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
    cpu: Duration,
}

/// Runs all balancers.
///
/// # Errors
/// Something does not start.
pub fn users(effort: UserEffort) -> Result<Vec<UserResult>> {
    // Everything that is started from here stays there too.
    let cpu = last_cpu();
    pin_to(cpu)?;
    let mut stage = Stage::new()?;
    let mut samples: BTreeMap<(usize, usize), (String, Vec<Sample>)> = BTreeMap::new();
    let mut frames = Vec::new();
    for _ in 0..effort.rounds {
        let mut door_number = 0;
        for which in Which::ALL {
            stage.set_far_end("decap")?;
            let running = Running::start(&stage, which).with_context(|| format!("{which:?}"))?;
            for door in &running.doors {
                stage.answer_past_the_balancer(door.past)?;
                for (number, load) in LOADS.iter().enumerate() {
                    let sample = run(&stage, &running, door, load, effort, cpu)?;
                    let entry = samples.entry((number, door_number)).or_insert_with(|| (door.name.clone(), Vec::new()));
                    entry.1.push(sample);
                }
                door_number += 1;
            }
            if which.forwards_udp() {
                stage.set_far_end("sink")?;
                for door in &running.doors {
                    frames.extend(udp::run(&mut stage, door, which == Which::Direct, effort.frames)?);
                }
                stage.set_far_end("decap")?;
            }
            running.stop(&stage)?;
        }
    }
    let mut results = Vec::new();
    for ((load, _), (name, samples)) in &samples {
        let direct = samples_of_direct(&results, LOADS[*load].0);
        let result = result(name, LOADS[*load].0, samples, direct).context("no samples")?;
        results.push(result);
    }
    results.extend(udp::results(&frames));
    Ok(results)
}

fn run(
    stage: &Stage,
    running: &Running,
    door: &Door,
    (_, kind, path, parallel): &(&str, Kind, &'static str, usize),
    effort: UserEffort,
    cpu: usize,
) -> Result<Sample> {
    let count = match (kind, *path) {
        (Kind::Connections, _) => effort.connections,
        (Kind::KeepAlive, "/") => effort.requests,
        _ => effort.files,
    };
    let load = Load { target: door.target, path, kind: *kind, parallel: *parallel, count };
    let mut pids = running.pids();
    pids.push(stage.web.pid());
    let (outcome, cpu) = stage.world.client.enter(|| {
        let before = cpu::used(&pids, cpu);
        let outcome = load.run();
        (outcome, cpu::used(&pids, cpu).saturating_sub(before))
    });
    Ok(Sample { outcome: outcome.with_context(|| format!("through {}", door.name))?, cpu })
}

fn samples_of_direct(results: &[UserResult], load: &str) -> Option<f64> {
    results.iter().find(|result| result.balancer == "direct" && result.load == load).map(|result| result.cpu_us)
}

/// The medians of some runs. `direct`: what a request costs without a balancer; `None` where that is
/// what was measured.
fn result(balancer: &str, load: &str, samples: &[Sample], direct: Option<f64>) -> Option<UserResult> {
    let each = |of: &dyn Fn(&Sample) -> f64| median(&samples.iter().map(of).collect::<Vec<_>>());
    let answered = |sample: &Sample| sample.outcome.answered.max(1) as f64;
    let cpu_us = each(&|sample| sample.cpu.as_secs_f64() * 1e6 / answered(sample))?;
    let over_direct_us = cpu_us - direct.unwrap_or(cpu_us);
    let gigabytes = |sample: &Sample| (sample.outcome.bytes as f64 / 1e9).max(f64::MIN_POSITIVE);
    let bounded = load == LOADS[0].0 && lb_common::abi::Mode::ALL.iter().any(|mode| mode.name() == balancer);
    Some(UserResult {
        balancer: balancer.to_owned(),
        load: load.to_owned(),
        per_second: each(&|sample| answered(sample) / sample.outcome.took.as_secs_f64())?.round(),
        p50_us: each(&|sample| latency(&sample.outcome, 0.5)),
        p99_us: each(&|sample| latency(&sample.outcome, 0.99)),
        cpu_us: hundredths(cpu_us),
        over_direct_us: hundredths(over_direct_us),
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
        }
    }

    #[test]
    fn a_balancers_part_is_what_comes_on_top_of_none() {
        let samples = [sample(1000, 40), sample(1000, 36), sample(1000, 38)];
        let result = result("full-nat", "connections", &samples, Some(30.0)).unwrap();
        assert_eq!((result.cpu_us, result.over_direct_us, result.failed), (38.0, 8.0, 3));
        assert_eq!((result.p50_us, result.p99_us), (Some(500.0), Some(990.0)));
        assert_eq!(result.met, Some(false));
    }

    #[test]
    fn only_ours_has_a_target_and_only_large_answers_a_cost_by_volume() {
        let samples = [sample(10, 40)];
        assert_eq!(result("haproxy", "connections", &samples, Some(1.0)).unwrap().target, None);
        assert_eq!(result("nat", "keep-alive", &samples, Some(1.0)).unwrap().target, None);
        assert_eq!(result("nat", "large answers", &samples, Some(1.0)).unwrap().cpu_s_per_gb, Some(0.04));
    }
}
