//! The agent: one loop that owns every decision, and the work around it that takes its time.
//!
//! ```text
//! start -> AgentLoop: probes, findings, requests, timers -> Engine -> core -> Publisher -> maps
//!                     ^                                     |
//!                     +---------- Outside <-----------------+   probes, host, sweeps, files
//! ```
//!
//! Invariant: the data path never waits for the agent. Whatever way the agent ends, the program, its
//! maps and the addresses stay, and packets go on as it last decided.

pub mod backoff;
pub mod clock;
mod commands;
pub mod engine;
mod host_task;
pub mod layer;
pub mod lock;
pub mod notices;
pub mod operations;
mod outside;
pub mod publisher;
mod reload;
mod route_watch;
pub mod run_loop;
pub mod start;
mod sweep_thread;
mod vlan_sync;
pub mod watch;
