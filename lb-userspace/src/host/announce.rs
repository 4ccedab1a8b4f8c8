//! Telling the network where service addresses live: gratuitous ARP and unsolicited Neighbor
//! Advertisements, sent as raw frames.

use std::{io, net::IpAddr};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    HostError, Link,
    frames::{ArpForm, gratuitous_arp, unsolicited_advertisement},
};

/// Announces `addresses` once on the interface. Networks lose frames: repeat it (RFC 4861 allows 3
/// times, at least a second apart; RFC 5227 twice, two seconds apart). `router`: the interface
/// forwards IPv6. An interface without an Ethernet address has no neighbours to tell.
///
/// # Errors
/// No raw socket (CAP_NET_RAW), or the interface is down.
pub fn announce(link: &Link, addresses: &[IpAddr], router: bool) -> Result<(), HostError> {
    let Some(mac) = link.mac else { return Ok(()) };
    let failed = |error| HostError::Kernel { what: format!("cannot announce addresses on `{}`", link.name), error };
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).map_err(failed)?;
    // A full send queue must not hold up the agent; the announcement is repeated.
    socket.set_nonblocking(true).map_err(failed)?;
    for address in addresses {
        match address {
            IpAddr::V4(address) => {
                for form in [ArpForm::Request, ArpForm::Reply] {
                    let frame = gratuitous_arp(mac, *address, form);
                    send(&socket, link.ifindex, libc::ETH_P_ARP, &frame).map_err(failed)?;
                }
            }
            IpAddr::V6(address) => {
                let frame = unsolicited_advertisement(mac, *address, router);
                send(&socket, link.ifindex, libc::ETH_P_IPV6, &frame).map_err(failed)?;
            }
        }
    }
    Ok(())
}

fn send(socket: &Socket, ifindex: u32, ethertype: libc::c_int, frame: &[u8]) -> io::Result<()> {
    let address = link_address(ifindex, ethertype)?;
    socket.send_to(frame, &address).map(drop)
}

/// The socket address of an interface: where a raw frame leaves.
fn link_address(ifindex: u32, ethertype: libc::c_int) -> io::Result<SockAddr> {
    let ifindex = libc::c_int::try_from(ifindex).map_err(io::Error::other)?;
    let protocol = u16::try_from(ethertype).map_err(io::Error::other)?.to_be();
    // SAFETY: the storage is zeroed and larger than a sockaddr_ll; the length is that of what is written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = storage.cast::<libc::sockaddr_ll>();
            (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
            (*link).sll_protocol = protocol;
            (*link).sll_ifindex = ifindex;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
