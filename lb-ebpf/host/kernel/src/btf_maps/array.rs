//! Arrays: of elements of zeros, until somebody writes to them.

use core::{cell::Cell, ptr::null_mut};

use super::{Clear, filled};

const PAGE: usize = 4096;

/// An array. Its elements are there from the first look at it, and memory ends behind the last one.
pub struct Array<T, const MAX_ENTRIES: usize, const FLAGS: usize = 0> {
    elements: Cell<*mut T>,
    len: Cell<usize>,
    /// Somebody has looked at an element since it was cleared.
    in_use: Cell<bool>,
}

/// On the one CPU that there is.
pub type PerCpuArray<T, const MAX_ENTRIES: usize, const FLAGS: usize = 0> = Array<T, MAX_ENTRIES, FLAGS>;

// SAFETY: only the thread that has the machine uses maps.
unsafe impl<T, const MAX_ENTRIES: usize, const FLAGS: usize> Sync for Array<T, MAX_ENTRIES, FLAGS> {}

impl<T: 'static, const MAX_ENTRIES: usize, const FLAGS: usize> Array<T, MAX_ENTRIES, FLAGS> {
    #[expect(clippy::new_without_default, reason = "as in the library that this stands in for")]
    pub const fn new() -> Self {
        Self { elements: Cell::new(null_mut()), len: Cell::new(MAX_ENTRIES), in_use: Cell::new(false) }
    }

    pub fn get(&'static self, index: u32) -> Option<&'static T> {
        // SAFETY: an element, of which programs write some words while they hold references to others.
        self.get_ptr_mut(index).map(|element| unsafe { &*element })
    }

    pub fn get_ptr_mut(&'static self, index: u32) -> Option<*mut T> {
        if index as usize >= self.len.get() {
            return None;
        }
        if !self.in_use.replace(true) {
            if self.elements.get().is_null() {
                self.elements.set(map(self.bytes()).cast());
            }
            filled(self);
        }
        // SAFETY: within the array.
        Some(unsafe { self.elements.get().add(index as usize) })
    }

    /// The number of elements, before the first is looked at: as the loader does.
    ///
    /// # Panics
    /// The array is in use.
    pub fn set_len(&self, len: usize) {
        assert!(!self.in_use.get(), "the array is in use");
        if len != self.len.get() && !self.elements.get().is_null() {
            unmap(self.elements.replace(null_mut()).cast(), self.bytes());
        }
        self.len.set(len);
    }

    const fn bytes(&self) -> usize {
        self.len.get() * size_of::<T>()
    }
}

impl<T: 'static, const MAX_ENTRIES: usize, const FLAGS: usize> Clear for Array<T, MAX_ENTRIES, FLAGS> {
    fn clear(&self) {
        let (start, whole) = place(self.elements.get().cast(), self.bytes());
        // SAFETY: memory of `map`: what is read of it next is zeros.
        assert_eq!(unsafe { libc::madvise(start, whole, libc::MADV_DONTNEED) }, 0);
        self.in_use.set(false);
    }
}

/// So many bytes of zeros, which end where memory ends as far as their alignment allows.
fn map(bytes: usize) -> *mut u8 {
    let whole = bytes.next_multiple_of(PAGE);
    // SAFETY: new memory; the last page of it can never be read.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let start = libc::mmap(null_mut(), whole + PAGE, libc::PROT_NONE, flags, -1, 0);
        assert!(start != libc::MAP_FAILED, "memory for an array of {bytes} bytes");
        assert_eq!(libc::mprotect(start, whole, libc::PROT_READ | libc::PROT_WRITE), 0);
        start.cast::<u8>().add((whole - bytes) & !(ALIGNED - 1))
    }
}

/// No element is aligned to more: a cache line.
const ALIGNED: usize = 64;

/// The memory around elements of [`map`].
fn place(elements: *mut u8, bytes: usize) -> (*mut libc::c_void, usize) {
    let start = elements.addr() & !(PAGE - 1);
    (elements.with_addr(start).cast(), bytes.next_multiple_of(PAGE))
}

fn unmap(elements: *mut u8, bytes: usize) {
    let (start, whole) = place(elements, bytes);
    // SAFETY: memory of `map`, which nobody knows any more.
    assert_eq!(unsafe { libc::munmap(start, whole + PAGE) }, 0);
}
