//! The Internet checksum (RFC 1071), whole and by incremental update (RFC 1624, equation 3).

use crate::abi::{Address, Port};

/// The change that rewriting fields makes to a ones' complement sum. Collect every old and new
/// value, then apply it to each checksum that covers the fields.
#[derive(Clone, Copy, Default)]
pub struct Delta(u64);

impl Delta {
    pub const ZERO: Self = Self(0);

    /// Both changes.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// A 32-bit word in memory order was `old` and is `new`.
    #[inline(always)]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// A 16-bit field in memory order.
    #[inline(always)]
    pub const fn field(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    #[inline(always)]
    pub const fn port(self, old: Port, new: Port) -> Self {
        self.field(u16::from_ne_bytes(old.to_wire()), u16::from_ne_bytes(new.to_wire()))
    }

    /// An address of a pseudo-header. The words that mark a mapped IPv4 address are the same in old
    /// and new and cancel out, so this is right for IPv4's four octets as well.
    #[inline(always)]
    pub const fn address(self, old: &Address, new: &Address) -> Self {
        let (o, n) = (old.words(), new.words());
        self.word(o[0], n[0]).word(o[1], n[1]).word(o[2], n[2]).word(o[3], n[3])
    }

    /// An IPv4 address alone.
    #[inline(always)]
    pub const fn address_v4(self, old: &Address, new: &Address) -> Self {
        self.word(old.words()[3], new.words()[3])
    }

    /// The checksum after the change: `HC' = ~(~HC + ~m + m')`.
    #[inline(always)]
    pub const fn apply(self, check: [u8; 2]) -> [u8; 2] {
        (!fold(self.0 + (!u16::from_ne_bytes(check)) as u64)).to_ne_bytes()
    }

    /// As `apply`, for UDP: 0 means "no checksum" and stays 0 (RFC 768; RFC 6935 over IPv6), and a
    /// sum that comes out as 0 is sent as 0xffff.
    #[inline(always)]
    pub const fn apply_udp(self, check: [u8; 2]) -> [u8; 2] {
        if check[0] == 0 && check[1] == 0 {
            return check;
        }
        match self.apply(check) {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }
}

/// A running ones' complement sum over bytes in memory order, for headers that are built anew.
#[derive(Clone, Copy, Default)]
pub struct Sum(u64);

impl Sum {
    pub const ZERO: Self = Self(0);

    /// Two bytes.
    #[inline(always)]
    pub const fn pair(self, bytes: [u8; 2]) -> Self {
        Self(self.0 + u16::from_ne_bytes(bytes) as u64)
    }

    /// Four bytes, as a word in memory order.
    #[inline(always)]
    pub const fn word(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// A part that was summed elsewhere, from an even offset on.
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Whether what was summed, its checksum included, is as it was sent.
    #[inline(always)]
    pub const fn is_right(self) -> bool {
        fold(self.0) == 0xffff
    }

    /// What is summed up already, in memory order: the sum of words so far, folded to 32 bits at most.
    #[inline(always)]
    pub const fn partial(self, sum: u32) -> Self {
        Self(self.0 + sum as u64)
    }

    /// Bytes from an even offset on; an odd last byte is padded with zero.
    #[inline(always)]
    pub fn bytes<const N: usize>(mut self, bytes: &[u8; N]) -> Self {
        let mut i = 0;
        while i + 1 < N {
            self = self.pair([bytes[i], bytes[i + 1]]);
            i += 2;
        }
        if N % 2 == 1 {
            self = self.pair([bytes[N - 1], 0]);
        }
        self
    }

    /// The pseudo-header of TCP, UDP (`address` of either family) and ICMPv6; `length` in bytes.
    #[inline(always)]
    pub const fn pseudo_header(self, source: &Address, destination: &Address, protocol: u8, length: u16) -> Self {
        let (s, d) = (source.words(), destination.words());
        let addresses = if source.is_v4() {
            s[3] as u64 + d[3] as u64
        } else {
            s[0] as u64
                + s[1] as u64
                + s[2] as u64
                + s[3] as u64
                + d[0] as u64
                + d[1] as u64
                + d[2] as u64
                + d[3] as u64
        };
        Self(self.0 + addresses).pair([0, protocol]).pair(length.to_be_bytes())
    }

    /// The checksum field.
    #[inline(always)]
    pub const fn finish(self) -> [u8; 2] {
        (!fold(self.0)).to_ne_bytes()
    }
}

/// 64 bits of sum to 16. A sum of at most 2^16 words of 32 bits stays below 2^48: three folds and
/// one for the last carry.
#[inline(always)]
const fn fold(mut sum: u64) -> u16 {
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}
