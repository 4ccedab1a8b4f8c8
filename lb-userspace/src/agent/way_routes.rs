//! By which interface each backend is reached whose checks go to its service's address, and from which address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use tokio::time::Instant;

use crate::host::{HostAddress, HostError, Link, Netlink, Route, Sharing, SmallNetwork, routes};

/// Between two times that every route of many is asked for.
const SURE_AGAIN: Duration = Duration::from_secs(30);

/// Who is asked, and what for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub backends: BTreeSet<IpAddr>,
    /// Addresses of services.
    pub services: BTreeSet<IpAddr>,
}

/// The way to one backend: by this interface; why there is none.
pub(super) type Found = BTreeMap<IpAddr, Result<Link, String>>;

/// As the kernel tells them.
pub(super) struct Routes {
    netlink: Netlink,
    /// Networks whose backends are reached by several interfaces.
    mixed: BTreeSet<SmallNetwork>,
    /// When every route was asked for.
    sure: Option<Instant>,
}

impl Routes {
    pub fn new(netlink: Netlink) -> Self {
        Self { netlink, mixed: BTreeSet::new(), sure: None }
    }

    /// The interface that leads to each backend, and this host's address there of the other family, where it has
    /// one. `unsure`: packets did not go the way that was found before; every route is asked for then, but not all
    /// the time.
    pub async fn find(&mut self, wanted: &Wanted, unsure: bool) -> (Found, BTreeMap<IpAddr, IpAddr>) {
        let known = async { Ok::<_, HostError>((self.netlink.links().await?, self.netlink.addresses().await?)) };
        let (links, addresses) = match known.await {
            Ok((links, addresses)) => (links, addresses),
            Err(error) => {
                let why = error.to_string();
                return (wanted.backends.iter().map(|backend| (*backend, Err(why.clone()))).collect(), BTreeMap::new());
            }
        };
        let links: BTreeMap<u32, Link> = links.into_iter().map(|link| (link.ifindex, link)).collect();
        let found = self.ask(&wanted.backends, unsure).await;
        let others = found.iter().filter_map(|(backend, route)| {
            let route = route.as_ref().ok()?.as_ref()?;
            Some((*backend, other_family(*backend, route, &addresses, &wanted.services)?))
        });
        let others = others.collect();
        (found.into_iter().map(|(backend, route)| (backend, interface(route, &links))).collect(), others)
    }

    async fn ask(
        &mut self,
        backends: &BTreeSet<IpAddr>,
        unsure: bool,
    ) -> BTreeMap<IpAddr, Result<Option<Route>, HostError>> {
        let nothing = BTreeSet::new();
        let ask = |backend| self.netlink.route_to(backend, &nothing);
        let again = self.sure.is_none_or(|at| at.elapsed() >= SURE_AGAIN);
        if !(unsure && again) {
            return routes(backends.iter().copied(), Sharing::Interface, &self.mixed, ask).await;
        }
        let all = backends.iter().map(|backend| SmallNetwork::of(*backend)).collect();
        let found = routes(backends.iter().copied(), Sharing::Interface, &all, ask).await;
        self.mixed = mixed(&found);
        self.sure = Some(Instant::now());
        found
    }
}

/// The networks whose backends are not all reached by one interface.
fn mixed<E>(found: &BTreeMap<IpAddr, Result<Option<Route>, E>>) -> BTreeSet<SmallNetwork> {
    let mut first: BTreeMap<SmallNetwork, Option<u32>> = BTreeMap::new();
    let mut mixed = BTreeSet::new();
    for (backend, route) in found {
        let network = SmallNetwork::of(*backend);
        let by = route.as_ref().ok().and_then(|route| route.as_ref()).map(|route| route.ifindex);
        if *first.entry(network).or_insert(by) != by {
            mixed.insert(network);
        }
    }
    mixed
}

fn interface(route: Result<Option<Route>, HostError>, links: &BTreeMap<u32, Link>) -> Result<Link, String> {
    match route {
        Err(error) => Err(error.to_string()),
        Ok(None) => Err("there is no route to it".to_owned()),
        Ok(Some(route)) if route.local => Err("its address is this host's own".to_owned()),
        Ok(Some(route)) => match links.get(&route.ifindex) {
            Some(link) if link.mac.is_some() => Ok(link.clone()),
            Some(link) => Err(format!("{} has no Ethernet addresses", link.name)),
            None => Err("the interface to it is gone".to_owned()),
        },
    }
}

/// This host's address of the family that the backend's own is not, on the way to it if there is one.
fn other_family(
    backend: IpAddr,
    route: &Route,
    addresses: &[HostAddress],
    services: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    // Any service's does: only its family counts, and that it is not a link's own.
    let service = services.iter().find(|service| service.is_ipv4() != backend.is_ipv4())?;
    route.source_towards(*service, addresses, services)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_mixed_where_one_of_its_backends_leaves_by_another_interface() {
        let route = |by| {
            Ok::<_, ()>(Some(Route { source: None, ifindex: by, gateway: None, next_hop: [0; 4].into(), local: false }))
        };
        let ip = |network, host| IpAddr::from([10, 0, network, host]);
        let mut found =
            BTreeMap::from([(ip(0, 1), route(2)), (ip(0, 2), route(2)), (ip(1, 1), route(2)), (ip(1, 2), route(3))]);
        assert_eq!(mixed(&found), BTreeSet::from([SmallNetwork::of(ip(1, 9))]));
        found.insert(ip(0, 3), Ok(None));
        assert_eq!(mixed(&found).len(), 2);
    }
}
