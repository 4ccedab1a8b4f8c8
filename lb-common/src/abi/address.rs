//! Addresses, ports and protocols as they stand in map keys.

use bytemuck::{Pod, Zeroable};

/// An IPv6 address, or an IPv4 address in its mapped form `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2);
/// 16 bytes in network order.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Address {
    /// Network order, read as native integers.
    words: [u32; 4],
}

impl Address {
    /// The prefix word that marks a mapped IPv4 address.
    const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

    /// From the four octets of an IPv4 address.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        Self { words: [0, 0, Self::MAPPED, u32::from_ne_bytes(octets)] }
    }

    /// From the sixteen octets of an IPv6 address.
    #[inline(always)]
    pub const fn v6(o: [u8; 16]) -> Self {
        let words = [
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ];
        Self { words }
    }

    /// Whether this is a mapped IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == Self::MAPPED
    }

    /// The last four octets: the whole of an IPv4 address.
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        self.words[3].to_ne_bytes()
    }

    /// The four words in memory order: network order read as native integers.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// From words as [`Self::words`] gives them.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The address with all bits behind the first `v4` (of an IPv4 address, at most 32) or `v6` (at
    /// most 128) cleared.
    #[inline(always)]
    pub const fn masked(&self, v4: u8, v6: u8) -> Self {
        let bits = if self.is_v4() { v4 as u32 + 96 } else { v6 as u32 };
        let [a, b, c, d] = self.words;
        Self { words: [a & mask(bits, 0), b & mask(bits, 32), c & mask(bits, 64), d & mask(bits, 96)] }
    }

    /// All sixteen octets.
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.words;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }
}

/// The bits of the word that begins at bit `from` which are among the first `bits`, in network order.
#[inline(always)]
const fn mask(bits: u32, from: u32) -> u32 {
    let beyond = 32u32.saturating_sub(bits.saturating_sub(from)) as u64;
    // 64 bits wide: all 32 may be shifted out.
    (((u32::MAX as u64) << beyond) as u32).to_be()
}

impl From<core::net::IpAddr> for Address {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(ip) => Self::v4(ip.octets()),
            core::net::IpAddr::V6(ip) => Self::v6(ip.octets()),
        }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() { Self::V4(address.v4_octets().into()) } else { Self::V6(address.octets().into()) }
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&core::net::IpAddr::from(*self), f)
    }
}

/// A port in network order. `Port::ANY` (0) in a service key stands for every port.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct Port {
    /// High byte first.
    wire: [u8; 2],
}

impl Port {
    /// Every port of the address.
    pub const ANY: Self = Self { wire: [0, 0] };

    /// From a number in host order.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self { wire: port.to_be_bytes() }
    }

    /// From the two bytes of a packet.
    #[inline(always)]
    pub const fn from_wire(wire: [u8; 2]) -> Self {
        Self { wire }
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.wire)
    }

    /// The two bytes of a packet.
    #[inline(always)]
    pub const fn to_wire(self) -> [u8; 2] {
        self.wire
    }
}

impl core::fmt::Debug for Port {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&self.get(), f)
    }
}

/// Transport protocols that are balanced; the value is the IP protocol number.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
    /// With direct server return only.
    Sctp = 132,
}

impl Protocol {
    /// `None` for a protocol that is not balanced.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// Whether it has connections that begin and end, as [`crate::flow`] follows them.
    #[inline(always)]
    pub const fn has_connections(self) -> bool {
        !matches!(self, Self::Udp)
    }

    /// `tcp`, `udp` or `sctp`, as in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;

    #[test]
    fn an_address_is_masked_to_a_prefix_of_its_family() {
        let masked = |address: &str, v4, v6| {
            let address: IpAddr = address.parse().unwrap();
            IpAddr::from(Address::from(address).masked(v4, v6)).to_string()
        };
        for (bits, wanted) in [(32, "198.51.100.255"), (31, "198.51.100.254"), (24, "198.51.100.0"), (0, "0.0.0.0")] {
            assert_eq!(masked("198.51.100.255", bits, 64), wanted);
        }
        let address = "2001:db8:1:2:ffff:ffff:ffff:ffff";
        for (bits, wanted) in
            [(128, address), (127, "2001:db8:1:2:ffff:ffff:ffff:fffe"), (64, "2001:db8:1:2::"), (0, "::")]
        {
            assert_eq!(masked(address, 24, bits), wanted);
        }
    }
}
