//! Maps in plain memory. Keys are compared by their bytes, as in the kernel. An element that was replaced
//! or removed is gone at once, so that a sanitizer finds a reference that was kept.

mod array;
mod hash;
mod others;

use std::sync::{Mutex, PoisonError};

pub use array::{Array, PerCpuArray};
pub use hash::{HashMap, LruHashMap};
pub use others::{ProgramArray, RingBuf, RingBufEntry};

/// A map with something in it.
trait Clear: Sync {
    fn clear(&self);
}

static FILLED: Mutex<Vec<&'static dyn Clear>> = Mutex::new(Vec::new());

/// Notes that a map has something in it.
fn filled(map: &'static dyn Clear) {
    FILLED.lock().unwrap_or_else(PoisonError::into_inner).push(map);
}

/// Makes every map as it was when the process began.
pub(crate) fn clear_all() {
    let filled = std::mem::take(&mut *FILLED.lock().unwrap_or_else(PoisonError::into_inner));
    for map in filled {
        map.clear();
    }
}
