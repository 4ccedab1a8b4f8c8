//! Whether packets to one backend may take different ways: then the data path asks the kernel's
//! tables for each packet, and otherwise once in a while.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    route::{RouteAttribute, RouteFlags, RouteMessage},
    rule::{RuleAttribute, RuleMessage},
};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{HostError, Netlink, error::to_io};

/// Backends that are asked for one by one, however many routes the host has.
const FEW: usize = 256;

impl Netlink {
    /// Whether the way to any of these backends depends on more than the backend: its route has
    /// several next hops, or a rule of the host looks at a packet's source, protocol or ports.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn routes_vary(&self, backends: impl IntoIterator<Item = IpAddr>) -> Result<bool, HostError> {
        for version in [IpVersion::V4, IpVersion::V6] {
            let what = HostError::netlink("cannot list the routing rules");
            let rules: Vec<RuleMessage> =
                self.handle.rule().get(version).execute().try_collect().await.map_err(what)?;
            if rules.iter().any(looks_beyond_the_destination) {
                return Ok(true);
            }
        }
        let backends: Vec<IpAddr> = backends.into_iter().collect();
        if backends.len() > FEW && !self.some_route_has_several_next_hops().await? {
            return Ok(false);
        }
        for backend in backends {
            if self.has_several_next_hops(backend).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks through all routes of the host, up to the first that has.
    async fn some_route_has_several_next_hops(&self) -> Result<bool, HostError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        for question in [v4, v6] {
            let mut routes = self.handle.route().get(question).execute();
            while let Some(route) = routes.try_next().await.map_err(HostError::netlink("cannot list the routes"))? {
                if several_next_hops(&route) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Asks for the route as it stands in the table, where the usual question is answered with the
    /// one next hop that was chosen.
    async fn has_several_next_hops(&self, backend: IpAddr) -> Result<bool, HostError> {
        let mut question = match backend {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(ip, 32).build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(ip, 128).build(),
        };
        question.header.flags |= RouteFlags::FibMatch;
        match self.handle.route().get(question).execute().try_next().await.map_err(to_io) {
            Ok(None) => Ok(false),
            Ok(Some(route)) => Ok(several_next_hops(&route)),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let what = format!("cannot ask for the route to {backend}");
                Err(HostError::Kernel { what, error })
            }
            // No route: nothing that could vary.
            Err(_) => Ok(false),
        }
    }
}

/// A route by a next hop object may be told by the object's number alone (`nexthop_compat_mode` 0):
/// it is taken for a group.
fn several_next_hops(route: &RouteMessage) -> bool {
    let by = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops.len() > 1),
        RouteAttribute::Oif(_) => Some(false),
        _ => None,
    };
    let told: Vec<bool> = route.attributes.iter().filter_map(by).collect();
    let by_object = route.attributes.iter().any(|attribute| matches!(attribute, RouteAttribute::NhId(_)));
    told.contains(&true) || told.is_empty() && by_object
}

/// The kernel's own rules and those about interfaces, destinations and marks (the data path sets
/// none) choose the same way for all packets to a backend that come in by one interface.
fn looks_beyond_the_destination(rule: &RuleMessage) -> bool {
    let by_attribute = |attribute: &RuleAttribute| {
        matches!(
            attribute,
            RuleAttribute::IpProtocol(_) | RuleAttribute::SourcePortRange(_) | RuleAttribute::DestinationPortRange(_)
        )
    };
    rule.header.src_len > 0 || rule.attributes.iter().any(by_attribute)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::route::{RouteAddress, RouteNextHop};

    use super::*;

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_route_varies_with_two_next_hops_and_not_with_one() {
        let via = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 0, 2, 1)));
        let hops = |count| RouteAttribute::MultiPath(vec![RouteNextHop::default(); count]);
        assert!(!several_next_hops(&route(vec![via.clone(), RouteAttribute::Oif(2)])));
        assert!(!several_next_hops(&route(vec![hops(1)])));
        assert!(several_next_hops(&route(vec![via, hops(2)])));
    }

    #[test]
    fn a_next_hop_object_that_is_not_spelt_out_may_be_a_group() {
        let object = RouteAttribute::NhId(7);
        assert!(several_next_hops(&route(vec![object.clone()])));
        assert!(!several_next_hops(&route(vec![object.clone(), RouteAttribute::Oif(2)])));
        let hops = RouteAttribute::MultiPath(vec![RouteNextHop::default(); 2]);
        assert!(several_next_hops(&route(vec![object, hops])));
    }

    #[test]
    fn a_rule_varies_by_what_is_not_the_same_for_all_packets_to_a_backend() {
        let rule = |attribute: Option<RuleAttribute>, src_len| {
            let mut rule = RuleMessage::default();
            rule.header.src_len = src_len;
            rule.attributes.extend(attribute);
            rule
        };
        assert!(!looks_beyond_the_destination(&rule(None, 0)));
        for same in [RuleAttribute::Iifname("eth0".to_owned()), RuleAttribute::FwMark(1), RuleAttribute::Priority(5)] {
            assert!(!looks_beyond_the_destination(&rule(Some(same), 0)));
        }
        assert!(looks_beyond_the_destination(&rule(None, 24)));
        assert!(looks_beyond_the_destination(&rule(Some(RuleAttribute::IpProtocol(17.into())), 0)));
    }
}
