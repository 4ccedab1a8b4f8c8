//! What clients notice when a backend is lost: `cargo xtask bench failover`. 200 new connections a second
//! to four backends, one of which is lost after a second and comes back three seconds later; the same for
//! each balancer in turn, in one world.

mod faults;
mod figures;
mod load;
pub mod page;
mod peers;
mod probes;
mod scene;

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use self::{
    faults::Broken,
    figures::{Course, SLOW, Trial, middle},
    load::{Load, Shared},
    peers::{Running, Told},
    scene::{LOST, Scene},
};
pub use self::{faults::Fault, peers::Peer, probes::probes};
use xtask::world::{World, servers::Web};

use crate::result::FailoverRow;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct FailoverEffort {
    pub trials: u32,
    pub peers: &'static [Peer],
    pub faults: &'static [Fault],
    /// From the fault to the repair.
    pub lasts: Duration,
    /// Longest time to watch for the backend's return.
    pub watched: Duration,
    /// How long the agent is watched while it probes.
    pub probes: Duration,
}

impl FailoverEffort {
    pub const QUICK: Self = Self { trials: 1, peers: &Peer::QUICK, ..Self::FULL };
    pub const FULL: Self = Self {
        trials: 3,
        peers: &Peer::ALL,
        faults: &Fault::ALL,
        lasts: Duration::from_secs(3),
        watched: Duration::from_millis(2500),
        probes: Duration::from_secs(6),
    };
    /// For tests of the bench itself.
    pub const LEAST: Self = Self {
        trials: 1,
        peers: &[Peer::FullNat, Peer::Haproxy, Peer::Nginx, Peer::Nftables],
        faults: &[Fault::Killed, Fault::Firewalled],
        lasts: Duration::from_millis(1500),
        watched: Duration::from_millis(2500),
        probes: Duration::from_secs(1),
    };
}

/// The load runs for so long before anything happens.
const QUIET: Duration = Duration::from_secs(1);
/// And on, once the backend is back.
const AFTER: Duration = Duration::from_millis(300);

/// Runs all balancers against all faults; `tell` hears of each trial.
///
/// # Errors
/// Something does not start.
pub fn failover(effort: FailoverEffort, filter: Option<&str>, tell: &dyn Fn(&str)) -> Result<Vec<FailoverRow>> {
    let wanted = |fault: Fault, peer: Peer| {
        let name = format!("{} {}", peer.name(), fault.name());
        filter.is_none_or(|filter| name.contains(filter))
    };
    let cases: Vec<(Fault, Peer)> = effort
        .faults
        .iter()
        .flat_map(|&fault| effort.peers.iter().map(move |&peer| (fault, peer)))
        .filter(|&(fault, peer)| wanted(fault, peer))
        .collect();
    ensure!(!cases.is_empty(), "no balancer and fault has {filter:?} in its name");
    let mut scene = Scene::new()?;
    let mut trials: Vec<Vec<(Trial, Option<Told>)>> = vec![Vec::new(); cases.len()];
    for _ in 0..effort.trials {
        for (&(fault, peer), trials) in cases.iter().zip(&mut trials) {
            let (name, when) = (peer.name(), fault.name());
            let (trial, told) = once(&mut scene, peer, fault, &effort).with_context(|| format!("{name}, {when}"))?;
            tell(&page::line(name, when, &trial, told));
            trials.push((trial, told));
        }
    }
    Ok(cases.iter().zip(&trials).map(|(&(fault, peer), trials)| row(fault, peer, trials)).collect())
}

fn once(scene: &mut Scene, peer: Peer, fault: Fault, effort: &FailoverEffort) -> Result<(Trial, Option<Told>)> {
    let running = Running::start(scene, peer, fault)?;
    let load = Load { target: running.target(), clients: scene::clients() };
    let Scene { world, webs } = scene;
    let (shared, begun) = (Shared::default(), Instant::now());
    let (attempts, course) = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            world.client.join_thread();
            load.run(begun, &shared)
        });
        let course = run_course(world, &mut webs[usize::from(LOST)], fault, effort, begun, &shared);
        shared.stop.store(true, Ordering::Relaxed);
        (worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), course)
    });
    let (course, broken) = course?;
    broken.clear(world)?;
    let trial = Trial::of(&attempts?, &course);
    let told = running.told(scene)?;
    running.stop(scene)?;
    Ok((trial, told))
}

/// The fault, its end, and until the backend answers clients again.
fn run_course(
    world: &World,
    web: &mut Web,
    fault: Fault,
    effort: &FailoverEffort,
    begun: Instant,
    shared: &Shared,
) -> Result<(Course, Broken)> {
    let lost = u32::from(LOST) + 1;
    let answers = || shared.answers[lost as usize].load(Ordering::Relaxed);
    let sleep_until = |at: Duration| thread::sleep((begun + at).saturating_duration_since(Instant::now()));
    sleep_until(QUIET);
    ensure!(answers() > 0, "{} gets no connections", web.name());
    // Before it is done, since it takes effect meanwhile.
    let fault_at = begun.elapsed();
    let broken = Broken::strike(fault, world, web)?;
    sleep_until(fault_at + effort.lasts);
    let before = answers();
    broken.repair(world, web)?;
    let repaired = begun.elapsed();
    while answers() == before && begun.elapsed() < repaired + effort.watched {
        thread::sleep(Duration::from_millis(5));
    }
    sleep_until(begun.elapsed() + AFTER);
    Ok((Course { lost, fault: fault_at, repaired }, broken))
}

/// The aims for ours: most that fail, most that are slow, and the longest.
const fn aim(fault: Fault, peer: Peer) -> Option<(u32, u32, Duration)> {
    match (fault, peer) {
        (Fault::Killed, Peer::Nat | Peer::FullNat) => Some((0, 0, SLOW)),
        (Fault::Silent, Peer::Nat | Peer::FullNat) => Some((0, 5, Duration::from_millis(150))),
        _ => None,
    }
}

fn row(fault: Fault, peer: Peer, trials: &[(Trial, Option<Told>)]) -> FailoverRow {
    let number = |of: &dyn Fn(&Trial) -> u32| middle(&trials.iter().map(|(t, _)| Some(of(t))).collect::<Vec<_>>());
    let time = |of: &dyn Fn(&Trial) -> Option<Duration>| {
        middle(&trials.iter().map(|(trial, _)| of(trial)).collect::<Vec<_>>())
    };
    let worst = time(&|trial| Some(trial.worst)).unwrap_or_default();
    // None bad is less than any.
    let last_bad = time(&|trial| Some(trial.last_bad.map_or(Duration::ZERO, |at| at + Duration::from_nanos(1))));
    let (failed, slow) = (number(&|trial| trial.failed).unwrap_or(0), number(&|trial| trial.slow).unwrap_or(0));
    let aim = aim(fault, peer);
    let seconds = |time: Duration| (time.as_secs_f64() * 1000.0).round() / 1000.0;
    let told: Vec<Told> = trials.iter().filter_map(|(_, told)| *told).collect();
    FailoverRow {
        peer: peer.name().to_owned(),
        fault: fault.name().to_owned(),
        failed,
        slow_over_50ms: slow,
        worst_ms: (worst.as_secs_f64() * 10_000.0).round() / 10.0,
        last_bad_s: last_bad.filter(|at| !at.is_zero()).map(seconds),
        back_s: time(&|trial| trial.back).map(seconds),
        attempts: number(&|trial| trial.attempts).unwrap_or(0),
        noise: trials.iter().map(|(trial, _)| trial.noise).sum(),
        rescued: middle(&told.iter().map(|told| Some(told.rescued)).collect::<Vec<_>>()),
        receipt: (!told.is_empty()).then(|| told.iter().all(|told| told.receipt)),
        target: aim.map(|(failed, slow, longest)| {
            format!("<= {failed} failed, <= {slow} over 50 ms, <= {} ms", longest.as_millis())
        }),
        met: aim.map(|(most, most_slow, longest)| failed <= most && slow <= most_slow && worst <= longest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(failed: u32, worst: u64, last_bad: Option<u64>, back: Option<u64>) -> (Trial, Option<Told>) {
        let ms = Duration::from_millis;
        let trial =
            Trial { failed, worst: ms(worst), last_bad: last_bad.map(ms), back: back.map(ms), ..Trial::default() };
        (trial, Some(Told { rescued: 3, receipt: true }))
    }

    #[test]
    fn a_row_has_the_medians_and_whether_the_aim_was_reached() {
        let trials = [trial(0, 30, None, Some(200)), trial(0, 40, None, Some(210)), trial(2, 1000, Some(120), None)];
        let row = row(Fault::Silent, Peer::Nat, &trials);
        assert_eq!((row.failed, row.worst_ms, row.last_bad_s, row.back_s), (0, 40.0, None, Some(0.21)));
        assert_eq!((row.rescued, row.receipt, row.met), (Some(3), Some(true), Some(true)));
    }

    #[test]
    fn others_have_no_aim_and_one_late_connection_misses_ours() {
        assert_eq!(row(Fault::Killed, Peer::Haproxy, &[trial(9, 3, Some(170), Some(210))]).met, None);
        let row = row(Fault::Killed, Peer::FullNat, &[trial(0, 51, Some(10), Some(1))]);
        assert_eq!((row.met, row.last_bad_s), (Some(false), Some(0.01)));
    }
}
