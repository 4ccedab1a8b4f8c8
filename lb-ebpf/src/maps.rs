//! Every map, under the names of `lb_common::abi::names`.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    abi::{
        Address, AddressRoles, Backend, BackendCounters, Event, Flow, PortPool, ServiceCounters, ServiceInfo,
        ServiceKey, ServiceValue, Settings, VerdictCounters, limits,
    },
    verdict::Reason,
};

const MMAP: usize = BPF_F_MMAPABLE as usize;
const BUCKETS: usize = limits::FLOWS as usize / limits::WAYS;
const REPLY_BUCKETS: usize = BUCKETS * limits::REPLY_FACTOR as usize;

#[repr(C)]
pub struct Bucket {
    pub words: [u64; limits::WAYS],
}

#[unsafe(no_mangle)]
pub static HASH_SEED: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub static FLOW_MASK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static REPLY_MASK: Global<u32> = Global::new(0);

#[btf_map(name = "addresses")]
pub static ADDRESSES: HashMap<Address, AddressRoles, { limits::ADDRESSES as usize }> = HashMap::new();
#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, ServiceValue, { limits::SERVICES as usize }> = HashMap::new();
#[btf_map(name = "service_info")]
pub static SERVICE_INFO: Array<ServiceInfo, { limits::SERVICES as usize }> = Array::new();
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, { limits::BACKENDS as usize }> = Array::new();
#[btf_map(name = "selection")]
pub static SELECTION: Array<u32, { limits::SELECTION_SLOTS as usize }, MMAP> = Array::new();
#[btf_map(name = "cursors")]
pub static CURSORS: PerCpuArray<u32, { limits::SERVICES as usize }> = PerCpuArray::new();
#[btf_map(name = "flow_words")]
pub static FLOW_WORDS: Array<Bucket, BUCKETS, MMAP> = Array::new();
#[btf_map(name = "reply_words")]
pub static REPLY_WORDS: Array<Bucket, REPLY_BUCKETS, MMAP> = Array::new();
#[btf_map(name = "flows")]
pub static FLOWS: Array<Flow, { limits::FLOWS as usize }, MMAP> = Array::new();
#[btf_map(name = "port_pools")]
pub static PORT_POOLS: Array<PortPool, { limits::PORT_POOLS as usize }, MMAP> = Array::new();
#[btf_map(name = "settings")]
pub static SETTINGS: Array<Settings, 1> = Array::new();
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<Event, { limits::EVENTS_BYTES as usize }> = RingBuf::new();
#[btf_map(name = "service_stats")]
pub static SERVICE_STATS: PerCpuArray<ServiceCounters, { limits::SERVICES as usize }> = PerCpuArray::new();
#[btf_map(name = "backend_stats")]
pub static BACKEND_STATS: PerCpuArray<BackendCounters, { limits::BACKENDS as usize }> = PerCpuArray::new();
#[btf_map(name = "verdict_stats")]
pub static VERDICT_STATS: PerCpuArray<VerdictCounters, { Reason::COUNT as usize }> = PerCpuArray::new();
