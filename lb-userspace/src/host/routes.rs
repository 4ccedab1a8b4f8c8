//! Which way the kernel would send a packet, and from which address.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::AddressScope,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType, RouteVia},
};
use rtnetlink::RouteMessageBuilder;

use super::{HostAddress, HostError, Netlink, error::to_io};

/// The kernel's way to one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Our address on packets to it. `None`: the host has no address that fits.
    pub source: Option<IpAddr>,
    /// The interface packets leave by.
    pub ifindex: u32,
    /// The router on the way; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// Whose link-layer address a packet needs: the gateway's or the destination's.
    pub next_hop: IpAddr,
    /// The destination is this host itself.
    pub local: bool,
}

impl Route {
    /// Our address on packets to `destination` that go this way, whatever the route itself says: as
    /// [`Netlink::route_to`] chooses it.
    pub fn source_towards(
        &self,
        destination: IpAddr,
        addresses: &[HostAddress],
        excluded: &BTreeSet<IpAddr>,
    ) -> Option<IpAddr> {
        choose_source(self, destination, addresses, excluded)
    }
}

impl Netlink {
    /// The route to `destination` as a new connection would take it. Its source is never one of
    /// `excluded` (the service addresses): where the kernel prefers one of them, another address of
    /// the egress interface is chosen, then of any interface, as the kernel does. `None`: there is no
    /// route.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn route_to(&self, destination: IpAddr, excluded: &BTreeSet<IpAddr>) -> Result<Option<Route>, HostError> {
        let asked = self.handle.route().get(question(destination)).execute().try_next().await;
        let message = match asked.map_err(to_io) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(None),
            Err(error) if is_no_route(error.raw_os_error()) => return Ok(None),
            Err(error) => {
                return Err(HostError::Kernel { what: format!("cannot ask for the route to {destination}"), error });
            }
        };
        let Some(mut route) = answer(&message, destination) else { return Ok(None) };
        if route.source.is_none_or(|source| excluded.contains(&source)) {
            let addresses = self.addresses().await?;
            route.source = choose_source(&route, destination, &addresses, excluded);
        }
        Ok(Some(route))
    }

    /// Our address on packets to `backend`: [`Route::source`] of [`Netlink::route_to`].
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn source_for(&self, backend: IpAddr, excluded: &BTreeSet<IpAddr>) -> Result<Option<IpAddr>, HostError> {
        Ok(self.route_to(backend, excluded).await?.and_then(|route| route.source))
    }

    /// Interfaces over which a router advertisement brought an IPv6 default route.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn advertised_defaults(&self) -> Result<BTreeSet<u32>, HostError> {
        let question = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let routes: Vec<RouteMessage> = self
            .handle
            .route()
            .get(question)
            .execute()
            .try_collect()
            .await
            .map_err(HostError::netlink("cannot list IPv6 routes"))?;
        let advertised = routes
            .iter()
            .filter(|route| route.header.protocol == RouteProtocol::Ra && route.header.destination_prefix_length == 0);
        Ok(advertised.flat_map(egress_interfaces).collect())
    }
}

fn question(destination: IpAddr) -> RouteMessage {
    match destination {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
    }
}

/// No route, or one that rejects: unreachable, prohibit (EACCES), blackhole (EINVAL).
fn is_no_route(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL))
}

fn answer(message: &RouteMessage, destination: IpAddr) -> Option<Route> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let (mut ifindex, mut gateway, mut source) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some((*address).into()),
            RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some((*address).into()),
            RouteAttribute::PrefSource(address) => source = ip(address),
            _ => {}
        }
    }
    let local = message.header.kind == RouteType::Local;
    Some(Route { source, ifindex: ifindex?, gateway, next_hop: gateway.unwrap_or(destination), local })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn egress_interfaces(route: &RouteMessage) -> Vec<u32> {
    let mut interfaces = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interfaces.push(*index),
            RouteAttribute::MultiPath(hops) => interfaces.extend(hops.iter().map(|hop| hop.interface_index)),
            _ => {}
        }
    }
    interfaces
}

/// The best of the host's addresses for packets to `destination`: on the egress interface before
/// others, in the next hop's network before others, then in the kernel's order.
fn choose_source(
    route: &Route,
    destination: IpAddr,
    addresses: &[HostAddress],
    excluded: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    let link_local = is_link_local(destination);
    addresses
        .iter()
        .filter(|own| own.address.is_ipv4() == destination.is_ipv4())
        .filter(|own| own.usable && !own.deprecated && own.scope != AddressScope::Host)
        .filter(|own| destination.is_ipv4() || is_link_local(own.address) == link_local)
        .filter(|own| !excluded.contains(&own.address))
        // An address of link scope means nothing on another link.
        .filter(|own| own.ifindex == route.ifindex || own.scope == AddressScope::Universe)
        .min_by_key(|own| (own.ifindex != route.ifindex, !own.contains(route.next_hop)))
        .map(|own| own.address)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(ifindex: u32, text: &str) -> HostAddress {
        let (address, prefix_len) = text.split_once('/').unwrap();
        let address: IpAddr = address.parse().unwrap();
        HostAddress {
            ifindex,
            address,
            prefix_len: prefix_len.parse().unwrap(),
            scope: if is_link_local(address) { AddressScope::Link } else { AddressScope::Universe },
            usable: true,
            deprecated: false,
        }
    }

    fn chosen(next_hop: &str, destination: &str, addresses: &[HostAddress], excluded: &[&str]) -> Option<String> {
        let route =
            Route { source: None, ifindex: 2, gateway: None, next_hop: next_hop.parse().unwrap(), local: false };
        let excluded = excluded.iter().map(|ip| ip.parse().unwrap()).collect();
        choose_source(&route, destination.parse().unwrap(), addresses, &excluded).map(|ip| ip.to_string())
    }

    #[test]
    fn an_excluded_address_gives_way_to_the_next_one_of_the_interface() {
        let addresses = [own(2, "10.0.0.1/24"), own(2, "10.0.0.2/24")];
        assert_eq!(chosen("10.0.0.9", "10.0.0.9", &addresses, &["10.0.0.1"]).as_deref(), Some("10.0.0.2"));
        assert_eq!(chosen("10.0.0.9", "10.0.0.9", &addresses, &["10.0.0.1", "10.0.0.2"]), None);
    }

    #[test]
    fn the_next_hops_network_wins_over_the_order_of_addresses() {
        let addresses = [own(2, "192.0.2.1/24"), own(2, "10.0.0.2/24")];
        assert_eq!(chosen("10.0.0.254", "198.51.100.7", &addresses, &[]).as_deref(), Some("10.0.0.2"));
    }

    #[test]
    fn the_egress_interface_wins_over_others_but_others_will_do() {
        let other = own(3, "10.0.0.3/24");
        let addresses = [other.clone(), own(2, "192.0.2.1/24")];
        assert_eq!(chosen("10.0.0.9", "10.0.0.9", &addresses, &[]).as_deref(), Some("192.0.2.1"));
        assert_eq!(chosen("10.0.0.9", "10.0.0.9", &[other], &[]).as_deref(), Some("10.0.0.3"));
    }

    #[test]
    fn addresses_that_cannot_be_a_source_are_passed_over() {
        let mut tentative = own(2, "2001:db8::1/64");
        tentative.usable = false;
        let mut deprecated = own(2, "2001:db8::2/64");
        deprecated.deprecated = true;
        let mut host = own(2, "10.0.0.1/32");
        host.scope = AddressScope::Host;
        let addresses = [tentative, deprecated, own(2, "fe80::1/64"), host, own(2, "10.0.0.5/24")];
        assert_eq!(chosen("2001:db8::9", "2001:db8::9", &addresses, &[]), None);
        assert_eq!(chosen("10.0.0.9", "10.0.0.9", &addresses, &[]).as_deref(), Some("10.0.0.5"));
        assert_eq!(chosen("fe80::9", "fe80::9", &addresses, &[]).as_deref(), Some("fe80::1"));
    }
}
