//! The bits that tell the data path which addresses may be ours (see [`address_bit`]). A bit is set
//! before its first address is published, and cleared after the last one is gone: a packet to one of our
//! addresses always finds its bit.

use std::{collections::HashMap, sync::atomic::Ordering};

use lb_common::{
    abi::{Address, names},
    hash::address_bit,
};

use super::{maps::open_shared, mmap::SharedArray, pins::Pins};
use crate::dataplane::DataplaneError;

pub(super) struct AddressBits {
    words: SharedArray<u64>,
    /// By address, so that what is told twice counts once.
    bits: HashMap<Address, u32>,
    /// Addresses of each bit.
    counts: HashMap<u32, u32>,
}

impl AddressBits {
    /// Opens the pinned map; every address that is published now gets its bit. One too many, which an
    /// agent may have left that ended between two steps, costs a look-up and nothing else: it stays,
    /// because who opens the maps to read must not clear what the agent sets at this moment.
    pub(super) fn open(pins: &Pins, addresses: impl IntoIterator<Item = Address>) -> Result<Self, DataplaneError> {
        let words = open_shared(pins, names::ADDRESS_BITS)?;
        let mut bits = Self { words, bits: HashMap::new(), counts: HashMap::new() };
        for address in addresses {
            bits.set(address);
        }
        Ok(bits)
    }

    pub(super) fn set(&mut self, address: Address) {
        let bit = address_bit(&address);
        if self.bits.insert(address, bit).is_none() {
            *self.counts.entry(bit).or_default() += 1;
        }
        if let Some([word]) = self.words.words(bit / 64) {
            word.fetch_or(1 << (bit % 64), Ordering::Release);
        }
    }

    pub(super) fn clear(&mut self, address: &Address) {
        let Some(bit) = self.bits.remove(address) else { return };
        let left = self.counts.get_mut(&bit).map_or(0, |count| {
            *count -= 1;
            *count
        });
        if left == 0 {
            self.counts.remove(&bit);
            if let Some([word]) = self.words.words(bit / 64) {
                word.fetch_and(!(1 << (bit % 64)), Ordering::Release);
            }
        }
    }
}
