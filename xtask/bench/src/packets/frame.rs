//! The frames of streams: whole and right but for the fields that the harness fills in by flow.

use std::net::IpAddr;

use lb_common::{
    abi::{Address, Protocol},
    bench::{FRAME_BYTES, FRAME_WORDS},
    checksum::Sum,
};

use super::{lab, stream::SERVICE_PORT};

/// What does not differ by flow.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// The last four bytes of both are filled in.
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    /// Of TCP.
    pub flags: u8,
}

const ETHERNET: usize = 14;

impl Template {
    /// The frame with zeros where flows differ. Its checksums are those of these zeros: the harness
    /// writes next to each flow's words their complement, which keeps every sum.
    pub fn frame(&self) -> [u64; FRAME_WORDS] {
        let (source, destination) = (without_last(self.source), without_last(self.destination));
        let mut bytes = [0u8; FRAME_BYTES];
        bytes[..6].copy_from_slice(&lab::MAC);
        bytes[6..12].copy_from_slice(&lab::GATEWAY_MAC);
        let at = self.network(&mut bytes, &source, &destination);
        let length = (FRAME_BYTES - at) as u16;
        let check = match self.protocol {
            Protocol::Tcp => {
                bytes[at + 12..at + 16].copy_from_slice(&[0x50, self.flags, 0x20, 0]);
                at + 16
            }
            // The bench makes no others.
            Protocol::Udp | Protocol::Sctp => {
                bytes[at + 4..at + 6].copy_from_slice(&length.to_be_bytes());
                at + 6
            }
        };
        let sum = Sum::ZERO.pseudo_header(&source, &destination, self.protocol as u8, length);
        let sum = bytes[at..].chunks_exact(2).fold(sum, |sum, pair| sum.pair([pair[0], pair[1]]));
        bytes[check..check + 2].copy_from_slice(&sum.finish());
        words(&bytes)
    }

    /// Writes the network header; where the transport header begins.
    fn network(&self, bytes: &mut [u8; FRAME_BYTES], source: &Address, destination: &Address) -> usize {
        if self.source.is_ipv4() {
            bytes[12..14].copy_from_slice(&[0x08, 0]);
            let length = ((FRAME_BYTES - ETHERNET) as u16).to_be_bytes();
            // May not be fragmented.
            let header = [0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, self.protocol as u8];
            bytes[14..24].copy_from_slice(&header);
            let sum = header.chunks_exact(2).fold(Sum::ZERO, |sum, pair| sum.pair([pair[0], pair[1]]));
            bytes[24..26].copy_from_slice(&sum.finish());
            return 34;
        }
        bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        let length = ((FRAME_BYTES - 54) as u16).to_be_bytes();
        bytes[14..22].copy_from_slice(&[0x60, 0, 0, 0, length[0], length[1], self.protocol as u8, 64]);
        bytes[22..38].copy_from_slice(&source.octets());
        bytes[38..54].copy_from_slice(&destination.octets());
        54
    }
}

/// Somebody asks who has an address (RFC 826).
pub fn arp() -> [u64; FRAME_WORDS] {
    let mut bytes = [0u8; FRAME_BYTES];
    bytes[..6].fill(0xff);
    bytes[6..12].copy_from_slice(&lab::GATEWAY_MAC);
    bytes[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    bytes[22..28].copy_from_slice(&lab::GATEWAY_MAC);
    bytes[28..32].copy_from_slice(&[10, 0, 0, 254]);
    bytes[38..42].copy_from_slice(&[10, 0, 0, 1]);
    words(&bytes)
}

/// The first part of a datagram to the service.
pub fn fragment(v4: bool) -> [u64; FRAME_WORDS] {
    let (source, destination) = (lab::client(v4, 0xc612_0001), lab::service(v4, 0));
    let mut bytes = [0u8; FRAME_BYTES];
    let template = Template { source, destination, protocol: Protocol::Udp, flags: 0 };
    bytes[..6].copy_from_slice(&lab::MAC);
    bytes[6..12].copy_from_slice(&lab::GATEWAY_MAC);
    let at = template.network(&mut bytes, &source.into(), &destination.into());
    // Ports, and the length of a datagram that goes on; without checksum. All fragments but the last have
    // a multiple of 8 bytes (RFC 791, 3.2).
    let [high, low] = SERVICE_PORT.to_be_bytes();
    let (datagram, part) = ([0x9c, 0x40, high, low, 0x07, 0xd0, 0, 0], 56u8);
    if v4 {
        bytes[17] = 20 + part;
        bytes[20] = 0x20;
        bytes[at..at + 8].copy_from_slice(&datagram);
        let (source, destination) = (Address::from(source), Address::from(destination));
        bytes[26..30].copy_from_slice(&source.v4_octets());
        bytes[30..34].copy_from_slice(&destination.v4_octets());
        bytes[24..26].fill(0);
        let sum = bytes[14..34].chunks_exact(2).fold(Sum::ZERO, |sum, pair| sum.pair([pair[0], pair[1]]));
        bytes[24..26].copy_from_slice(&sum.finish());
    } else {
        // RFC 8200, 4.5: the fragment header, with "more fragments".
        bytes[19] = 8 + 32;
        bytes[20] = 44;
        bytes[at..at + 8].copy_from_slice(&[17, 0, 0, 1, 0, 0, 0, 7]);
        bytes[at + 8..at + 16].copy_from_slice(&datagram);
        bytes[38..54].copy_from_slice(&Address::from(destination).octets());
        bytes[22..38].copy_from_slice(&Address::from(source).octets());
    }
    words(&bytes)
}

fn without_last(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(_) => Address::v4([0; 4]),
        IpAddr::V6(address) => Address::v6((address.to_bits() >> 32 << 32).to_be_bytes()),
    }
}

fn words(bytes: &[u8; FRAME_BYTES]) -> [u64; FRAME_WORDS] {
    bytemuck::cast(*bytes)
}
