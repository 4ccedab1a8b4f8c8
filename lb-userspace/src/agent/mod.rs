//! The agent: one loop that owns every decision, and the work around it that takes its time.
//!
//! ```text
//! start -> AgentLoop: probes, findings, requests, timers -> Engine -> core -> Publisher -> maps
//!                     ^                                     |
//!                     +---------- Outside <-----------------+   probes, host, sweeps
//! ```
//!
//! What changes the configuration or the operator's layer goes through `changes`, one after the other.
//!
//! Invariant: the data path never waits for the agent. Whatever way the agent ends, the program, its
//! maps and the addresses stay, and packets go on as it last decided.

pub mod backoff;
pub mod changes;
pub mod clock;
mod decisions;
pub mod effective;
pub mod engine;
mod failover_watch;
mod file_watch;
pub mod first;
mod freeze;
mod host_queue;
mod host_task;
mod interfaces;
mod knock_thread;
pub mod last_good;
pub mod layer;
pub mod lock;
pub mod notices;
mod outside;
pub mod publisher;
mod pulse;
pub mod receipts;
mod reload;
mod route_watch;
pub mod run_loop;
pub mod service_manager;
pub mod start;
pub mod state_file;
mod sweep_thread;
mod vlan_sync;
pub mod watch;
mod way_keeper;
mod way_routes;
