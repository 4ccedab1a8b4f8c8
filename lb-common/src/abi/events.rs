//! Records of the ring buffer `events`: what the data path asks of the agent. The data path never
//! waits for an answer, and a lost record only delays the agent's help.

use bytemuck::{Pod, Zeroable};

use super::Address;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Event {
    /// [`EventKind`]
    pub kind: u32,
    /// Interface the next hop is on (`NeighbourMissing`), otherwise 0.
    pub ifindex: u32,
    /// Next hop (`NeighbourMissing`) or backend address (`PortsExhausted`).
    pub address: Address,
    /// Backend id, otherwise 0.
    pub backend_id: u32,
    pub zero: u32,
}

#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A next hop has no link-layer address yet: the agent asks the kernel to resolve it.
    NeighbourMissing = 1,
    /// No source port was free towards a backend.
    PortsExhausted = 2,
    /// Something new speaks against a backend: the agent looks at its [`Silence`](super::Silence).
    Suspect = 3,
}

impl EventKind {
    /// `None` for a number of another version.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::NeighbourMissing),
            2 => Some(Self::PortsExhausted),
            3 => Some(Self::Suspect),
            _ => None,
        }
    }
}
