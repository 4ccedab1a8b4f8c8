//! The maps, written by `lb decap` before the program is attached; counters are written here.

use aya_ebpf::{
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray},
    macros::btf_map,
};
use lb_common::{
    abi::{Address, DirectionCounters, VerdictCounters, VlanTags, decap},
    decap::{Inner, Outcome, Outer},
};

#[btf_map(name = "decap_settings")]
pub static SETTINGS: Array<decap::Settings, 1> = Array::new();

#[btf_map(name = "decap_sources")]
pub static SOURCES: LpmTrie<Address, u8, { decap::SOURCES_MAX as usize }> = LpmTrie::new();

#[btf_map(name = "decap_own")]
pub static OWN: HashMap<Address, u8, { decap::OWN_MAX as usize }> = HashMap::new();

#[btf_map(name = "decap_vips")]
pub static VIPS: HashMap<Address, u32, { decap::VIPS_MAX as usize }> = HashMap::new();

#[btf_map(name = "decap_stats")]
pub static STATS: PerCpuArray<VerdictCounters, { Outcome::COUNT as usize }> = PerCpuArray::new();

#[btf_map(name = "decap_vip_stats")]
pub static VIP_STATS: PerCpuArray<DirectionCounters, { decap::VIPS_MAX as usize }> = PerCpuArray::new();

/// What is known of the packet under way.
#[repr(C)]
pub struct Headers {
    pub tags: VlanTags,
    pub outer: Outer,
    pub inner: Inner,
}

/// Working memory; not pinned.
#[btf_map(name = "decap_scratch")]
pub static SCRATCH: PerCpuArray<Headers, 1> = PerCpuArray::new();
