//! Makes the ends of an idle connection speak, so that the data path can tell them that it is over: a
//! bare ACK that fits nothing is answered with one that says what would fit (RFC 9293, 3.10.7.4), and
//! that is answered with a reset whose number its receiver waits for.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use lb_common::{abi::Address, checksum::Sum, flow::TCP_ACK};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const TCP: u8 = 6;
const TTL: u8 = 64;

/// Raw sockets, opened when they are needed first. Needs CAP_NET_RAW.
#[derive(Debug, Default)]
pub(super) struct Challenger {
    v4: Option<OwnedFd>,
    v6: Option<OwnedFd>,
}

impl Challenger {
    /// Sends a bare ACK as if it came from `from`. Never waits: what the host cannot send now is lost,
    /// as any packet may be.
    ///
    /// # Errors
    /// The kernel's; the packet was not sent.
    pub fn send(&mut self, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
        let packet = bare_ack(from, to);
        let (place, family) = if to.is_ipv4() { (&mut self.v4, libc::AF_INET) } else { (&mut self.v6, libc::AF_INET6) };
        let socket = match place {
            Some(socket) => socket,
            None => place.insert(open(family)?),
        };
        send_to(socket, &packet, to.ip())
    }
}

fn open(family: libc::c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers.
    let fd = unsafe { libc::socket(family, kind, libc::IPPROTO_RAW) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send_to(socket: &OwnedFd, packet: &[u8], to: IpAddr) -> io::Result<()> {
    // The port of a raw socket's address must be 0.
    let sent = match to {
        IpAddr::V4(to) => {
            // SAFETY: plain integers; all zero is a valid value.
            let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            address.sin_family = libc::AF_INET as u16;
            address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
            send(socket, packet, (&raw const address).cast(), size_of_val(&address))
        }
        IpAddr::V6(to) => {
            // SAFETY: as above.
            let mut address: libc::sockaddr_in6 = unsafe { std::mem::zeroed() };
            address.sin6_family = libc::AF_INET6 as u16;
            address.sin6_addr.s6_addr = to.octets();
            send(socket, packet, (&raw const address).cast(), size_of_val(&address))
        }
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn send(socket: &OwnedFd, packet: &[u8], address: *const libc::sockaddr, len: usize) -> isize {
    // SAFETY: both pointers are to so many bytes that live for the call.
    unsafe { libc::sendto(socket.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, address, len as u32) }
}

/// The whole IP packet. Both addresses are of one family.
fn bare_ack(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (source, destination) = (Address::from(from.ip()), Address::from(to.ip()));
    let mut tcp = [0; TCP_LEN];
    tcp[..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    // Sequence and acknowledgement number 0, which fit by chance one time in many thousands; then
    // nothing happens, and the next one asks again.
    tcp[12] = ((TCP_LEN / 4) << 4) as u8;
    tcp[13] = TCP_ACK;
    let check = Sum::ZERO.pseudo_header(&source, &destination, TCP, TCP_LEN as u16).bytes(&tcp).finish();
    tcp[16..18].copy_from_slice(&check);
    let mut packet = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0; IPV4_LEN];
            (header[0], header[8], header[9]) = (0x45, TTL, TCP);
            header[2..4].copy_from_slice(&((IPV4_LEN + TCP_LEN) as u16).to_be_bytes());
            header[6] = 0x40;
            header[12..16].copy_from_slice(&from.octets());
            header[16..20].copy_from_slice(&to.octets());
            // The kernel fills in the checksum.
            header
        }
        _ => {
            let mut header = vec![0; IPV6_LEN];
            (header[0], header[6], header[7]) = (0x60, TCP, TTL);
            header[4..6].copy_from_slice(&(TCP_LEN as u16).to_be_bytes());
            header[8..24].copy_from_slice(&source.octets());
            header[24..40].copy_from_slice(&destination.octets());
            header
        }
    };
    packet.extend_from_slice(&tcp);
    packet
}

#[cfg(test)]
mod tests {
    use etherparse::{SlicedPacket, TransportSlice};

    use super::*;

    #[test]
    fn it_is_an_acknowledgement_with_a_right_checksum() {
        for (from, to) in [("203.0.113.10:80", "198.51.100.7:40000"), ("[2001:db8::10]:80", "[2001:db8::7]:40000")] {
            let packet = bare_ack(from.parse().unwrap(), to.parse().unwrap());
            let parsed = SlicedPacket::from_ip(&packet).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = parsed.transport else { panic!("no TCP in {packet:02x?}") };
            assert!(tcp.ack() && !tcp.syn() && !tcp.rst() && tcp.payload().is_empty());
            assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40_000));
            let sum = match parsed.net {
                Some(etherparse::NetSlice::Ipv4(ip)) => {
                    let header = ip.header();
                    assert_eq!(header.source(), [203, 0, 113, 10]);
                    tcp.calc_checksum_ipv4(header.source(), header.destination()).unwrap()
                }
                Some(etherparse::NetSlice::Ipv6(ip)) => {
                    let header = ip.header();
                    tcp.calc_checksum_ipv6(header.source(), header.destination()).unwrap()
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(tcp.checksum(), sum);
        }
    }
}
