//! The control path: the agent and the command line.
//!
//! A decision walks `health` or `config` -> [`core`] (pure) -> operations as data -> `agent`
//! reconciles -> [`dataplane`] -> BPF maps.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod core;
pub mod dataplane;
pub mod doctor;
pub mod health;
pub mod host;
pub mod telemetry;
