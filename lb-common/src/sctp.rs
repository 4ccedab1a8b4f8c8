//! SCTP (RFC 9260) as far as a balancer looks at it: ports, and what the first chunk says about the
//! association. Nothing is rewritten: the checksum (CRC32c) covers the ports.

use crate::{
    flow::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    packet::PacketAccess,
};

/// The common header (RFC 9260, 3.1).
pub const HEADER_LEN: usize = 12;
/// What every chunk begins with (3.2).
const CHUNK_LEN: usize = 4;

/// Chunk types (3.2).
const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const SHUTDOWN_COMPLETE: u8 = 14;

/// Bytes of the least packet: its header and one chunk that carries nothing.
pub const PACKET_MIN: usize = HEADER_LEN + CHUNK_LEN;

/// What the first chunk of the packet whose header begins at `offset` says about its association, in
/// the words of TCP, which [`crate::flow`] understands: an INIT opens (and stands alone in its packet),
/// an ABORT or SHUTDOWN COMPLETE ends, SHUTDOWN and SHUTDOWN ACK close. Everything else goes on, as an
/// acknowledgement does: the client's first is COOKIE ECHO, which says that the backend has answered.
#[inline(always)]
pub fn flags<P: PacketAccess>(frame: &P, offset: usize) -> Option<u8> {
    let kind: u8 = frame.read(offset + HEADER_LEN)?;
    Some(match kind {
        INIT => TCP_SYN,
        ABORT | SHUTDOWN_COMPLETE => TCP_RST,
        SHUTDOWN | SHUTDOWN_ACK => TCP_FIN | TCP_ACK,
        _ => TCP_ACK,
    })
}
