//! Constants fixed at load time: the loader overrides them before the program is verified, and
//! branches they rule out are pruned.

use aya_ebpf::Global;
use lb_common::abi::limits;

/// Secret of the flow hash; the same for all programs that share the maps.
#[unsafe(no_mangle)]
pub static HASH_SEED: Global<u64> = Global::new(0);

/// Buckets of `flow_words`, less one.
#[unsafe(no_mangle)]
pub static FLOW_MASK: Global<u32> = Global::new(limits::FLOWS / limits::WAYS as u32 - 1);

/// Buckets of `reply_words`, less one.
#[unsafe(no_mangle)]
pub static REPLY_MASK: Global<u32> = Global::new(limits::FLOWS / limits::WAYS as u32 * limits::REPLY_FACTOR - 1);

#[inline(always)]
pub fn hash_seed() -> u64 {
    HASH_SEED.load()
}

#[inline(always)]
pub fn flow_mask() -> u32 {
    FLOW_MASK.load()
}

#[inline(always)]
pub fn reply_mask() -> u32 {
    REPLY_MASK.load()
}
