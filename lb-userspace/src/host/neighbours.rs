//! Asking the kernel to find a neighbour's link-layer address, before the first packet needs it.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};

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
}
