//! Tunnels to backends: the outer headers of IP in IP (RFC 2003 for IPv4 in IPv4, RFC 2473 for
//! anything in IPv6, RFC 4213 for IPv6 in IPv4), of GRE without key and checksum (RFC 2784; RFC 7676 for
//! IPv6) and of GUE variant 1 (draft-ietf-intarea-gue-09, section 4: the inner packet follows the UDP header
//! at once), built from the inner packet.
//!
//! The caller grows the frame by [`growth`] bytes at its start; [`encapsulate`] then writes the
//! headers there and the ether type. The link-layer addresses are the caller's.

use crate::{
    abi::{Address, DontFragment, Port, Protocol},
    checksum::Sum,
    numbers::{GRE, ICMPV6, IPIP, IPV6},
    packet::{Field, HEADERS_MAX, PacketAccess},
    parse::{NETWORK_OFFSET, Network, Part, Transport},
    rewrite::Words,
};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const UDP_LEN: usize = 8;
/// Without optional fields.
pub const GRE_LEN: usize = 4;
/// TTL and hop limit of the tunnel: the IANA's recommended default.
const TTL: u8 = 64;

const DF: u8 = 0x40;

/// A tunnel from us to a backend. Aligned, because on the stack of a BPF program the compiler joins words of
/// addresses to larger ones, which must be aligned there.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Tunnel {
    pub source: Address,
    /// Of the same family as the source, which need not be the inner packet's.
    pub destination: Address,
    /// GUE: UDP destination port; [`Port::ANY`]: GRE or IP in IP.
    pub gue_port: Port,
    /// Not 0: GRE; never with a GUE port. No `bool`, in which an `Option` of a tunnel would hide its own: then
    /// all of it would lie on the stack.
    pub gre: u8,
    /// The same for all packets of a flow, so that routers and network cards on the way spread
    /// flows and keep each in order: flow label (RFC 6438) and GUE source port.
    pub entropy: u32,
    /// [`DontFragment`]
    pub dont_fragment: u8,
    /// IPv4: identification of a packet that may be fragmented on the way and brings none of its own;
    /// used with [`DontFragment::Clear`] only.
    pub id: u16,
}

impl Tunnel {
    /// Bytes that the headers add to the packet: 20 to 48.
    #[inline(always)]
    pub const fn growth(&self) -> usize {
        self.between() + if self.destination.is_v4() { IPV4_LEN } else { IPV6_LEN }
    }

    /// Bytes between the outer IP header and the inner one.
    #[inline(always)]
    const fn between(&self) -> usize {
        if self.is_gue() {
            UDP_LEN
        } else if self.gre != 0 {
            GRE_LEN
        } else {
            0
        }
    }

    /// UDP source port: 14 bits of entropy in the dynamic ports (49152 to 65535; RFC 8085, 5.1.1).
    #[inline(always)]
    pub const fn source_port(&self) -> Port {
        Port::new(0xc000 | (self.entropy & 0x3fff) as u16)
    }

    /// UDP source and destination port; [`Port::ANY`] both without UDP.
    #[inline(always)]
    pub const fn ports(&self) -> [Port; 2] {
        if self.is_gue() { [self.source_port(), self.gue_port] } else { [Port::ANY; 2] }
    }

    #[inline(always)]
    const fn is_gue(&self) -> bool {
        self.gue_port.get() != 0
    }

    /// `prefix` with its last `bits` (at most 32, all zero) chosen by the entropy of a flow.
    #[inline(always)]
    pub const fn chosen_source(prefix: &Address, bits: u8, entropy: u32) -> Address {
        let [a, b, c, d] = prefix.words();
        let mask = ((1u64 << (bits & 63)) - 1) as u32;
        Address::from_words([a, b, c, d | (entropy & mask).to_be()])
    }

    /// Protocol number after the outer IP header.
    #[inline(always)]
    pub const fn protocol(&self, inner: &Network) -> u8 {
        match (self.is_gue(), self.gre != 0, inner.v4) {
            (true, ..) => Protocol::Udp as u8,
            (false, true, _) => GRE,
            (false, false, true) => IPIP,
            (false, false, false) => IPV6,
        }
    }
}

/// What the outer headers take from the inner packet.
struct Inner {
    /// ToS or traffic class, ECN included: the normal mode of RFC 6040, 4.1.
    traffic_class: u8,
    /// IPv4: identification and flags. An IPv6 packet is never fragmented on its way: as with DF.
    id: [u8; 2],
    dont_fragment: bool,
}

/// Writes the outer headers into a frame that was grown by [`Tunnel::growth`] since `network` and
/// `transport` were read from it. `None` when the frame is shorter than they say, or the packet
/// too long for the outer header; the frame is then to be dropped.
#[inline(always)]
pub fn encapsulate<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    transport: &Transport,
    tunnel: &Tunnel,
) -> Option<()> {
    wrap(frame, network, transport, tunnel, false)
}

/// The same for a packet that carries ICMP of its family, whatever `transport` says of the protocol.
#[inline(always)]
pub fn encapsulate_icmp<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    transport: &Transport,
    tunnel: &Tunnel,
) -> Option<()> {
    wrap(frame, network, transport, tunnel, true)
}

#[inline(always)]
fn wrap<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    transport: &Transport,
    tunnel: &Tunnel,
    icmp: bool,
) -> Option<()> {
    let start = NETWORK_OFFSET + tunnel.growth();
    let inner = if network.v4 { inner_v4(frame, start)? } else { inner_v6(frame, start)? };
    let payload = transport.packet_len.checked_add(tunnel.between() as u16)?;
    if tunnel.destination.is_v4() {
        outer_v4(frame, network, tunnel, &inner, payload)?;
    } else {
        outer_v6(frame, network, tunnel, &inner, payload)?;
    }
    if tunnel.is_gue() {
        let datagram = Datagram {
            source: tunnel.source,
            destination: tunnel.destination,
            source_port: tunnel.source_port(),
            port: tunnel.gue_port,
            length: payload,
        };
        let check = if icmp {
            datagram.checksum_of_icmp(frame, tunnel.growth(), network, transport)?
        } else {
            datagram.checksum(frame, tunnel.growth(), network, transport)?
        };
        let (s, d, length) = (datagram.source_port.to_wire(), datagram.port.to_wire(), payload.to_be_bytes());
        frame.write(start - UDP_LEN, [s[0], s[1], d[0], d[1], length[0], length[1], check[0], check[1]])?;
    } else if tunnel.gre != 0 {
        // No optional field, version 0, and what is inside by its ether type.
        let [high, low] = ethertype(network.v4);
        frame.write(start - GRE_LEN, [0, 0, high, low])?;
    }
    frame.write(NETWORK_OFFSET - 2, ethertype(tunnel.destination.is_v4()))
}

#[inline(always)]
const fn ethertype(v4: bool) -> [u8; 2] {
    if v4 { [0x08, 0x00] } else { [0x86, 0xdd] }
}

#[inline(always)]
fn inner_v4<P: PacketAccess>(frame: &P, start: usize) -> Option<Inner> {
    let header: [u8; 8] = frame.read(start)?;
    let dont_fragment = header[6] & DF != 0;
    Some(Inner { traffic_class: header[1], id: [header[4], header[5]], dont_fragment })
}

#[inline(always)]
fn inner_v6<P: PacketAccess>(frame: &P, start: usize) -> Option<Inner> {
    let [a, b]: [u8; 2] = frame.read(start)?;
    Some(Inner { traffic_class: a << 4 | b >> 4, id: [0; 2], dont_fragment: true })
}

/// An IPv4 header without options (RFC 791, 3.1), written at once.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct V4 {
    version_and_length: u8,
    tos: u8,
    total_length: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    check: [u8; 2],
    source: u32,
    destination: u32,
}
// SAFETY: bytes and integers, packed.
unsafe impl Field for V4 {}

/// The identification is that of the inner packet where that may be fragmented too; otherwise the
/// tunnel's where a router may fragment the outer one, and 0 where none may (RFC 6864, 4.1: an atomic
/// datagram needs none).
#[inline(always)]
fn outer_v4<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    tunnel: &Tunnel,
    inner: &Inner,
    payload: u16,
) -> Option<()> {
    let total_length = payload.checked_add(IPV4_LEN as u16)?.to_be_bytes();
    let id = if inner.dont_fragment { tunnel.id.to_be_bytes() } else { inner.id };
    let (id, fragment) = if dont_fragment(tunnel, inner) { ([0; 2], [DF, 0]) } else { (id, [0; 2]) };
    let (tos, protocol) = (inner.traffic_class, tunnel.protocol(network));
    let (source, destination) = (tunnel.source.words()[3], tunnel.destination.words()[3]);
    let check = Sum::ZERO
        .pair([0x45, tos])
        .pair(total_length)
        .pair(id)
        .pair(fragment)
        .pair([TTL, protocol])
        .word(source)
        .word(destination)
        .finish();
    let header = V4 {
        version_and_length: 0x45,
        tos,
        total_length,
        id,
        fragment,
        ttl: TTL,
        protocol,
        check,
        source,
        destination,
    };
    frame.write(NETWORK_OFFSET, header)
}

#[inline(always)]
const fn dont_fragment(tunnel: &Tunnel, inner: &Inner) -> bool {
    tunnel.dont_fragment == DontFragment::Set as u8
        || tunnel.dont_fragment == DontFragment::Copy as u8 && inner.dont_fragment
}

/// An IPv6 header (RFC 8200, 3), written at once.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct V6 {
    version_class_label: [u8; 4],
    payload_length: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    source: Words,
    destination: Words,
}
// SAFETY: bytes and integers, packed.
unsafe impl Field for V6 {}

#[inline(always)]
fn outer_v6<P: PacketAccess>(
    frame: &mut P,
    network: &Network,
    tunnel: &Tunnel,
    inner: &Inner,
    payload: u16,
) -> Option<()> {
    let [s0, s1, s2, s3] = tunnel.source.words();
    let [d0, d1, d2, d3] = tunnel.destination.words();
    // Four bits of version, eight of traffic class, twenty of flow label.
    let first = 6 << 28 | (inner.traffic_class as u32) << 20 | tunnel.entropy & 0xf_ffff;
    let header = V6 {
        version_class_label: first.to_be_bytes(),
        payload_length: payload.to_be_bytes(),
        next_header: tunnel.protocol(network),
        hop_limit: TTL,
        source: Words(s0, s1, s2, s3),
        destination: Words(d0, d1, d2, d3),
    };
    frame.write(NETWORK_OFFSET, header)
}

/// A UDP datagram with a packet in it (GUE variant 1).
#[derive(Clone, Copy)]
pub(crate) struct Datagram {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub port: Port,
    /// As in the UDP header.
    pub length: u16,
}

impl Datagram {
    /// Its checksum, without a look at the payload: what the inner checksums cover sums up to zero by
    /// them, and what is left are the inner pseudo-header, which the transport's checksum contains
    /// and the packet does not, and of IPv6 the header fields that no checksum covers. A packet that
    /// was damaged before it came here has a wrong outer checksum too: nothing is hidden.
    ///
    /// 0, "no checksum", where the inner packet is SCTP, UDP over IPv4 without one (RFC 768; over
    /// IPv6 allowed for tunnels, RFC 6935, 5), or a fragment, whose checksum is about all of them. The
    /// inner packet begins `shift` bytes behind where `transport` says.
    #[inline(always)]
    pub(crate) fn checksum<P: PacketAccess>(
        &self,
        frame: &P,
        shift: usize,
        network: &Network,
        transport: &Transport,
    ) -> Option<[u8; 2]> {
        if transport.part != Part::Whole {
            return Some([0; 2]);
        }
        // Told here, because the verifier of Linux 6.1 does not know of a sum on the stack what its copy
        // in a register was compared with.
        if transport.offset as usize >= HEADERS_MAX {
            return None;
        }
        let segment = shift + transport.offset as usize;
        if transport.protocol != Protocol::Tcp {
            let [length_high, length_low, check_high, check_low]: [u8; 4] = frame.read(segment + 4)?;
            let carried = NETWORK_OFFSET + transport.packet_len as usize - transport.offset as usize;
            // Without checksum, or with bytes behind the datagram that no checksum covers (RFC 9868).
            // SCTP's CRC32c tells nothing about the sum.
            let sctp = transport.protocol == Protocol::Sctp;
            let covers = u16::from_be_bytes([length_high, length_low]) as usize == carried;
            if sctp || check_high | check_low == 0 || !covers {
                return Some([0; 2]);
            }
        }
        let carried = negative_pseudo_header(network, transport, transport.protocol as u8);
        self.around(frame, shift, network, segment, carried)
    }

    /// The same where the inner packet carries ICMP, all of which its checksum covers; of IPv4 without a
    /// pseudo-header (RFC 792; RFC 4443, 2.3).
    #[inline(always)]
    pub(crate) fn checksum_of_icmp<P: PacketAccess>(
        &self,
        frame: &P,
        shift: usize,
        network: &Network,
        transport: &Transport,
    ) -> Option<[u8; 2]> {
        let carried = if network.v4 { [0; 2] } else { negative_pseudo_header(network, transport, ICMPV6) };
        self.around(frame, shift, network, shift + transport.offset as usize, carried)
    }

    /// The checksum around what sums up to `carried` and begins at `segment`.
    #[inline(always)]
    fn around<P: PacketAccess>(
        &self,
        frame: &P,
        shift: usize,
        network: &Network,
        segment: usize,
        carried: [u8; 2],
    ) -> Option<[u8; 2]> {
        let mut sum = Sum::ZERO
            .pseudo_header(&self.source, &self.destination, Protocol::Udp as u8, self.length)
            .pair(self.source_port.to_wire())
            .pair(self.port.to_wire())
            .pair(self.length.to_be_bytes())
            .pair(carried);
        if !network.v4 {
            // An IPv4 header sums up to zero with its checksum; an IPv6 header has none.
            sum = sum_words(frame, sum, NETWORK_OFFSET + shift, segment)?;
        }
        match sum.finish() {
            [0, 0] => Some([0xff, 0xff]),
            check => Some(check),
        }
    }
}

/// What a segment sums up to whose checksum covers it and a pseudo-header: the complement of a sum is its
/// negative.
#[inline(always)]
fn negative_pseudo_header(network: &Network, transport: &Transport, protocol: u8) -> [u8; 2] {
    let length = NETWORK_OFFSET as u16 + transport.packet_len - transport.offset;
    Sum::ZERO.pseudo_header(&network.source, &network.destination, protocol, length).finish()
}

/// Adds the words from one offset to another, which is a multiple of four bytes behind it.
#[inline(always)]
fn sum_words<P: PacketAccess>(frame: &P, mut sum: Sum, from: usize, to: usize) -> Option<Sum> {
    for step in 0..HEADERS_MAX / 4 {
        let at = from + step * 4;
        if at >= to {
            break;
        }
        sum = sum.word(frame.read(at)?);
    }
    Some(sum)
}
