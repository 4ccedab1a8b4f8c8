//! ICMP errors as another implementation builds them.

use std::net::IpAddr;

use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, icmpv4, icmpv4::TimeExceededCode as TimeExceededV4, icmpv6,
    icmpv6::TimeExceededCode as TimeExceededV6,
};

use crate::frames::{ETHERNET, Packet, Segment};

#[derive(Clone, Copy, Debug)]
pub enum Kind {
    PortUnreachable,
    /// With the MTU that is told.
    TooBig(u16),
    TimeExceeded,
    ParameterProblem,
}

pub const KINDS: [Kind; 4] = [Kind::PortUnreachable, Kind::TooBig(1400), Kind::TimeExceeded, Kind::ParameterProblem];

/// An error from one to another, quoting these bytes.
pub fn error(from: IpAddr, to: IpAddr, kind: Kind, quoted: &[u8]) -> Packet {
    let segment = match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = match kind {
                Kind::PortUnreachable => Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port),
                Kind::TooBig(mtu) => Icmpv6Type::PacketTooBig { mtu: mtu.into() },
                Kind::TimeExceeded => Icmpv6Type::TimeExceeded(TimeExceededV6::HopLimitExceeded),
                Kind::ParameterProblem => Icmpv6Type::ParameterProblem(icmpv6::ParameterProblemHeader {
                    code: icmpv6::ParameterProblemCode::UnrecognizedIpv6Option,
                    pointer: 40,
                }),
            };
            let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quoted).unwrap();
            Segment::Other { protocol: 58, bytes: [&header.to_bytes()[..], quoted].concat() }
        }
        _ => {
            let kind = match kind {
                Kind::PortUnreachable => Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port),
                Kind::TooBig(next_hop_mtu) => {
                    Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded {
                        next_hop_mtu,
                    })
                }
                Kind::TimeExceeded => Icmpv4Type::TimeExceeded(TimeExceededV4::TtlExceededInTransit),
                Kind::ParameterProblem => {
                    Icmpv4Type::ParameterProblem(icmpv4::ParameterProblemHeader::PointerIndicatesError(20))
                }
            };
            let header = Icmpv4Header::with_checksum(kind, quoted);
            Segment::Other { protocol: 1, bytes: [&header.to_bytes()[..], quoted].concat() }
        }
    };
    Packet::new(&from.to_string(), &to.to_string(), segment)
}

/// The whole segment.
pub const WHOLE: usize = 1500;

/// The packet's bytes as a router quotes them: up to so many behind the IP headers.
pub fn quote(packet: &Packet, behind: usize) -> Vec<u8> {
    let frame = packet.frame();
    let end = (packet.transport_offset() + behind).min(frame.len());
    frame[ETHERNET..end].to_vec()
}
