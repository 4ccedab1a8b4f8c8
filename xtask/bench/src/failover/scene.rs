//! One world for all balancers: a client with sixteen addresses, the balancer and four backends with
//! nginx, all on one wire.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result};
use xtask::{
    shell,
    world::{Family, Topology, World, dsr, process, servers::Web},
};

pub const BACKENDS: u8 = 4;
/// The backend that is lost, from 0.
pub const LOST: u8 = 1;
/// Addresses of clients: where several speak, it is not one client's network that is broken.
const CLIENTS: u8 = 16;

pub struct Scene {
    /// Before the world that they live in.
    pub webs: Vec<Web>,
    pub world: World,
}

impl Scene {
    /// # Errors
    /// The world cannot be made, or nginx does not start.
    pub fn new() -> Result<Self> {
        shell::find("nginx").context("there is no nginx: `cargo xtask bench` installs it")?;
        let world = World::new(Topology::OneArm, BACKENDS)?;
        for client in clients() {
            world.client.ip(&[format!("address add {client}/24 dev eth0")])?;
        }
        for host in [&world.client, &world.lb] {
            host.set_sysctl("net.ipv4.conf.all.rp_filter", "0")?;
            host.set_sysctl("net.ipv4.conf.eth0.rp_filter", "0")?;
        }
        world.lb.set_sysctl("net.ipv4.ip_forward", "1")?;
        // Where it forwards for others, it need not tell them of the shorter way.
        world.lb.set_sysctl("net.ipv4.conf.all.send_redirects", "0")?;
        world.lb.set_sysctl("net.ipv4.conf.eth0.send_redirects", "0")?;
        dsr::prepare_backends(&world)?;
        let webs = Web::on_all(&world, &std::env::current_exe()?)?;
        Ok(Self { webs, world })
    }

    /// Whether backends answer clients past the balancer.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn answer_past_the_balancer(&self, past: bool) -> Result<()> {
        let way = if past { "dev eth0".to_owned() } else { format!("via {}", Family::V4.lb_backend_side()) };
        self.world.backends.iter().try_for_each(|backend| backend.ip(&[format!("route replace 10.71.1.0/24 {way}")]))
    }

    /// Waits until somebody listens there.
    ///
    /// # Errors
    /// Nobody in time.
    pub fn wait_for(&self, target: SocketAddr) -> Result<()> {
        process::until(&format!("{target} answers"), Duration::from_secs(15), || {
            let connect = || TcpStream::connect_timeout(&target, Duration::from_millis(200)).map(drop);
            Ok(self.world.client.enter(connect)?)
        })
    }

    /// A file of the world's folder with this content.
    ///
    /// # Errors
    /// The file system's.
    pub fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.world.folder().join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// Addresses that clients come from, in turn.
pub fn clients() -> Vec<IpAddr> {
    (0..CLIENTS).map(|number| IpAddr::from([10, 71, 1, 20 + number])).collect()
}
