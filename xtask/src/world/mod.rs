//! Small worlds of network namespaces: a client, the balancer and its backends as separate hosts on
//! veth, with the real `lb` and real servers in them.
//!
//! ```text
//! two-arm:  client ── lb ── switch ─┬ web1      one-arm:  client ─┐
//!                                   ├ web2                  lb ─ switch ─┬ web1
//!                                   └ web3                               └ web2 ...
//! ```
//!
//! Everything of a world carries its name, `lbw-<pid>-<n>`: namespaces, the folder below
//! `/run/lbw`, the pins. Dropping the world removes it all and ends what was started in it; what a
//! killed run left behind is removed when the next world is made. Namespaces of others are never
//! touched. All of it needs root.

pub mod balancer;
pub mod capture;
pub mod config;
pub mod dsr;
pub mod http;
pub mod namespace;
mod pass;
pub mod plan;
pub mod process;
mod remains;
pub mod servers;

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, bail};

pub use self::{
    balancer::{Balancer, Launch},
    namespace::Namespace,
    plan::{Family, Topology},
    process::Process,
};
use crate::shell;

/// One world. Fields are dropped in this order: first whoever may still use the folder.
pub struct World {
    /// `lbw-<pid>-<n>`.
    pub name: String,
    pub topology: Topology,
    /// Interface `eth0`, the default route through the balancer.
    pub client: Namespace,
    /// Two-arm: `eth0` towards the client, `eth1` towards the backends. One-arm: `eth0`.
    pub lb: Namespace,
    pub backends: Vec<Namespace>,
    /// A bridge, and one port per host on it, named like the host.
    pub switch: Namespace,
    remains: remains::Claim,
    /// Programs on the far ends of the balancer's cables.
    far_ends: Vec<OwnedFd>,
    /// Worlds of one process live one after the other: they share the machine's few cores.
    _turn: MutexGuard<'static, ()>,
}

impl World {
    /// Makes a world with this many backends; links are up and everyone has addresses and routes.
    ///
    /// # Errors
    /// Not root, a tool is missing, or the kernel refused; what was made so far is removed.
    pub fn new(topology: Topology, backends: u8) -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if !shell::is_root() {
            bail!("network namespaces need root: use `cargo xtask run` or `cargo xtask test`, which ask for sudo");
        }
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        remains::sweep();
        let name = format!("lbw-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let claim = remains::Claim::new(&name)?;
        let namespace = |role: &str| Namespace::create(&format!("{name}-{role}"));
        let mut world = Self {
            client: namespace("client")?,
            lb: namespace("lb")?,
            backends: (0..backends).map(|i| namespace(&plan::backend_name(i))).collect::<Result<_>>()?,
            switch: namespace("switch")?,
            name,
            topology,
            remains: claim,
            far_ends: Vec::new(),
            _turn: turn,
        };
        world.far_ends = plan::wire(&world).with_context(|| format!("cannot wire the world {}", world.name))?;
        Ok(world)
    }

    /// A folder that goes with the world: sockets, configuration, state.
    pub fn folder(&self) -> &Path {
        self.remains.folder()
    }

    /// Where the balancer of this world pins its maps.
    pub fn pins(&self) -> PathBuf {
        remains::pins(&self.name)
    }

    /// Interfaces of the balancer, the one towards the client first.
    pub const fn interfaces(&self) -> &'static [&'static str] {
        self.topology.interfaces()
    }

    /// Names of the backends in order: `web1`, `web2`, ...
    pub fn backend_names(&self) -> Vec<String> {
        (0..self.backends.len() as u8).map(plan::backend_name).collect()
    }

    /// Creates a folder within [`Self::folder`].
    ///
    /// # Errors
    /// The file system's.
    pub fn subfolder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder().join(name);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }
}
