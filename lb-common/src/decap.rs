//! The backend's end of a tunnel: takes off what [`crate::encap`] puts on.
//!
//! ```text
//! outer   is it a packet in a tunnel, and from whom?            (nothing is checked yet)
//! inner   for whom, and is all of it there?                     (headers checked against each other)
//! hand_over  link-layer header to its new place, then the caller takes `growth` bytes off the start
//! checksum_fits, mark_congestion  on the frame that is left
//! ```

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};

use crate::{
    abi::{Address, Port, Protocol},
    checksum::{Delta, Sum},
    encap::{Datagram, GRE_LEN},
    numbers::{GRE, IPIP, IPV6},
    packet::PacketAccess,
    parse::{self, NETWORK_OFFSET, Network},
};

const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
const UDP: u8 = Protocol::Udp as u8;
const UDP_LEN: u32 = size_of::<UdpHdr>() as u32;
const IPV4_LEN: u32 = size_of::<Ipv4Hdr>() as u32;
const IPV6_LEN: u32 = size_of::<Ipv6Hdr>() as u32;

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Without its outer headers, to the stack.
    Stripped,
    /// To the stack as it is.
    Passed,
    Dropped,
}

impl Fate {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stripped => "stripped",
            Self::Passed => "passed",
            Self::Dropped => "dropped",
        }
    }
}

macro_rules! outcomes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $value:literal, $fate:ident, $text:literal;)+) => {
        /// What was done with a packet, and why; index into the map `decap_stats`.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
        pub enum Outcome { $($(#[doc = $doc])+ $variant = $value),+ }

        impl Outcome {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            pub const COUNT: u32 = Self::ALL.len() as u32;

            #[inline(always)]
            pub const fn fate(self) -> Fate {
                match self { $(Self::$variant => Fate::$fate),+ }
            }

            /// The word used in output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+).trim_ascii_start()),+ }
            }
        }
    };
}

outcomes! {
    /// IP in IP from a balancer, for one of the addresses.
    Ipip = 0, Stripped, "ipip";
    /// GUE from a balancer, for one of the addresses.
    Gue = 1, Stripped, "gue";
    /// Not in a tunnel that is known here.
    NotTunnel = 2, Passed, "not_tunnel";
    /// In a tunnel, but only a fragment of it: the stack puts it together.
    Fragment = 3, Passed, "fragment";
    /// In a tunnel, but not from one of the balancers.
    WrongSource = 4, Passed, "wrong_source";
    /// In a tunnel from a balancer, but to none of the addresses that tunnels may end at here.
    WrongDestination = 5, Passed, "wrong_destination";
    /// In a tunnel from a balancer, but for another address than those told.
    WrongVip = 6, Passed, "wrong_vip";
    /// In a tunnel from a balancer, but too short or contradictory.
    Malformed = 7, Dropped, "malformed";
    /// GUE whose UDP checksum does not fit what the packet says of itself.
    BadChecksum = 8, Dropped, "bad_checksum";
    /// Congestion was marked on the way, and the packet inside cannot say so (RFC 6040, 4.2).
    Congestion = 9, Dropped, "congestion";
    /// The packet inside has no hop left (RFC 2003, 3.1).
    TtlExpired = 10, Dropped, "ttl_expired";
    /// The kernel refused to shorten the packet.
    Internal = 11, Dropped, "internal";
    /// GRE from a balancer, for one of the addresses.
    Gre = 12, Stripped, "gre";
}

/// The outer headers as they are; nothing of them is checked.
///
/// The BPF program keeps it in a map: on the stack the verifier wants every access aligned, and the
/// compiler does not see to that.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    pub source: Address,
    pub destination: Address,
    /// ECN field (RFC 3168).
    ecn: u32,
    /// Bytes of the IP header, options included.
    header_len: u32,
    /// Bytes between the IP header and the packet inside: of UDP or GRE.
    between: u32,
    /// Bytes of the IP packet.
    packet_len: u32,
    /// Host order; 0 without UDP.
    source_port: u32,
    port: u32,
    /// What the protocol number says of the inner packet, or GRE; GUE tells by the packet alone.
    inner_v4: u32,
}

impl Outer {
    /// To be filled in.
    pub const EMPTY: Self = Self {
        source: Address::from_words([0; 4]),
        destination: Address::from_words([0; 4]),
        ecn: 0,
        header_len: 0,
        between: 0,
        packet_len: 0,
        source_port: 0,
        port: 0,
        inner_v4: 0,
    };

    /// Bytes that the tunnel added to the frame.
    #[inline(always)]
    pub const fn growth(&self) -> u32 {
        self.header_len + self.between
    }

    #[inline(always)]
    pub const fn is_gue(&self) -> bool {
        self.port != 0
    }

    #[inline(always)]
    const fn is_gre(&self) -> bool {
        self.between == GRE_LEN as u32
    }

    /// What it is to be stripped of this tunnel.
    #[inline(always)]
    pub const fn stripped(&self) -> Outcome {
        if self.is_gue() {
            Outcome::Gue
        } else if self.is_gre() {
            Outcome::Gre
        } else {
            Outcome::Ipip
        }
    }

    #[inline(always)]
    const fn inner_offset(&self) -> usize {
        NETWORK_OFFSET + self.growth() as usize
    }
}

/// The packet in the tunnel; kept as [`Outer`] is.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inner {
    pub network: Network,
    packet_len: u32,
    /// ToS or traffic class.
    class: u32,
    /// GUE: the UDP checksum as it stands there. 0: none, or no UDP.
    check: u32,
    /// GUE: the UDP length.
    datagram_len: u32,
}

impl Inner {
    /// To be filled in.
    pub const EMPTY: Self = Self {
        network: Network { v4: false, source: Outer::EMPTY.source, destination: Outer::EMPTY.source },
        packet_len: 0,
        class: 0,
        check: 0,
        datagram_len: 0,
    };
}

/// Reads the outer headers: of IP in IP, of GRE, or of GUE variant 1 to `gue_port` ([`Port::ANY`]: none).
#[inline(always)]
pub fn outer<P: PacketAccess>(frame: &P, gue_port: Port, outer: &mut Outer) -> Result<(), Outcome> {
    let ethernet: EthHdr = frame.read(0).ok_or(Outcome::NotTunnel)?;
    match ethernet.ether_type {
        ETHERTYPE_IPV4 => outer_v4(frame, gue_port, outer),
        ETHERTYPE_IPV6 => outer_v6(frame, gue_port, outer),
        _ => Err(Outcome::NotTunnel),
    }
}

#[inline(always)]
fn outer_v4<P: PacketAccess>(frame: &P, gue_port: Port, outer: &mut Outer) -> Result<(), Outcome> {
    let header: Ipv4Hdr = frame.read(NETWORK_OFFSET).ok_or(Outcome::NotTunnel)?;
    let header_len = (header.vihl & 0xf) as u32 * 4;
    if header.vihl >> 4 != 4 || header_len < IPV4_LEN {
        return Err(Outcome::NotTunnel);
    }
    let fragment = u16::from_be_bytes(header.frags) & 0x3fff;
    *outer = Outer {
        source: Address::v4(header.src_addr),
        destination: Address::v4(header.dst_addr),
        ecn: (header.tos & 3) as u32,
        header_len,
        between: 0,
        packet_len: u16::from_be_bytes(header.tot_len) as u32,
        source_port: 0,
        port: 0,
        inner_v4: (header.proto == IPIP) as u32,
    };
    match header.proto {
        IPIP | IPV6 => {}
        // Fragments behind the first have neither: whether they belong to a tunnel is not known.
        UDP if fragment & 0x1fff == 0 => udp(frame, outer, gue_port)?,
        GRE if fragment & 0x1fff == 0 => gre(frame, outer)?,
        _ => return Err(Outcome::NotTunnel),
    }
    if fragment != 0 { Err(Outcome::Fragment) } else { Ok(()) }
}

#[inline(always)]
fn outer_v6<P: PacketAccess>(frame: &P, gue_port: Port, outer: &mut Outer) -> Result<(), Outcome> {
    let header: Ipv6Hdr = frame.read(NETWORK_OFFSET).ok_or(Outcome::NotTunnel)?;
    let (source, destination) = (Address::v6(header.src_addr), Address::v6(header.dst_addr));
    // A mapped address would look like that of an IPv4 tunnel.
    if header.vcf[0] >> 4 != 6 || source.is_v4() || destination.is_v4() {
        return Err(Outcome::NotTunnel);
    }
    *outer = Outer {
        source,
        destination,
        ecn: (header.vcf[1] >> 4 & 3) as u32,
        header_len: IPV6_LEN,
        between: 0,
        packet_len: IPV6_LEN + u16::from_be_bytes(header.payload_len) as u32,
        source_port: 0,
        port: 0,
        inner_v4: (header.next_hdr == IPIP) as u32,
    };
    match header.next_hdr {
        IPIP | IPV6 => Ok(()),
        UDP => udp(frame, outer, gue_port),
        GRE => gre(frame, outer),
        _ => Err(Outcome::NotTunnel),
    }
}

/// Variant 1 is told by the first two bits behind the UDP header, which are those of an IP version
/// (draft-ietf-intarea-gue-09, section 4). Other variants are left to the stack.
#[inline(always)]
fn udp<P: PacketAccess>(frame: &P, outer: &mut Outer, gue_port: Port) -> Result<(), Outcome> {
    let at = NETWORK_OFFSET + outer.header_len as usize;
    let header: UdpHdr = frame.read(at).ok_or(Outcome::NotTunnel)?;
    let port = Port::from_wire(header.dst);
    if port != gue_port || gue_port == Port::ANY {
        return Err(Outcome::NotTunnel);
    }
    let first: u8 = frame.read(at + size_of::<UdpHdr>()).ok_or(Outcome::NotTunnel)?;
    outer.source_port = Port::from_wire(header.src).get() as u32;
    outer.port = port.get() as u32;
    outer.between = UDP_LEN;
    outer.inner_v4 = (first >> 4 == 4) as u32;
    if first >> 6 == 1 { Ok(()) } else { Err(Outcome::NotTunnel) }
}

/// GRE with a packet of IP inside, and nothing besides: no key, checksum or number, which somebody else has
/// agreed on. Others are left to the stack.
#[inline(always)]
fn gre<P: PacketAccess>(frame: &P, outer: &mut Outer) -> Result<(), Outcome> {
    let at = NETWORK_OFFSET + outer.header_len as usize;
    let [flags, version, high, low]: [u8; GRE_LEN] = frame.read(at).ok_or(Outcome::NotTunnel)?;
    let protocol = u16::from_ne_bytes([high, low]);
    if flags | version != 0 || protocol != ETHERTYPE_IPV4 && protocol != ETHERTYPE_IPV6 {
        return Err(Outcome::NotTunnel);
    }
    outer.between = GRE_LEN as u32;
    outer.inner_v4 = (protocol == ETHERTYPE_IPV4) as u32;
    Ok(())
}

/// The packet inside, when the outer headers and its own agree with each other and with a frame of
/// `frame_len` bytes. `is_vip` says whether packets for an address are taken off here.
#[inline(always)]
pub fn inner<P: PacketAccess>(
    frame: &P,
    frame_len: usize,
    outer: &Outer,
    inner: &mut Inner,
    is_vip: impl FnOnce(&Address) -> bool,
) -> Result<(), Outcome> {
    if outer.inner_v4 != 0 {
        inner_v4(frame, outer, inner)?;
    } else {
        inner_v6(frame, outer, inner)?;
    }
    if !is_vip(&inner.network.destination) {
        return Err(Outcome::WrongVip);
    }
    if outer.source.is_v4() && !header_sum_fits(frame, outer) || NETWORK_OFFSET + outer.packet_len as usize > frame_len
    {
        return Err(Outcome::Malformed);
    }
    let mut room = outer.packet_len.checked_sub(outer.header_len).ok_or(Outcome::Malformed)?;
    if outer.is_gue() {
        let header: UdpHdr = frame.read(NETWORK_OFFSET + outer.header_len as usize).ok_or(Outcome::Malformed)?;
        inner.datagram_len = u16::from_be_bytes(header.len) as u32;
        inner.check = u16::from_be_bytes(header.check) as u32;
        if inner.datagram_len > room {
            return Err(Outcome::Malformed);
        }
        room = inner.datagram_len;
    }
    room = room.checked_sub(outer.between).ok_or(Outcome::Malformed)?;
    if inner.packet_len > room {
        return Err(Outcome::Malformed);
    }
    // CE outside, not-ECT inside.
    if outer.ecn == 3 && inner.class & 3 == 0 {
        return Err(Outcome::Congestion);
    }
    Ok(())
}

#[inline(always)]
fn inner_v4<P: PacketAccess>(frame: &P, outer: &Outer, inner: &mut Inner) -> Result<(), Outcome> {
    let header: Ipv4Hdr = frame.read(outer.inner_offset()).ok_or(Outcome::Malformed)?;
    let header_len = (header.vihl & 0xf) as u32 * 4;
    let packet_len = u16::from_be_bytes(header.tot_len) as u32;
    if header.vihl >> 4 != 4 || header_len < IPV4_LEN || packet_len < header_len {
        return Err(Outcome::Malformed);
    }
    if header.ttl == 0 {
        return Err(Outcome::TtlExpired);
    }
    let (source, destination) = (Address::v4(header.src_addr), Address::v4(header.dst_addr));
    let network = Network { v4: true, source, destination };
    *inner = Inner { network, packet_len, class: header.tos as u32, check: 0, datagram_len: 0 };
    Ok(())
}

#[inline(always)]
fn inner_v6<P: PacketAccess>(frame: &P, outer: &Outer, inner: &mut Inner) -> Result<(), Outcome> {
    let header: Ipv6Hdr = frame.read(outer.inner_offset()).ok_or(Outcome::Malformed)?;
    let (source, destination) = (Address::v6(header.src_addr), Address::v6(header.dst_addr));
    let packet_len = IPV6_LEN + u16::from_be_bytes(header.payload_len) as u32;
    if header.vcf[0] >> 4 != 6 || source.is_v4() || destination.is_v4() {
        return Err(Outcome::Malformed);
    }
    if header.hop_limit == 0 {
        return Err(Outcome::TtlExpired);
    }
    let network = Network { v4: false, source, destination };
    let class = (header.vcf[0] << 4 | header.vcf[1] >> 4) as u32;
    *inner = Inner { network, packet_len, class, check: 0, datagram_len: 0 };
    Ok(())
}

/// The stack would have looked at it; of the packet inside it still does.
#[inline(always)]
fn header_sum_fits<P: PacketAccess>(frame: &P, outer: &Outer) -> bool {
    let mut sum = Sum::ZERO;
    // At most 15 words (RFC 791, 3.1).
    for word in 0..15 {
        if word * 4 >= outer.header_len as usize {
            break;
        }
        let Some(word) = frame.read(NETWORK_OFFSET + word * 4) else { return false };
        sum = sum.word(word);
    }
    sum.finish() == [0, 0]
}

/// Writes the link-layer header in front of the packet inside. The caller then takes
/// [`Outer::growth`] bytes off the frame's start.
#[inline(always)]
pub fn hand_over<P: PacketAccess>(frame: &mut P, outer: &Outer, inner: &Inner) -> Option<()> {
    // Two addresses of six bytes, as numbers: an array would be copied by a function, in which the
    // verifier of Linux 6.1 does not know the bounds any more.
    let (first, last): (u64, u32) = (frame.read(0)?, frame.read(8)?);
    let at = outer.growth() as usize;
    frame.write(at, first)?;
    frame.write(at + 8, last)?;
    frame.write(at + 12, if inner.network.v4 { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 })
}

/// Whether the UDP checksum of GUE fits the frame that is left. The payload is not summed up: what
/// the inner TCP or UDP checksum covers has a known sum if it is undamaged, and whether it is, the
/// stack finds out by that very checksum. `true` where there is nothing to check: no UDP, no
/// checksum, or a packet inside that is a fragment, another protocol or UDP without a checksum.
#[inline(always)]
pub fn checksum_fits<P: PacketAccess>(frame: &P, outer: &Outer, inner: &Inner) -> bool {
    if inner.check == 0 || inner.datagram_len != inner.packet_len + UDP_LEN {
        return true;
    }
    let Ok(transport) = parse::transport(frame, &inner.network) else { return true };
    let datagram = Datagram {
        source: outer.source,
        destination: outer.destination,
        source_port: Port::new(outer.source_port as u16),
        port: Port::new(outer.port as u16),
        length: inner.datagram_len as u16,
    };
    match datagram.checksum(frame, 0, &inner.network, &transport) {
        Some(expected) => expected == [0, 0] || u16::from_be_bytes(expected) as u32 == inner.check,
        None => false,
    }
}

/// Takes the congestion mark of the outer header over (RFC 6040, 4.2).
#[inline(always)]
pub fn mark_congestion<P: PacketAccess>(frame: &mut P, outer: &Outer, inner: &Inner) -> Option<()> {
    let class = decapsulated(outer.ecn, inner.class);
    if class == inner.class {
        return Some(());
    }
    let class = class as u8;
    let [a, b]: [u8; 2] = frame.read(NETWORK_OFFSET)?;
    if !inner.network.v4 {
        return frame.write(NETWORK_OFFSET, [a & 0xf0 | class >> 4, class << 4 | b & 0xf]);
    }
    let check: [u8; 2] = frame.read(NETWORK_OFFSET + 10)?;
    let delta = Delta::ZERO.field(u16::from_ne_bytes([a, b]), u16::from_ne_bytes([a, class]));
    frame.write(NETWORK_OFFSET + 1, class)?;
    frame.write(NETWORK_OFFSET + 10, delta.apply(check))
}

/// The inner ToS or traffic class after both ECN fields (RFC 6040, figure 4): a mark of the outer
/// one counts where the packet inside knows ECN. CE outside and not-ECT inside were dropped before.
#[inline(always)]
const fn decapsulated(outer_ecn: u32, class: u32) -> u32 {
    const ECT_1: u32 = 1;
    const ECT_0: u32 = 2;
    const CE: u32 = 3;
    match (outer_ecn, class & 3) {
        (CE, ECT_0 | ECT_1) => class | CE,
        (ECT_1, ECT_0) => class & !3 | ECT_1,
        _ => class,
    }
}
