//! Where the time of a packet goes: the data path built with marks between its steps, loaded once for each
//! step with packets ending there. All of these programs and the product take their turns in the same rounds,
//! over the same maps; what a step costs is how much dearer it is to end behind it than before it.
//!
//! Modern processors work on many steps at a time: a step that waits for nothing that others wait for may cost
//! next to nothing, and one that everything waits for more than its instructions.

use anyhow::{Context as _, Result, ensure};
use lb_common::{
    abi::{Mode, Protocol, Scheduler},
    bench::Step,
};

use super::{
    bench::Bench,
    lab,
    lane::{Lanes, Which},
    measure::{Effort, last_cpu, tenths},
    rows::Case,
    setting::Setting,
    stream::Kind,
};
use crate::{result::StepResult, statistics::median};

/// The ways that are looked at, with one established flow.
const WAYS: [(Mode, Scheduler); 3] =
    [(Mode::DsrIpip, Scheduler::Maglev), (Mode::Nat, Scheduler::Maglev), (Mode::FullNat, Scheduler::RoundRobin)];

/// Measures each step of each way; `tell` hears of each.
///
/// # Errors
/// The kernel refuses.
pub fn steps(effort: Effort, filter: &str, tell: &(dyn Fn(&StepResult) + Sync)) -> Result<Vec<StepResult>> {
    let mut results = Vec::new();
    for (mode, scheduler) in WAYS.into_iter().filter(|(mode, _)| mode.name().contains(filter)) {
        let kind = Kind { v4: true, protocol: Protocol::Tcp };
        let setting = Setting { mode, scheduler, kind, services: 1, visited: 1, lines: "" };
        let of_way = lab::inside(last_cpu(), || way(setting, effort))?;
        of_way.iter().for_each(tell);
        results.extend(of_way);
    }
    Ok(results)
}

/// The steps that a mode's way has; [`Step::Never`] last, which is the product.
fn steps_of(mode: Mode) -> impl Iterator<Item = Step> {
    let has = move |step: &Step| *step != Step::Never && (Mode::is_tunnel(mode as u8) || *step != Step::Room);
    Step::ALL.iter().copied().filter(has).chain([Step::Never])
}

fn way(setting: Setting, effort: Effort) -> Result<Vec<StepResult>> {
    let mut bench = Bench::new(setting)?;
    let mut lanes = bench.lanes(Case::Hit(1))?;
    // They live for as long as they are measured.
    let mut programs = Vec::new();
    for step in steps_of(setting.mode).filter(|step| *step != Step::Never) {
        let mut marked = bench.ours.marked(step).with_context(|| format!("the data path up to `{}`", step.name()))?;
        lanes.push(bench.step_lane(step, &mut marked)?);
        programs.push(marked);
    }
    for round in 0..effort.rounds {
        let first = round as usize % lanes.len();
        for at in (first..lanes.len()).chain(0..first) {
            let ran = bench.turn(&mut lanes[at], effort.windows)?;
            let step = matches!(lanes[at].which, Which::Step(_));
            // XDP_TX.
            ensure!(!step || ran.action == 3, "{:?} ended with action {}", lanes[at].which, ran.action);
            lanes[at].round(&ran);
        }
    }
    results(setting, &Lanes(lanes)).context("too few rounds")
}

fn results(setting: Setting, lanes: &Lanes) -> Option<Vec<StepResult>> {
    let way = format!("{} {} {} hit 1", setting.mode.name(), setting.scheduler.name(), setting.kind.name());
    let mut results = Vec::new();
    let mut before: Option<Vec<f64>> = None;
    for step in steps_of(setting.mode) {
        let net = lanes.net(if step == Step::Never { Which::Ours } else { Which::Step(step) })?;
        let over: Vec<f64> = match &before {
            Some(before) => net.iter().zip(before).map(|(now, before)| now - before).collect(),
            None => net.clone(),
        };
        results.push(StepResult {
            way: way.clone(),
            step: step.name().to_owned(),
            step_ns: tenths(median(&over)?),
            net_ns: tenths(median(&net)?),
            min_ns: tenths(net.iter().copied().fold(f64::INFINITY, f64::min)),
        });
        before = Some(net);
    }
    Some(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_ends_with_the_product_and_only_tunnels_make_room() {
        for mode in [Mode::Nat, Mode::DsrIpip] {
            let steps: Vec<_> = steps_of(mode).collect();
            assert_eq!(steps.last(), Some(&Step::Never));
            assert_eq!(steps.contains(&Step::Room), mode == Mode::DsrIpip);
            assert!(steps.len() >= 10, "{steps:?}");
        }
    }
}
