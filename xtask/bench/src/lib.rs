//! Measures the balancer: what `cargo xtask bench` runs.

pub mod compare;
pub mod control;
pub mod failover;
pub mod packets;
pub mod plot;
pub mod report;
pub mod result;
pub mod run;
pub mod statistics;
pub mod table;
pub mod target;
pub mod users;
