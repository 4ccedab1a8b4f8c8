//! Protocol numbers of IPv4, which are IPv6's next header numbers too (IANA). Those of what is balanced are
//! [`Protocol`](crate::abi::Protocol)'s.

pub const ICMP: u8 = 1;
/// An IPv4 packet in another.
pub const IPIP: u8 = 4;
/// An IPv6 packet in another.
pub const IPV6: u8 = 41;
/// Generic routing encapsulation (RFC 2784).
pub const GRE: u8 = 47;
pub const ICMPV6: u8 = 58;

/// IPv6 extension headers (RFC 8200, 4; RFC 6275).
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;
pub const MOBILITY: u8 = 135;

/// ICMP of a family.
#[inline(always)]
pub const fn icmp(v4: bool) -> u8 {
    if v4 { ICMP } else { ICMPV6 }
}
