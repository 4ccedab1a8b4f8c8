//! The routes to many destinations with few questions: of a small network one is asked about.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::abi::Address;

use super::Route;

/// So many are asked about one by one.
const FEW: usize = 256;
/// Bits of a small network: IPv4, IPv6.
const SMALL: (u8, u8) = (24, 64);

/// The small network of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SmallNetwork(Address);

impl SmallNetwork {
    pub fn of(destination: IpAddr) -> Self {
        Self(Address::from(destination).masked(SMALL.0, SMALL.1))
    }
}

/// What each destination has its route from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Neighbours have one where a router is on the way, whom all need.
    Router,
    /// Neighbours have one: the interface is what counts.
    Interface,
}

/// Asks for the route to each of the destinations. Of more than a few, those of a small network have that of the
/// first of them, as far as `sharing` allows, unless their network is one of `mixed`; the next hop of a shared
/// route is the first one's.
pub async fn routes<E, F: Future<Output = Result<Option<Route>, E>>>(
    destinations: impl IntoIterator<Item = IpAddr>,
    sharing: Sharing,
    mixed: &BTreeSet<SmallNetwork>,
    ask: impl Fn(IpAddr) -> F,
) -> BTreeMap<IpAddr, Result<Option<Route>, E>> {
    // In the order of addresses: those of a network are neighbours.
    let destinations: BTreeSet<IpAddr> = destinations.into_iter().collect();
    let each = destinations.len() <= FEW;
    let mut before: Option<(SmallNetwork, Route)> = None;
    let mut found = BTreeMap::new();
    for destination in destinations {
        let network = SmallNetwork::of(destination);
        let shared = before.filter(|(asked, _)| !each && *asked == network && !mixed.contains(&network));
        let route = match shared {
            Some((_, route)) => Ok(Some(route)),
            None => ask(destination).await,
        };
        if let Ok(Some(route)) = &route {
            let shares = !route.local && (sharing == Sharing::Interface || route.gateway.is_some());
            before = shares.then_some((network, *route));
        }
        found.insert(destination, route);
    }
    found
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Four networks of 250: one on the link, and three behind routers, in one of which every tenth has a router of
    /// its own.
    fn destinations() -> Vec<IpAddr> {
        (0..4).flat_map(|network| (1..=250).map(move |host| IpAddr::from([10, 0, network, host]))).collect()
    }

    fn route_to(destination: IpAddr) -> Route {
        let IpAddr::V4(ip) = destination else { panic!("{destination}") };
        let [_, _, network, host] = ip.octets();
        let own = network == 3 && host % 10 == 0;
        let gateway = (network != 0).then(|| IpAddr::from([192, 0, 2, if own { 99 } else { network }]));
        let next_hop = gateway.unwrap_or(destination);
        Route { source: None, ifindex: if own { 9 } else { 2 }, gateway, next_hop, local: false }
    }

    fn asked(destinations: &[IpAddr], sharing: Sharing, mixed: &BTreeSet<SmallNetwork>) -> (usize, usize) {
        let questions = Cell::new(0);
        let ask = |destination| {
            questions.set(questions.get() + 1);
            std::future::ready(Ok::<_, ()>(Some(route_to(destination))))
        };
        let found = futures_executor(routes(destinations.iter().copied(), sharing, mixed, ask));
        assert_eq!(found.len(), destinations.len());
        let wrong =
            found.iter().filter(|(at, route)| route.unwrap().unwrap().ifindex != route_to(**at).ifindex).count();
        (questions.get(), wrong)
    }

    fn futures_executor<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn few_destinations_are_asked_about_one_by_one() {
        let few = &destinations()[750..];
        assert_eq!(asked(few, Sharing::Interface, &BTreeSet::new()), (250, 0));
    }

    #[test]
    fn of_many_one_of_a_small_network_is_asked_about() {
        // On the link each is a next hop of its own.
        assert_eq!(asked(&destinations(), Sharing::Router, &BTreeSet::new()).0, 250 + 3);
        assert_eq!(asked(&destinations(), Sharing::Interface, &BTreeSet::new()), (4, 25));
    }

    #[test]
    fn a_network_whose_hosts_go_several_ways_is_asked_about_host_by_host() {
        let mixed = BTreeSet::from([SmallNetwork::of("10.0.3.7".parse().unwrap())]);
        assert_eq!(asked(&destinations(), Sharing::Interface, &mixed), (3 + 250, 0));
    }
}
