//! Maps from keys to values. One that forgets does it exactly in the order of use, which the kernel does
//! roughly.

use core::{borrow::Borrow, cell::RefCell, marker::PhantomData};
use std::collections::BTreeMap;

use super::{Clear, filled};

const E2BIG: i32 = -7;

/// A map that refuses a key more than it has room for.
pub type HashMap<K, V, const MAX_ENTRIES: usize, const FLAGS: usize = 0> = Hash<K, V, MAX_ENTRIES, false>;
/// A map that forgets the element that was used least lately.
pub type LruHashMap<K, V, const MAX_ENTRIES: usize, const FLAGS: usize = 0> = Hash<K, V, MAX_ENTRIES, true>;

pub struct Hash<K, V, const MAX_ENTRIES: usize, const FORGETS: bool> {
    elements: RefCell<Elements<V>>,
    key: PhantomData<K>,
}

struct Elements<V> {
    /// By the bytes of the key; with the time of its last use.
    by_key: BTreeMap<Vec<u8>, (Box<V>, u64)>,
    time: u64,
}

// SAFETY: only the thread that has the machine uses maps.
unsafe impl<K, V, const MAX_ENTRIES: usize, const FORGETS: bool> Sync for Hash<K, V, MAX_ENTRIES, FORGETS> {}

impl<K: 'static, V: Copy + 'static, const MAX_ENTRIES: usize, const FORGETS: bool> Hash<K, V, MAX_ENTRIES, FORGETS> {
    pub const fn new() -> Self {
        Self { elements: RefCell::new(Elements { by_key: BTreeMap::new(), time: 0 }), key: PhantomData }
    }

    /// # Safety
    /// The element is not looked at after it was replaced or removed.
    pub unsafe fn get(&self, key: impl Borrow<K>) -> Option<&V> {
        let elements = &mut *self.elements.borrow_mut();
        elements.time += 1;
        let (value, used) = elements.by_key.get_mut(bytes(key.borrow()))?;
        *used = elements.time;
        let value: *const V = &raw const **value;
        // SAFETY: its place stays until it is replaced or removed, and the caller does not look then.
        Some(unsafe { &*value })
    }

    /// # Errors
    /// There is no room.
    pub fn insert(&'static self, key: impl Borrow<K>, value: impl Borrow<V>, flags: u64) -> Result<(), i32> {
        assert_eq!(flags, 0, "elements are put in whether they are there or not");
        let key = bytes(key.borrow());
        let elements = &mut *self.elements.borrow_mut();
        if elements.by_key.is_empty() {
            filled(self);
        }
        elements.time += 1;
        if elements.by_key.len() >= MAX_ENTRIES && !elements.by_key.contains_key(key) {
            if !FORGETS {
                return Err(E2BIG);
            }
            let oldest = elements.by_key.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            oldest.and_then(|key| elements.by_key.remove(&key));
        }
        elements.by_key.insert(key.to_vec(), (Box::new(*value.borrow()), elements.time));
        Ok(())
    }

    pub fn remove(&self, key: impl Borrow<K>) {
        self.elements.borrow_mut().by_key.remove(bytes(key.borrow()));
    }
}

impl<K: 'static, V: 'static, const MAX_ENTRIES: usize, const FORGETS: bool> Clear for Hash<K, V, MAX_ENTRIES, FORGETS> {
    fn clear(&self) {
        *self.elements.borrow_mut() = Elements { by_key: BTreeMap::new(), time: 0 };
    }
}

fn bytes<K>(key: &K) -> &[u8] {
    // SAFETY: keys have no padding, as the kernel compares them by their bytes too.
    unsafe { core::slice::from_raw_parts((&raw const *key).cast(), size_of::<K>()) }
}
