//! Whether packets to one backend may take different ways: then the data path asks the kernel's
//! tables for each packet, and otherwise once in a while.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt as _;
use netlink_packet_route::{
    route::{RouteAttribute, RouteFlags},
    rule::{RuleAttribute, RuleMessage},
};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{HostError, Netlink, error::to_io};

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
        for backend in backends {
            if self.has_several_next_hops(backend).await? {
                return Ok(true);
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
            Ok(Some(route)) => {
                let several = |attribute: &RouteAttribute| match attribute {
                    RouteAttribute::MultiPath(hops) => hops.len() > 1,
                    _ => false,
                };
                Ok(route.attributes.iter().any(several))
            }
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let what = format!("cannot ask for the route to {backend}");
                Err(HostError::Kernel { what, error })
            }
            // No route: nothing that could vary.
            Err(_) => Ok(false),
        }
    }
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
