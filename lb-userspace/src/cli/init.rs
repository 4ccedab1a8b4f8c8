//! `lb config init`: a configuration to begin with.

use std::{collections::BTreeSet, net::SocketAddr};

use super::{Exit, Failure, output::Printer, reads::block_on};
use crate::{
    config::{InitLink, InitWish, init as first_config},
    host::{HostError, Netlink},
};

pub fn init(
    printer: &Printer,
    interfaces: Vec<String>,
    listen: Option<SocketAddr>,
    backends: Vec<SocketAddr>,
) -> Result<Exit, Failure> {
    let links = block_on(links())?.map_err(|e| {
        Failure::new(
            "cannot tell what this machine has",
            e.to_string(),
            "write the file by hand: docs/configuration.md",
        )
    })?;
    if let Some(unknown) = interfaces.iter().find(|name| !links.iter().any(|link| link.name == **name)) {
        let here: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
        let why = format!("this machine has: {}", here.join(", "));
        return Err(Failure::new(format!("there is no interface `{unknown}`"), why, "lb config init --iface NAME"));
    }
    printer.text(&first_config(&links, &InitWish { interfaces, listen, backends }))?;
    Ok(Exit::Done)
}

async fn links() -> Result<Vec<InitLink>, HostError> {
    let netlink = Netlink::open()?;
    let addresses = netlink.addresses().await?;
    let mut default = Vec::new();
    // Of documentation, so never on a link of its own; nothing is sent there.
    for far in ["198.51.100.1", "2001:db8:ffff::1"].into_iter().filter_map(|far| far.parse().ok()) {
        let route = netlink.route_to(far, &BTreeSet::new()).await?;
        default.extend(route.filter(|route| route.gateway.is_some()).map(|route| route.ifindex));
    }
    let links = netlink.links().await?.into_iter().map(|link| InitLink {
        addresses: addresses
            .iter()
            .filter(|address| address.ifindex == link.ifindex && !is_link_local(address.address))
            .map(|address| format!("{}/{}", address.address, address.prefix_len))
            .collect(),
        default_route: default.contains(&link.ifindex),
        name: link.name,
        kind: link.kind,
        mtu: link.mtu,
        up: link.up,
    });
    Ok(links.collect())
}

fn is_link_local(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
