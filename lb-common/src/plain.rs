//! Headers as most packets have them: whole packets of TCP and UDP, without IPv4 options and IPv6
//! extension headers, so that everything lies at a fixed place and is there after one check. What is
//! found is what [`crate::parse`] finds; packets of any other shape are left to that.

use crate::{
    abi::{Address, Port, Protocol},
    numbers::{ICMP, ICMPV6},
    packet::Field,
    parse::{NETWORK_OFFSET, Network, Part, Transport},
};

/// The network header and as much of the transport header as is looked at, to be read at
/// [`NETWORK_OFFSET`].
pub trait Head: Field {
    /// The addresses; `None` for those that a packet should not have.
    fn network(&self) -> Option<Network>;

    /// The transport header of a packet that lies within the first `linear` bytes of the frame; `None`:
    /// it does not, or is of another shape, or is not right.
    fn transport(&self, linear: usize) -> Option<Transport>;

    /// Whether ICMP follows at once.
    fn is_icmp(&self) -> bool;

    /// What [`crate::rewrite::lower_known_ttl`] wants to know.
    fn ttl(&self) -> [u8; 4];

    /// Bytes of the IP packet, by its header.
    fn packet_len(&self) -> usize;
}

/// IPv4 (RFC 791, 3.1).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct HeadV4 {
    version_and_length: u8,
    tos: u8,
    total_length: [u8; 2],
    id: [u8; 2],
    fragment: u16,
    ttl: u8,
    protocol: u8,
    check: [u8; 2],
    source: u32,
    destination: u32,
    rest: Rest,
}
// SAFETY: bytes and integers, packed.
unsafe impl Field for HeadV4 {}

/// IPv6 (RFC 8200, 3).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct HeadV6 {
    version: u8,
    class_and_label: [u8; 3],
    payload_length: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    source: [u32; 4],
    destination: [u32; 4],
    rest: Rest,
}
// SAFETY: bytes and integers, packed.
unsafe impl Field for HeadV6 {}

/// TCP (RFC 9293, 3.1) as far as the flags, or UDP (RFC 768) and the first bytes behind it.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct Rest {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    length: [u8; 2],
    spare: [u8; 6],
    data_offset: u8,
    flags: u8,
}

const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;

impl Head for HeadV4 {
    #[inline(always)]
    fn network(&self) -> Option<Network> {
        let address = |word: u32| Address::v4(word.to_ne_bytes());
        Some(Network { v4: true, source: address(self.source), destination: address(self.destination) })
    }

    #[inline(always)]
    fn transport(&self, linear: usize) -> Option<Transport> {
        // "More fragments", or an offset.
        if self.version_and_length != 0x45 || self.fragment & 0x3fff_u16.to_be() != 0 {
            return None;
        }
        self.rest.transport(self.protocol, self.ttl, V4_LEN, self.packet_len(), linear)
    }

    #[inline(always)]
    fn is_icmp(&self) -> bool {
        self.protocol == ICMP
    }

    #[inline(always)]
    fn ttl(&self) -> [u8; 4] {
        [self.ttl, self.protocol, self.check[0], self.check[1]]
    }

    #[inline(always)]
    fn packet_len(&self) -> usize {
        u16::from_be_bytes(self.total_length) as usize
    }
}

impl Head for HeadV6 {
    #[inline(always)]
    fn network(&self) -> Option<Network> {
        let (source, destination) = (Address::from_words(self.source), Address::from_words(self.destination));
        // Mapped IPv4 addresses would look like an IPv4 packet's.
        if source.is_v4() || destination.is_v4() {
            return None;
        }
        Some(Network { v4: false, source, destination })
    }

    #[inline(always)]
    fn transport(&self, linear: usize) -> Option<Transport> {
        if self.version >> 4 != 6 || self.packet_len() > u16::MAX as usize {
            return None;
        }
        self.rest.transport(self.next_header, self.hop_limit, V6_LEN, self.packet_len(), linear)
    }

    #[inline(always)]
    fn is_icmp(&self) -> bool {
        self.next_header == ICMPV6
    }

    #[inline(always)]
    fn ttl(&self) -> [u8; 4] {
        [self.hop_limit, 0, 0, 0]
    }

    #[inline(always)]
    fn packet_len(&self) -> usize {
        V6_LEN + u16::from_be_bytes(self.payload_length) as usize
    }
}

impl Rest {
    /// `network_len`: bytes of the network header.
    #[inline(always)]
    fn transport(
        &self,
        protocol: u8,
        ttl: u8,
        network_len: usize,
        packet_len: usize,
        linear: usize,
    ) -> Option<Transport> {
        let (protocol, header_len, least, tcp_flags) = match protocol {
            6 => (Protocol::Tcp, (self.data_offset >> 4) as usize * 4, TCP_LEN, self.flags),
            17 => (Protocol::Udp, u16::from_be_bytes(self.length) as usize, UDP_LEN, 0),
            _ => return None,
        };
        if NETWORK_OFFSET + packet_len > linear || header_len < least || network_len + header_len > packet_len {
            return None;
        }
        Some(Transport {
            protocol,
            source_port: Port::from_wire(self.source_port),
            destination_port: Port::from_wire(self.destination_port),
            tcp_flags,
            ttl,
            part: Part::Whole,
            offset: (NETWORK_OFFSET + network_len) as u16,
            packet_len: packet_len as u16,
        })
    }
}
