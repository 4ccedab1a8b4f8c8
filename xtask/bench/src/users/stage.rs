//! One world for all balancers: a client, a host that balances, one backend with nginx; and a wire from
//! the client to the backends' side, for no balancer at all and for answers past one.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::programs::{XdpMode, xdp::XdpLinkId};
use lb_common::bench::{CrossHop, names};
use lb_userspace::dataplane::kernel::ifindex;
use xtask::{
    shell,
    world::{
        Family, Namespace, Process, Topology, World, process,
        servers::{WEB_PORT, Web},
    },
};

use super::{
    balancers::Past,
    load::{Kind, Load},
};
use crate::packets::{Capacity, Object};

/// More addresses of services, where the first one's port is taken by another mode.
pub const IPIP: &str = "10.71.1.101";
pub const GUE: &str = "10.71.1.102";
pub const GRE: &str = "10.71.1.103";
/// The file for loads with large answers.
pub const FILE_BYTES: usize = 8 << 20;

pub struct Stage {
    pub world: World,
    pub object: Object,
    pub web: Process,
    /// `lb`.
    pub program: PathBuf,
    /// What the backend's end of the wire runs.
    far_end: Option<(&'static str, XdpLinkId)>,
    /// The program of [`Self::cross`] on both interfaces of the balancer's host.
    crossing: Vec<XdpLinkId>,
}

/// The interface that leads the client past the balancer.
pub const PAST: &str = "past";

impl Stage {
    /// # Errors
    /// The world cannot be made, or nginx does not start.
    pub fn new(program: &Path) -> Result<Self> {
        let world = World::new(Topology::TwoArm, 1)?;
        let backend = &world.backends[0];
        world.client.ip(&[
            format!("link add {PAST} type veth peer name {PAST} netns {}", world.switch.name()),
            format!("link set {PAST} up"),
            format!("address add 10.71.2.2/24 dev {PAST}"),
        ])?;
        world.switch.ip(&[format!("link set {PAST} up"), format!("link set {PAST} master br0")])?;
        for host in [&world.client, &world.switch] {
            host.output("ethtool", &["-K", PAST, "tx", "off", "gro", "on"])?;
        }
        for host in [&world.client, &world.lb, backend] {
            for interface in ["all", "default", "eth0"] {
                host.set_sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")?;
            }
            host.set_sysctl("net.ipv4.ip_local_port_range", "1024 60999")?;
        }
        world.client.set_sysctl(&format!("net.ipv4.conf.{PAST}.rp_filter"), "0")?;
        world.lb.set_sysctl("net.ipv4.ip_forward", "1")?;
        backend.set_sysctl("net.ipv4.conf.all.arp_ignore", "1")?;
        backend.set_sysctl("net.ipv4.conf.all.arp_announce", "2")?;
        for address in [Family::V4.service().to_string(), IPIP.to_owned(), GUE.to_owned(), GRE.to_owned()] {
            backend.ip(&[format!("address add {address}/32 dev lo")])?;
        }
        // The sink takes everything, questions for link-layer addresses too.
        let (backend_address, mac) = (Family::V4.backend(0), mac_of(backend, "eth0")?);
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        world.lb.ip(&[format!("neigh replace {backend_address} lladdr {mac} dev eth1 nud permanent")])?;
        let web = web(&world)?;
        let object = Object::load(Capacity::flows(64, 64))?;
        Ok(Self { world, object, web, program: program.to_owned(), far_end: None, crossing: Vec::new() })
    }

    /// Where the backend answers, without a balancer.
    pub const fn direct() -> SocketAddr {
        Family::V4.backend_port(0, WEB_PORT)
    }

    /// Puts a program on the backend's end of the wire, in place of the one before.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_far_end(&mut self, program: &'static str) -> Result<()> {
        if let Some((name, link)) = self.far_end.take() {
            self.object.xdp(name)?.detach(link).with_context(|| format!("taking {name} off"))?;
        }
        let xdp = self.object.xdp(program)?;
        let attached = self.world.backends[0].enter(|| xdp.attach("eth0", XdpMode::Driver));
        self.far_end = Some((program, attached.with_context(|| format!("attaching {program}"))?));
        Ok(())
    }

    /// Which way questions to the backend's address, and its answers, go from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn lead(&self, past: Past) -> Result<()> {
        let route =
            if past == Past::None { format!("via {}", Family::V4.lb_backend_side()) } else { "dev eth0".to_owned() };
        self.world.backends[0].ip(&[format!("route replace 10.71.1.0/24 {route}")])?;
        let route = if past == Past::None {
            format!("via {} src {}", Family::V4.lb_client_side(), Family::V4.client())
        } else {
            format!("dev {PAST}")
        };
        self.world.client.ip(&[format!("route replace {}/32 {route}", Family::V4.backend(0))])
    }

    /// Puts a program on the balancer's host that sends every IPv4 packet out of the other interface.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn cross(&mut self) -> Result<()> {
        let (client, lb, backend) = (&self.world.client, &self.world.lb, &self.world.backends[0]);
        for (from, to, receiver) in [("eth0", "eth1", backend), ("eth1", "eth0", client)] {
            let (from, out_of) = lb.enter(|| (ifindex(from), ifindex(to)));
            let hop = CrossHop { ifindex: out_of?, source: mac_of(lb, to)?, destination: mac_of(receiver, "eth0")? };
            self.object.write_hash(names::CROSS, from?, hop)?;
        }
        let xdp = self.object.xdp("floor_cross")?;
        for interface in ["eth0", "eth1"] {
            self.crossing.push(lb.enter(|| xdp.attach(interface, XdpMode::Driver)).context("attaching floor_cross")?);
        }
        Ok(())
    }

    /// Takes off what [`Self::cross`] has put there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn uncross(&mut self) -> Result<()> {
        let xdp = self.object.xdp("floor_cross")?;
        self.crossing.drain(..).try_for_each(|link| xdp.detach(link).context("taking floor_cross off"))
    }

    /// Waits until requests are answered there.
    ///
    /// # Errors
    /// Not in time.
    pub fn wait_for(&self, target: SocketAddr) -> Result<()> {
        let load = Load { target, path: "/", kind: Kind::Connections, parallel: 1, count: 1 };
        process::until(&format!("{target} answers"), Duration::from_secs(15), || {
            let outcome = self.world.client.enter(|| load.run())?;
            anyhow::ensure!(outcome.answered == 1, "no answer");
            Ok(())
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

/// nginx on the backend: small and large answers.
fn web(world: &World) -> Result<Process> {
    shell::find("nginx").context("there is no nginx: `cargo xtask bench` installs it")?;
    let web = Web::start(world, 0, &std::env::current_exe()?)?;
    fs::write(web.files().join("large"), vec![b'x'; FILE_BYTES])?;
    Ok(web.into_process())
}

/// An IPv4 address of the world.
pub fn service() -> IpAddr {
    Family::V4.service()
}

/// The link-layer address of a host's interface.
///
/// # Errors
/// There is no such interface.
pub fn mac_of(host: &Namespace, interface: &str) -> Result<[u8; 6]> {
    // Not by sysfs, which shows the namespace in which it was mounted.
    let text = host.output("ip", &["-json", "link", "show", "dev", interface])?;
    let links: serde_json::Value = serde_json::from_str(&text).context("reading what ip says")?;
    let address = links[0]["address"].as_str().context("the interface has no address")?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(address.split(':')) {
        *byte = u8::from_str_radix(digits, 16).context("a link-layer address")?;
    }
    Ok(mac)
}
