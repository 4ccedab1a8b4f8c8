//! One slot of a selection table.

use bytemuck::{Pod, Zeroable};

/// Value of the array `selection`, read and written as one number: where new flows go, and where
/// flows are that have no entry in the flow table.
///
/// ```text
/// 63            32 31             0
/// | stable        | current        |
/// ```
///
/// `stable` counts where the service is [`ServiceValue::TRACKED`](super::ServiceValue::TRACKED)
/// only: 0 is clean, [`u32::MAX`] gone, any other number a backend's id and one.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct Slot(u64);

impl Slot {
    /// As a backend's id: there is none.
    pub const NOBODY: u32 = u32::MAX;

    const GONE: u32 = u32::MAX;

    /// No flow of the slot is anywhere but at `current`, and none has an entry.
    #[inline(always)]
    pub const fn clean(current: u32) -> Self {
        Self(current as u64)
    }

    /// Flows may have entries; those without one are at `stable`.
    #[inline(always)]
    pub const fn unsettled(current: u32, stable: u32) -> Self {
        Self(current as u64 | (stable.wrapping_add(1) as u64) << 32)
    }

    /// Flows may have entries; those without one are over, with their backend.
    #[inline(always)]
    pub const fn gone(current: u32) -> Self {
        Self(current as u64 | (Self::GONE as u64) << 32)
    }

    /// The backend of new flows, or [`Slot::NOBODY`].
    #[inline(always)]
    pub const fn current(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn is_clean(self) -> bool {
        self.0 >> 32 == 0
    }

    /// Of a slot that is not clean: the backend of flows without an entry. No backend has the id that
    /// this gives for one that is gone.
    #[inline(always)]
    pub const fn stable(self) -> u32 {
        ((self.0 >> 32) as u32).wrapping_sub(1)
    }

    /// The backend of flows without an entry; `None`: they are over, or the slot is clean.
    pub const fn stable_backend(self) -> Option<u32> {
        match (self.0 >> 32) as u32 {
            0 | Self::GONE => None,
            id => Some(id - 1),
        }
    }

    /// Every backend that the slot names.
    pub fn backends(self) -> impl Iterator<Item = u32> {
        let current = Some(self.current()).filter(|id| *id != Self::NOBODY);
        current.into_iter().chain(self.stable_backend())
    }
}

impl core::fmt::Debug for Slot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.current(), self.stable_backend()) {
            (current, None) if self.is_clean() => write!(f, "{current}"),
            (current, None) => write!(f, "{current}/gone"),
            (current, Some(stable)) => write!(f, "{current}/{stable}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_what_it_was_made_of() {
        for current in [0, 1, 65_535, Slot::NOBODY] {
            assert!(Slot::clean(current).is_clean());
            assert_eq!(Slot::clean(current).stable_backend(), None);
            assert_eq!((Slot::gone(current).current(), Slot::gone(current).stable_backend()), (current, None));
            assert!(!Slot::gone(current).is_clean() && Slot::gone(current).stable() > 65_535);
            for stable in [0, 1, 65_535] {
                let slot = Slot::unsettled(current, stable);
                assert_eq!((slot.current(), slot.stable(), slot.is_clean()), (current, stable, false));
                assert_eq!(slot.stable_backend(), Some(stable));
            }
        }
    }
}
