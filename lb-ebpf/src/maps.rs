//! The only file with map statics. Capacities are defaults; the loader sets those of the
//! configuration. For each: who writes, and what is lost when it is full.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    abi::{
        Address, AddressRoles, Backend, BackendCounters, Event, Flow, FragmentFlow, FragmentKey, Handshakes, Interface,
        Knock, MovedKey, PortPool, QuicKey, ServiceCounters, ServiceInfo, ServiceKey, ServiceLine, ServiceValue,
        Settings, Silence, Slot, VerdictCounters, VlanKey, VlanLink, limits,
    },
    verdict::{Reason, Stage},
};

use crate::hops::Known;

/// The agent ages and lists flows through a memory mapping.
const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// Room for one [`Packet`](crate::packet::Packet).
#[repr(C, align(8))]
pub struct Scratch(pub [u8; size_of::<crate::packet::Packet>()]);

/// One cache line of flow words or reply words.
#[repr(C, align(64))]
pub struct Bucket {
    pub words: [u64; limits::WAYS],
}

/// Written by the agent. Read for every packet: one bit says whether an address may be ours.
#[btf_map(name = "address_bits")]
pub static ADDRESS_BITS: Array<u64, { limits::ADDRESS_BITS as usize / 64 }, MAPPED> = Array::new();

/// Written by the agent, after its bit was set.
#[btf_map(name = "addresses")]
pub static ADDRESSES: HashMap<Address, AddressRoles, { limits::ADDRESSES as usize }> = HashMap::new();

/// Written by the agent, one service at a time; an update replaces the value as a whole.
#[btf_map(name = "services")]
pub static SERVICES: HashMap<ServiceKey, ServiceValue, { limits::SERVICES as usize }> = HashMap::new();

/// Written by the agent, beside `services`.
#[btf_map(name = "service_lines")]
pub static SERVICE_LINES: Array<ServiceLine, { limits::SERVICE_LINES as usize }, MAPPED> = Array::new();

/// Written by the agent before the id is published; later only the timeouts change.
#[btf_map(name = "service_info")]
pub static SERVICE_INFO: Array<ServiceInfo, { limits::SERVICES as usize }> = Array::new();

/// Written by the agent; of a published backend only the state and the source change.
#[btf_map(name = "backends")]
pub static BACKENDS: Array<Backend, { limits::BACKENDS as usize }> = Array::new();

/// By backend id: its open flows, of services whose scheduler asks for them ([`Flow::COUNTED`]). Each
/// CPU adds and subtracts, and the agent mends what is lost; signed, because the agent may have
/// mended a flow away that ends a moment later.
#[btf_map(name = "backend_load")]
pub static BACKEND_LOAD: Array<i64, { limits::BACKENDS as usize }, MAPPED> = Array::new();

/// Written by the agent where no published service points.
#[btf_map(name = "selection")]
pub static SELECTION: Array<Slot, { limits::SELECTION_SLOTS as usize }, MAPPED> = Array::new();

/// By service id: the next slot of each CPU's round robin. Written here.
#[btf_map(name = "cursors")]
pub static CURSORS: PerCpuArray<u32, { limits::SERVICES as usize }> = PerCpuArray::new();

/// Written here, aged by the agent. Full: the least valuable flow of two buckets gives way.
#[btf_map(name = "flow_words")]
pub static FLOW_WORDS: Array<Bucket, { limits::FLOWS as usize / limits::WAYS }, MAPPED> = Array::new();

/// Written here, aged by the agent. Twice as large as `flow_words`, so that it is never full.
#[btf_map(name = "reply_words")]
pub static REPLY_WORDS: Array<
    Bucket,
    { limits::FLOWS as usize / limits::WAYS * limits::REPLY_FACTOR as usize },
    MAPPED,
> = Array::new();

/// Written here by the owner of the flow's word.
#[btf_map(name = "flows")]
pub static FLOWS: Array<Flow, { limits::FLOWS as usize }, MAPPED> = Array::new();

/// Made ready by the agent; ports are taken and given back here and by the agent, bit by bit.
#[btf_map(name = "port_pools")]
pub static PORT_POOLS: Array<PortPool, { limits::PORT_POOLS as usize }, MAPPED> = Array::new();

/// Backend ids by what connection IDs say. Written by the agent.
#[btf_map(name = "quic_ids")]
pub static QUIC_IDS: HashMap<QuicKey, u32, { limits::BACKENDS as usize }> = HashMap::new();

/// Written by the agent; here only to be pinned with the others.
#[btf_map(name = "settings")]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Written by the agent when it attaches, and for VLAN interfaces as they come and go.
#[btf_map(name = "interfaces")]
pub static INTERFACES: HashMap<u32, Interface, { (limits::INTERFACES + limits::VLANS) as usize }> = HashMap::new();

/// Written by the agent as VLAN interfaces come and go: those that frames come in by.
#[btf_map(name = "vlans_in")]
pub static VLANS_IN: HashMap<VlanKey, u32, { limits::VLANS as usize }> = HashMap::new();

/// The same, for those that frames leave by.
#[btf_map(name = "vlans_out")]
pub static VLANS_OUT: HashMap<u32, VlanLink, { limits::VLANS as usize }> = HashMap::new();

/// [`vlan_bit`](lb_common::abi::vlan_bit) of each element of `vlans_out`, set before it is there.
#[btf_map(name = "vlan_bits")]
pub static VLAN_BITS: Array<u64, 1> = Array::new();

/// Full: the record is lost, and a later packet asks again.
#[btf_map(name = "events")]
pub static EVENTS: RingBuf<Event, { limits::EVENTS_BYTES as usize }> = RingBuf::new();

/// Written here, and by the agent, which takes out what it sends again. Of two connections with the same
/// place the earlier one is forgotten: it is not rescued.
#[btf_map(name = "knocks")]
pub static KNOCKS: Array<Knock, { limits::KNOCKS as usize }, MAPPED> = Array::new();

/// By backend id. Written here; the agent takes out what it has judged.
#[btf_map(name = "silences")]
pub static SILENCES: Array<Silence, { limits::BACKENDS as usize }, MAPPED> = Array::new();

/// Written here. Full: the least used is forgotten, and a late answer to it goes where it would have
/// gone without a balancer.
#[btf_map(name = "moved")]
pub static MOVED: LruHashMap<MovedKey, u32, { limits::MOVED as usize }> = LruHashMap::new();

/// By service id. Written here.
#[btf_map(name = "handshakes")]
pub static HANDSHAKES: PerCpuArray<Handshakes, { limits::SERVICES as usize }> = PerCpuArray::new();

#[btf_map(name = "service_stats")]
pub static SERVICE_STATS: PerCpuArray<ServiceCounters, { limits::SERVICES as usize }> = PerCpuArray::new();

#[btf_map(name = "backend_stats")]
pub static BACKEND_STATS: PerCpuArray<BackendCounters, { limits::BACKENDS as usize }> = PerCpuArray::new();

#[btf_map(name = "verdict_stats")]
pub static VERDICT_STATS: PerCpuArray<VerdictCounters, { Reason::COUNT as usize }> = PerCpuArray::new();

/// Written here, by first fragments. Full: the least used is forgotten, and fragments that follow it
/// are dropped as early.
#[btf_map(name = "fragments")]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentFlow, { limits::FRAGMENTS as usize }> = LruHashMap::new();

/// The next identification of fragments that are translated; not pinned.
#[btf_map(name = "fragment_ids")]
pub static FRAGMENT_IDS: Array<u64, 1> = Array::new();

/// Programs by [`Stage`]. Written by the loader before the program is attached; each program has its
/// own, so that no packet meets stages of two versions.
#[btf_map(name = "stages")]
pub static STAGES: ProgramArray<{ Stage::COUNT }> = ProgramArray::new();

/// By backend id; not pinned. Written here.
#[btf_map(name = "hops")]
pub static HOPS: PerCpuArray<Known, { limits::BACKENDS as usize }> = PerCpuArray::new();

/// Working memory; not pinned.
#[btf_map(name = "scratch")]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
