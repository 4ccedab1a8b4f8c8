//! Keys and values of the maps that carry state.

use bytemuck::{Pod, Zeroable};

use super::{
    Address, Port,
    limits::{PARK_TICKS, PORT_POOL_WORDS, PORT_RANGES},
};
use crate::{
    flow::{State, Timeouts},
    quic::ServerId,
};

/// What an address means to the data path; value of the map `addresses`, keyed by [`Address`].
/// A packet whose destination has no role, and whose source is no backend, is not ours.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct AddressRoles(pub u32);

impl AddressRoles {
    /// Destination of clients: a service listens here.
    pub const SERVICE: u32 = 1;
    /// Destination of replies: `full-nat` uses it as source address towards backends.
    pub const SOURCE: u32 = 2;
    /// Source of replies: a backend of a `nat` service.
    pub const NAT_BACKEND: u32 = 4;
    /// With `SERVICE`: at least one service of the address takes any port.
    pub const ANY_PORT: u32 = 8;

    #[inline(always)]
    pub const fn has(self, role: u32) -> bool {
        self.0 & role != 0
    }
}

/// Key of the map `services`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Pod, Zeroable)]
pub struct ServiceKey {
    pub address: Address,
    /// [`Port::ANY`] for every port.
    pub port: Port,
    /// IP protocol number.
    pub protocol: u8,
    pub zero: u8,
}

impl ServiceKey {
    #[inline(always)]
    pub const fn new(address: Address, port: Port, protocol: u8) -> Self {
        Self { address, port, protocol, zero: 0 }
    }
}

/// Value of the map `services`: everything a packet needs to know of its service, replaced as a
/// whole, so that a packet sees one published state.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct ServiceValue {
    /// Index into `service_info`, `service_stats` and `cursors`.
    pub id: u32,
    /// First slot of the selection table in the map `selection`.
    pub selection_base: u32,
    /// Slots of the selection table; 0: no backend is ready.
    pub selection_len: u32,
    /// Generation that published this value.
    pub generation: u32,
    /// [`Mode`]
    pub mode: u8,
    /// [`Scheduler`]
    pub scheduler: u8,
    /// [`Granularity`]
    pub granularity: u8,
    /// [`ServiceValue::TRACKED`] and so on.
    pub flags: u8,
    /// Largest TCP segment that clients and backends may announce; 0: as they like;
    /// [`ServiceValue::MSS_AUTO`]: as the ways allow.
    pub mss: u16,
    /// [`Granularity::Client`]: bits of an address that name one client.
    pub client_prefix_v4: u8,
    pub client_prefix_v6: u8,
    /// QUIC: bytes of the server id in a connection ID; 0: connection IDs are not looked at.
    pub quic_server_id: u8,
    /// [`ServiceValue::TRACKED`]: the [`HashedBy`] that finds the slot of a flow without an entry.
    pub stable_hash: u8,
    /// Other backends that a TCP connection is sent to when one refuses it or does not answer; at most
    /// [`KNOCK_TRIES`](super::limits::KNOCK_TRIES) less one.
    pub retries: u8,
    pub reserved: u8,
    /// [`ServiceValue::TRACKED`]: slots whose stable half counts, otherwise 0.
    pub stable_len: u32,
}

impl ServiceValue {
    /// Of `mss`: as large as what fits both ways.
    pub const MSS_AUTO: u16 = u16::MAX;
    /// Flows need no entry in the flow table: the slot of their hash says where they are
    /// ([`Slot::stable`](super::Slot::stable)).
    pub const TRACKED: u8 = 1;
    /// With `TRACKED`: the scheduler picks by the same slots, so a clean one tells everything.
    pub const PAIRED: u8 = 2;
    /// With `TRACKED`, of clients: they were moved less than their timeout ago, and those without an
    /// entry are still where their flows without an entry are.
    pub const CLIENTS_STAY: u8 = 4;
    /// It is noted how backends answer the first packets of TCP connections, and of UDP that somebody says
    /// that a backend cannot be reached.
    pub const WATCHED: u8 = 8;
    /// No flow begins before [`ServiceInfo::parked_until`]: what would begin one is dropped, so that clients
    /// try again.
    pub const PARKED: u8 = 16;
    /// With `WATCHED`, UDP: backends answer the first datagram of each flow, so it is noted when they do not.
    pub const ANSWERED: u8 = 32;

    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The service without any slots.
    pub const fn without_slots(self) -> Self {
        let flags = self.flags & !(Self::TRACKED | Self::PAIRED);
        Self { selection_base: 0, selection_len: 0, stable_len: 0, flags, ..self }
    }

    /// Elements of the map `selection` that are its.
    pub const fn slots(&self) -> u32 {
        if self.selection_len > self.stable_len { self.selection_len } else { self.stable_len }
    }

    /// A value without slots, flags and options.
    pub const EMPTY: Self = Self {
        id: 0,
        selection_base: 0,
        selection_len: 0,
        generation: 0,
        mode: 0,
        scheduler: 0,
        granularity: 0,
        flags: 0,
        mss: 0,
        client_prefix_v4: 32,
        client_prefix_v6: 128,
        quic_server_id: 0,
        stable_hash: 0,
        retries: 0,
        reserved: 0,
        stable_len: 0,
    };
}

/// Value of the array `service_info`: the constant part of a service, found by its id from a flow.
/// Written before the id is published; while a flow may name the id only times change, each by
/// itself: a flow gets the new ones with its next packet.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct ServiceInfo {
    pub address: Address,
    pub port: Port,
    pub protocol: u8,
    /// [`Mode`]; 0xff in an unused element.
    pub mode: u8,
    /// UDP, with [`ServiceValue::ANSWERED`]: milliseconds within which the first datagram of a flow is
    /// answered; otherwise 0.
    pub answer_within: u32,
    /// Idle time in ticks after which a flow is over, by [`crate::flow::State`].
    pub timeouts: Timeouts,
    /// [`Granularity::Client`]: ticks after its last new flow in which a client is remembered.
    pub client_timeout: u32,
    /// With [`ServiceValue::PARKED`]: the tick from which flows begin again, whatever the flag says.
    pub parked_until: u32,
}

impl ServiceInfo {
    /// With the timeouts that nobody changed.
    pub const fn new(address: Address, port: Port, protocol: u8, mode: u8) -> Self {
        Self {
            address,
            port,
            protocol,
            mode,
            answer_within: 0,
            timeouts: State::TIMEOUTS,
            client_timeout: 0,
            parked_until: 0,
        }
    }

    /// The same service, whatever its timeouts.
    pub fn is_same_service(&self, other: &Self) -> bool {
        let Self { timeouts, client_timeout, parked_until, answer_within, .. } = *self;
        *self == Self { timeouts, client_timeout, parked_until, answer_within, ..*other }
    }

    /// Whether a frozen service is still to be frozen: never for longer than [`PARK_TICKS`], also where
    /// the clock has wrapped since nobody thawed it.
    #[inline(always)]
    pub const fn is_parked(&self, now: u32) -> bool {
        let left = self.parked_until.wrapping_sub(now) & 0xff_ffff;
        left.wrapping_sub(1) < PARK_TICKS
    }
}

macro_rules! abi_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $value:literal $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant = $value),+ }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// `None` for a number of another version.
            #[inline(always)]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)+ _ => None }
            }

            /// The word used in configuration, CLI and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

abi_enum! {
    /// How a packet reaches the backend.
    Mode {
        /// Destination rewritten; the backend routes its replies through the balancer.
        Nat = 0 "nat",
        /// Source rewritten too; the backend answers the balancer.
        FullNat = 1 "full-nat",
        /// Direct server return: only the frame's link-layer addresses are rewritten; the backend has
        /// the service's address too and answers the client itself.
        DsrL2 = 2 "dsr-l2",
        /// Direct server return through a tunnel, IP in IP: the backend unpacks and answers itself.
        DsrIpip = 3 "dsr-ipip",
        /// The same, in UDP (GUE variant 1): networks spread it over paths and queues like any UDP.
        DsrGue = 4 "dsr-gue",
        /// The same, in GRE (RFC 2784), without key and checksum.
        DsrGre = 5 "dsr-gre",
    }
}

impl Mode {
    /// Whether replies take another way than through the balancer. Of a number as it stands in the
    /// maps, where the modes of direct server return come last.
    #[inline(always)]
    pub const fn is_one_sided(number: u8) -> bool {
        number >= Self::DsrL2 as u8
    }

    /// Whether packets travel in a tunnel from our source address to the backend's address, which
    /// may be of another family than the service's. Of a number as it stands in the maps.
    #[inline(always)]
    pub const fn is_tunnel(number: u8) -> bool {
        number > Self::DsrL2 as u8
    }

    /// Whether backends may be of another address family than the service: where the host itself is
    /// what they get packets from. Of a number as above.
    #[inline(always)]
    pub const fn joins_families(number: u8) -> bool {
        Self::needs_source(number)
    }

    /// Whether the host's source address towards the backend is needed. Of a number as above.
    #[inline(always)]
    pub const fn needs_source(number: u8) -> bool {
        number == Self::FullNat as u8 || Self::is_tunnel(number)
    }
}

abi_enum! {
    /// How a new flow (or packet) picks a backend.
    Scheduler {
        /// The next slot of the selection table, which holds each backend once.
        RoundRobin = 0 "round-robin",
        /// The same over a table that holds each backend as often as its weight says, spread evenly.
        WeightedRoundRobin = 1 "weighted-round-robin",
        /// The backend with the fewest open flows for its weight; the table holds each backend once.
        LeastConnections = 2 "least-connections",
        /// The one with fewer open flows for its weight, of two slots of a table like that of weighted
        /// round robin (M. Mitzenmacher, "The power of two choices", 2001).
        RandomTwo = 3 "random-two",
        /// The slot that the client's address hashes to, in a table like that of Maglev.
        SourceHash = 4 "source-hash",
        /// The slot that the 5-tuple hashes to (D. Eisenbud and others, "Maglev: a fast and reliable
        /// software network load balancer", NSDI 2016).
        Maglev = 5 "maglev",
    }
}

impl Scheduler {
    /// Whether it wants to know how many flows each backend has: `backend_load` counts those of its
    /// services.
    #[inline(always)]
    pub const fn counts_flows(number: u8) -> bool {
        number == Self::LeastConnections as u8 || number == Self::RandomTwo as u8
    }
}

abi_enum! {
    /// What is scheduled anew.
    Granularity {
        /// Each flow once; it stays on its backend.
        Flow = 0 "flow",
        /// Each packet (UDP only).
        Packet = 1 "packet",
        /// Each client once, for all its flows; it stays for a time after its last new one.
        Client = 2 "client",
    }
}

abi_enum! {
    /// What a flow's slot in a table of hashes follows from.
    HashedBy {
        /// Addresses, ports and protocol.
        Flow = 0 "flow",
        /// The client's address, as far as it names one client.
        Client = 1 "client",
    }
}

impl HashedBy {
    /// What a scheduler hashes; `None`: it has no table of hashes.
    #[inline(always)]
    pub const fn of(scheduler: u8, granularity: u8) -> Option<Self> {
        if scheduler != Scheduler::Maglev as u8 && scheduler != Scheduler::SourceHash as u8 {
            None
        } else if scheduler == Scheduler::SourceHash as u8 || granularity == Granularity::Client as u8 {
            Some(Self::Client)
        } else {
            Some(Self::Flow)
        }
    }
}

abi_enum! {
    /// "Don't fragment" in the outer IPv4 header of a tunnel.
    DontFragment {
        /// As in the inner packet; set for IPv6, which no router fragments.
        Copy = 0 "copy",
        Set = 1 "set",
        Clear = 2 "clear",
    }
}

abi_enum! {
    /// State of an element of `backends`.
    BackendState {
        /// Not in use; flows that name it are over.
        Empty = 0 "empty",
        /// Takes the packets of its flows. New flows reach it only through a selection table.
        Live = 1 "live",
        /// Its flows are over: their packets, from either side, are answered with a reset.
        Dead = 2 "dead",
        /// Takes the packets of its flows, and no new ones, not even of clients that it has.
        Kept = 3 "kept",
        /// Its flows are over, and scheduled anew with the client's next packet.
        Moved = 4 "moved",
    }
}

impl BackendState {
    /// Whether packets of a backend's flows reach it. Of a number as it stands in the maps.
    #[inline(always)]
    pub const fn keeps_flows(number: u8) -> bool {
        // Live and kept are the odd ones.
        number & 1 != 0
    }
}

abi_enum! {
    /// The reason for which a backend takes no new flows, where its service has a policy for those that it
    /// has.
    EndCause {
        /// None of these.
        None = 0 "none",
        /// Its health is down.
        Down = 1 "down",
        /// It has lost the role that its service asks for.
        Demoted = 2 "demoted",
        /// Its drain has ended, and they had not.
        Drained = 3 "drained",
        /// It was removed from its service.
        Removed = 4 "removed",
    }
}

/// Value of the array `backends`, indexed by backend id. One element is one backend of one service.
/// `address`, `port`, `service_id` and `port_pool` never change while `generation` stays the same;
/// `source`, `weight` and `max_flows` may, and how tunnels are: a flow of
/// `full-nat` keeps the source it began with.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Backend {
    pub address: Address,
    /// `full-nat` and tunnels: source address of packets to this backend. Otherwise zero.
    pub source: Address,
    /// [`Port::ANY`]: the port that the client asked for.
    pub port: Port,
    /// [`BackendState`]
    pub state: u8,
    /// [`EndCause`]: the reason that decides about the backend's flows.
    pub cause: u8,
    /// Raised each time the id is given to another backend; a flow remembers it.
    pub generation: u32,
    pub service_id: u32,
    /// `full-nat`: index into `port_pools`.
    pub port_pool: u32,
    /// Share of the new flows, for schedulers that compare loads; 0 counts as 1. 0: takes none but those
    /// of clients that it still has, which are not remembered any longer for them.
    pub weight: u32,
    /// `dsr-gue`: UDP destination port of the tunnel.
    pub tunnel_port: Port,
    /// Tunnels: [`DontFragment`] of an outer IPv4 header.
    pub dont_fragment: u8,
    /// Tunnels: how many of the last bits of `source` (which are zero) are chosen for each flow; at
    /// most 32.
    pub source_bits: u8,
    /// Open flows with which it gets no new ones; 0: as many as come.
    pub max_flows: u32,
    pub reserved: u32,
}

const _: () = assert!(size_of::<Backend>() == 64, "a cache line");

impl Backend {
    /// Where it listens, for a client that asked for this port of the service.
    #[inline(always)]
    pub fn port_for(&self, service_port: Port) -> Port {
        if self.port == Port::ANY { service_port } else { self.port }
    }
}

/// Element of the array `flows`; its place is named by a word of `flow_words` (see
/// [`crate::flow`]), which also holds its state and age.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Flow {
    pub client: Address,
    /// Source address towards the backend: ours in `full-nat`, otherwise the client's.
    pub source: Address,
    pub client_port: Port,
    /// The port of the service that the client asked for.
    pub service_port: Port,
    /// Source port towards the backend.
    pub source_port: Port,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Mode`]
    pub mode: u8,
    pub service_id: u32,
    pub backend_id: u32,
    /// Of the backend, when the flow began.
    pub backend_generation: u32,
    /// Generation of the service value that chose the backend.
    pub created_generation: u32,
    /// Link-layer source of the client's last packet: used towards the client when its neighbour
    /// entry is cold.
    pub client_mac: [u8; 6],
    /// [`Flow::CLIENT_MAC_KNOWN`] and so on.
    pub flags: u8,
    /// [`Granularity::Packet`] where each packet was scheduled when the flow began. With
    /// [`Granularity::Client`] it is no flow but a client, for the next flow that it begins: its
    /// address as far as it names the client, and ports of 0.
    pub granularity: u8,
}

impl Flow {
    /// `client_mac` is set.
    pub const CLIENT_MAC_KNOWN: u8 = 1;
    /// The flow counts in `backend_load`.
    pub const COUNTED: u8 = 2;
    /// `full-nat`: client and backend are of different address families.
    pub const ACROSS_FAMILIES: u8 = 16;
    /// Its service is [`ServiceValue::WATCHED`].
    pub const WATCHED: u8 = 64;

    /// Whether the flow is one of its backend's, and no client.
    #[inline(always)]
    pub const fn has_load(&self) -> bool {
        self.granularity != Granularity::Client as u8
    }

    /// Whether the flow has a reply, which is linked and holds a source port in `full-nat`: not where
    /// replies take another way, and not for the entry of a client.
    #[inline(always)]
    pub const fn has_reply(&self) -> bool {
        !Mode::is_one_sided(self.mode) && self.has_load()
    }
}

/// Element of `port_pools`: which source ports towards one backend endpoint are in use. A pool is
/// ready for use when the bit of port 0, which is never handed out, is set.
#[repr(C, align(8))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct PortPool {
    /// Bit `p % 64` of word `p / 64` is port `p`. Set: in use, or outside the configured ports.
    pub words: [u64; PORT_POOL_WORDS],
    /// Where the next search begins: ports are used in turn, so that one rests as long as possible.
    pub cursor: u32,
    /// Tick (not 0) in which a search found nothing: no other is made in that tick until a port is
    /// given back, so that a flood towards a backend without ports stays cheap.
    pub exhausted_in: u32,
    /// First and last port of each configured range, in host order; unused pairs are zero. For the
    /// agent: the bits alone do not tell a port in use from one outside the ranges.
    pub ranges: [[u16; 2]; PORT_RANGES],
}

/// Key of the map `quic_ids`: a server id in connection IDs of a service. The value is the id of a
/// backend of that service.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Pod, Zeroable)]
pub struct QuicKey {
    pub service_id: u32,
    zero: u32,
    pub server_id: ServerId,
}

impl QuicKey {
    #[inline(always)]
    pub const fn new(service_id: u32, server_id: ServerId) -> Self {
        Self { service_id, zero: 0, server_id }
    }
}

/// Value of the map `interfaces`, keyed by interface index: an interface the program is attached to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Interface {
    /// Source of frames that leave here when the neighbour entry of the client is cold.
    pub mac: [u8; 6],
    pub zero: [u8; 2],
}

/// The one element of the array `settings`: what was fixed when the maps were made and must be the
/// same for every program that uses them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Settings {
    pub abi_version: u32,
    /// The last generation that was published.
    pub generation: u32,
    /// Random; keys of the flow table are mixed with it, so that nobody outside can aim at a bucket.
    pub hash_seed: u64,
    /// [`Settings::ROUTES_VARY`] and so on.
    pub flags: u32,
    pub zero: u32,
    /// When the agent counts as silent, unless it moves this on before: nanoseconds of the coarse
    /// monotonic clock. Heeded with [`Settings::SILENT_PASS`] or [`Settings::SILENT_DROP`].
    pub silent_at: u64,
    pub reserved: [u64; 4],
}

impl Settings {
    /// Packets to one backend may take different ways, by more than their destination: the host has
    /// routes with several next hops, or rules. Written by the agent at any time.
    pub const ROUTES_VARY: u32 = 1;
    /// While the agent is silent, new flows are the kernel's.
    pub const SILENT_PASS: u32 = 2;
    /// While the agent is silent, new flows are dropped.
    pub const SILENT_DROP: u32 = 4;
}
