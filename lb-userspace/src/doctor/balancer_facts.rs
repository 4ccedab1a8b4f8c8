//! What this host is like as a balancer. Looks only: nothing is loaded, sent or changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use lb_common::abi::{BackendState, Mode};

use crate::{
    api::{
        client,
        client::ClientError,
        model::{ServiceList, ServiceView, Status},
    },
    config::Config,
    dataplane::{
        Dataplane as _,
        kernel::{self, AttachedMode, KernelDataplane, Pins, Silence},
    },
    host::{self, BPFFS, HostError, Link, Netlink, Queues, Route, Sysctl, XdpAbility},
};

/// Where to look.
pub struct BalancerQuestion<'a> {
    pub pin_dir: &'a Path,
    pub state_dir: &'a Path,
    pub socket: &'a Path,
    /// A configuration; `None`: what runs.
    pub config: Option<&'a Config>,
    /// Interfaces; none: those of the configuration, or those with the program.
    pub interfaces: Vec<String>,
}

#[derive(Debug)]
pub struct BalancerFacts {
    /// As `uname -r` says.
    pub kernel: String,
    /// The kernel tells its types.
    pub btf: bool,
    /// Rights that this process lacks.
    pub missing_rights: Vec<&'static str>,
    pub bpffs: bool,
    /// Why pins cannot be made there.
    pub pins_refused: Option<String>,
    /// The word that holds, of `none`, `integrity` and `confidentiality`; `None`: not told.
    pub lockdown: Option<String>,
    pub sysctl: Sysctl,
    pub cpus: usize,
    /// A program that spreads interrupts over the CPUs runs.
    pub interrupts_balanced: bool,
    /// Files that a process may have open.
    pub open_files: Option<u64>,
    /// `None`: not told.
    pub clock_right: Option<bool>,
    pub state_dir: PathBuf,
    /// Why it cannot be written to.
    pub state_dir_refused: Option<String>,
    /// Bytes that this user may still write there; `None`: not told.
    pub state_dir_free: Option<u64>,
    pub interfaces: Vec<InterfaceFacts>,
    pub backends: Vec<BackendFacts>,
    pub silence: Option<Silence>,
    pub agent: AgentFacts,
    /// As the agent tells them; none where it does not answer.
    pub services: Vec<ServiceView>,
}

#[derive(Debug)]
pub struct InterfaceFacts {
    pub name: String,
    /// `None`: there is none of this name.
    pub link: Option<Link>,
    /// Programs on it.
    pub programs: Vec<(AttachedMode, u32)>,
    /// The one that is pinned for it.
    pub own: Option<u32>,
    pub joins_segments: bool,
    pub strips_tags: bool,
    pub queues: Option<Queues>,
    /// What its driver can do; `None`: the kernel does not tell (before Linux 6.3).
    pub ability: Option<XdpAbility>,
}

#[derive(Clone, Debug)]
pub struct BackendFacts {
    pub address: SocketAddr,
    pub mode: Mode,
    pub route: Option<Route>,
    /// Whether the next hop's link-layer address is known; `None`: nobody has asked for it.
    pub neighbour: Option<bool>,
}

#[derive(Debug)]
pub enum AgentFacts {
    Answers(Box<Status>),
    /// Why not.
    Silent(String),
    /// This process may not ask it.
    NotAllowed,
}

impl BalancerFacts {
    /// Asks the kernel, and the agent where there is one.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn gather(question: &BalancerQuestion<'_>) -> Result<Self, HostError> {
        let netlink = Netlink::open()?;
        let missing = host::check_rights().err().map(|missing| missing.rights).unwrap_or_default();
        Ok(Self {
            kernel: line("/proc/sys/kernel/osrelease").unwrap_or_default(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            missing_rights: missing.into_iter().map(host::Right::name).collect(),
            bpffs: host::is_bpffs(Path::new(BPFFS)).unwrap_or(false),
            pins_refused: refused(question.pin_dir),
            lockdown: line("/sys/kernel/security/lockdown").and_then(|text| chosen(&text)),
            sysctl: Sysctl::default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            interrupts_balanced: runs("irqbalance"),
            open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
            clock_right: clock_right(),
            state_dir: question.state_dir.to_owned(),
            state_dir_refused: refused(question.state_dir),
            state_dir_free: free(question.state_dir),
            interfaces: interfaces(&netlink, question).await?,
            backends: backends(&netlink, question).await?,
            silence: kernel::silence(question.pin_dir).ok(),
            agent: agent(question.socket).await,
            services: services(question.socket).await,
        })
    }
}

/// Whether a process of that name is there.
fn runs(name: &str) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else { return false };
    entries.flatten().any(|entry| fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name))
}

fn line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// `none [integrity] confidentiality`: the word in brackets.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// adjtimex(2): the kernel knows whether anybody keeps its clock right.
fn clock_right() -> Option<bool> {
    // SAFETY: all zero is a request to read.
    let mut time: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for writing.
    let state = unsafe { libc::adjtimex(&raw mut time) };
    (state >= 0).then_some(time.status & libc::STA_UNSYNC == 0)
}

/// Bytes free in the file system of a directory, or of where it is to be made.
fn free(directory: &Path) -> Option<u64> {
    let existing = directory.ancestors().find(|directory| directory.exists())?;
    let told = rustix::fs::statvfs(existing).ok()?;
    Some(told.f_bavail.saturating_mul(told.f_frsize))
}

/// Why files cannot be made there; `None`: they can, or could once it is made.
fn refused(directory: &Path) -> Option<String> {
    let existing = directory.ancestors().find(|directory| directory.exists())?;
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)
        .err()
        .map(|error| std::io::Error::from(error).to_string())
}

async fn interfaces(netlink: &Netlink, question: &BalancerQuestion<'_>) -> Result<Vec<InterfaceFacts>, HostError> {
    let attached = kernel::attachments(&Pins::new(question.pin_dir)).unwrap_or_default();
    let own: BTreeMap<&str, u32> = attached.iter().map(|a| (a.interface.as_str(), a.program_id)).collect();
    let mut names = question.interfaces.clone();
    if names.is_empty() {
        names = match question.config {
            Some(config) => config.interfaces.clone(),
            None => attached.iter().map(|attachment| attachment.interface.clone()).collect(),
        };
    }
    let links = netlink.links().await?;
    let facts = names.into_iter().map(|name| {
        let link = links.iter().find(|link| link.name == name).cloned();
        let programs = link.as_ref().and_then(|link| kernel::attached(link.ifindex).ok()).unwrap_or_default();
        InterfaceFacts {
            programs,
            own: own.get(name.as_str()).copied(),
            joins_segments: host::joins_segments(&name).unwrap_or(false),
            strips_tags: host::strips_vlan_tags(&name).unwrap_or(false),
            queues: host::queues(&name).ok().flatten(),
            ability: link.as_ref().and_then(|link| host::xdp_ability(link.ifindex)),
            link,
            name,
        }
    });
    Ok(facts.collect())
}

async fn backends(netlink: &Netlink, question: &BalancerQuestion<'_>) -> Result<Vec<BackendFacts>, HostError> {
    let known: BTreeSet<(SocketAddr, u8)> = match question.config {
        Some(config) => configured(config),
        None => published(question.pin_dir),
    };
    let neighbours = netlink.neighbours().await?;
    let mut facts = Vec::new();
    for (address, mode) in known {
        let Some(mode) = Mode::from_number(mode) else { continue };
        let route = netlink.route_to(address.ip(), &BTreeSet::new()).await?;
        let neighbour = route.and_then(|route| neighbours.get(&(route.ifindex, route.next_hop)).copied());
        facts.push(BackendFacts { address, mode, route, neighbour });
    }
    Ok(facts)
}

fn configured(config: &Config) -> BTreeSet<(SocketAddr, u8)> {
    let of = |service: &crate::config::Service| {
        let mode = service.mode as u8;
        service.backends.iter().map(move |backend| (backend.address, mode)).collect::<Vec<_>>()
    };
    config.services.iter().flat_map(of).collect()
}

/// What the maps hold; nothing where there are none.
fn published(pin_dir: &Path) -> BTreeSet<(SocketAddr, u8)> {
    let Ok(tables) = KernelDataplane::open(pin_dir).and_then(|mut maps| maps.read()) else { return BTreeSet::new() };
    let used = tables.backends.values().filter(|backend| backend.state != BackendState::Empty as u8);
    let modes = &tables.service_info;
    used.filter_map(|backend| {
        let address = SocketAddr::new(backend.address.into(), backend.port.get());
        Some((address, modes.get(&backend.service_id)?.mode))
    })
    .collect()
}

async fn agent(socket: &Path) -> AgentFacts {
    match client::get::<Status>(socket, "/v1/status").await {
        Ok(status) => AgentFacts::Answers(Box::new(status)),
        Err(ClientError::NotAllowed(_)) => AgentFacts::NotAllowed,
        Err(error) => AgentFacts::Silent(error.to_string()),
    }
}

async fn services(socket: &Path) -> Vec<ServiceView> {
    let told = client::get::<ServiceList>(socket, "/v1/services").await;
    told.map_or_else(|_| Vec::new(), |list| list.services)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chosen_word_stands_in_brackets() {
        assert_eq!(chosen("none [integrity] confidentiality").as_deref(), Some("integrity"));
        assert_eq!(chosen("[none] integrity").as_deref(), Some("none"));
        assert_eq!(chosen(""), None);
    }
}
