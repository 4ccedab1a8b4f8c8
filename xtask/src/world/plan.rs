//! Addresses and wires of a world. Two subnets of each family, also where both share one wire:
//!
//! | who | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | client | 10.71.1.2/24 | fd71:1::2/64 |
//! | balancer | 10.71.1.1, 10.71.2.1 | fd71:1::1, fd71:2::1 |
//! | service | 10.71.1.100 | fd71:1::100 |
//! | backend N (from 1) | 10.71.2.10+N | fd71:2::10+N (hexadecimal) |

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use anyhow::Result;

use super::{Namespace, World, pass};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// Client and backends behind the same interface of the balancer.
    OneArm,
    /// One interface towards the client, one towards the backends.
    TwoArm,
}

impl Topology {
    pub const BOTH: [Self; 2] = [Self::OneArm, Self::TwoArm];

    /// Interfaces of the balancer, the one towards the client first.
    pub const fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::OneArm => &["eth0"],
            Self::TwoArm => &["eth0", "eth1"],
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    pub const fn client(self) -> IpAddr {
        self.address(1, 2, 2)
    }

    /// The balancer's own address towards the client.
    pub const fn lb_client_side(self) -> IpAddr {
        self.address(1, 1, 1)
    }

    /// The balancer's own address towards the backends, and their gateway.
    pub const fn lb_backend_side(self) -> IpAddr {
        self.address(2, 1, 1)
    }

    /// The service's address; on no interface until someone puts it there.
    pub const fn service(self) -> IpAddr {
        self.address(1, 100, 0x100)
    }

    /// Counted from 0.
    pub const fn backend(self, index: u8) -> IpAddr {
        self.address(2, 11 + index, 0x11 + index as u16)
    }

    pub const fn service_port(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.service(), port)
    }

    pub const fn backend_port(self, index: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.backend(index), port)
    }

    const fn prefix(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    const fn address(self, subnet: u8, v4: u8, v6: u16) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(10, 71, subnet, v4)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xfd71, subnet as u16, 0, 0, 0, 0, 0, v6)),
        }
    }
}

/// `web1` is the first, with index 0.
pub fn backend_name(index: u8) -> String {
    format!("web{}", index + 1)
}

/// Links the hosts and gives them addresses and routes. What comes back has to live as long as the
/// world.
pub(super) fn wire(world: &World) -> Result<Vec<OwnedFd>> {
    for host in [&world.client, &world.lb, &world.switch].into_iter().chain(&world.backends) {
        // Addresses are ours alone: no second of waiting for duplicates, no router advertisements.
        for key in ["accept_dad", "dad_transmits", "accept_ra"] {
            host.set_sysctl(&format!("net.ipv6.conf.default.{key}"), "0")?;
        }
    }
    world.switch.ip(&["link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set br0 up"])?;
    for (name, backend) in world.backend_names().iter().zip(&world.backends) {
        plug(world, backend, "eth0", name)?;
    }
    let lb_backend_side = match world.topology {
        Topology::OneArm => {
            plug(world, &world.client, "eth0", "client")?;
            plug(world, &world.lb, "eth0", "lb")?;
            "eth0"
        }
        Topology::TwoArm => {
            cable(&world.lb, "eth0", &world.client, "eth0")?;
            plug(world, &world.lb, "eth1", "lb")?;
            "eth1"
        }
    };
    for family in Family::BOTH {
        address(&world.client, "eth0", family, family.client())?;
        address(&world.lb, "eth0", family, family.lb_client_side())?;
        address(&world.lb, lb_backend_side, family, family.lb_backend_side())?;
        gateway(&world.client, family.lb_client_side())?;
        for (index, backend) in (0..).zip(&world.backends) {
            address(backend, "eth0", family, family.backend(index))?;
            gateway(backend, family.lb_backend_side())?;
        }
    }
    let mut far_ends = vec![pass::attach(&world.switch, "lb")?];
    if world.topology == Topology::TwoArm {
        far_ends.push(pass::attach(&world.client, "eth0")?);
    }
    Ok(far_ends)
}

fn plug(world: &World, host: &Namespace, interface: &str, port: &str) -> Result<()> {
    cable(host, interface, &world.switch, port)?;
    world.switch.ip(&[format!("link set {port} master br0")])
}

/// A veth pair. Both ends compute checksums before they send (`tx off`), because a program that
/// sends a packet on loses the mark that it has none yet; both receive through NAPI (`gro on`),
/// because redirected frames arrive only there.
fn cable(a: &Namespace, a_name: &str, b: &Namespace, b_name: &str) -> Result<()> {
    a.ip(&[format!("link add {a_name} type veth peer name {b_name} netns {}", b.name())])?;
    let ends = [(a, a_name), (b, b_name)];
    for (host, name) in ends {
        host.ip(&[format!("link set {name} up")])?;
    }
    // Now that both are up: set earlier, an end does not learn that its peer can take frames.
    for (host, name) in ends {
        host.output("ethtool", &["-K", name, "tx", "off", "gro", "on"])?;
    }
    Ok(())
}

fn address(host: &Namespace, interface: &str, family: Family, address: IpAddr) -> Result<()> {
    let nodad = if family == Family::V6 { " nodad" } else { "" };
    host.ip(&[format!("address add {address}/{} dev {interface}{nodad}", family.prefix())])
}

fn gateway(host: &Namespace, via: IpAddr) -> Result<()> {
    host.ip(&[format!("route add default via {via}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_as_the_table_says() {
        assert_eq!(Family::V4.service_port(80).to_string(), "10.71.1.100:80");
        assert_eq!(Family::V6.service_port(80).to_string(), "[fd71:1::100]:80");
        assert_eq!(Family::V4.backend(0).to_string(), "10.71.2.11");
        assert_eq!(Family::V6.backend(2).to_string(), "fd71:2::13");
        assert_eq!(backend_name(0), "web1");
    }
}
