//! The embedded world of `cargo xtask run`: a client, the balancer and three web servers; one of
//! them is killed and comes back, and whoever looks on sees what that did to the requests.

mod findings;
mod load;
mod screen;

use std::{
    env,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use self::{
    findings::{Findings, Outage},
    load::{Record, Tally},
    screen::Screen,
};
use crate::{
    shell,
    world::{
        Balancer, Family, Launch, Topology, World,
        config::{Checks, Config, Health, Service},
        servers::{WEB_PORT, Web, web_server},
    },
};

const PORT: u16 = 80;
/// Phases: balanced, one backend gone, back. Without `--for` each takes this long.
const PHASE: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(100);
/// What the table shows: requests of the last moments.
const WINDOW: Duration = Duration::from_secs(1);
/// The backend that is killed, counted from 0.
const VICTIM: u8 = 1;
/// Under emulation the verifier alone takes more than ten seconds.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Runs the world with this rhythm of checks until Ctrl-C or for the duration, and says whether everything was
/// seen.
///
/// # Errors
/// The world could not be made or the balancer does not start.
pub fn demo(program: &Path, duration: Option<Duration>, checks: Checks) -> Result<ExitCode> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let xtask = env::current_exe()?;
    println!("making a world: client, balancer, web1 to web3 as separate hosts; web servers: {}", web_server());
    let world = World::new(Topology::TwoArm, 3)?;
    let mut webs = Web::on_all(&world, &xtask)?;
    let log = log_file()?;
    let services = services(&world);
    let config = Config { checks, ..Config::new(world.topology, services.clone()) }.render();
    let mut balancer = Balancer::start(&world, &Launch { program, config: &config, arguments: &[], log: &log })?;
    for service in &services {
        balancer.wait_for_backends(&service.name, &service.backend_addresses(), START_PATIENCE)?;
    }
    println!(
        "the balancer is ready: http://{} and http://{}; its log: {}",
        Family::V4.service_port(PORT),
        Family::V6.service_port(PORT),
        log.display()
    );
    let record = Record::new();
    let show = Show { world: &world, interrupted: &interrupted, record: &record, checks, begun: Instant::now() };
    let findings = show.run(&mut webs, &xtask, duration);
    if let Some(status) = balancer.agent().ended()? {
        anyhow::bail!("the agent ended with {status}; its log ends:\n{}", balancer.agent().log_tail());
    }
    balancer.stop().context("stopping the balancer")?;
    Ok(findings?.conclude())
}

struct Show<'a> {
    world: &'a World,
    interrupted: &'a AtomicBool,
    record: &'a Record,
    checks: Checks,
    begun: Instant,
}

impl Show<'_> {
    fn run(&self, webs: &mut [Web], xtask: &Path, duration: Option<Duration>) -> Result<Findings> {
        thread::scope(|scope| {
            load::clients(scope, &self.world.client, |family| family.service_port(PORT), self.record);
            // Also stops the clients when a phase fails or panics: the scope waits for them.
            let _stop = StopOnDrop(self.record);
            self.phases(webs, xtask, duration)
        })
    }

    fn phases(&self, webs: &mut [Web], xtask: &Path, duration: Option<Duration>) -> Result<Findings> {
        let mut screen = Screen::new();
        let end = duration.map(|duration| self.begun + duration);
        let phase = duration.map_or(PHASE, |duration| duration / 3);
        let mut findings = Findings::new(self.world.backend_names());

        self.show_until(&mut screen, self.begun + phase);
        let killed = Instant::now();
        findings.balanced = Tally::of(&self.record.since(self.begun));
        if self.is_over() {
            return Ok(findings);
        }

        let victim = &mut webs[usize::from(VICTIM)];
        screen.say(&format!("-- {} is killed (SIGKILL)", victim.name()));
        victim.kill()?;
        let budget = self.checks.failover_budget();
        self.show_until(&mut screen, killed + budget.max(phase));
        let restarted = Instant::now();
        let outage = Outage::of(&self.record.since(killed), killed, budget, victim.name());
        screen.say(&format!("-- {}", outage.tell()));
        findings.outage = Some(outage);
        if self.is_over() {
            return Ok(findings);
        }

        victim.restart(self.world, xtask)?;
        screen.say(&format!("-- {} is started again", victim.name()));
        // As long as it may take to be found up again.
        let minimum = restarted + budget;
        self.show_until(&mut screen, end.unwrap_or(restarted + phase).max(minimum));
        findings.back(&self.record.since(restarted), restarted, victim.name());
        screen.say(&format!("-- {}", findings.tell_return(victim.name())));
        if end.is_none() && !self.is_over() {
            self.serve(&mut screen, &mut findings);
        }
        Ok(findings)
    }

    /// Until Ctrl-C.
    fn serve(&self, screen: &mut Screen, findings: &mut Findings) {
        screen.say("-- serving until Ctrl-C");
        while !self.is_over() {
            let now = Instant::now();
            self.show_until(screen, now + WINDOW);
            findings.later_failures += Tally::of(&self.record.since(now)).failed;
            self.record.forget_before(now - WINDOW);
        }
    }

    fn show_until(&self, screen: &mut Screen, end: Instant) {
        let names = self.world.backend_names();
        while Instant::now() < end && !self.is_over() {
            thread::sleep(TICK.min(end.saturating_duration_since(Instant::now())));
            let now = Instant::now();
            let window = WINDOW.min(now - self.begun);
            screen.shares(now - self.begun, &names, &Tally::of(&self.record.since(now - window)), window);
        }
    }

    fn is_over(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

struct StopOnDrop<'a>(&'a Record);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// One service per address family.
fn services(world: &World) -> Vec<Service> {
    let all: Vec<u8> = (0..world.backends.len() as u8).collect();
    let service = |family| Service {
        name: if family == Family::V4 { "web" } else { "web6" }.to_owned(),
        health: Health::Http { path: "/healthz" },
        ..Service::tcp(family, "full-nat", PORT, all.clone(), WEB_PORT)
    };
    Family::BOTH.map(service).into()
}

/// Outlives the world, for whoever wants to know why.
fn log_file() -> Result<std::path::PathBuf> {
    let folder = shell::root().join("target/xtask");
    std::fs::create_dir_all(&folder)?;
    let log = folder.join("run.log");
    std::fs::write(&log, "").with_context(|| format!("cannot write {}", log.display()))?;
    Ok(log)
}
