//! Probes against real sockets on the loopback interface.

mod certificates;
mod others;
mod results;
mod rhythm;
mod schedule;
mod servers;
mod ways;
mod web;
