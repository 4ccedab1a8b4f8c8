//! What changes cost among many services: `cargo xtask bench control`. A real agent with real maps in a
//! namespace; when a change is done is read off the maps, as the data path reads them.
//!
//! | row | from | to |
//! | --- | --- | --- |
//! | start | the agent's start | packets to every service find all its backends |
//! | reload | SIGHUP | the same |
//! | a backend more, less | the request on the agent's socket | the service's new table |
//! | a rack fails, is back | the answer to the (last) check that tells it | the tables of all its services |
//!
//! And the tables of Maglev by themselves.

mod agent;
mod checks;
mod look;
mod scene;
mod syscalls;
mod tables;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use xtask::world::{Family, Topology, World};

use self::{
    agent::{Agent, change},
    checks::Checks,
    look::{Expected, Maps},
    scene::{LARGE, Rack, Service},
    syscalls::Syscalls,
};
pub use self::{scene::Scale, tables::tables};
use crate::{
    result::ControlResult,
    statistics::{Spread, median},
};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct ControlEffort {
    /// Starts and reloads.
    pub loads: usize,
    /// Of each other change.
    pub changes: usize,
    pub scale: Scale,
}

impl ControlEffort {
    pub const QUICK: Self = Self { loads: 1, changes: 5, scale: Scale::FULL };
    pub const FULL: Self = Self { loads: 5, changes: 21, scale: Scale::FULL };
    /// For tests of the bench itself.
    pub const LEAST: Self = Self { loads: 1, changes: 1, scale: Scale::LEAST };
}

const SECOND: Duration = Duration::from_secs(1);
/// Until the maps must be right.
const PATIENCE: Duration = Duration::from_secs(60);

/// Rows in the order of the report, each with the milliseconds that it may take.
const ROWS: [(&str, Option<f64>); 10] = [
    (START, Some(2000.0)),
    (RELOAD, Some(2000.0)),
    (MORE, Some(5.0)),
    (LESS, Some(5.0)),
    (SHARED_FAILS, Some(50.0)),
    (SHARED_BACK, None),
    (OWN_FAILS, Some(50.0)),
    (OWN_FAILS_FIRST, None),
    (OWN_BACK, None),
    (IDLE, None),
];
const START: &str = "start with the file";
const RELOAD: &str = "reload of the file";
const MORE: &str = "a backend more in Maglev of 1,000";
const LESS: &str = "a backend less in Maglev of 1,000";
const SHARED_FAILS: &str = "a rack of 1,000 fails, one check tells";
const SHARED_BACK: &str = "it is back, one check tells";
const OWN_FAILS: &str = "a rack of 1,000 fails, each has a check: from the last";
const OWN_FAILS_FIRST: &str = "the same, from the first";
const OWN_BACK: &str = "it is back, each has a check: from the last";
const IDLE: &str = "nothing, for a second";

/// One change.
#[derive(Clone, Copy, Debug)]
struct Sample {
    took: Duration,
    /// Processor time of the agent meanwhile, whatever for.
    cpu: Duration,
    syscalls: u64,
    /// Bytes.
    memory: u64,
}

/// Measures everything with the `lb` at `program`.
///
/// # Errors
/// Something does not start, or the maps do not come right.
pub fn control(effort: ControlEffort, program: &Path, tell: &dyn Fn(&str)) -> Result<Vec<ControlResult>> {
    let world = World::new(Topology::OneArm, 1)?;
    let IpAddr::V4(host) = Family::V4.backend(0) else { unreachable!("an address of IPv4") };
    world.backends[0].ip(&[format!("route add local {} dev lo", scene::NETWORK)])?;
    world.lb.ip(&[format!("route add {} via {host}", scene::NETWORK)])?;
    // Everything comes from one address.
    world.lb.set_sysctl("net.ipv4.ip_local_port_range", "1024 60999")?;
    let tracepoint = syscalls::tracepoint(&world.subfolder("bench")?)?;
    let bench = Bench { world: &world, program, scale: effort.scale, tracepoint };
    let mut samples: BTreeMap<&'static str, Vec<Sample>> = BTreeMap::new();
    for round in 0..effort.loads {
        tell(&format!("start and reload, {} of {}", round + 1, effort.loads));
        samples.entry(START).or_default().push(bench.start()?);
        samples.entry(RELOAD).or_default().push(bench.reload()?);
    }
    bench.changes(host, effort.changes, &mut samples, tell)?;
    let result = |(name, target): &(&'static str, Option<f64>)| result(name, *target, samples.get(name)?);
    Ok(ROWS.iter().filter_map(result).collect())
}

struct Bench<'w> {
    world: &'w World,
    program: &'w Path,
    scale: Scale,
    tracepoint: u64,
}

impl Bench<'_> {
    fn file(&self, services: &[Service]) -> String {
        scene::file(self.world.interfaces(), self.scale, services)
    }

    /// An agent where nothing was before.
    fn start(&self) -> Result<Sample> {
        let services = scene::services(self.scale, None);
        let (file, expected) = (self.file(&services), all(&services));
        let began = Instant::now();
        let mut agent = Agent::start(self.world, self.program, &file)?;
        let mut counter = Syscalls::of(agent.balancer.agent().pid(), self.tracepoint)?;
        let maps = self.maps(&mut agent)?;
        let right = maps.until_right(&expected, PATIENCE)?;
        let (cpu, syscalls, memory) = (agent.cpu()?, counter.count()?, agent.memory()?.most);
        let sample = Sample { took: right - began, cpu, syscalls, memory };
        self.wait_for_answer(&agent)?;
        agent.end()?;
        Ok(sample)
    }

    /// An agent with one service gets all of them.
    fn reload(&self) -> Result<Sample> {
        let services = scene::services(self.scale, None);
        let (file, expected) = (self.file(&services), all(&services));
        let mut agent = Agent::start(self.world, self.program, &self.file(&services[1..2]))?;
        let maps = self.maps(&mut agent)?;
        maps.until_right(&expected[1..2], PATIENCE)?;
        self.wait_for_answer(&agent)?;
        fs::write(agent.balancer.config(), file)?;
        let mut counter = Syscalls::of(agent.balancer.agent().pid(), self.tracepoint)?;
        let before = agent.cpu()?;
        let began = Instant::now();
        agent.balancer.agent().signal(rustix::process::Signal::HUP)?;
        let right = maps.until_right(&expected, PATIENCE)?;
        let (cpu, syscalls, memory) = (agent.cpu()? - before, counter.count()?, agent.memory()?.most);
        let sample = Sample { took: right - began, cpu, syscalls, memory };
        agent.end()?;
        Ok(sample)
    }

    /// All other rows, in turn, with one agent.
    fn changes(
        &self,
        host: Ipv4Addr,
        rounds: usize,
        samples: &mut BTreeMap<&'static str, Vec<Sample>>,
        tell: &dyn Fn(&str),
    ) -> Result<()> {
        let checks = Checks::start(&self.world.backends[0])?;
        let services = scene::services(self.scale, Some(host));
        let mut agent = Agent::start(self.world, self.program, &self.file(&services))?;
        let maps = self.maps(&mut agent)?;
        maps.until_right(&all(&services), PATIENCE)?;
        self.wait_for_answer(&agent)?;
        let mut running = Running { bench: self, agent, maps, checks, services };
        for round in 0..rounds {
            tell(&format!("changes, {} of {rounds}", round + 1));
            for (row, sample) in running.round(round)? {
                samples.entry(row).or_default().push(sample);
            }
        }
        running.agent.end()
    }

    /// Opens the maps as soon as the agent has made them.
    fn maps(&self, agent: &mut Agent<'_>) -> Result<Maps> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Maps::open(&self.world.pins()) {
                Ok(maps) => return Ok(maps),
                Err(error) => {
                    let agent = agent.balancer.agent();
                    let ended = agent.ended()?;
                    ensure!(ended.is_none(), "the agent ended with {ended:?}; its log ends:\n{}", agent.log_tail());
                    ensure!(Instant::now() < deadline, "the agent has made no maps: {error:#}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Until the agent has done everything that belongs to its start.
    fn wait_for_answer(&self, agent: &Agent<'_>) -> Result<()> {
        let ready = |balancer: &xtask::world::Balancer<'_>| balancer.json(&["status"]);
        agent.balancer.until("the agent answers", PATIENCE, ready).map(drop)
    }
}

struct Running<'b> {
    bench: &'b Bench<'b>,
    agent: Agent<'b>,
    maps: Maps,
    checks: Checks,
    services: Vec<Service>,
}

impl Running<'_> {
    fn round(&mut self, round: usize) -> Result<Vec<(&'static str, Sample)>> {
        let address = scene::large_backend(self.bench.scale.large + round);
        let before = [Expected::of(&self.services[0], |_| true, None)];
        let after = [Expected::of(&self.services[0], |_| true, Some(address))];
        let mut samples = vec![
            (MORE, self.command(change("add", LARGE, address), &after)?),
            (LESS, self.command(change("remove", LARGE, address), &before)?),
        ];
        let shared = self.rack(Rack::Shared, 1)?;
        samples.extend([(SHARED_FAILS, shared.fails), (SHARED_BACK, shared.back)]);
        let own = self.rack(Rack::Own, self.bench.scale.rack)?;
        samples.extend([(OWN_FAILS, own.fails), (OWN_FAILS_FIRST, own.from_first), (OWN_BACK, own.back)]);
        samples.push((
            IDLE,
            self.counted(|_| {
                std::thread::sleep(SECOND);
                Ok(SECOND)
            })?,
        ));
        Ok(samples)
    }

    fn command(&mut self, change: serde_json::Value, expected: &[Expected]) -> Result<Sample> {
        self.counted(|running| {
            let began = Instant::now();
            let asked = running.agent.ask(change)?;
            let right = running.maps.until_right(expected, PATIENCE)?;
            asked.answer()?;
            Ok(right - began)
        })
    }

    /// A rack fails and is back. So many checks tell it.
    fn rack(&mut self, rack: Rack, told_by: usize) -> Result<RackSamples> {
        let concerned: Vec<&Service> =
            self.services.iter().filter(|service| service.backends.iter().any(|b| b.rack == Some(rack))).collect();
        let well: Vec<Expected> = concerned.iter().map(|service| Expected::of(service, |_| true, None)).collect();
        let without = |service: &&Service| Expected::of(service, |backend| backend.rack != Some(rack), None);
        let failed: Vec<Expected> = concerned.iter().map(without).collect();
        let (from_first, fails) = self.told(rack, true, told_by, &failed)?;
        let (_, back) = self.told(rack, false, told_by, &well)?;
        Ok(RackSamples { fails, from_first, back })
    }

    /// The state of a rack changes: from the first check that tells it, and from the last.
    fn told(&mut self, rack: Rack, failed: bool, by: usize, expected: &[Expected]) -> Result<(Sample, Sample)> {
        self.checks.wait_for_quiet(rack);
        let mut first = Duration::ZERO;
        let last = self.counted(|running| {
            running.checks.set(rack, failed);
            let right = running.maps.until_right(expected, PATIENCE)?;
            let told = |number| running.checks.told(rack, number).context("the maps changed before the checks told it");
            first = right - told(1)?;
            Ok(right.saturating_duration_since(told(by)?))
        })?;
        Ok((Sample { took: first, ..last }, last))
    }

    fn counted(&mut self, change: impl FnOnce(&mut Self) -> Result<Duration>) -> Result<Sample> {
        let mut counter = Syscalls::of(self.agent.balancer.agent().pid(), self.bench.tracepoint)?;
        let before = self.agent.cpu()?;
        let took = change(self)?;
        let cpu = self.agent.cpu()?.saturating_sub(before);
        Ok(Sample { took, cpu, syscalls: counter.count()?, memory: self.agent.memory()?.now })
    }
}

struct RackSamples {
    fails: Sample,
    from_first: Sample,
    back: Sample,
}

fn all(services: &[Service]) -> Vec<Expected> {
    services.iter().map(|service| Expected::of(service, |_| true, None)).collect()
}

fn result(name: &str, target: Option<f64>, samples: &[Sample]) -> Option<ControlResult> {
    let millis = samples.iter().map(|sample| sample.took.as_secs_f64() * 1e3).collect::<Vec<_>>();
    let Spread { median: middle, min, max } = Spread::of(&millis)?;
    let cpu = |sample: &Sample| sample.cpu.as_secs_f64() * 1e3;
    let of = |each: fn(&Sample) -> u64| median(&samples.iter().map(|sample| each(sample) as f64).collect::<Vec<_>>());
    Some(ControlResult {
        name: name.to_owned(),
        samples: samples.len(),
        median_ms: middle,
        min_ms: min,
        max_ms: max,
        cpu_ms: median(&samples.iter().map(cpu).collect::<Vec<_>>())?,
        syscalls: of(|sample| sample.syscalls)? as u64,
        memory_mib: of(|sample| sample.memory)? / f64::from(1 << 20),
        target: target.map(|target| format!("<= {target} ms")),
        met: target.map(|target| middle <= target),
    })
}
