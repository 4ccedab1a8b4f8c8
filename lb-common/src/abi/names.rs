//! Names of the maps: as in the program, under the pin directory and in `bpftool map`. At most 15
//! bytes, which is what the kernel keeps.

macro_rules! names {
    ($($constant:ident = $name:literal),+ $(,)?) => {
        $(pub const $constant: &str = $name; const _: () = assert!($name.len() <= 15);)+
        /// Every map that is pinned.
        pub const PINNED: &[&str] = &[$($name),+];
    };
}

names! {
    ADDRESS_BITS = "address_bits",
    ADDRESSES = "addresses",
    SERVICES = "services",
    SERVICE_LINES = "service_lines",
    SERVICE_INFO = "service_info",
    BACKENDS = "backends",
    BACKEND_LOAD = "backend_load",
    SELECTION = "selection",
    CURSORS = "cursors",
    FLOW_WORDS = "flow_words",
    REPLY_WORDS = "reply_words",
    FLOWS = "flows",
    PORT_POOLS = "port_pools",
    QUIC_IDS = "quic_ids",
    SETTINGS = "settings",
    INTERFACES = "interfaces",
    VLANS_IN = "vlans_in",
    VLANS_OUT = "vlans_out",
    VLAN_BITS = "vlan_bits",
    FRAGMENTS = "fragments",
    EVENTS = "events",
    KNOCKS = "knocks",
    SILENCES = "silences",
    MOVED = "moved",
    HANDSHAKES = "handshakes",
    SERVICE_STATS = "service_stats",
    BACKEND_STATS = "backend_stats",
    VERDICT_STATS = "verdict_stats",
}

/// By backend, like `backends`; working memory of the program, not pinned.
pub const HOPS: &str = "hops";

/// The XDP program.
pub const PROGRAM: &str = "lb";

/// The programs it goes on with, by [`Stage`](crate::verdict::Stage): one map for each program that
/// was loaded.
pub const STAGES: &str = "stages";
