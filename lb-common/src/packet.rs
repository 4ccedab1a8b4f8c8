//! Access to the bytes of a frame: the same code reads it in XDP, in unit tests and in the fuzzer.

use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
    udp::UdpHdr,
};

use crate::checksum::Sum;

/// Frames are read up to here: room for every header with all options and extension headers that
/// are accepted. A power of two, so that an offset is bounded by a mask.
pub const HEADERS_MAX: usize = 1024;

/// An offset that was kept in memory. It is below [`HEADERS_MAX`] already, and is said to be once more:
/// the verifier does not know what was kept.
#[inline(always)]
pub(crate) const fn kept(offset: u16) -> usize {
    offset as usize & (HEADERS_MAX - 1)
}

/// Bytes that [`PacketAccess::sum`] takes at most; they begin before [`HEADERS_MAX`].
pub const SUM_MAX: usize = 2047;

/// A header, or a field, that may be read from and written to any place of a frame.
///
/// # Safety
/// The type must be `Copy`, made of bytes and integers without padding, and take every bit pattern.
pub unsafe trait Field: Copy {}

macro_rules! fields {
    ($($type:ty),+ $(,)?) => { $(
        // SAFETY: bytes and integers only, `repr(C)` without padding.
        unsafe impl Field for $type {}
    )+ };
}
fields!(u8, u16, u32, u64, EthHdr, Ipv4Hdr, Ipv6Hdr, TcpHdr, UdpHdr);
// SAFETY: an array of bytes.
unsafe impl<const N: usize> Field for [u8; N] {}

/// Checked access at a byte offset. `None` when the frame ends before the field does, or when it
/// begins at [`HEADERS_MAX`] or beyond.
///
/// In XDP, check and access must go through the same register: the verifier knows the bounds of that
/// one only, while the compiler takes a check for done when an earlier one implies it.
pub trait PacketAccess {
    /// Bytes of the whole frame, also of those behind what can be read.
    fn len(&self) -> usize;
    fn read<T: Field>(&self, offset: usize) -> Option<T>;
    fn write<T: Field>(&mut self, offset: usize, value: T) -> Option<()>;

    /// Whether the whole frame has so many bytes.
    #[inline(always)]
    fn holds(&self, bytes: usize) -> bool {
        bytes <= self.len()
    }

    /// Sum of `len` bytes, at most [`SUM_MAX`], from `offset` on.
    fn sum(&self, offset: usize, len: usize) -> Option<Sum>;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A frame in memory.
impl PacketAccess for &mut [u8] {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn read<T: Field>(&self, offset: usize) -> Option<T> {
        let bytes = self.get(offset..offset.checked_add(size_of::<T>())?)?;
        if offset >= HEADERS_MAX {
            return None;
        }
        // SAFETY: the slice is as long as T, and `Field` promises that any bytes are a T.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }

    fn write<T: Field>(&mut self, offset: usize, value: T) -> Option<()> {
        let bytes = self.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        if offset >= HEADERS_MAX {
            return None;
        }
        // SAFETY: the slice is as long as T, and `Field` promises that T is plain bytes.
        unsafe { bytes.as_mut_ptr().cast::<T>().write_unaligned(value) };
        Some(())
    }

    fn sum(&self, offset: usize, len: usize) -> Option<Sum> {
        if offset >= HEADERS_MAX || len > SUM_MAX {
            return None;
        }
        let bytes = self.get(offset..offset + len)?;
        let pair = |pair: &[u8]| [pair[0], pair.get(1).copied().unwrap_or(0)];
        Some(bytes.chunks(2).fold(Sum::ZERO, |sum, bytes| sum.pair(pair(bytes))))
    }
}
