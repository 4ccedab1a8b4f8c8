//! Measures the balancer: what `cargo xtask bench` runs.

pub mod packets;
pub mod result;
pub mod run;
pub mod statistics;
pub mod table;
pub mod target;
