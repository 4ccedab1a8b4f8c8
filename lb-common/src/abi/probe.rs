//! Maps of the programs that take probes to a service's address (`lb_probe_out`, `lb_probe_in`). The
//! agent makes them anew whenever it starts, and they end with it.

use bytemuck::{Pod, Zeroable};

use super::{Address, Port};

/// What leaves: from a backend's own address to the service's, and into the tunnel.
pub const PROGRAM_OUT: &str = "lb_probe_out";
/// What comes back: from the service's address to the backend's own.
pub const PROGRAM_IN: &str = "lb_probe_in";

/// [`Way`] by socket.
pub const WAYS: &str = "probe_ways";
/// [`Backend`] by [`AnswerKey`].
pub const ANSWERS: &str = "probe_answers";
/// Packets (`u64`) by [`Count`].
pub const STATS: &str = "probe_stats";

/// Most probes whose answers are expected at one time; the one that was longest silent makes room.
pub const ANSWERS_MAX: u32 = 32_768;

/// Where packets of a socket go that is connected to a backend's own address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Way {
    /// What they are for.
    pub service: Address,
    /// What the socket is connected to; packets to anything else are left alone.
    pub backend: Address,
    /// Source of the tunnel; all zero: the packet's own.
    pub source: Address,
    pub service_port: Port,
    pub backend_port: Port,
    /// `dsr-gue`: UDP destination port.
    pub gue_port: Port,
    /// [`super::Mode`] of the tunnel that they go through; 0: none.
    pub tunnel: u8,
    /// [`super::DontFragment`]
    pub dont_fragment: u8,
    /// How many bits of `source` are chosen for each flow.
    pub source_bits: u8,
    pub reserved: [u8; 3],
    /// Packets that went this way; counted by the program.
    pub sent: u32,
}

/// A probe, as its answers name it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct AnswerKey {
    pub local: Address,
    pub service: Address,
    pub local_port: Port,
    pub service_port: Port,
    /// [`super::Protocol`]
    pub protocol: u32,
}

/// Whom the probe's socket is connected to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Backend {
    pub address: Address,
    pub port: Port,
    pub reserved: [u8; 2],
}

/// What is counted.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Count {
    /// Packets that went to a service's address.
    Sent = 0,
    /// Packets that came from one.
    Answered = 1,
    /// Packets that could not be sent this way: dropped.
    Dropped = 2,
}

impl Count {
    pub const ALL: [Self; 3] = [Self::Sent, Self::Answered, Self::Dropped];
}
