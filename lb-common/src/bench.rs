//! What the programs of the bench (`lb-ebpf/src/bench`) and the tool that runs them share: the stream
//! of frames, and the keys and values of the textbook balancer. Not part of the product.

use bytemuck::{Pod, Zeroable};

use crate::abi::{Address, Port};

/// Bytes of every frame of a stream: room for each pair of headers, and some payload.
pub const FRAME_BYTES: usize = 96;
/// [`FRAME_BYTES`] in 64-bit words.
pub const FRAME_WORDS: usize = FRAME_BYTES / 8;
/// Most flows of a stream: a power of two.
pub const STREAM_FLOWS: usize = 1 << 20;
/// Frames from one note of the time to the next: a power of two. At 100 ns each it is 0.4 ms, which is
/// often left alone also on a busy machine.
pub const WINDOW: u32 = 1 << 12;
/// Notes of the time that are kept.
pub const WINDOWS: u32 = 1 << 12;

/// Names of the maps, as in the program.
pub mod names {
    pub const STREAM: &str = "bench_stream";
    pub const FLOWS: &str = "bench_flows";
    pub const SEEN: &str = "bench_seen";
    pub const TIMES: &str = "bench_times";
    pub const TARGET: &str = "bench_target";
    pub const SINK: &str = "bench_sink";
    pub const CROSS: &str = "bench_cross";
    pub const TEXTBOOK_VIPS: &str = "tb_vips";
    pub const TEXTBOOK_RING: &str = "tb_ring";
    pub const TEXTBOOK_BACKENDS: &str = "tb_backends";
    pub const TEXTBOOK_HOP: &str = "tb_hop";
    pub const TEXTBOOK_FLOWS: &str = "tb_flows";
    pub const TEXTBOOK_NAT: &str = "tb_nat";
    pub const TEXTBOOK_TOTAL: &str = "tb_total";
    pub const TEXTBOOK_VIP_STATS: &str = "tb_vip_stats";
    pub const TEXTBOOK_REAL_STATS: &str = "tb_real_stats";
}

/// The stream under way: one frame, of which each repeat sends the next flow's version.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Stream {
    /// The flow of the next frame: an index below `flows`.
    pub next: u32,
    pub flows: u32,
    /// How often all flows were sent. Each time adds the two steps to every flow, so that its
    /// 5-tuple is a new one.
    pub lap: u32,
    /// Added to source ports.
    pub port_step: u32,
    /// Added to the last four bytes of source addresses.
    pub source_step: u32,
    /// Where generated live frames go.
    pub ifindex: u32,
    /// Frames so far. Whenever it is a multiple of [`WINDOW`], the time is noted.
    pub sent: u32,
    pub zero: u32,
    /// The frame; fields that differ by flow, and what keeps its checksums right, are zero.
    pub frame: [u64; FRAME_WORDS],
}

/// What a flow's frame carries; numbers in host order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
pub struct StreamFlow {
    /// The last four bytes of the addresses.
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
}

/// Where a host that only hands on sends what comes in by one interface.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct CrossHop {
    pub ifindex: u32,
    pub source: [u8; 6],
    pub destination: [u8; 6],
}

/// Key of the textbook balancer's tables of flows: the 5-tuple of a packet, for either family.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct TupleKey {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    /// IP protocol number.
    pub protocol: u8,
    pub zero: [u8; 3],
}

/// Where a service of the textbook balancer finds its backends.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct TextbookVip {
    pub id: u32,
    /// First slot in the ring map, and how many.
    pub ring_base: u32,
    pub ring_len: u32,
    /// [`NAT`] or [`FULL_NAT`]; only the twin with translation looks.
    pub mode: u32,
}

pub const NAT: u32 = 0;
pub const FULL_NAT: u32 = 1;

/// A flow of the textbook balancer.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct TextbookFlow {
    pub backend: u32,
    /// Ticks of the coarse clock.
    pub seen: u32,
}

/// One direction of a translated flow of the textbook balancer.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct TextbookNat {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    pub vip: u32,
    pub backend: u32,
    pub seen: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct TextbookBackend {
    pub address: Address,
    /// Ours, towards the backend.
    pub source: Address,
    pub port: Port,
    pub zero: [u8; 2],
}

/// The one next hop of the textbook balancer.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct TextbookHop {
    pub source: [u8; 6],
    pub destination: [u8; 6],
}

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal;)+) => {
        /// Steps of the short way, each with what was done since the one before it. Not every way has all of
        /// them, and each has them in this order.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
        pub enum Step { $($(#[doc = $doc])+ $variant),+ }

        impl Step {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// What was done, in a few words.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

steps! {
    /// No packet ends before the end of its way.
    Never = "whole";
    /// The program was entered, and counts the verdict.
    Enter = "enter the program, count the verdict";
    /// The network header was read, and the destination may be ours.
    Ours = "network header, bit of the address";
    /// The transport header was read.
    Parse = "transport header";
    /// The service was found.
    Service = "service";
    /// Of the tuple, for the slot or for the flow table.
    Hash = "hash";
    /// The slot of the selection table, or the flow's word and entry.
    Place = "slot or flow";
    /// The backend's entry, and whether it lives.
    Backend = "backend";
    /// The coarse clock and the next hop of this tick.
    Hop = "clock and next hop";
    /// Service and backend have counted the packet.
    Count = "counters of service and backend";
    /// The TTL is lowered; of tunnels, room is made for the outer header.
    Room = "room for the outer header";
    /// Headers and checksums are written.
    Write = "headers";
}

#[cfg(feature = "user")]
mod user {
    use super::{
        CrossHop, Stream, StreamFlow, TextbookBackend, TextbookFlow, TextbookHop, TextbookNat, TextbookVip, TupleKey,
    };

    macro_rules! pods {
        ($($type:ty),+ $(,)?) => { $(
            // SAFETY: `bytemuck::Pod` was derived, so the type has no padding and accepts every bit pattern.
            unsafe impl aya::Pod for $type {}
        )+ };
    }
    pods!(CrossHop, Stream, StreamFlow, TupleKey, TextbookVip, TextbookFlow, TextbookNat, TextbookBackend, TextbookHop);
}
