//! Keys and values of the BPF maps, their names and their limits.
//!
//! Every type is `repr(C)`, without padding (derive of `Pod` refuses it) and of a size that is
//! asserted here. A change of any layout after the first release must raise [`ABI_VERSION`]: pinned maps carry it in their
//! path, so that a program never meets maps of another layout.

mod address;
mod counters;
pub mod decap;
mod entries;
mod events;
mod fragment;
mod knock;
pub mod limits;
pub mod names;
pub mod probe;
mod service_line;
mod slot;
mod vlan;

pub use address::{Address, Port, Protocol};
pub use counters::{BackendCounters, DirectionCounters, ServiceCounters, VerdictCounters};
pub use entries::{
    AddressRoles, Backend, BackendState, DontFragment, EndCause, Flow, Granularity, HashedBy, Interface, Mode,
    PortPool, QuicKey, Scheduler, ServiceInfo, ServiceKey, ServiceValue, Settings,
};
pub use events::{Event, EventKind};
pub use fragment::{FragmentFlow, FragmentKey};
pub use knock::{Handshakes, Knock, MovedKey, Silence};
pub use service_line::ServiceLine;
pub use slot::Slot;
pub use vlan::{VlanKey, VlanLink, VlanTag, VlanTags, vlan_bit};

/// Number of this layout; part of the pin path (`/sys/fs/bpf/lb/v1`).
pub const ABI_VERSION: u32 = 1;

macro_rules! assert_size {
    ($($type:ty = $size:expr),+ $(,)?) => { $(
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        #[cfg(feature = "user")]
        // SAFETY: `bytemuck::Pod` was derived, so the type has no padding and accepts every bit pattern.
        unsafe impl aya::Pod for $type {}
    )+ };
}

assert_size! {
    Address = 16,
    Port = 2,
    AddressRoles = 4,
    ServiceKey = 20,
    ServiceValue = 32,
    ServiceLine = 64,
    ServiceInfo = 64,
    Backend = 64,
    Flow = 64,
    PortPool = 8 * 1024 + 64,
    QuicKey = 24,
    Settings = 64,
    Slot = 8,
    Interface = 8,
    VlanKey = 12,
    VlanLink = 12,
    FragmentKey = 40,
    FragmentFlow = 20,
    DirectionCounters = 16,
    ServiceCounters = 64,
    BackendCounters = if cfg!(feature = "fixture-older") { 64 } else { 88 },
    VerdictCounters = 16,
    Event = 32,
    Knock = 184,
    Silence = 128,
    MovedKey = 36,
    Handshakes = 256,
    decap::Settings = 8,
    probe::Way = 80,
    probe::AnswerKey = 40,
    probe::Backend = 36,
}
