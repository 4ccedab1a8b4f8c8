//! QUIC connection IDs that say which server they belong to (draft-ietf-quic-load-balancers-21), in
//! their plaintext form: a first octet, the server id, and what the server likes.
//!
//! ```text
//! connection ID   0                1                    1 + N
//!                 | config, length | server id, N bytes | nonce ...
//! ```
//!
//! The first octet (section 3) has three bits that tell configurations apart and five for the length,
//! or random. Seven in the three bits says that there is no server id in it (3.2). All other
//! configurations are taken for the one there is: the server id alone decides.

use crate::{
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Transport},
};

/// Longest server id, in bytes (draft, section 5.1: it leaves room for four bytes of nonce).
pub const SERVER_ID_MAX: u8 = 15;

/// A server id as a map key has it: zeros behind its last byte.
pub type ServerId = [u8; 16];

const UDP_LEN: usize = 8;
/// RFC 8999, 5.1: the first bit of a long header.
const LONG_HEADER: u8 = 0x80;
/// Three bits of configuration, and the one that says "not routable".
const CONFIG_SHIFT: u8 = 5;
const UNROUTABLE: u8 = 7;

/// The server id in the destination connection ID of a UDP packet; `length` in bytes, 1 to
/// [`SERVER_ID_MAX`]. `None`: there is none: the connection ID is too short or says so, or the packet
/// is too short to be a QUIC packet with such an ID. Whether a server has this id is not known here: a
/// client's first packets have a random connection ID.
#[inline(always)]
pub fn server_id<P: PacketAccess>(frame: &P, transport: &Transport, length: u8) -> Option<ServerId> {
    let payload = transport.offset as usize + UDP_LEN;
    let first: u8 = frame.read(payload)?;
    let mut id = payload + 1;
    if first & LONG_HEADER != 0 {
        // Version (four bytes), then the connection ID's length and itself (RFC 8999, 5.1). The
        // version is not looked at: the draft applies to all that follow RFC 8999.
        let id_length: u8 = frame.read(payload + 5)?;
        if id_length <= length {
            return None;
        }
        id += 5;
    }
    // A packet that is encrypted goes on for 20 bytes behind its connection ID (RFC 9001, 5.4.2): these
    // are always there, within the packet.
    if id + 1 + size_of::<ServerId>() > NETWORK_OFFSET + transport.packet_len as usize {
        return None;
    }
    let octet: u8 = frame.read(id)?;
    if octet >> CONFIG_SHIFT == UNROUTABLE {
        return None;
    }
    // Two words and masks instead of bytes in a loop.
    let (high, low): (u64, u64) = (frame.read(id + 1)?, frame.read(id + 9)?);
    let bits = length as u32 * 8;
    Some(join(high & first_bits(bits), low & first_bits(bits.saturating_sub(64))))
}

/// A mask of the first bits of a word in memory order; all from 64 on.
#[inline(always)]
const fn first_bits(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (!(u64::MAX >> bits)).to_be() }
}

/// Two words in memory order.
#[inline(always)]
const fn join(high: u64, low: u64) -> ServerId {
    let (a, b) = (high.to_ne_bytes(), low.to_ne_bytes());
    [a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]
}
