//! What the first fragment of a datagram tells of the others.

use bytemuck::{Pod, Zeroable};

use super::{Address, Port};

/// Key of the map `fragments`: what the fragments of one datagram have in common (RFC 791, 3.2; RFC
/// 8200, 4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    /// Network order, read as a native integer; the sixteen bits of IPv4 in the lower half.
    pub id: u32,
    /// IPv4: the protocol number. IPv6: 0, fragments may name different next headers.
    pub protocol: u8,
    pub zero: [u8; 3],
}

/// Value of the map `fragments`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct FragmentFlow {
    pub source_port: Port,
    pub destination_port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// Of the first fragment.
    pub tcp_flags: u8,
    /// IPv4 and translated: the identification of the fragments that are sent on, network order.
    pub id: [u8; 2],
    /// Where the first fragment went.
    pub backend_id: u32,
    /// The tick in which the first fragment came.
    pub seen: u32,
    /// Not 0: no service has the port, and the host gets the others too.
    pub passed: u8,
    pub zero: [u8; 3],
}
