//! Types and codes of ICMP (RFC 792) and ICMPv6 (RFC 4443).

pub(crate) const V4_ECHO_REPLY: u8 = 0;
pub(crate) const V4_UNREACHABLE: u8 = 3;
pub(crate) const V4_ECHO_REQUEST: u8 = 8;
pub(crate) const V4_TIME_EXCEEDED: u8 = 11;
pub(crate) const V4_PARAMETER_PROBLEM: u8 = 12;

/// Codes of [`V4_UNREACHABLE`].
pub(crate) const V4_PORT: u8 = 3;
pub(crate) const V4_FRAGMENTATION_NEEDED: u8 = 4;
/// Those that say that nobody is there, or that nobody may go there: network, host, protocol and port
/// unreachable (0 to 3), unknown (6, 7), prohibited (9, 10, 13: RFC 1812, 5.2.7.1). As a mask of bits.
pub(crate) const V4_GONE: u32 = 0b0010_0110_1100_1111;

pub(crate) const V6_UNREACHABLE: u8 = 1;
pub(crate) const V6_TOO_BIG: u8 = 2;
pub(crate) const V6_TIME_EXCEEDED: u8 = 3;
pub(crate) const V6_PARAMETER_PROBLEM: u8 = 4;
pub(crate) const V6_ECHO_REQUEST: u8 = 128;
pub(crate) const V6_ECHO_REPLY: u8 = 129;

/// Code of [`V6_UNREACHABLE`].
pub(crate) const V6_PORT: u8 = 4;
/// The same for IPv6 (RFC 4443, 3.1): no route, prohibited, address and port unreachable, refused by
/// policy or route (0, 1, 3 to 6).
pub(crate) const V6_GONE: u32 = 0b0111_1011;
