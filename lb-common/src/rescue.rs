//! Connections whose backend refuses them or does not answer: what must hold for the client's SYN to go
//! to another backend instead.

use crate::{mss::Cursor, packet::kept, parse::NETWORK_OFFSET};

const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const TCP_LEN: usize = 20;
const TCP_MAX: usize = 60;

/// Room for the longest headers that are kept, IPv6 without extensions and TCP with all options; a power
/// of two, so that an offset is bounded by a mask.
pub const HEADERS: usize = 128;
const _: () = assert!(IPV6_LEN + TCP_MAX <= HEADERS);

/// More than the longest TCP header has room for.
const OPTIONS: usize = 40;
const END: u8 = 0;
const NOTHING: u8 = 1;
/// RFC 2385 and RFC 5925: these sign the addresses, so that a translated segment is worth nothing.
const MD5: u8 = 19;
const AUTHENTICATION: u8 = 29;

/// Bytes of the IP header.
#[inline(always)]
const fn network_len(v4: bool) -> usize {
    if v4 { IPV4_LEN } else { IPV6_LEN }
}

/// Bytes of IP and TCP header of a SYN, if they can be kept: nothing but plain headers, and no data behind
/// them (TCP Fast Open's stays with its backend). `offset` and `packet_len` as in
/// [`Transport`](crate::parse::Transport); `data_offset` is the 13th byte of the TCP header. 0: it is not
/// kept.
#[inline(always)]
pub const fn kept_len(v4: bool, offset: u16, packet_len: u16, data_offset: u8) -> usize {
    let tcp = (data_offset >> 4) as usize * 4;
    let network = network_len(v4);
    let plain = offset as usize == NETWORK_OFFSET + network && tcp >= TCP_LEN;
    if plain && packet_len as usize == network + tcp { network + tcp } else { 0 }
}

/// A SYN that was kept. Nothing is about one that was not.
#[derive(Clone, Copy)]
pub struct Syn<'a> {
    pub v4: bool,
    pub len: u8,
    pub headers: &'a [u8; HEADERS],
}

impl Syn<'_> {
    /// Bytes from the start of a frame to the TCP header.
    #[inline(always)]
    pub const fn offset(&self) -> u16 {
        (NETWORK_OFFSET + network_len(self.v4)) as u16
    }

    /// TTL or hop limit.
    #[inline(always)]
    pub const fn ttl(&self) -> u8 {
        if self.v4 { self.headers[8] } else { self.headers[7] }
    }

    /// As in the 14th byte of the TCP header.
    #[inline(always)]
    pub const fn tcp_flags(&self) -> u8 {
        self.headers[network_len(self.v4) + 13]
    }

    /// Whether a reset with this acknowledgement number answers the SYN (RFC 9293, 3.10.7.3: in SYN-SENT a
    /// reset counts if it acknowledges the SYN). Any other one is forged, or not about this connection.
    #[inline(always)]
    pub const fn is_refused_by(&self, acknowledgement: [u8; 4]) -> bool {
        self.len != 0 && u32::from_be_bytes(acknowledgement) == self.sequence().wrapping_add(1)
    }

    /// Whether an error that quotes this sequence number is about the SYN: who did not see it would have to
    /// guess (RFC 5927, 4.1).
    #[inline(always)]
    pub const fn is_quoted_by(&self, sequence: [u8; 4]) -> bool {
        self.len != 0 && u32::from_be_bytes(sequence) == self.sequence()
    }

    #[inline(always)]
    const fn sequence(&self) -> u32 {
        let at = network_len(self.v4) + 4;
        let h = self.headers;
        u32::from_be_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]])
    }

    /// Whether the segment is signed: it is left alone then. Options that cannot be walked count as
    /// signed.
    #[inline(always)]
    pub fn is_signed(&self, cursor: &mut Cursor) -> bool {
        let end = self.len as usize;
        cursor.set(network_len(self.v4) + TCP_LEN);
        for _ in 0..OPTIONS {
            let at = cursor.get();
            // Also for the byte behind it; that is never beyond the headers by more than the room has.
            if at >= end || at > HEADERS - 2 {
                return false;
            }
            let kind = self.headers[at];
            if kind == END {
                return false;
            }
            if kind == NOTHING {
                cursor.set(at + 1);
                continue;
            }
            if kind == MD5 || kind == AUTHENTICATION {
                return true;
            }
            let length = self.headers[at + 1];
            if length < 2 {
                return true;
            }
            cursor.set(kept((at + length as usize) as u16));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(v4: bool, options: &[u8]) -> ([u8; HEADERS], u8) {
        let mut headers = [0; HEADERS];
        let at = network_len(v4);
        headers[at + 4..at + 8].copy_from_slice(&u32::MAX.to_be_bytes());
        headers[at + 13] = 2;
        headers[at + TCP_LEN..at + TCP_LEN + options.len()].copy_from_slice(options);
        (headers, (at + TCP_LEN + options.len()) as u8)
    }

    fn signed(v4: bool, options: &[u8]) -> bool {
        let (headers, len) = syn(v4, options);
        Syn { v4, len, headers: &headers }.is_signed(&mut Cursor::default())
    }

    #[test]
    fn signed_segments_are_found_wherever_the_option_is() {
        for v4 in [true, false] {
            let linux = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
            assert!(!signed(v4, &linux));
            assert!(!signed(v4, &[]));
            assert!(!signed(v4, &[1; 40]));
            let md5 = [&[1, 1, 19, 18][..], &[0; 16]].concat();
            assert!(signed(v4, &md5));
            assert!(signed(v4, &[&linux[..], &[29, 16], &[0; 14]].concat()));
            // Not an option any more.
            assert!(!signed(v4, &[0, 19, 18, 0]));
        }
    }

    #[test]
    fn options_that_make_no_sense_are_left_alone() {
        assert!(signed(true, &[8, 0, 0, 0]));
        assert!(signed(true, &[8, 1, 0, 0]));
        // Beyond the header's end: nothing more to find there.
        assert!(!signed(true, &[8, 200, 0, 0]));
    }

    #[test]
    fn a_reset_must_acknowledge_the_syn() {
        for v4 in [true, false] {
            let (headers, len) = syn(v4, &[]);
            let syn = Syn { v4, len, headers: &headers };
            assert!(syn.is_refused_by([0; 4]), "sequence numbers wrap");
            assert!(!syn.is_refused_by([0xff; 4]) && !syn.is_refused_by([0, 0, 0, 1]));
            assert_eq!((syn.tcp_flags(), syn.offset()), (2, if v4 { 34 } else { 54 }));
        }
    }

    #[test]
    fn nothing_is_about_a_syn_that_was_not_kept() {
        let (headers, _) = syn(true, &[]);
        let syn = Syn { v4: true, len: 0, headers: &headers };
        assert!(!syn.is_refused_by([0; 4]) && !syn.is_quoted_by([0xff; 4]));
    }

    #[test]
    fn only_plain_headers_without_data_are_kept() {
        assert_eq!(kept_len(true, 34, 40, 5 << 4), 40);
        assert_eq!(kept_len(true, 34, 80, 15 << 4), 80);
        assert_eq!(kept_len(false, 54, 100, 15 << 4), 100);
        assert_eq!(kept_len(true, 38, 44, 5 << 4), 0, "IP options");
        assert_eq!(kept_len(true, 34, 41, 5 << 4), 0, "data");
        assert_eq!(kept_len(false, 62, 68, 5 << 4), 0, "extension headers");
        assert_eq!(kept_len(true, 34, 36, 4 << 4), 0, "too short a header");
    }
}
