//! What befalls a backend, and its end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use xtask::world::{
    World,
    plan::backend_name,
    servers::{WEB_PORT, Web},
};

use super::scene::LOST;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// SIGKILL: its kernel refuses from then on.
    Killed,
    /// The host takes nothing in and says nothing, not even to questions for its link-layer address.
    Silent,
    /// The cable is out.
    LinkDown,
    /// Its firewall drops what comes for the port.
    Firewalled,
    /// Its process gets a processor for 20 ms of every 300; its kernel takes connections as ever.
    Slow,
}

impl Fault {
    pub const ALL: [Self; 5] = [Self::Killed, Self::Silent, Self::LinkDown, Self::Firewalled, Self::Slow];

    /// In tables and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Killed => "process killed",
            Self::Silent => "host silent",
            Self::LinkDown => "link down",
            Self::Firewalled => "port firewalled",
            Self::Slow => "slow",
        }
    }
}

/// A fault that lasts. Dropped, it ends too, but for what was killed.
pub struct Broken {
    fault: Fault,
    throttle: Option<Throttle>,
}

impl Broken {
    /// # Errors
    /// The kernel refuses.
    pub fn strike(fault: Fault, world: &World, web: &mut Web) -> Result<Self> {
        let mut throttle = None;
        match fault {
            Fault::Killed => web.kill()?,
            Fault::Silent => {
                nft(
                    world,
                    "add table netdev silent; add chain netdev silent in { type filter hook ingress device eth0 \
                     priority 0; policy drop; }",
                )?;
            }
            Fault::LinkDown => world.switch.ip(&[format!("link set {} down", backend_name(LOST))])?,
            Fault::Firewalled => nft(
                world,
                &format!(
                    "add table ip wall; add chain ip wall in {{ type filter hook input priority 0; }}; \
                     add rule ip wall in tcp dport {WEB_PORT} drop"
                ),
            )?,
            Fault::Slow => throttle = Some(Throttle::start(web.pid())?),
        }
        Ok(Self { fault, throttle })
    }

    /// All is as it was; a server that was killed listens again.
    ///
    /// # Errors
    /// The kernel refuses, or the server does not start.
    pub fn repair(mut self, world: &World, web: &mut Web) -> Result<()> {
        match self.fault {
            Fault::Killed => {
                web.restart(world, &std::env::current_exe()?)?;
            }
            Fault::Silent => nft(world, "delete table netdev silent")?,
            Fault::LinkDown => world.switch.ip(&[format!("link set {} up", backend_name(LOST))])?,
            Fault::Firewalled => nft(world, "delete table ip wall")?,
            Fault::Slow => drop(self.throttle.take()),
        }
        Ok(())
    }
}

fn nft(world: &World, rules: &str) -> Result<()> {
    world.backends[usize::from(LOST)].output("nft", &[rules]).map(drop)
}

/// A process that runs a fifteenth of the time, as one whose share of the processor is used up.
struct Throttle {
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

const RUNS: Duration = Duration::from_millis(20);
const STANDS: Duration = Duration::from_millis(280);

impl Throttle {
    fn start(pid: u32) -> Result<Self> {
        let pid = Pid::from_raw(pid.cast_signed()).context("a pid is positive")?;
        let stop = Arc::new(AtomicBool::new(false));
        let worker = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                // A process that is gone needs no signals.
                while !stop.load(Ordering::Relaxed) && kill_process(pid, Signal::STOP).is_ok() {
                    thread::park_timeout(STANDS);
                    if kill_process(pid, Signal::CONT).is_err() {
                        return;
                    }
                    if !stop.load(Ordering::Relaxed) {
                        thread::sleep(RUNS);
                    }
                }
            }
        });
        Ok(Self { stop, worker: Some(worker) })
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}
