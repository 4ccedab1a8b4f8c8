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
//! | `L6OK` | the TLS handshake succeeded (tls check) |
//! | `L6RSP: <why>` | the TLS handshake failed, or the certificate is not trusted |
//! | `L6TOUT` | connected, but no end of the handshake within the timeout |
//! | `L7OK <what>` | the server answered as expected: `200`, `NOERROR`, `exit 0`, `primary` |
//! | `L7STS <what>` | the server answered, and says no: `503`, `SERVFAIL`, `exit 1`, the words of a database |
//! | `L7RSP: <why>` | the answer is something else than what was asked for, or the server hung up |
//! | `L7TOUT` | connected, but no complete answer within the timeout |
//!
//! A probe that fails for want of something on this host (file descriptors, ports, memory, a file
//! with a password) says nothing about the backend: no outcome is sent, a warning is logged and
//! [`Prober::local_failures`] counts it.
//!
//! The way of a probe: `prober` (when, and how many at a time) -> `probe` (which question, and when
//! time is up) -> one file or folder for each kind of check, over `stream` (a connection, encrypted
//! or not). `trace` notes where the time goes. `ways` and `target` have the packets of a connection go to
//! the address of a service with direct server return.

mod agent_check;
mod dns;
mod exec;
mod failure;
mod http;
mod mysql;
mod password;
mod patroni;
mod postgres;
mod probe;
mod prober;
mod punctuality;
mod redis;
mod schedule;
mod stream;
mod target;
mod tcp;
mod tls;
mod trace;
mod udp;
mod ways;
mod web;

pub use prober::Prober;
pub use punctuality::Punctuality;
pub use ways::{KnownWays, Sockets, Ways};
