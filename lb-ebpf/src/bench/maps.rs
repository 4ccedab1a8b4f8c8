//! Maps of the bench. Those of the textbook balancer have the sizes that the tool asks for.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use lb_common::{
    abi::{DirectionCounters, ServiceKey},
    bench::{
        CrossHop, STREAM_FLOWS, Stream, StreamFlow, TextbookBackend, TextbookFlow, TextbookHop, TextbookNat,
        TextbookVip, TupleKey, WINDOWS,
    },
};

const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// Where we are in the stream.
#[btf_map(name = "bench_stream")]
pub static STREAM: Array<Stream, 1, MAPPED> = Array::new();

/// Flows of the stream, in the order in which they are sent.
#[btf_map(name = "bench_flows")]
pub static STREAM_FLOW: Array<StreamFlow, STREAM_FLOWS, MAPPED> = Array::new();

/// What the program under test has made of each.
#[btf_map(name = "bench_seen")]
pub static SEEN: Array<StreamFlow, STREAM_FLOWS, MAPPED> = Array::new();

/// When each window began, by the monotonic clock in nanoseconds.
#[btf_map(name = "bench_times")]
pub static TIMES: Array<u64, { WINDOWS as usize }, MAPPED> = Array::new();

/// The program under test.
#[btf_map(name = "bench_target")]
pub static TARGET: ProgramArray<1> = ProgramArray::new();

/// Live frames that came back.
#[btf_map(name = "bench_sink")]
pub static SINK: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Where frames go that came in by an interface.
#[btf_map(name = "bench_cross")]
pub static CROSS: HashMap<u32, CrossHop, 2> = HashMap::new();

#[btf_map(name = "tb_vips")]
pub static VIPS: HashMap<ServiceKey, TextbookVip, 64> = HashMap::new();

/// Backend ids: the Maglev tables.
#[btf_map(name = "tb_ring")]
pub static RING: Array<u32, 65_537> = Array::new();

#[btf_map(name = "tb_backends")]
pub static BACKENDS: Array<TextbookBackend, 4096> = Array::new();

#[btf_map(name = "tb_hop")]
pub static HOP: Array<TextbookHop, 1> = Array::new();

#[btf_map(name = "tb_flows")]
pub static FLOWS: LruHashMap<TupleKey, TextbookFlow, 1024> = LruHashMap::new();

/// Both directions of each flow.
#[btf_map(name = "tb_nat")]
pub static NAT_FLOWS: LruHashMap<TupleKey, TextbookNat, 1024> = LruHashMap::new();

/// A flow of [`NAT_FLOWS`] while it begins.
#[repr(C)]
pub struct NewFlow {
    pub reply: TupleKey,
    pub back: TextbookNat,
    pub forward: TextbookNat,
}

#[btf_map(name = "tb_new_flow")]
pub static NEW_FLOW: PerCpuArray<NewFlow, 1> = PerCpuArray::new();

/// Packets of every kind, and packets that were sent on.
#[btf_map(name = "tb_total")]
pub static TOTAL: PerCpuArray<DirectionCounters, 2> = PerCpuArray::new();

#[btf_map(name = "tb_vip_stats")]
pub static VIP_STATS: PerCpuArray<DirectionCounters, 64> = PerCpuArray::new();

#[btf_map(name = "tb_real_stats")]
pub static REAL_STATS: PerCpuArray<DirectionCounters, 4096> = PerCpuArray::new();
