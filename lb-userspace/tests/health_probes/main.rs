//! Probes against real sockets on the loopback interface.

mod results;
mod rhythm;
mod servers;
