//! What the XDP program uses of `aya_ebpf`, for a program that runs on the host: maps in plain memory, a
//! frame that ends where memory ends, a clock and dice that a test sets, and the kernel's helpers as far
//! as the program calls them, refusing what the kernel refuses.
//!
//! One program runs at a time ([`Machine`]), and as on a CPU of the kernel nothing comes in between.

pub mod btf_maps;
pub mod helpers;
mod machine;
pub mod programs;

use core::{cell::UnsafeCell, ffi::c_void};

pub use aya_ebpf_bindings::bindings;
pub use aya_ebpf_macros as macros;
pub use machine::{Machine, Output, Program, Routes, TailCall};

/// A context that a program is started with.
pub trait EbpfContext {
    fn as_ptr(&self) -> *mut c_void;
}

/// A constant that is set before the program runs.
#[repr(transparent)]
pub struct Global<T>(UnsafeCell<T>);

// SAFETY: set by the one machine there is, while no program runs.
unsafe impl<T: Send> Sync for Global<T> {}

impl<T: Copy> Global<T> {
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline]
    pub fn load(&self) -> T {
        // SAFETY: nobody writes while a program runs.
        unsafe { self.0.get().read_volatile() }
    }

    /// As the loader does before it loads the program.
    pub fn set(&self, _: &mut Machine, value: T) {
        // SAFETY: who has the machine runs no program.
        unsafe { self.0.get().write_volatile(value) };
    }
}

/// In the place of `aya_log_ebpf::debug`, which a release of the program leaves out as well.
#[macro_export]
macro_rules! debug {
    ($($argument:tt)*) => {};
}
