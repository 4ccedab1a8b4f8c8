//! Asking the kernel to find a neighbour's link-layer address, before the first packet needs it.

use std::{collections::BTreeMap, net::IpAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState};

use super::{HostError, Netlink};

impl Netlink {
    /// Makes the kernel resolve `address` on the interface as if it had a packet to send
    /// (`NTF_USE`): a missing or failed entry is asked for, a stale one is confirmed, a reachable one
    /// is left alone. Returns before the answer is there. Repeated from time to time it keeps the
    /// entry of a backend alive, though only XDP uses it.
    ///
    /// # Errors
    /// The interface is gone or down, or the kernel refused.
    pub async fn resolve(&self, ifindex: u32, address: IpAddr) -> Result<(), HostError> {
        self.handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .map_err(HostError::netlink(format!("cannot ask for the neighbour {address} on interface {ifindex}")))
    }

    /// Every neighbour by interface and address, with whether its link-layer address is known.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn neighbours(&self) -> Result<BTreeMap<(u32, IpAddr), bool>, HostError> {
        let failed = HostError::netlink("cannot list neighbours");
        let messages: Vec<_> = self.handle.neighbours().get().execute().try_collect().await.map_err(failed)?;
        let entry = |message: netlink_packet_route::neighbour::NeighbourMessage| {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
                _ => None,
            })?;
            let state = message.header.state;
            let known = !matches!(state, NeighbourState::Incomplete | NeighbourState::Failed | NeighbourState::None);
            Some(((message.header.ifindex, address), known))
        };
        Ok(messages.into_iter().filter_map(entry).collect())
    }
}
