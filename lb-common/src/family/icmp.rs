//! ICMP between the families: types, codes, pointers and MTUs (RFC 7915, 4.2 and 5.2).

use crate::icmp::{kinds::*, too_big::IPV6_MTU_MIN};

/// An ICMP message's first eight bytes, checksum aside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    pub kind: u8,
    pub code: u8,
    /// The four bytes behind the checksum: identifier and sequence number, MTU, pointer.
    pub rest: [u8; 4],
}

/// MTUs of the ways on both sides of the translator, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mtus {
    pub v4: u32,
    pub v6: u32,
}

impl Mtus {
    /// Nothing is known of either way.
    pub const ANY: Self = Self { v4: u32::MAX, v6: u32::MAX };
}

/// The header of IPv6 is that much longer.
pub const DIFFERENCE: u32 = 20;
/// Where a next header field is that names what the receiver does not know.
const V6_NEXT_HEADER: u8 = 6;

impl Message {
    const fn new(kind: u8, code: u8, rest: [u8; 4]) -> Self {
        Self { kind, code, rest }
    }

    /// The ICMPv6 message for an ICMPv4 one; `None`: there is none, and it ends here. `quoted_len`: the
    /// total length that the quoted packet's header says, used where an old router tells no MTU.
    #[inline(always)]
    pub const fn to_v6(self, mtus: &Mtus, quoted_len: u16) -> Option<Self> {
        match self.kind {
            V4_ECHO_REQUEST => Some(Self::new(V6_ECHO_REQUEST, 0, self.rest)),
            V4_ECHO_REPLY => Some(Self::new(V6_ECHO_REPLY, 0, self.rest)),
            V4_UNREACHABLE => self.unreachable_to_v6(mtus, quoted_len),
            V4_TIME_EXCEEDED => Some(Self::new(V6_TIME_EXCEEDED, self.code, [0; 4])),
            V4_PARAMETER_PROBLEM if self.code == 0 || self.code == 2 => match pointer_to_v6(self.rest[0]) {
                Some(pointer) => Some(Self::new(V6_PARAMETER_PROBLEM, 0, [0, 0, 0, pointer])),
                None => None,
            },
            _ => None,
        }
    }

    #[inline(always)]
    const fn unreachable_to_v6(self, mtus: &Mtus, quoted_len: u16) -> Option<Self> {
        const NO_ROUTE: u8 = 0;
        const PROHIBITED: u8 = 1;
        const UNKNOWN_NEXT_HEADER: u8 = 1;
        let code = match self.code {
            // Protocol unreachable.
            2 => {
                let rest = [0, 0, 0, V6_NEXT_HEADER];
                return Some(Self::new(V6_PARAMETER_PROBLEM, UNKNOWN_NEXT_HEADER, rest));
            }
            V4_FRAGMENTATION_NEEDED => {
                let told = u16::from_be_bytes([self.rest[2], self.rest[3]]);
                return Some(Self::new(V6_TOO_BIG, 0, mtu_to_v6(told, mtus, quoted_len).to_be_bytes()));
            }
            0 | 1 | 5 | 6 | 7 | 8 | 11 | 12 => NO_ROUTE,
            V4_PORT => V6_PORT,
            9 | 10 | 13 | 15 => PROHIBITED,
            _ => return None,
        };
        Some(Self::new(V6_UNREACHABLE, code, [0; 4]))
    }

    /// The ICMPv4 message for an ICMPv6 one; `None` as in [`Self::to_v6`].
    #[inline(always)]
    pub const fn to_v4(self, mtus: &Mtus) -> Option<Self> {
        match (self.kind, self.code) {
            (V6_ECHO_REQUEST, _) => Some(Self::new(V4_ECHO_REQUEST, 0, self.rest)),
            (V6_ECHO_REPLY, _) => Some(Self::new(V4_ECHO_REPLY, 0, self.rest)),
            // No route, beyond the scope of the source, address unreachable: host unreachable.
            (V6_UNREACHABLE, 0 | 2 | 3) => Some(Self::new(V4_UNREACHABLE, 1, [0; 4])),
            // Administratively prohibited.
            (V6_UNREACHABLE, 1) => Some(Self::new(V4_UNREACHABLE, 10, [0; 4])),
            (V6_UNREACHABLE, V6_PORT) => Some(Self::new(V4_UNREACHABLE, V4_PORT, [0; 4])),
            (V6_TOO_BIG, _) => {
                let [_, _, m0, m1] = mtu_to_v4(u32::from_be_bytes(self.rest), mtus).to_be_bytes();
                Some(Self::new(V4_UNREACHABLE, V4_FRAGMENTATION_NEEDED, [0, 0, m0, m1]))
            }
            (V6_TIME_EXCEEDED, code) => Some(Self::new(V4_TIME_EXCEEDED, code, [0; 4])),
            (V6_PARAMETER_PROBLEM, 0) => match pointer_to_v4(u32::from_be_bytes(self.rest)) {
                Some(pointer) => Some(Self::new(V4_PARAMETER_PROBLEM, 0, [pointer, 0, 0, 0])),
                None => None,
            },
            // An unrecognised next header: protocol unreachable.
            (V6_PARAMETER_PROBLEM, 1) => Some(Self::new(V4_UNREACHABLE, 2, [0; 4])),
            _ => None,
        }
    }
}

/// RFC 7915, 4.2: the header of IPv6 is longer, and no IPv6 link takes less than 1,280 bytes.
#[inline(always)]
const fn mtu_to_v6(told: u16, mtus: &Mtus, quoted_len: u16) -> u32 {
    let told = if told == 0 { plateau_below(quoted_len) } else { told };
    let fits = least(told as u32 + DIFFERENCE, least(mtus.v6, mtus.v4.saturating_add(DIFFERENCE)));
    if fits < IPV6_MTU_MIN { IPV6_MTU_MIN } else { fits }
}

/// RFC 7915, 5.2.
#[inline(always)]
const fn mtu_to_v4(told: u32, mtus: &Mtus) -> u32 {
    let fits = least(told.saturating_sub(DIFFERENCE), least(mtus.v4, mtus.v6.saturating_sub(DIFFERENCE)));
    least(fits, u16::MAX as u32)
}

/// The usual MTU below the length of a packet that did not fit (RFC 1191, table 7-1).
#[inline(always)]
const fn plateau_below(length: u16) -> u16 {
    const PLATEAUS: [u16; 10] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296, 68];
    let mut i = 0;
    while i < PLATEAUS.len() {
        if PLATEAUS[i] < length {
            return PLATEAUS[i];
        }
        i += 1;
    }
    68
}

/// RFC 7915, figure 3.
#[inline(always)]
const fn pointer_to_v6(pointer: u8) -> Option<u8> {
    match pointer {
        0 | 1 => Some(pointer),
        2 | 3 => Some(4),
        8 => Some(7),
        9 => Some(6),
        12..=15 => Some(8),
        16..=19 => Some(24),
        _ => None,
    }
}

/// RFC 7915, figure 6.
#[inline(always)]
const fn pointer_to_v4(pointer: u32) -> Option<u8> {
    match pointer {
        0 => Some(0),
        1 => Some(1),
        4 | 5 => Some(2),
        6 => Some(9),
        7 => Some(8),
        8..=23 => Some(12),
        24..=39 => Some(16),
        _ => None,
    }
}

#[inline(always)]
const fn least(a: u32, b: u32) -> u32 {
    if a < b { a } else { b }
}
