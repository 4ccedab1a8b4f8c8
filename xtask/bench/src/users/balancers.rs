//! The balancers that are compared, one at a time.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result};
use lb_common::abi::Mode;
use xtask::{
    setup::NGINX_STREAM,
    shell,
    world::{Process, servers::WEB_PORT},
};

use super::stage::{GRE, GUE, IPIP, Stage, service};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    Direct,
    /// No balancer, through its host: the kernel routes.
    Routed,
    /// The same with a program that only sends every packet out of the other interface: the least that
    /// anything costs that stands in the way of both directions.
    Crossed,
    Ours,
    Nftables,
    Haproxy,
    Nginx,
}

impl Which {
    pub const ALL: [Self; 7] =
        [Self::Direct, Self::Routed, Self::Crossed, Self::Ours, Self::Nftables, Self::Haproxy, Self::Nginx];

    /// Of its doors.
    pub fn names(self) -> Vec<&'static str> {
        match self {
            Self::Direct => vec![DIRECT],
            Self::Routed => vec![ROUTED],
            Self::Crossed => vec![CROSSED],
            Self::Ours => Mode::ALL.iter().map(|mode| mode.name()).collect(),
            Self::Nftables => vec!["nftables"],
            Self::Haproxy => vec!["haproxy"],
            Self::Nginx => vec!["nginx"],
        }
    }

    /// Whether it forwards UDP packet by packet.
    pub const fn forwards_udp(self) -> bool {
        !matches!(self, Self::Haproxy | Self::Nginx)
    }
}

/// What is asked through a balancer: one name and one address each.
#[derive(Clone, Debug)]
pub struct Door {
    pub name: String,
    pub target: SocketAddr,
    /// What does not touch the balancer's host.
    pub past: Past,
}

/// What of the traffic takes the wire past the balancer's host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Past {
    Both,
    Answers,
    /// Also questions to the backend's own address go through the host.
    None,
}

impl Door {
    /// No balancer at all.
    pub fn direct() -> Self {
        Self { name: DIRECT.to_owned(), target: Stage::direct(), past: Past::Both }
    }
}

/// The name of no balancer.
pub const DIRECT: &str = "direct";
const ROUTED: &str = "kernel routes";
const CROSSED: &str = "xdp redirect";

/// A balancer at work. Dropped, its processes end.
pub struct Running {
    pub which: Which,
    pub doors: Vec<Door>,
    pub processes: Vec<Process>,
}

/// Ports of the modes that translate, on the service's first address.
const FULL_NAT_PORT: u16 = 9001;
const NAT_PORT: u16 = 9002;
const OTHER_PORT: u16 = 9003;

impl Running {
    /// Starts it, and waits until every door is open.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(stage: &mut Stage, which: Which) -> Result<Self> {
        let door = |name: &str, target| vec![Door { name: name.to_owned(), target, past: Past::None }];
        let other = |name: &str| door(name, SocketAddr::new(service(), OTHER_PORT));
        let (doors, processes) = match which {
            Which::Direct => (vec![Door::direct()], Vec::new()),
            Which::Routed => (door(ROUTED, Stage::direct()), Vec::new()),
            Which::Crossed => {
                stage.cross()?;
                (door(CROSSED, Stage::direct()), Vec::new())
            }
            Which::Ours => (our_doors(), vec![ours(stage)?]),
            Which::Nftables => {
                nftables(stage)?;
                (other("nftables"), Vec::new())
            }
            Which::Haproxy => (other("haproxy"), vec![haproxy(stage)?]),
            Which::Nginx => (other("nginx"), vec![nginx(stage)?]),
        };
        let running = Self { which, doors, processes };
        for door in &running.doors {
            stage.lead(door.past)?;
            stage.wait_for(door.target).with_context(|| running.logs())?;
        }
        Ok(running)
    }

    /// Ends it, and takes off what it leaves in the kernel.
    ///
    /// # Errors
    /// It cannot be taken off.
    pub fn stop(mut self, stage: &mut Stage) -> Result<()> {
        for process in &mut self.processes {
            process.terminate(Duration::from_secs(10))?;
        }
        match self.which {
            Which::Direct | Which::Routed => Ok(()),
            Which::Crossed => stage.uncross(),
            Which::Ours => {
                let mut detach = stage.world.lb.command(&stage.program);
                shell::output(with_places(&mut detach, stage).arg("detach")).map(drop)
            }
            Which::Nftables => {
                stage.world.lb.output("nft", &["flush", "ruleset"])?;
                give_address(stage, "del")
            }
            Which::Haproxy | Which::Nginx => give_address(stage, "del"),
        }
    }

    /// Processor time is theirs too.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::pid).collect()
    }

    fn logs(&self) -> String {
        self.processes.iter().map(|process| format!("{}: {}", process.name(), process.log_tail())).collect()
    }
}

fn our_doors() -> Vec<Door> {
    let door = |mode: Mode| {
        let past = if Mode::is_one_sided(mode as u8) { Past::Answers } else { Past::None };
        Door { name: mode.name().to_owned(), target: listen(mode), past }
    };
    Mode::ALL.iter().map(|&mode| door(mode)).collect()
}

/// With direct server return clients ask for the backend's port.
fn listen(mode: Mode) -> SocketAddr {
    match mode {
        Mode::FullNat => SocketAddr::new(service(), FULL_NAT_PORT),
        Mode::Nat => SocketAddr::new(service(), NAT_PORT),
        Mode::DsrL2 => SocketAddr::new(service(), WEB_PORT),
        Mode::DsrIpip => SocketAddr::new(IPIP.parse().expect("an address"), WEB_PORT),
        Mode::DsrGue => SocketAddr::new(GUE.parse().expect("an address"), WEB_PORT),
        Mode::DsrGre => SocketAddr::new(GRE.parse().expect("an address"), WEB_PORT),
    }
}

fn ours(stage: &Stage) -> Result<Process> {
    let mut config = String::from("interfaces = [\"eth0\", \"eth1\"]\n");
    for mode in Mode::ALL {
        for protocol in ["tcp", "udp"] {
            config += &format!(
                "[[service]]\nname = \"{0}-{protocol}\"\nlisten = \"{1}\"\nprotocol = \"{protocol}\"\nmode = \"{0}\"\n\
                 scheduler = \"maglev\"\n[service.health]\ntype = \"none\"\n[[service.backend]]\naddress = \"{2}\"\n",
                mode.name(),
                listen(*mode),
                Stage::direct()
            );
        }
    }
    // Room for the flows of UDP loads and of all connections together.
    config += "[limits]\nflows = 524288\nselection-slots = 2097152\n";
    let path = stage.file("lb.toml", &config)?;
    let mut command = stage.world.lb.command(&stage.program);
    with_places(&mut command, stage).args(["run", "--config"]).arg(path);
    Process::start("lb", &mut command, &stage.world.folder().join("lb.log"))
}

fn with_places<'c>(command: &'c mut std::process::Command, stage: &Stage) -> &'c mut std::process::Command {
    command.env("LB_SOCKET", stage.world.folder().join("lb.sock"));
    command.env("LB_PIN_DIR", stage.world.pins());
    command.env("LB_STATE_DIR", stage.world.folder().join("state"))
}

/// Adds or deletes the service's address, which others than ours do not bring along.
fn give_address(stage: &Stage, change: &str) -> Result<()> {
    stage.world.lb.ip(&[format!("address {change} {}/32 dev eth0", service())])
}

/// The kernel's NAT of both addresses: the same work as `full-nat`.
fn nftables(stage: &Stage) -> Result<()> {
    give_address(stage, "add")?;
    let (backend, service) = (Stage::direct(), service());
    let rules = format!(
        "table ip bench {{\n\
         chain in {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {service} tcp dport {OTHER_PORT} dnat to {backend}\n\
         ip daddr {service} udp dport {OTHER_PORT} dnat to {backend}\n}}\n\
         chain out {{ type nat hook postrouting priority srcnat; oifname eth1 masquerade\n}}\n}}\n"
    );
    let path = stage.file("rules.nft", &rules)?;
    stage.world.lb.output("nft", &["-f", &path.display().to_string()])?;
    // As an operator would who serves many short connections.
    stage.world.lb.set_sysctl("net.netfilter.nf_conntrack_tcp_timeout_time_wait", "1")
}

fn haproxy(stage: &Stage) -> Result<Process> {
    give_address(stage, "add")?;
    let config = format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 2s\n  timeout client 30s\n  \
         timeout server 30s\nfrontend in\n  bind {}:{OTHER_PORT}\n  default_backend out\nbackend out\n  \
         server web {}\n",
        service(),
        Stage::direct()
    );
    let path = stage.file("haproxy.cfg", &config)?;
    let mut command = stage.world.lb.command("haproxy");
    command.arg("-db").arg("-f").arg(path);
    Process::start("haproxy", &mut command, &stage.world.folder().join("haproxy.log"))
}

fn nginx(stage: &Stage) -> Result<Process> {
    give_address(stage, "add")?;
    let folder = stage.world.subfolder("balancer")?;
    let config = format!(
        "load_module {NGINX_STREAM};\ndaemon off;\nmaster_process off;\npid {0}/pid;\nerror_log stderr warn;\n\
         worker_rlimit_nofile 16384;\nevents {{ worker_connections 8192; }}\n\
         stream {{ server {{ listen {1}:{OTHER_PORT} backlog=4096; proxy_pass {2}; }} }}\n",
        folder.display(),
        service(),
        Stage::direct()
    );
    let path = stage.file("balancer.conf", &config)?;
    let mut command = stage.world.lb.command("nginx");
    command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(path);
    Process::start("nginx stream", &mut command, &stage.world.folder().join("balancer.log"))
}
