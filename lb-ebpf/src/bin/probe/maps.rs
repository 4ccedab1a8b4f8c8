//! The maps. The agent writes the ways; the rest is written here.

use aya_ebpf::{
    btf_maps::{LruHashMap, PerCpuArray, SkStorage},
    helpers::generated::bpf_sk_storage_get,
    macros::btf_map,
};
use lb_common::abi::probe::{ANSWERS_MAX, AnswerKey, Backend, Count, Way};

#[btf_map(name = "probe_ways")]
static WAYS: SkStorage<Way> = SkStorage::new();

#[btf_map(name = "probe_answers")]
pub static ANSWERS: LruHashMap<AnswerKey, Backend, { ANSWERS_MAX as usize }> = LruHashMap::new();

#[btf_map(name = "probe_stats")]
static STATS: PerCpuArray<u64, { Count::ALL.len() }> = PerCpuArray::new();

/// The way of a socket; `None`: it has none, as all but those of probes.
///
/// # Safety
/// `socket` is the one of the packet under way, and not null.
#[inline(always)]
pub unsafe fn way<'a>(socket: *mut core::ffi::c_void) -> Option<&'a mut Way> {
    let map = (&raw const WAYS).cast_mut().cast();
    // SAFETY: the caller's promise; without a value none is made.
    let way: *mut Way = unsafe { bpf_sk_storage_get(map, socket, core::ptr::null_mut(), 0) }.cast();
    // SAFETY: lives for as long as the program runs. Others see it change, but nobody writes all of it
    // while packets go out.
    unsafe { way.as_mut() }
}

#[inline(always)]
pub fn count(what: Count) {
    if let Some(counter) = STATS.get_ptr_mut(what as u32) {
        // SAFETY: this CPU's element.
        unsafe { *counter += 1 };
    }
}
