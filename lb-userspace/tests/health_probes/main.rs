//! Probes against real sockets on the loopback interface.

mod certificates;
mod others;
mod results;
mod rhythm;
mod servers;
mod ways;
mod web;
