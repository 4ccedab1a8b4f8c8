//! VLAN tags (IEEE 802.1Q: Q-tags with TPID 0x8100, S-tags with TPID 0x88a8) as map keys and values.

use bytemuck::{Pod, Zeroable};

/// One tag: TPID and TCI, four bytes as they stand in the frame. Zero: none.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Pod, Zeroable)]
pub struct VlanTag {
    /// Network order, read as a native integer.
    word: u32,
}

impl VlanTag {
    pub const NONE: Self = Self { word: 0 };
    /// TPIDs.
    pub const CUSTOMER: u16 = 0x8100;
    pub const SERVICE: u16 = 0x88a8;

    /// Bits of a word in memory order.
    const TPID: u32 = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
    const ID: u32 = u32::from_ne_bytes([0, 0, 0x0f, 0xff]);
    /// Priority code point and drop eligible indicator.
    const PRIORITY: u32 = u32::from_ne_bytes([0, 0, 0xf0, 0]);

    /// `id`: the twelve bits that number the VLAN.
    #[inline(always)]
    pub const fn new(tpid: u16, id: u16) -> Self {
        let ([a, b], [c, d]) = (tpid.to_be_bytes(), id.to_be_bytes());
        Self { word: u32::from_ne_bytes([a, b, c & 0x0f, d]) }
    }

    /// From four bytes of a frame in memory order; [`VlanTag::NONE`] where they are no tag.
    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        let tpid = word & Self::TPID;
        let is_tag = tpid == Self::new(Self::CUSTOMER, 0).word || tpid == Self::new(Self::SERVICE, 0).word;
        if is_tag { Self { word } } else { Self::NONE }
    }

    /// The four bytes in memory order.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.word
    }

    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.word == 0
    }

    pub const fn tpid(self) -> u16 {
        let [a, b, _, _] = self.word.to_ne_bytes();
        u16::from_be_bytes([a, b])
    }

    /// Number of the VLAN.
    pub const fn id(self) -> u16 {
        let [_, _, c, d] = self.word.to_ne_bytes();
        u16::from_be_bytes([c & 0x0f, d])
    }

    /// The tag as it stands in keys: with priority 0.
    #[inline(always)]
    pub const fn without_priority(self) -> Self {
        Self { word: self.word & (Self::TPID | Self::ID) }
    }

    /// This VLAN with the priority of another tag.
    #[inline(always)]
    pub const fn with_priority_of(self, other: Self) -> Self {
        Self { word: self.word & !Self::PRIORITY | other.word & Self::PRIORITY }
    }
}

impl core::fmt::Debug for VlanTag {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_none() { f.write_str("none") } else { write!(f, "{:#06x} {}", self.tpid(), self.id()) }
    }
}

/// The tags of a frame: none, one, or two (IEEE 802.1ad, "QinQ").
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Pod, Zeroable)]
pub struct VlanTags {
    pub outer: VlanTag,
    /// None where there is no outer one.
    pub inner: VlanTag,
}

impl VlanTags {
    pub const NONE: Self = Self { outer: VlanTag::NONE, inner: VlanTag::NONE };

    /// Bytes in the frame: 0, 4 or 8.
    #[inline(always)]
    pub const fn bytes(&self) -> usize {
        match (self.outer.is_none(), self.inner.is_none()) {
            (true, _) => 0,
            (false, true) => 4,
            (false, false) => 8,
        }
    }

    /// As they stand in keys.
    #[inline(always)]
    pub const fn without_priority(&self) -> Self {
        Self { outer: self.outer.without_priority(), inner: self.inner.without_priority() }
    }
}

/// Key of the map `vlans_in`, whose values are interface indices: which VLAN interface the kernel
/// would take a frame for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Pod, Zeroable)]
pub struct VlanKey {
    /// The interface that the frame came in by.
    pub ifindex: u32,
    /// With priority 0.
    pub tags: VlanTags,
}

/// Value of the map `vlans_out`, keyed by the index of a VLAN interface: how a frame leaves by it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct VlanLink {
    /// The interface below all VLANs.
    pub parent: u32,
    /// At least one.
    pub tags: VlanTags,
}

/// The bit that stands for a VLAN interface in `vlan_bits`: most other interfaces have another one,
/// and a frame that leaves by them is spared a look at `vlans_out`.
#[inline(always)]
pub const fn vlan_bit(ifindex: u32) -> u64 {
    1 << (ifindex % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_keeps_what_it_was_made_of() {
        let word = u32::from_ne_bytes([0x81, 0x00, 0xb0, 0x64]);
        let tag = VlanTag::from_word(word);
        assert_eq!((tag.word(), tag.tpid(), tag.id()), (word, VlanTag::CUSTOMER, 100));
        assert_eq!(tag.without_priority(), VlanTag::new(VlanTag::CUSTOMER, 100));
        assert_eq!(VlanTag::new(VlanTag::SERVICE, 4094).with_priority_of(tag).without_priority().id(), 4094);
        let carried = VlanTag::new(VlanTag::SERVICE, 7).with_priority_of(tag).word().to_ne_bytes();
        assert_eq!(carried, [0x88, 0xa8, 0xb0, 7]);
    }

    #[test]
    fn what_is_no_tag_is_none() {
        for word in [[0x08, 0x00, 0x45, 0x00], [0x86, 0xdd, 0x60, 0x00], [0x91, 0x00, 0, 5], [0; 4]] {
            assert!(VlanTag::from_word(u32::from_ne_bytes(word)).is_none());
        }
        assert_eq!(VlanTags::NONE.bytes(), 0);
    }
}
