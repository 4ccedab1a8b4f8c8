//! Addresses of interfaces, and service addresses among them.

use std::{io, net::IpAddr};

use futures_util::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope, CacheInfo},
};

use super::{HostError, Link, Netlink, error::to_io, links::is_gone};

/// An address that an interface has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    pub ifindex: u32,
    pub address: IpAddr,
    pub prefix_len: u8,
    pub scope: AddressScope,
    /// Neither waiting for, nor failed in, duplicate address detection.
    pub usable: bool,
    /// IPv6: the kernel avoids it as source of new connections.
    pub deprecated: bool,
}

impl HostAddress {
    /// Whether the network of this address contains `other`.
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - u32::from(self.prefix_len)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - u32::from(self.prefix_len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether it looks as [`Netlink::add_service_address`] makes it.
    fn is_service_address(&self) -> bool {
        match self.address {
            IpAddr::V4(_) => self.prefix_len == 32 && self.scope == AddressScope::Host,
            IpAddr::V6(_) => self.prefix_len == 128 && self.deprecated,
        }
    }
}

/// Who put a service address on the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    /// This call did.
    Now,
    /// The interface had it.
    Before,
}

impl Netlink {
    /// Every address of every interface, in the kernel's order: an interface's first address is the
    /// one it prefers as source.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn addresses(&self) -> Result<Vec<HostAddress>, HostError> {
        let messages: Vec<AddressMessage> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(HostError::netlink("cannot list addresses"))?;
        Ok(messages.iter().filter_map(host_address).collect())
    }

    /// Puts a service address on the interface, unless it has it with any prefix length.
    ///
    /// The host answers ARP or neighbour solicitations for it, but does not use it as source of its
    /// own connections:
    /// - IPv4: `/32` with scope *host*. The kernel's source selection (`inet_select_addr`) skips
    ///   addresses whose scope is narrower than the route's, and every route that leaves the host
    ///   has a wider one. ARP does not look at the scope (unless `arp_ignore` is 3), binding a socket to the
    ///   address works, and no connected route appears.
    /// - IPv6: `/128` with a preferred lifetime of zero, that is deprecated: RFC 6724 (rule 3) then
    ///   prefers every other address of the same scope. Without duplicate address detection, so that
    ///   it is usable at once, also where an active and a passive balancer hand it over.
    ///
    /// # Errors
    /// The kernel refused, or the interface has no IPv6.
    pub async fn add_service_address(&self, link: &Link, address: IpAddr) -> Result<Added, HostError> {
        let present = self.addresses().await?;
        if present.iter().any(|other| other.ifindex == link.ifindex && other.address == address) {
            return Ok(Added::Before);
        }
        let mut request = self.handle.address().add(link.ifindex, address, full_length(address));
        *request.message_mut() = service_address(link.ifindex, address);
        match request.execute().await.map_err(to_io) {
            Ok(()) => Ok(Added::Now),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(Added::Before),
            Err(error) => {
                Err(HostError::Kernel { what: format!("cannot add {address} to interface `{}`", link.name), error })
            }
        }
    }

    /// Takes a service address off the interface, if it is there as [`Netlink::add_service_address`]
    /// makes it; an address that looks otherwise was put there by somebody else and stays. Returns
    /// whether there was something to remove.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn remove_service_address(&self, ifindex: u32, address: IpAddr) -> Result<bool, HostError> {
        let present = self.addresses().await?;
        let ours =
            |other: &HostAddress| other.ifindex == ifindex && other.address == address && other.is_service_address();
        if !present.iter().any(ours) {
            return Ok(false);
        }
        let removed = self.handle.address().del(service_address(ifindex, address)).execute().await.map_err(to_io);
        match removed {
            Ok(()) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(HostError::Kernel { what: format!("cannot remove {address}"), error }),
        }
    }
}

const fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn service_address(ifindex: u32, address: IpAddr) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    message.header.prefix_len = full_length(address);
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    match address {
        IpAddr::V4(_) => {
            message.header.family = AddressFamily::Inet;
            message.header.scope = AddressScope::Host;
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            let mut lifetimes = CacheInfo::default();
            lifetimes.ifa_preferred = 0;
            lifetimes.ifa_valid = u32::MAX;
            message.attributes.push(AddressAttribute::CacheInfo(lifetimes));
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
        }
    }
    message
}

fn host_address(message: &AddressMessage) -> Option<HostAddress> {
    // With a peer (point to point), IFA_LOCAL is ours and IFA_ADDRESS is the peer's.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let address = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    let header_flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or(header_flags);
    Some(HostAddress {
        ifindex: message.header.index,
        address,
        prefix_len: message.header.prefix_len,
        scope: message.header.scope,
        usable: !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
        deprecated: flags.contains(AddressFlags::Deprecated),
    })
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EADDRNOTAVAIL) || is_gone(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(address: &str, prefix_len: u8) -> HostAddress {
        HostAddress {
            ifindex: 1,
            address: address.parse().unwrap(),
            prefix_len,
            scope: AddressScope::Universe,
            usable: true,
            deprecated: false,
        }
    }

    #[test]
    fn a_network_contains_the_addresses_that_share_its_prefix() {
        let within = |own: &str, length, other: &str| host(own, length).contains(other.parse().unwrap());
        assert!(within("10.0.0.1", 24, "10.0.0.200"));
        assert!(!within("10.0.0.1", 24, "10.0.1.1"));
        assert!(within("10.0.0.1", 32, "10.0.0.1"));
        assert!(!within("10.0.0.1", 32, "10.0.0.2"));
        assert!(within("10.0.0.1", 0, "192.0.2.1"));
        assert!(within("2001:db8::1", 64, "2001:db8::ffff"));
        assert!(!within("2001:db8::1", 64, "2001:db8:0:1::1"));
        assert!(within("2001:db8::1", 0, "fe80::1"));
        assert!(!within("2001:db8::1", 0, "10.0.0.1"));
    }

    #[test]
    fn only_what_looks_as_we_make_it_is_taken_for_ours() {
        let mut v4 = host("192.0.2.1", 32);
        assert!(!v4.is_service_address(), "somebody's /32 of scope global");
        v4.scope = AddressScope::Host;
        assert!(v4.is_service_address());
        v4.prefix_len = 24;
        assert!(!v4.is_service_address());
        let mut v6 = host("2001:db8::1", 128);
        assert!(!v6.is_service_address(), "somebody's preferred /128");
        v6.deprecated = true;
        assert!(v6.is_service_address());
    }
}
