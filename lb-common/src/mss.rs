//! Clamping the segment size that a SYN announces (the MSS option: RFC 9293, 3.7.1; RFC 6691).

use crate::{
    checksum::Delta,
    packet::{HEADERS_MAX, PacketAccess, kept},
    parse::Transport,
};

/// Headers of an IPv4 or IPv6 packet without options, and TCP's: what the MSS is less than the MTU.
pub const HEADERS_V4: u32 = 40;
pub const HEADERS_V6: u32 = 60;

const TCP_LEN: usize = 20;
const TCP_CHECK: usize = 16;
/// More than the longest TCP header has room for.
const OPTIONS: usize = 40;

const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const MSS_LEN: usize = 4;

/// Where a walk over options is. It is written to memory and read again at each step: in XDP the
/// verifier does not follow it there, and the paths of its steps meet again instead of multiplying.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(u16);

impl Cursor {
    #[inline(always)]
    pub(crate) fn get(&self) -> usize {
        // SAFETY: a reference points to a valid number.
        kept(unsafe { (&raw const self.0).read_volatile() })
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, at: usize) {
        // SAFETY: as in `get`.
        unsafe { (&raw mut self.0).write_volatile(at as u16) };
    }
}

/// Lowers the MSS of a SYN to `most`, checksum included. An MSS that is lower already stays, and so
/// does a SYN without one, whose sender counts on 536 bytes or 1,220 (RFC 9293, 3.7.1). `None` when the
/// frame is shorter than `transport` says. Whatever is wrong with the options ends the walk: it is for
/// the receiver to judge.
#[inline(always)]
pub fn clamp<P: PacketAccess>(frame: &mut P, transport: &Transport, most: u16, cursor: &mut Cursor) -> Option<()> {
    let header = kept(transport.offset);
    let words: u8 = frame.read(header + 12)?;
    let end = header + (words >> 4) as usize * 4;
    cursor.set(header + TCP_LEN);
    for _ in 0..OPTIONS {
        let at = cursor.get();
        // Shorter options cannot be the one, nor come before it.
        if at + MSS_LEN > end {
            break;
        }
        let [kind, length, high, low]: [u8; MSS_LEN] = frame.read(at)?;
        if kind == MSS && length as usize == MSS_LEN {
            return lower(frame, header, at + 2, [high, low], most);
        }
        if kind == END || kind != NOTHING && length < 2 {
            break;
        }
        let next = at + if kind == NOTHING { 1 } else { length as usize };
        if next >= HEADERS_MAX {
            break;
        }
        cursor.set(next);
    }
    Some(())
}

/// Writes the lower one of two sizes to `at`, which need not be even: the sum of the header takes bytes
/// at odd places as if they were swapped (RFC 1071, 2 (B)).
#[inline(always)]
fn lower<P: PacketAccess>(frame: &mut P, header: usize, at: usize, was: [u8; 2], most: u16) -> Option<()> {
    if u16::from_be_bytes(was) <= most {
        return Some(());
    }
    let is = most.to_be_bytes();
    frame.write(at, is)?;
    let delta = if (at - header).is_multiple_of(2) {
        Delta::ZERO.field(u16::from_ne_bytes(was), u16::from_ne_bytes(is))
    } else {
        Delta::ZERO.field(u16::from_ne_bytes([was[1], was[0]]), u16::from_ne_bytes([is[1], is[0]]))
    };
    let check: [u8; 2] = frame.read(header + TCP_CHECK)?;
    frame.write(header + TCP_CHECK, delta.apply(check))
}
