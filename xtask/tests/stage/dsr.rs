//! Backends of direct server return.

use std::{path::PathBuf, process::Command};

use serde_json::Value;
use xtask::{
    shell,
    world::{Family, Process, World, process},
};

use super::{PATIENCE, lb_program};

/// Makes the backends ready for direct server return: the service's address on the loopback interface, so that
/// their stacks take it and nobody asks them for it, and a way to clients past the balancer.
pub fn prepare_backends(world: &World) {
    for backend in &world.backends {
        backend.set_sysctl("net.ipv4.conf.all.arp_ignore", "1").unwrap();
        backend.set_sysctl("net.ipv4.conf.all.arp_announce", "2").unwrap();
        for family in Family::BOTH {
            let (bits, clients) = match family {
                Family::V4 => (32, "10.71.1.0/24"),
                Family::V6 => (128, "fd71:1::/64"),
            };
            let address = format!("address add {}/{bits} dev lo", family.service());
            backend.ip(&[address, format!("route add {clients} dev eth0")]).unwrap();
        }
    }
}

/// `lb` on a backend, with pins of its own.
pub fn lb_on(world: &World, index: u8, arguments: &[&str]) -> Command {
    let mut command = world.backends[usize::from(index)].command(lb_program());
    command.env("LB_PIN_DIR", pins(world, index)).env("NO_COLOR", "1").args(arguments);
    command
}

/// Where the backend's `lb` keeps its pins.
pub fn pins(world: &World, index: u8) -> PathBuf {
    world.pins().join(&world.backend_names()[usize::from(index)])
}

/// `lb decap` on a backend, for both service addresses; ended with the test.
pub struct Decap<'w> {
    world: &'w World,
    index: u8,
    pub process: Process,
}

impl<'w> Decap<'w> {
    /// Strips what comes from `balancers`.
    pub fn start(world: &'w World, index: u8, balancers: &[&str]) -> Self {
        let mut command = lb_on(world, index, &["decap", "--iface", "eth0"]);
        for family in Family::BOTH {
            command.args(["--vip", &family.service().to_string()]);
        }
        for balancer in balancers {
            command.args(["--from", balancer]);
        }
        let log = world.folder().join(format!("decap{index}.log"));
        let process = Process::start("lb decap", &mut command, &log).unwrap();
        let decap = Self { world, index, process };
        process::until("lb decap strips", PATIENCE, || {
            let status = decap.status();
            anyhow::ensure!(status["mode"] == "native", "{status}; its log:\n{}", decap.process.log_tail());
            Ok(())
        })
        .unwrap();
        decap
    }

    /// One on every backend.
    pub fn on_all(world: &'w World, balancers: &[&str]) -> Vec<Self> {
        (0..world.backends.len() as u8).map(|index| Self::start(world, index, balancers)).collect()
    }

    /// What `lb decap status` says of the interface; nothing where it is not switched on.
    pub fn status(&self) -> Value {
        let text = shell::output(&mut lb_on(self.world, self.index, &["decap", "status", "-o", "json"])).unwrap();
        let status: Value = serde_json::from_str(&text).unwrap();
        status["interfaces"][0].clone()
    }

    /// Packets that were stripped for a service's address.
    pub fn stripped(&self, family: Family) -> u64 {
        let status = self.status();
        let vips = status["vips"].as_array().unwrap();
        let vip = vips.iter().find(|vip| vip["address"] == family.service().to_string()).unwrap();
        vip["stripped"]["packets"].as_u64().unwrap()
    }

    /// Packets with this outcome.
    pub fn counted(&self, outcome: &str) -> u64 {
        let status = self.status();
        let outcomes = status["outcomes"].as_array().unwrap();
        let found = outcomes.iter().find(|found| found["outcome"] == outcome);
        found.unwrap_or_else(|| panic!("no {outcome} in {status}"))["packets"].as_u64().unwrap()
    }
}
