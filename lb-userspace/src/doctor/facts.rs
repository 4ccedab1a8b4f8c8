//! What this host is like, as far as checks ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use crate::{
    dataplane::kernel::decap::{self, Stripping},
    host::{HostAddress, HostError, Link, Netlink, Route, Sysctl},
};

/// Stand for clients whose addresses are not known: of networks for benchmarks (RFC 2544, RFC 5180),
/// to which nothing but a default route leads.
const ANY_CLIENTS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, 1))];

#[derive(Debug)]
pub struct Facts {
    pub links: Vec<Link>,
    pub addresses: Vec<HostAddress>,
    /// The way to each client, or to clients of each family; `None`: there is none.
    pub ways: BTreeMap<IpAddr, Option<Route>>,
    pub sysctl: Sysctl,
    /// What `lb decap` strips; why it cannot be read.
    pub stripping: Result<Vec<Stripping>, String>,
    /// UDP ports that somebody has, the kernel's own tunnels among them.
    pub udp_ports: BTreeSet<u16>,
}

impl Facts {
    /// Asks the kernel; `clients`: to whom the way is of interest, none: anybody.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn gather(pin_dir: &Path, clients: &[IpAddr]) -> Result<Self, HostError> {
        let netlink = Netlink::open()?;
        let clients = if clients.is_empty() { &ANY_CLIENTS } else { clients };
        let mut ways = BTreeMap::new();
        for client in clients {
            ways.insert(*client, netlink.route_to(*client, &BTreeSet::new()).await?);
        }
        Ok(Self {
            links: netlink.links().await?,
            addresses: netlink.addresses().await?,
            ways,
            sysctl: Sysctl::default(),
            stripping: decap::read(pin_dir).map_err(|error| format!("{error:#}")),
            udp_ports: udp_ports(),
        })
    }

    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.ifindex == ifindex)
    }

    pub fn link_name(&self, ifindex: u32) -> &str {
        self.link(ifindex).map_or("?", |link| &link.name)
    }

    /// Interfaces on which neighbours ask for addresses.
    pub fn ethernet(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| link.up && !is_quiet(link))
    }

    /// The value that counts of a setting under `net/ipv4/conf`: the greater one of the interface's
    /// and of that for all (Documentation/networking/ip-sysctl.rst). `None`: there is none.
    pub fn ipv4_setting(&self, interface: &str, name: &str) -> Option<u32> {
        let read = |of: &str| {
            let path = Path::new("net/ipv4/conf").join(of).join(name);
            self.sysctl.read(&path).ok().flatten()?.parse::<u32>().ok()
        };
        Some(read("all")?.max(read(interface)?))
    }
}

/// Nobody asks for addresses there: loopback, tunnels, dummies.
pub(super) fn is_quiet(link: &Link) -> bool {
    link.mac.is_none() || link.kind == "dummy"
}

/// Empty where the kernel does not tell.
fn udp_ports() -> BTreeSet<u16> {
    ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| text.lines().filter_map(local_port).collect::<Vec<_>>())
        .collect()
}

/// `  12: 00000000:17C0 00000000:0000 07 ...`: address and port in hexadecimal digits.
fn local_port(line: &str) -> Option<u16> {
    let (_, port) = line.split_whitespace().nth(1)?.split_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_off_the_kernels_list() {
        let line = "  412: 00000000:17C0 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 0 2";
        assert_eq!(local_port(line), Some(6080));
        assert_eq!(local_port("  sl  local_address rem_address   st tx_queue"), None);
    }
}
