//! Every key of the file: how it is written, what it means when it is left out, what it does. The
//! reader, the reference (docs/configuration.md) and the JSON Schema all come from here.

use std::{net::SocketAddr, time::Duration};

use lb_common::abi::{DontFragment, Granularity, Mode, Protocol, Scheduler, limits};

use super::{
    dead_man,
    endpoint::{self, Endpoint},
    failover_keys,
    form::{Flag, OneOf, Shaped, Time, Whole},
    health_keys::HEALTH,
    max_connections,
    model::{MssClamp, PortRange, Tunnel, TunnelSource, XdpMode},
    passive, quic,
    reader::{Key, LeftOut, Nested, Section},
    role_keys, shape,
    timeouts::{self, TIMEOUTS_TABLE},
    tunnel, value,
};

/// Every kind of table, in the order of the reference.
pub(super) fn sections() -> impl Iterator<Item = &'static Section> {
    [&TOP, &LIMITS, &SERVICE, &HEALTH, &timeouts::TIMEOUTS, &passive::PASSIVE, &BACKEND].into_iter()
}

pub(super) static TOP: Section = Section {
    header: "",
    keys: &[
        &INTERFACES,
        &XDP_MODE,
        &MANAGE_ADDRESSES,
        &WATCH_CONFIG,
        &dead_man::POLICY,
        &dead_man::AFTER_KEY,
        &SOURCE_PORTS,
        &MAGLEV_TABLE_SIZE,
        &LIMITS_TABLE,
        &SERVICES_TABLE,
    ],
};

pub(super) static INTERFACES: Key<Vec<String>> = Key {
    name: "interfaces",
    form: &Shaped::new(value::INTERFACES_ALLOWED, value::interfaces, shape::interfaces),
    left_out: LeftOut::Required,
    doc: "Where packets come in: the XDP program is attached to each. One for one-arm, two or more where clients \
          and backends are on different sides. Of a VLAN interface the one below is attached to, and frames keep \
          their tags.",
};

pub(super) static XDP_MODE: Key<XdpMode> = Key {
    name: "xdp-mode",
    form: &OneOf { all: &XdpMode::ALL, name: XdpMode::name },
    left_out: LeftOut::Value(XdpMode::Auto),
    doc: "`native` runs in the driver, `generic` in the kernel's receive path (slower, works everywhere); `auto` \
          takes native, falls back to generic where the driver cannot, and says so.",
};

pub(super) static MANAGE_ADDRESSES: Key<bool> = Key {
    name: "manage-addresses",
    form: &Flag,
    left_out: LeftOut::Value(true),
    doc: "Put the services' addresses on the interface and announce them (ARP, ND). `false` where routing brings \
          the packets here.",
};

pub(super) static WATCH_CONFIG: Key<bool> = Key {
    name: "watch-config",
    form: &Flag,
    left_out: LeftOut::Value(false),
    doc: "Take the file, or the directory, over whenever it changes. `false`: only when told to (`lb config apply`, \
          SIGHUP).",
};

pub(super) static SOURCE_PORTS: Key<Vec<PortRange>> = Key {
    name: "source-ports",
    form: &Shaped::new(value::PORTS_ALLOWED, value::source_ports, shape::source_ports),
    left_out: LeftOut::Text("\"1024-56903, 61000-65535\""),
    doc: "`full-nat`: source ports towards backends, at least 1024 of them. Ranges may overlap; they are sorted and \
          joined. The host's own connections need ports outside of them: of Linux's usual 32768-60999 the default leaves 4,096.",
};

/// A prime number, which the reader checks on top.
const MAGLEV_RANGE: Whole<u32> = Whole { min: 2, max: 5_000_011, unit: "a prime number" };

pub(super) static MAGLEV_TABLE_SIZE: Key<u32> = Key {
    name: "maglev-table-size",
    form: &MAGLEV_RANGE,
    left_out: LeftOut::Value(limits::MAGLEV_TABLE),
    doc: "Slots of each service's table with `maglev` and `source-hash`. The same on every balancer that serves the \
          same addresses. A hundred slots per backend keep shares within 1 %; a table with fewer slots than backends \
          becomes as long as it must.",
};

pub(super) static LIMITS_TABLE: Nested = Nested {
    name: "limits",
    repeated: false,
    section: &LIMITS,
    doc: "Capacities of the maps, fixed when they are made.",
};

pub(super) static SERVICES_TABLE: Nested =
    Nested { name: "service", repeated: true, section: &SERVICE, doc: "What clients connect to." };

pub(super) static LIMITS: Section = Section {
    header: "[limits]",
    keys: &[
        &LIMIT_SERVICES,
        &LIMIT_BACKENDS,
        &LIMIT_ADDRESSES,
        &LIMIT_SELECTION_SLOTS,
        &LIMIT_FLOWS,
        &LIMIT_PORT_POOLS,
    ],
};

const fn limit(name: &'static str, form: &'static Whole<u32>, default: u32, doc: &'static str) -> Key<u32> {
    Key { name, form, left_out: LeftOut::Value(default), doc }
}

pub(super) static LIMIT_SERVICES: Key<u32> =
    limit("services", &Whole { min: 1, max: 65_536, unit: "" }, limits::SERVICES, "Services.");

pub(super) static LIMIT_BACKENDS: Key<u32> = limit(
    "backends",
    &Whole { min: 1, max: 1_048_576, unit: "" },
    limits::BACKENDS,
    "Backends of all services together, those that are still being drained included.",
);

pub(super) static LIMIT_ADDRESSES: Key<u32> = limit(
    "addresses",
    &Whole { min: 1, max: 1_048_576, unit: "" },
    limits::ADDRESSES,
    "Service addresses, source addresses of `full-nat` and addresses of `nat` backends together.",
);

pub(super) static LIMIT_SELECTION_SLOTS: Key<u32> = limit(
    "selection-slots",
    &Whole { min: 1, max: 268_435_456, unit: "" },
    limits::SELECTION_SLOTS,
    "Slots of all selection tables together. A service takes one per backend, with weights as many as they add up \
     to (divided by what they have in common, at most 4096), with `maglev` and `source-hash` \
     `maglev-table-size`; and the same again while its table is replaced.",
);

/// A power of two, which the reader of the limits checks on top.
pub(super) const FLOWS_RANGE: Whole<u32> = Whole { min: 64, max: 67_108_864, unit: "a power of two" };

pub(super) static LIMIT_FLOWS: Key<u32> = limit(
    "flows",
    &FLOWS_RANGE,
    limits::FLOWS,
    "Places for flows. About two thirds can be live before the least valuable flows are evicted.",
);

pub(super) static LIMIT_PORT_POOLS: Key<u32> = limit(
    "port-pools",
    &Whole { min: 1, max: 262_144, unit: "" },
    limits::PORT_POOLS,
    "Different backend endpoints (address, port, protocol) of `full-nat` services; 8 KiB each.",
);

pub(super) static SERVICE: Section = Section {
    header: "[[service]]",
    keys: &[
        &SERVICE_NAME,
        &LISTEN,
        &PROTOCOL,
        &MODE,
        &SCHEDULER,
        &GRANULARITY,
        &CLIENT_TIMEOUT,
        &CLIENT_NETMASK,
        &GUE_PORT,
        &TUNNEL_SOURCE,
        &TUNNEL_SOURCE_ENTROPY,
        &TUNNEL_DF,
        &quic::SERVER_ID_LENGTH,
        &role_keys::ROLE,
        &role_keys::MAX_LAG,
        &role_keys::REPLICA_FALLBACK,
        &role_keys::ON_MULTIPLE_PRIMARIES,
        &failover_keys::ON_DOWN,
        &failover_keys::ON_DEMOTE,
        &failover_keys::ON_DRAIN_TIMEOUT,
        &failover_keys::ON_REMOVE,
        &failover_keys::MIN_READY,
        &failover_keys::FAILBACK_DELAY,
        &failover_keys::SLOW_START,
        &HEALTH_TABLE,
        &TIMEOUTS_TABLE,
        &passive::PASSIVE_TABLE,
        &MSS_CLAMP,
        &BACKENDS_TABLE,
    ],
};

pub(super) static SERVICE_NAME: Key<String> = Key {
    name: "name",
    form: &Shaped::new(value::NAME_ALLOWED, value::service_name, shape::service_name),
    left_out: LeftOut::Required,
    doc: "How the service is called in commands, metrics and logs; unique.",
};

pub(super) static LISTEN: Key<SocketAddr> = Key {
    name: "listen",
    form: &Shaped::new(endpoint::LISTEN_ALLOWED, endpoint::listen, shape::listen),
    left_out: LeftOut::Required,
    doc: "What clients connect to. A service on every port stands beside services on single ports of the same \
          address, which go first.",
};

pub(super) static PROTOCOL: Key<Protocol> = Key {
    name: "protocol",
    form: &OneOf { all: &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp], name: Protocol::name },
    left_out: LeftOut::Value(Protocol::Tcp),
    doc: "For several, write a service each. `sctp` goes with direct server return (`dsr-...`) only: nothing of its \
          packets can be translated.",
};

pub(super) static MODE: Key<Mode> = Key {
    name: "mode",
    form: &OneOf { all: Mode::ALL, name: Mode::name },
    left_out: LeftOut::Value(Mode::FullNat),
    doc: "How packets reach the backends. `full-nat` rewrites source and destination: backends need no change. \
          `nat` keeps the client's address: backends must route their replies through the balancer. `dsr-l2` (direct \
          server return) leaves the packet as it is and sends it to the backend's link-layer address: backends on the \
          same segment have the service's address too and answer clients themselves. `dsr-ipip` does the same through \
          a tunnel (IP in IP): backends may be anywhere. `dsr-gue` puts UDP in between (GUE variant 1), which networks \
          and network cards spread like any UDP; `dsr-gre` puts GRE there, without key and checksum.",
};

pub(super) static SCHEDULER: Key<Scheduler> = Key {
    name: "scheduler",
    form: &OneOf { all: Scheduler::ALL, name: Scheduler::name },
    left_out: LeftOut::Value(Scheduler::RoundRobin),
    doc: "How a backend is picked. `round-robin` takes them in turn, `weighted-round-robin` in turn and as often as \
          their weights say. `least-connections` takes the one with the fewest flows for its weight, `random-two` \
          the one with fewer of two random ones. `source-hash` goes by the client's address, `maglev` by the whole \
          flow: every balancer with the same backends picks the same one.",
};

pub(super) static GRANULARITY: Key<Granularity> = Key {
    name: "granularity",
    form: &OneOf { all: Granularity::ALL, name: Granularity::name },
    left_out: LeftOut::Value(Granularity::Flow),
    doc: "What is scheduled: each `flow` once, each `packet` anew (UDP only), or each `client`, so that all its flows \
          go to one backend.",
};

pub(super) static CLIENT_TIMEOUT: Key<Duration> = Key {
    name: "client-timeout",
    form: &Time { min: Duration::from_secs(1), max: Duration::from_secs(7 * 86_400) },
    left_out: LeftOut::Value(Duration::from_secs(600)),
    doc: "`granularity = \"client\"`: how long a client is remembered after its last new flow. Also one of a backend \
          that is being drained comes back to it meanwhile.",
};

pub(super) static CLIENT_NETMASK: Key<u8> = Key {
    name: "client-netmask",
    form: &Whole { min: 1, max: 128, unit: "bits" },
    left_out: LeftOut::Depends("the whole address: 32, for IPv6 128"),
    doc: "`granularity = \"client\"`: bits of an address that name one client. `24` takes the neighbours of an IPv4 \
          address for the same client.",
};

pub(super) static GUE_PORT: Key<u16> = Key {
    name: "gue-port",
    form: &Whole { min: 1, max: 65_535, unit: "" },
    left_out: LeftOut::Value(Tunnel::GUE_PORT),
    doc: "`dsr-gue`: UDP port that the backends' end of the tunnel listens on.",
};

pub(super) static TUNNEL_SOURCE: Key<Vec<TunnelSource>> = Key {
    name: "tunnel-source",
    form: &Shaped::new(tunnel::SOURCE_ALLOWED, tunnel::source, shape::tunnel_source),
    left_out: LeftOut::Depends("the host's own address towards the backend"),
    doc: "Tunnels: outer source address. Where it is not this host's, ICMP errors about the tunnel are lost.",
};

pub(super) static TUNNEL_SOURCE_ENTROPY: Key<Vec<TunnelSource>> = Key {
    name: "tunnel-source-entropy",
    form: &Shaped::new(tunnel::ENTROPY_ALLOWED, tunnel::entropy, shape::tunnel_prefix),
    left_out: LeftOut::Depends("no address is chosen"),
    doc: "Tunnels: outer source addresses are chosen from this prefix, one for each flow (at most the last 32 bits), so \
          that backends' network cards spread `dsr-ipip` and `dsr-gre` over their queues. Nothing may filter these addresses on the \
          way, and reverse-path filters of the backends must be off.",
};

pub(super) static TUNNEL_DF: Key<DontFragment> = Key {
    name: "tunnel-df",
    form: &OneOf { all: DontFragment::ALL, name: DontFragment::name },
    left_out: LeftOut::Value(DontFragment::Copy),
    doc: "Tunnels over IPv4: \"don't fragment\" of the outer header. `copy` takes the inner packet's (always set for \
          IPv6), `set` always sets it, `clear` lets routers on the way fragment what is too big for a link.",
};

pub(super) static MSS_CLAMP: Key<MssClamp> = Key {
    name: "mss-clamp",
    form: &Shaped::new(value::MSS_ALLOWED, value::mss_clamp, shape::mss_clamp),
    left_out: LeftOut::Text("\"off\""),
    doc: "Largest TCP segment that a client's SYN, and with `nat` and `full-nat` a backend's SYN-ACK, may announce; larger \
          ones are lowered. `auto`: what fits the MTU towards both sides, less headers and tunnel. For ways whose ICMP \
          errors get lost.",
};

pub(super) static HEALTH_TABLE: Nested =
    Nested { name: "health", repeated: false, section: &HEALTH, doc: "How backends are checked." };

pub(super) static BACKENDS_TABLE: Nested =
    Nested { name: "backend", repeated: true, section: &BACKEND, doc: "Servers that answer for the service." };

pub(super) static BACKEND: Section = Section {
    header: "[[service.backend]]",
    keys: &[&BACKEND_ADDRESS, &WEIGHT, &TIER, &CHECK_ADDRESS, &max_connections::MAX_CONNECTIONS, &quic::SERVER_ID],
};

pub(super) static BACKEND_ADDRESS: Key<Endpoint> = Key {
    name: "address",
    form: &Shaped::new(endpoint::BACKEND_ALLOWED, endpoint::backend, shape::backend),
    left_out: LeftOut::Required,
    doc: "Unique within the service. With `nat` and `dsr-l2` of its address family; `full-nat` and tunnels (`dsr-ipip`, `dsr-gue`, `dsr-gre`) take both. With direct server return (`dsr-...`) its port \
          is the service's and may be left out.",
};

/// The largest weight of a backend.
pub const MAX_WEIGHT: u16 = 1000;
/// The last tier of backends.
pub const MAX_TIER: u8 = 15;

pub(super) static WEIGHT: Key<u16> = Key {
    name: "weight",
    form: &Whole { min: 0, max: MAX_WEIGHT, unit: "" },
    left_out: LeftOut::Value(1),
    doc: "Share of the new flows with every scheduler but `round-robin`. 0: no new flows, with every scheduler.",
};

pub(super) static TIER: Key<u8> = Key {
    name: "tier",
    form: &Whole { min: 0, max: MAX_TIER, unit: "" },
    left_out: LeftOut::Value(0),
    doc: "Failover order: tier 0 serves while any of it is up, then tier 1, and so on. All in one tier: \
          active-active.",
};

pub(super) static CHECK_ADDRESS: Key<Endpoint> = Key {
    name: "check-address",
    form: &Shaped::new(endpoint::CHECK_ALLOWED, endpoint::check, shape::backend),
    left_out: LeftOut::Depends("the backend's address"),
    doc: "Checked instead of the backend's own address: its address in a management network, say. Without a port, the \
          port is the one that would be asked otherwise.",
};
