//! Capacities. Those of maps are defaults, replaced at load time by the configuration.

/// Ways (flows) of one bucket of `flow_words` and `reply_words`: one 64-byte cache line.
pub const WAYS: usize = 8;
/// Buckets a flow may live in.
pub const CHOICES: usize = 2;

pub const SERVICES: u32 = 1024;
/// Service addresses, `full-nat` source addresses and addresses of `nat` backends together.
pub const ADDRESSES: u32 = 8192;
/// Bits that tell most packets that are not ours by one read: a power of two, 64 KiB of memory.
pub const ADDRESS_BITS: u32 = 1 << 19;
/// Places for copies of services where packets find them sooner: a power of two, 2 MiB of memory. With two
/// places for each, nearly all of up to half as many services have one.
pub const SERVICE_LINES: u32 = 1 << 15;
pub const BACKENDS: u32 = 4096;
/// Slots of all selection tables together: six services with tables of [`MAGLEV_TABLE`] slots, room
/// to replace one of those, and small tables for the others.
pub const SELECTION_SLOTS: u32 = 524_288;
/// Slots of a table of `maglev` or `source-hash`: a prime number.
pub const MAGLEV_TABLE: u32 = 65_537;
/// Slots that `least-connections` compares for one new flow: the effort of one packet stays bounded.
pub const LEAST_SCAN: u32 = 64;
/// Places for flows: a power of two, at least 64. About two thirds of it can be live before live flows
/// are evicted.
pub const FLOWS: u32 = 262_144;
/// `reply_words` has this many times the buckets of `flow_words`: it never evicts.
pub const REPLY_FACTOR: u32 = 2;
/// Backend endpoints (address, port, protocol) of `full-nat` services.
pub const PORT_POOLS: u32 = 256;
/// Words of one port pool: 65,536 ports.
pub const PORT_POOL_WORDS: usize = 1024;
/// Ranges of source ports that one pool can be made of.
pub const PORT_RANGES: usize = 14;
/// Interfaces the program can be attached to.
pub const INTERFACES: u32 = 64;
/// VLAN interfaces of the host that tagged frames are matched with.
pub const VLANS: u32 = 4096;
/// Fragmented datagrams under way at a time; of more, the least used is forgotten.
pub const FRAGMENTS: u32 = 16_384;
/// Ticks (134 ms) for which the first fragment of a datagram is remembered: about 5 s, enough for
/// 64 KiB at 100 kbit/s. Identifications come again the sooner the faster a sender is (RFC 4963), so
/// this is less than the 15 s to 60 s for which receivers wait (RFC 791, 3.2; RFC 8200, 4.5).
pub const FRAGMENT_TICKS: u32 = 37;
/// Connections that are remembered until their backend answers, so that another can have them: a power
/// of two. Of more, some are forgotten.
pub const KNOCKS: u32 = 16_384;
/// Backends that one connection is sent to at most.
pub const KNOCK_TRIES: usize = 4;
/// Connections taken away from a backend that are remembered, so that its late answer is refused.
pub const MOVED: u32 = 8192;
/// Nanoseconds after its SYN before which no other packet counts as the same SYN sent again.
pub const KNOCK_AGAIN_NS: u64 = 10_000_000;
/// Nanoseconds for which a SYN that can be sent to another backend is not forgotten for one that cannot: as long
/// as a backend may take to answer.
pub const KNOCK_KEPT_NS: u64 = 1_000_000_000;
/// Nanoseconds for which a backend's first packets may wait before the next one wakes the agent.
pub const KNOCK_PATIENCE_NS: u64 = 20_000_000;
/// Nanoseconds between two times that the agent is woken for one backend.
pub const KNOCK_TELL_NS: u64 = 1_000_000;
/// Bytes of the ring buffer `events`: a power of two and a multiple of the page size.
pub const EVENTS_BYTES: u32 = 65_536;

/// Ticks (134 ms) for which a service can be frozen: a minute, and the tick that is under way.
pub const PARK_TICKS: u32 = 449;

/// IPv6 extension headers walked before a packet is called malformed.
pub const EXTENSION_HEADERS: usize = 6;
/// Backends tried for one new flow when the chosen one has no port left or the tuple is taken.
pub const BACKEND_ATTEMPTS: u32 = 4;
/// ICMP errors sent by one CPU in one tick (134 ms): about a thousand a second, as Linux allows
/// itself (`icmp_msgs_per_sec`; RFC 4443, 2.4 (f) asks for a limit).
pub const ICMP_PER_TICK: u32 = 128;
