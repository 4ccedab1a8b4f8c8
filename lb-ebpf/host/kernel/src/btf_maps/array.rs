//! Arrays: of elements of zeros, until somebody writes to them.

use core::{alloc::Layout, cell::Cell, ptr::null_mut};
use std::alloc::{alloc_zeroed, dealloc, handle_alloc_error};

use super::{Clear, filled};

/// An array. Its elements are there from the first look at it.
pub struct Array<T, const MAX_ENTRIES: usize, const FLAGS: usize = 0> {
    elements: Cell<*mut T>,
    len: Cell<usize>,
}

/// On the one CPU that there is.
pub type PerCpuArray<T, const MAX_ENTRIES: usize, const FLAGS: usize = 0> = Array<T, MAX_ENTRIES, FLAGS>;

// SAFETY: only the thread that has the machine uses maps.
unsafe impl<T, const MAX_ENTRIES: usize, const FLAGS: usize> Sync for Array<T, MAX_ENTRIES, FLAGS> {}

impl<T: 'static, const MAX_ENTRIES: usize, const FLAGS: usize> Array<T, MAX_ENTRIES, FLAGS> {
    #[expect(clippy::new_without_default, reason = "as in the library that this stands in for")]
    pub const fn new() -> Self {
        Self { elements: Cell::new(null_mut()), len: Cell::new(MAX_ENTRIES) }
    }

    pub fn get(&'static self, index: u32) -> Option<&'static T> {
        // SAFETY: an element, of which programs write some words while they hold references to others.
        self.get_ptr_mut(index).map(|element| unsafe { &*element })
    }

    pub fn get_ptr_mut(&'static self, index: u32) -> Option<*mut T> {
        if index as usize >= self.len.get() {
            return None;
        }
        if self.elements.get().is_null() {
            self.allocate();
        }
        // SAFETY: within the array.
        Some(unsafe { self.elements.get().add(index as usize) })
    }

    /// The number of elements, before the first is looked at: as the loader does.
    ///
    /// # Panics
    /// The array is in use.
    pub fn set_len(&self, len: usize) {
        assert!(self.elements.get().is_null(), "the array is in use");
        self.len.set(len);
    }

    fn layout(&self) -> Layout {
        Layout::array::<T>(self.len.get()).expect("it fits into memory")
    }

    #[cold]
    fn allocate(&'static self) {
        // SAFETY: no map has elements of no bytes.
        let elements = unsafe { alloc_zeroed(self.layout()) };
        if elements.is_null() {
            handle_alloc_error(self.layout());
        }
        self.elements.set(elements.cast());
        filled(self);
    }
}

impl<T: 'static, const MAX_ENTRIES: usize, const FLAGS: usize> Clear for Array<T, MAX_ENTRIES, FLAGS> {
    fn clear(&self) {
        // SAFETY: from `allocate`, which has made the map one that is cleared.
        unsafe { dealloc(self.elements.get().cast(), self.layout()) };
        self.elements.set(null_mut());
        self.len.set(MAX_ENTRIES);
    }
}
