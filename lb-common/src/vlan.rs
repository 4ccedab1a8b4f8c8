//! VLAN tags in frames (IEEE 802.1Q, 9): between the link-layer addresses and the ether type, at
//! most two. A frame is handled without them; the caller moves its start by their length between
//! reading what lies before the ether type and writing it again.

use crate::{
    abi::{VlanTag, VlanTags},
    packet::{Field, PacketAccess},
};

const TAGS: usize = 12;

/// Both link-layer addresses, as words and not as bytes, which the BPF compiler would copy one by
/// one.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct LinkAddresses(u32, u32, u32);
// SAFETY: integers, packed.
unsafe impl Field for LinkAddresses {}

/// The tags of the frame; `None` where there is none, or more than two.
#[inline(always)]
pub fn tags<P: PacketAccess>(frame: &P) -> Option<VlanTags> {
    let outer = tag(frame, TAGS)?;
    if outer.is_none() {
        return None;
    }
    let inner = tag(frame, TAGS + 4)?;
    if !inner.is_none() && !tag(frame, TAGS + 8)?.is_none() {
        return None;
    }
    Some(VlanTags { outer, inner })
}

#[inline(always)]
fn tag<P: PacketAccess>(frame: &P, at: usize) -> Option<VlanTag> {
    Some(VlanTag::from_word(frame.read(at)?))
}

/// What stands before tags and ether type.
#[inline(always)]
pub fn link_addresses<P: PacketAccess>(frame: &P) -> Option<LinkAddresses> {
    frame.read(0)
}

/// Writes the addresses, and the tags behind them, into a frame that has room for both before its
/// ether type.
#[inline(always)]
pub fn write<P: PacketAccess>(frame: &mut P, addresses: LinkAddresses, tags: &VlanTags) -> Option<()> {
    frame.write(0, addresses)?;
    if !tags.outer.is_none() {
        frame.write(TAGS, tags.outer.word())?;
    }
    if !tags.inner.is_none() {
        frame.write(TAGS + 4, tags.inner.word())?;
    }
    Some(())
}
