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
    /// [`FragmentKey::DATAGRAM`] or [`FragmentKey::SENDER`].
    pub kind: u8,
    pub zero: [u8; 2],
}

impl FragmentKey {
    /// Of one datagram.
    pub const DATAGRAM: u8 = 0;
    /// Of all that a sender sends in pieces to one address: what the last of them told.
    pub const SENDER: u8 = 1;

    /// The sender's, of one of its datagrams.
    #[inline(always)]
    pub const fn of_sender(self) -> Self {
        Self { id: 0, kind: Self::SENDER, ..self }
    }
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
    /// Not 0: the first fragment has not come by yet, and this is what the sender's last datagram told.
    pub guessed: u8,
    pub zero: [u8; 2],
}
