//! Arrays that are shared with the data path by memory mapping (`BPF_F_MMAPABLE`, Linux 5.5): read
//! and changed without a system call, by atomic operations only.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{NonNull, null_mut},
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use aya::maps::MapData;
use bytemuck::Pod;

/// A mapped array whose elements only its user knows.
pub(super) struct RawArray {
    base: NonNull<u8>,
    /// Bytes mapped: a multiple of the page size.
    bytes: usize,
    len: u32,
    /// Bytes of an element; elements lie at multiples of that rounded up to 8.
    value_size: usize,
}

// SAFETY: the mapping belongs to the value and is reached by atomic operations only.
unsafe impl Send for RawArray {}
// SAFETY: as above.
unsafe impl Sync for RawArray {}

impl RawArray {
    /// Maps the whole array for reading and writing.
    ///
    /// # Errors
    /// Elements are no multiples of 4 bytes, or the kernel refuses (the map was made without
    /// `BPF_F_MMAPABLE`).
    pub(super) fn map(map: &MapData) -> io::Result<Self> {
        let info = map.info().map_err(io::Error::other)?;
        let (len, value_size) = (info.max_entries(), info.value_size() as usize);
        if !value_size.is_multiple_of(4) {
            let sizes = format!("elements of {value_size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, sizes));
        }
        let bytes = (len as usize * value_size.next_multiple_of(8)).next_multiple_of(page_size());
        // SAFETY: a new mapping at a place of the kernel's choice; it overlays nothing of ours.
        let address = unsafe {
            libc::mmap(
                null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok(Self { base, bytes, len, value_size })
    }

    /// Number of elements.
    pub(super) const fn len(&self) -> u32 {
        self.len
    }

    /// An element as 32-bit units in memory order; `None` beyond the end.
    pub(super) fn units(&self, index: u32) -> Option<&[AtomicU32]> {
        let start = self.element(index)?;
        // SAFETY: the element lies within the mapping, which lives as long as `self`; it is aligned
        // to 8 bytes, and everybody reaches it by atomic operations.
        Some(unsafe { slice::from_raw_parts(start.as_ptr().cast(), self.value_size / 4) })
    }

    /// An element as whole 64-bit words in memory order; `None` beyond the end.
    pub(super) fn words(&self, index: u32) -> Option<&[AtomicU64]> {
        let start = self.element(index)?;
        // SAFETY: as in `units`.
        Some(unsafe { slice::from_raw_parts(start.as_ptr().cast(), self.value_size / 8) })
    }

    fn element(&self, index: u32) -> Option<NonNull<u8>> {
        // SAFETY: the offset lies within the mapping, because `len` elements were mapped.
        (index < self.len).then(|| unsafe { self.base.add(index as usize * self.value_size.next_multiple_of(8)) })
    }
}

impl Drop for RawArray {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// A mapped array of `T`. Elements lie at multiples of their size rounded up to 8 bytes.
pub struct SharedArray<T> {
    raw: RawArray,
    _element: PhantomData<fn() -> T>,
}

impl<T: Pod> SharedArray<T> {
    const CHECKED: () = assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() >= 4 && align_of::<T>() <= 4096);

    /// Maps the whole array for reading and writing.
    ///
    /// # Errors
    /// The element size differs from `T`, or the kernel refuses (the map was made without
    /// `BPF_F_MMAPABLE`).
    pub fn map(map: &MapData) -> io::Result<Self> {
        let () = Self::CHECKED;
        let raw = RawArray::map(map)?;
        if raw.value_size != size_of::<T>() {
            let sizes = format!("elements of {} bytes, expected {}", raw.value_size, size_of::<T>());
            return Err(io::Error::new(io::ErrorKind::InvalidData, sizes));
        }
        Ok(Self { raw, _element: PhantomData })
    }

    /// Number of elements.
    pub fn len(&self) -> u32 {
        self.raw.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An element as 32-bit units in memory order; `None` beyond the end.
    pub fn units(&self, index: u32) -> Option<&[AtomicU32]> {
        self.raw.units(index)
    }

    /// An element as whole 64-bit words in memory order; `None` beyond the end.
    pub fn words(&self, index: u32) -> Option<&[AtomicU64]> {
        self.raw.words(index)
    }

    /// A copy of an element. A concurrent writer may have changed some of its units already: the
    /// caller has to know that there is none, or to check afterwards.
    pub fn read(&self, index: u32) -> Option<T> {
        let mut value = T::zeroed();
        let target: &mut [u32] = bytemuck::cast_slice_mut(slice::from_mut(&mut value));
        for (target, unit) in target.iter_mut().zip(self.units(index)?) {
            *target = unit.load(Ordering::Acquire);
        }
        Some(value)
    }

    /// Writes an element, unit by unit; `None` beyond the end.
    pub fn write(&self, index: u32, value: &T) -> Option<()> {
        let source: &[u32] = bytemuck::cast_slice(slice::from_ref(value));
        for (unit, source) in self.units(index)?.iter().zip(source) {
            unit.store(*source, Ordering::Release);
        }
        Some(())
    }
}

fn page_size() -> usize {
    // SAFETY: no preconditions.
    unsafe { libc::sysconf(libc::_SC_PAGESIZE) as usize }
}
