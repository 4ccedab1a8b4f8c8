//! What a developer or first user types: set-up, run, test, bench, lint, fuzz; and [`world`], the network
//! namespaces in which `cargo xtask run` and the end-to-end tests (`tests/e2e_*.rs`) drive the real
//! `lb` binary with real clients and servers.

pub mod bench;
pub mod build;
pub mod demo;
pub mod dist;
pub mod fuzz;
pub mod interop;
pub mod lint;
pub mod run;
pub mod setup;
pub mod shell;
pub mod suite;
pub mod vm;
pub mod world;
