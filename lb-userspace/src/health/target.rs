//! Where a probe's connections go.

use std::{io, net::SocketAddr, os::fd::AsFd};

use super::ways::Mark;

/// One backend, as one probe asks it.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// What sockets are connected to: the backend's own address, whichever way packets go.
    pub address: SocketAddr,
    /// What the server is called where it has no name: the address that clients know it by.
    pub name: SocketAddr,
    /// `None`: packets go where the socket is connected to.
    pub mark: Option<&'a Mark>,
}

impl Target<'_> {
    /// Whether its sockets speak both families, so that their port is theirs in both.
    pub fn is_dual(&self) -> bool {
        self.mark.is_some_and(Mark::is_across)
    }

    /// What sockets are connected to, as they write it.
    pub fn peer(&self) -> SocketAddr {
        match self.address {
            SocketAddr::V4(address) if self.is_dual() => (address.ip().to_ipv6_mapped(), address.port()).into(),
            address => address,
        }
    }

    /// Has the packets of a new socket go the probe's way.
    ///
    /// # Errors
    /// The kernel's.
    pub fn prepare(&self, socket: &impl AsFd) -> io::Result<()> {
        self.mark.map_or(Ok(()), |mark| mark.hang_on(socket.as_fd(), self.address))
    }

    /// Looks whether they went that way; to be asked once there was an answer.
    pub fn answered(&self, socket: &impl AsFd) {
        if let Some(mark) = self.mark {
            mark.look_at(socket.as_fd());
        }
    }
}

impl From<SocketAddr> for Target<'_> {
    /// The address itself.
    fn from(address: SocketAddr) -> Self {
        Self { address, name: address, mark: None }
    }
}
