//! The probes that talk to the network. What their results mean is decided in [`crate::core`].
//!
//! ```text
//! core: set of ProbeKeys -> Prober::set -> one task per key: schedule -> probe -> (key, outcome)
//!     -> channel -> Input::Probe
//! ```
//!
//! | result | meaning |
//! | --- | --- |
//! | `L4OK` | the connection was accepted (tcp check) |
//! | `L4CON: <words>` | the connection was refused or could not be made; the kernel's words |
//! | `L4TOUT` | no answer to the connection attempt within the timeout |
//! | `L7OK 200` | the server answered with an expected status |
//! | `L7STS 503` | the server answered with another status |
//! | `L7RSP: <why>` | the answer is no HTTP response, or the server hung up |
//! | `L7TOUT` | connected, but no complete response head within the timeout |
//!
//! A probe that fails for want of something on this host (file descriptors, ports, memory) says
//! nothing about the backend: no outcome is sent, a warning is logged and
//! [`Prober::local_failures`] counts it.

mod failure;
mod http;
mod probe;
mod prober;
mod schedule;
mod tcp;

pub use prober::Prober;
