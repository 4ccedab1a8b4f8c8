//! A small world for tests: two hosts, each a network namespace, joined by two links. Needs root.
//!
//! ```text
//! host: up.0  10.77.0.1/24 fd77::1/64 ---- peer: peer0 10.77.0.2/24 fd77::2/64
//!       wan0                          ----       wan1
//! ```

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// Interfaces of the host; one with a dot, as VLAN interfaces have.
pub const UP: &str = "up.0";
pub const WAN: &str = "wan0";
/// Their other ends.
pub const PEER: &str = "peer0";
pub const WAN_PEER: &str = "wan1";

/// Removes its namespaces, and with them everything inside, when dropped.
pub struct World {
    pub host: Namespace,
    pub peer: Namespace,
}

impl World {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces and needs root: run it as `sudo -E cargo test`"
        );
        let world = Self { host: Namespace::new("h"), peer: Namespace::new("p") };
        for (here, there) in [(UP, PEER), (WAN, WAN_PEER)] {
            let peer = &world.peer.name;
            world.host.ip(&["link", "add", here, "type", "veth", "peer", "name", there, "netns", peer]);
            world.host.ip(&["link", "set", here, "up"]);
            world.peer.ip(&["link", "set", there, "up"]);
        }
        for namespace in [&world.host, &world.peer] {
            namespace.ip(&["link", "set", "lo", "up"]);
        }
        world.host.ip(&["addr", "add", "10.77.0.1/24", "dev", UP]);
        world.peer.ip(&["addr", "add", "10.77.0.2/24", "dev", PEER]);
        world.host.ip(&["addr", "add", "fd77::1/64", "dev", UP, "nodad"]);
        world.peer.ip(&["addr", "add", "fd77::2/64", "dev", PEER, "nodad"]);
        world
    }
}

pub struct Namespace {
    name: String,
}

impl Namespace {
    fn new(role: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("lbt-{}-{}-{role}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        run(&["netns", "add", &name]);
        Self { name }
    }

    /// Runs `ip` with these arguments in the namespace.
    pub fn ip(&self, arguments: &[&str]) -> String {
        run(&[&["-n", &self.name], arguments].concat())
    }

    /// The same, with the answer parsed from JSON.
    pub fn ip_json(&self, arguments: &[&str]) -> Value {
        let text = run(&[&["-j", "-n", &self.name], arguments].concat());
        if text.trim().is_empty() { Value::Array(Vec::new()) } else { serde_json::from_str(&text).unwrap() }
    }

    /// The entry of `ip addr` for this address, if any.
    pub fn address(&self, address: &str) -> Option<Value> {
        let links = self.ip_json(&["addr", "show"]);
        let infos = links.as_array().unwrap().iter().flat_map(|link| link["addr_info"].as_array().unwrap().clone());
        infos.into_iter().find(|info| info["local"] == address)
    }

    /// Runs `work` on a thread of its own in the namespace, within a tokio runtime of its own.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().unwrap();
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) -> io::Result<()> {
        let namespace = File::open(format!("/var/run/netns/{}", self.name))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(())
    }

    /// A value under `/proc/sys` as the namespace sees it.
    pub fn sysctl(&self, setting: &str) -> String {
        self.run(async || std::fs::read_to_string(format!("/proc/sys/{setting}")).unwrap().trim_end().to_owned())
    }

    pub fn set_sysctl(&self, setting: &str, value: &str) {
        self.run(async || std::fs::write(format!("/proc/sys/{setting}"), value).unwrap());
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "del", &self.name]).status();
        if !removed.is_ok_and(|status| status.success()) {
            eprintln!("cannot remove the network namespace {}: remove it with `ip netns del`", self.name);
        }
    }
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().expect("`ip` of iproute2 is installed");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {words}", arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}
