//! Programs, and records for the agent.

use core::{
    cell::{Cell, RefCell},
    mem::MaybeUninit,
};

use super::{Clear, filled};
use crate::{EbpfContext, machine::TailCall};

/// Programs that a packet can be handed to. Which they are knows who runs the machine.
pub struct ProgramArray<const MAX_ENTRIES: usize, const FLAGS: usize = 0>(());

impl<const MAX_ENTRIES: usize, const FLAGS: usize> ProgramArray<MAX_ENTRIES, FLAGS> {
    #[expect(clippy::new_without_default, reason = "as in the library that this stands in for")]
    pub const fn new() -> Self {
        Self(())
    }

    /// Ends the program, and goes on with another one.
    ///
    /// # Safety
    /// Nothing on the stack waits to be dropped.
    pub unsafe fn tail_call<C: EbpfContext>(&self, _: &C, index: u32) {
        assert!((index as usize) < MAX_ENTRIES, "a tail call of {index}");
        // Not a panic: no hook is called.
        std::panic::resume_unwind(Box::new(TailCall(index)));
    }
}

/// Records for somebody else, who takes them with [`RingBuf::take`].
pub struct RingBuf<T, const MAX_ENTRIES: usize, const FLAGS: usize = 0> {
    records: RefCell<Vec<T>>,
    reserved: Cell<bool>,
}

// SAFETY: only the thread that has the machine uses maps.
unsafe impl<T, const MAX_ENTRIES: usize, const FLAGS: usize> Sync for RingBuf<T, MAX_ENTRIES, FLAGS> {}

/// A record that is being written.
pub struct RingBufEntry<T: 'static> {
    ring: &'static RefCell<Vec<T>>,
    reserved: &'static Cell<bool>,
    record: MaybeUninit<T>,
}

/// A record's header in the ring.
const HEADER: usize = 8;

impl<T: 'static, const MAX_ENTRIES: usize, const FLAGS: usize> RingBuf<T, MAX_ENTRIES, FLAGS> {
    #[expect(clippy::new_without_default, reason = "as in the library that this stands in for")]
    pub const fn new() -> Self {
        Self { records: RefCell::new(Vec::new()), reserved: Cell::new(false) }
    }

    /// Room for a record; `None`: the ring is full.
    pub fn reserve(&'static self, _flags: u64) -> Option<RingBufEntry<T>> {
        assert!(!self.reserved.replace(true), "a record was neither submitted nor discarded");
        let len = self.records.borrow().len();
        if len == 0 {
            filled(self);
        }
        if (len + 1) * (size_of::<T>().next_multiple_of(8) + HEADER) > MAX_ENTRIES {
            self.reserved.set(false);
            return None;
        }
        Some(RingBufEntry { ring: &self.records, reserved: &self.reserved, record: MaybeUninit::uninit() })
    }

    /// The records so far.
    pub fn take(&self) -> Vec<T> {
        self.records.take()
    }
}

impl<T> RingBufEntry<T> {
    pub fn write(&mut self, record: T) -> &mut T {
        self.record.write(record)
    }

    pub fn submit(self, _flags: u64)
    where
        T: Copy,
    {
        // SAFETY: the program writes a record before it submits it: there is one such place.
        self.ring.borrow_mut().push(unsafe { self.record.assume_init() });
        self.reserved.set(false);
    }
}

impl<T: 'static, const MAX_ENTRIES: usize, const FLAGS: usize> Clear for RingBuf<T, MAX_ENTRIES, FLAGS> {
    fn clear(&self) {
        self.records.take();
        self.reserved.set(false);
    }
}
