//! Backends of direct server return, and `lb` on them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Family, Process, World, process};
use crate::shell;

/// Makes the backends ready for direct server return: the service's address on the loopback
/// interface, so that their stacks take it and nobody asks them for it, and a way to clients past the
/// balancer.
///
/// # Errors
/// The kernel's.
pub fn prepare_backends(world: &World) -> Result<()> {
    for backend in &world.backends {
        backend.set_sysctl("net.ipv4.conf.all.arp_ignore", "1")?;
        backend.set_sysctl("net.ipv4.conf.all.arp_announce", "2")?;
        for family in Family::BOTH {
            let (bits, clients) = match family {
                Family::V4 => (32, "10.71.1.0/24"),
                Family::V6 => (128, "fd71:1::/64"),
            };
            let address = format!("address add {}/{bits} dev lo", family.service());
            backend.ip(&[address, format!("route add {clients} dev eth0")])?;
        }
    }
    Ok(())
}

/// `lb` on a backend, with pins of its own.
pub fn lb_on(world: &World, program: &Path, index: u8, arguments: &[&str]) -> Command {
    let mut command = world.backends[usize::from(index)].command(program);
    command.env("LB_PIN_DIR", pins(world, index)).env("NO_COLOR", "1").args(arguments);
    command
}

/// Where the backend's `lb` keeps its pins.
pub fn pins(world: &World, index: u8) -> PathBuf {
    world.pins().join(&world.backend_names()[usize::from(index)])
}

/// `lb decap` on a backend, for both service addresses; killed when dropped, which leaves the program.
pub struct Decap<'w> {
    world: &'w World,
    program: PathBuf,
    index: u8,
    pub process: Process,
}

impl<'w> Decap<'w> {
    /// Strips what comes from `balancers`; waits until it does.
    ///
    /// # Errors
    /// It does not begin in time; the error holds its log.
    pub fn start(world: &'w World, program: &Path, index: u8, balancers: &[&str], patience: Duration) -> Result<Self> {
        let mut command = lb_on(world, program, index, &["decap", "--iface", "eth0"]);
        for family in Family::BOTH {
            command.args(["--vip", &family.service().to_string()]);
        }
        for balancer in balancers {
            command.args(["--from", balancer]);
        }
        let log = world.folder().join(format!("decap{index}.log"));
        let process = Process::start("lb decap", &mut command, &log)?;
        let decap = Self { world, program: program.to_owned(), index, process };
        process::until("lb decap strips", patience, || {
            let status = decap.status()?;
            ensure!(status["mode"] == "native", "{status}; its log:\n{}", decap.process.log_tail());
            Ok(())
        })?;
        Ok(decap)
    }

    /// What `lb decap status` says of the interface; nothing where it is not switched on.
    ///
    /// # Errors
    /// `lb` failed.
    pub fn status(&self) -> Result<Value> {
        let text =
            shell::output(&mut lb_on(self.world, &self.program, self.index, &["decap", "status", "-o", "json"]))?;
        let status: Value = serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))?;
        Ok(status["interfaces"][0].clone())
    }

    /// Packets that were stripped for a service's address.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn stripped(&self, family: Family) -> Result<u64> {
        let status = self.status()?;
        let vip = family.service().to_string();
        let found = status["vips"].as_array().and_then(|vips| vips.iter().find(|found| found["address"] == vip));
        found.and_then(|found| found["stripped"]["packets"].as_u64()).with_context(|| format!("no {vip} in {status}"))
    }

    /// Packets with this outcome.
    ///
    /// # Errors
    /// As [`Self::status`].
    pub fn counted(&self, outcome: &str) -> Result<u64> {
        let status = self.status()?;
        let found = status["outcomes"].as_array().and_then(|all| all.iter().find(|found| found["outcome"] == outcome));
        found.and_then(|found| found["packets"].as_u64()).with_context(|| format!("no {outcome} in {status}"))
    }
}
