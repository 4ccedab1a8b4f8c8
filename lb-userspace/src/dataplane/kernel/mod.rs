//! The data path in the kernel: loading, attaching, publishing, reading.
//!
//! ```text
//! load      object -> pins (checked) -> maps and program -> Loaded
//! attach    Loaded -> interfaces, by pinned links; detach undoes it without an agent
//! tables    KernelDataplane: the Dataplane contract over the pinned maps
//! sweep     ages flows, audits ports, mends loads; flow_table, ports and loads hold the atomic steps
//! upgrade   before and after one: migrate decides about maps that change, takeover carries them over
//! stats, flows, events    what the data path tells
//! knocks    connections without an answer: which backends owe one; sends their SYNs again
//! decap     the backend's end of tunnels: a program of its own
//! probe_ways    probes on the way of clients' packets: programs of their own
//! ```
//!
//! Memory shared with the data path is reached through `mmap` only, and by atomic operations.

mod address_bits;
mod attach;
mod batch;
mod challenge;
mod counters;
mod dead_man;
pub mod decap;
mod detach;
mod ending;
mod events;
mod flow_table;
mod flows;
mod foreign;
mod knocks;
mod load;
mod loads;
mod many;
mod maps;
mod migrate;
mod mmap;
mod netlink;
pub(crate) mod object;
mod pins;
mod ports;
mod probe_frames;
pub mod probe_ways;
mod service_lines;
mod slots;
mod stages;
mod stats;
mod sweep;
mod sys;
mod tables;
mod takeover;
mod transfer;
mod transfer_flows;
pub mod upgrade;
mod vlans;

pub use attach::{Attachment, attachments, ifindex, interface_name};
pub use dead_man::{Silence, silence};
pub use detach::{Detached, detach, detach_interface};
pub use events::{DataplaneEvent, Events};
pub use flows::{FlowFilter, FlowRecord, Flows};
pub use knocks::{Knocks, Looked};
pub use load::{LoadOptions, Loaded, load, load_as_if, load_marked, load_object};
pub use mmap::SharedArray;
pub use netlink::{AttachedMode, attached};
pub use object::{MapSpec, map_specs};
pub use pins::{Change, DEFAULT_PIN_DIR, Fit, Pins};
pub use stats::Stats;
pub use sweep::{Audit, Sweeper};
pub use sys::tick;
pub use tables::KernelDataplane;
pub use vlans::Vlans;
