//! The balancers that are compared, one at a time.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::Value;
use xtask::{
    build::{self, Profile},
    setup::NGINX_STREAM,
    shell,
    world::{
        Balancer, Family, Launch, Process, balancer,
        config::{Config, Health, Service},
        plan::backend_name,
        servers::WEB_PORT,
    },
};

use super::{
    faults::Fault,
    scene::{BACKENDS, LOST, Scene},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Nat,
    FullNat,
    DsrL2,
    Haproxy,
    HaproxyTuned,
    Nginx,
    NginxTuned,
    Nftables,
}

impl Peer {
    pub const ALL: [Self; 8] = [
        Self::Nat,
        Self::FullNat,
        Self::DsrL2,
        Self::Haproxy,
        Self::HaproxyTuned,
        Self::Nginx,
        Self::NginxTuned,
        Self::Nftables,
    ];
    pub const QUICK: [Self; 4] = [Self::FullNat, Self::HaproxyTuned, Self::NginxTuned, Self::Nftables];

    /// In tables and JSON; ours go by the mode.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::FullNat => "full-nat",
            Self::DsrL2 => "dsr-l2",
            Self::Haproxy => "haproxy",
            Self::HaproxyTuned => "haproxy tuned",
            Self::Nginx => "nginx",
            Self::NginxTuned => "nginx tuned",
            Self::Nftables => "nftables",
        }
    }

    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Nat | Self::FullNat | Self::DsrL2)
    }

    const fn port(self) -> u16 {
        // With direct server return clients ask for the backend's port.
        if matches!(self, Self::DsrL2) { WEB_PORT } else { PORT }
    }
}

/// Of the service, where it may be another one than the backends'.
const PORT: u16 = 9000;
const SERVICE: &str = "failover";
/// Source ports of ours, far more than a run needs.
const PORTS: u16 = 5000;

/// A balancer at work. Dropped, its process ends.
pub struct Running {
    peer: Peer,
    lb: PathBuf,
    process: Option<Process>,
}

/// What ours tells of the failover itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Connections that were sent to another backend.
    pub rescued: u64,
    /// There is a receipt about the lost backend.
    pub receipt: bool,
}

impl Running {
    /// Starts it, as it would be set up against this fault, and waits until it uses all backends.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(scene: &Scene, peer: Peer, fault: Fault) -> Result<Self> {
        scene.answer_past_the_balancer(peer == Peer::DsrL2)?;
        let lb = build::lb(Profile::Dev)?;
        if !peer.is_ours() {
            scene.world.lb.ip(&[format!("address add {}/32 dev eth0", Family::V4.service())])?;
        }
        let process = match peer {
            Peer::Nat | Peer::FullNat | Peer::DsrL2 => Some(ours(scene, peer, fault, &lb)?),
            Peer::Haproxy | Peer::HaproxyTuned => Some(haproxy(scene, peer, fault)?),
            Peer::Nginx | Peer::NginxTuned => Some(nginx(scene, peer)?),
            Peer::Nftables => {
                nftables(scene)?;
                None
            }
        };
        let running = Self { peer, lb, process };
        scene.wait_for(running.target()).with_context(|| running.log())?;
        Ok(running)
    }

    /// What clients ask.
    pub const fn target(&self) -> SocketAddr {
        Family::V4.service_port(self.peer.port())
    }

    /// What ours says of it; `None` for others.
    ///
    /// # Errors
    /// It does not answer.
    pub fn told(&self, scene: &Scene) -> Result<Option<Told>> {
        if !self.peer.is_ours() {
            return Ok(None);
        }
        let ask = |words: &[&str]| -> Result<Value> {
            let text = shell::output(&mut balancer::cli(&scene.world, &self.lb, words))?;
            serde_json::from_str(&text).with_context(|| format!("no JSON from lb {}: {text}", words.join(" ")))
        };
        let stats = ask(&["stats", SERVICE, "-o", "json"])?;
        let rescued =
            stats["services"][0]["rescued"].as_u64().with_context(|| format!("nothing rescued in {stats}"))?;
        let events = ask(&["events", "-o", "json"])?;
        let lost = Family::V4.backend_port(LOST, WEB_PORT).to_string();
        let events = events["events"].as_array().with_context(|| format!("no events in {events}"))?;
        Ok(Some(Told { rescued, receipt: events.iter().any(|event| event["backend"] == lost.as_str()) }))
    }

    /// Ends it, and takes off what it leaves in the kernel.
    ///
    /// # Errors
    /// It cannot be taken off.
    pub fn stop(mut self, scene: &Scene) -> Result<()> {
        if let Some(process) = &mut self.process {
            process.terminate(Duration::from_secs(10))?;
        }
        if self.peer.is_ours() {
            shell::output(&mut balancer::cli(&scene.world, &self.lb, &["detach"]))?;
            let state = scene.world.folder().join("state");
            return std::fs::remove_dir_all(&state).with_context(|| format!("removing {}", state.display()));
        }
        if self.peer == Peer::Nftables {
            scene.world.lb.output("nft", &["flush", "ruleset"])?;
        }
        scene.world.lb.ip(&[format!("address del {}/32 dev eth0", Family::V4.service())])
    }

    fn log(&self) -> String {
        self.process.as_ref().map(|process| format!("{}: {}", process.name(), process.log_tail())).unwrap_or_default()
    }
}

/// Only a question that the server itself answers finds out that it is slow.
fn asks_the_server(fault: Fault) -> bool {
    fault == Fault::Slow
}

fn ours(scene: &Scene, peer: Peer, fault: Fault, lb: &std::path::Path) -> Result<Process> {
    let service = Service {
        name: SERVICE.to_owned(),
        health: if asks_the_server(fault) { Health::Http { path: "/" } } else { Health::Tcp { port: None } },
        ..Service::tcp(Family::V4, peer.name(), peer.port(), (0..BACKENDS).collect(), WEB_PORT)
    };
    let backends = service.backend_addresses();
    let mut config = Config::new(scene.world.topology, vec![service]);
    // The one before may have left connections in TIME-WAIT at the backends, which a balancer that keeps its
    // maps would know of.
    static TURN: AtomicU16 = AtomicU16::new(0);
    let first = PORTS * (1 + TURN.fetch_add(1, Ordering::Relaxed) % 10);
    config.lines.push(format!("source-ports = \"{first}-{}\"", first + PORTS - 1));
    let config = config.render();
    let log = scene.world.folder().join("lb.log");
    let launch = Launch { program: lb, config: &config, arguments: &[], log: &log };
    let mut balancer = Balancer::start(&scene.world, &launch)?;
    balancer.wait_for_backends(SERVICE, &backends, Duration::from_secs(15))?;
    Ok(balancer.into_agent())
}

fn haproxy(scene: &Scene, peer: Peer, fault: Fault) -> Result<Process> {
    let tuned = peer == Peer::HaproxyTuned;
    let (connect, redispatch) = if tuned { ("200ms", "  option redispatch 1\n") } else { ("2s", "") };
    let marked_down = if tuned { " on-marked-down shutdown-sessions" } else { "" };
    let check = if asks_the_server(fault) { "  option httpchk GET /\n" } else { "" };
    let mut config = format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect {connect}\n  timeout client 30s\n  \
         timeout server 30s\n  timeout check 100ms\nfrontend in\n  bind {}:{PORT}\n  default_backend out\n\
         backend out\n  balance roundrobin\n{redispatch}{check}",
        Family::V4.service()
    );
    for index in 0..BACKENDS {
        config += &format!(
            "  server {} {} check inter 100ms fall 2 rise 2{marked_down}\n",
            backend_name(index),
            Family::V4.backend_port(index, WEB_PORT)
        );
    }
    let path = scene.file("haproxy.cfg", &config)?;
    let mut command = scene.world.lb.command("haproxy");
    command.arg("-db").arg("-f").arg(path);
    Process::start("haproxy", &mut command, &scene.world.folder().join("haproxy.log"))
}

fn nginx(scene: &Scene, peer: Peer) -> Result<Process> {
    let folder = scene.world.subfolder("balancer")?;
    let servers: String =
        (0..BACKENDS).map(|index| format!("server {}; ", Family::V4.backend_port(index, WEB_PORT))).collect();
    let tuned = if peer == Peer::NginxTuned { "proxy_connect_timeout 200ms; " } else { "" };
    let config = format!(
        "load_module {NGINX_STREAM};\ndaemon off;\nmaster_process off;\npid {0}/pid;\nerror_log stderr crit;\n\
         worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
         stream {{ upstream out {{ {servers}}} server {{ listen {1}:{PORT} backlog=4096; {tuned}proxy_pass out; }} }}\n",
        folder.display(),
        Family::V4.service()
    );
    let path = scene.file("balancer.conf", &config)?;
    let mut command = scene.world.lb.command("nginx");
    command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(path);
    Process::start("nginx stream", &mut command, &scene.world.folder().join("balancer.log"))
}

/// The kernel's NAT of both addresses, backends in turn: what a list of rules does, without checks.
fn nftables(scene: &Scene) -> Result<()> {
    let backends: Vec<_> = (0..BACKENDS).map(|index| format!("{index} : {}", Family::V4.backend(index))).collect();
    let rules = format!(
        "table ip bench {{\n\
         chain in {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {} tcp dport {PORT} dnat to numgen inc mod {BACKENDS} map {{ {} }}:{WEB_PORT}\n}}\n\
         chain out {{ type nat hook postrouting priority srcnat; ip daddr 10.71.2.0/24 masquerade\n}}\n}}\n",
        Family::V4.service(),
        backends.join(", ")
    );
    let path = scene.file("rules.nft", &rules)?;
    scene.world.lb.output("nft", &["-f", &path.display().to_string()]).map(drop)
}
