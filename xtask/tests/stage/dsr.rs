//! Backends of direct server return with the `lb` under test.

use std::{path::PathBuf, process::Command};

pub use xtask::world::dsr::Decap;
use xtask::world::{World, dsr};

use super::{PATIENCE, lb_program};

pub fn prepare_backends(world: &World) {
    dsr::prepare_backends(world).unwrap();
}

pub fn lb_on(world: &World, index: u8, arguments: &[&str]) -> Command {
    dsr::lb_on(world, lb_program(), index, arguments)
}

pub fn pins(world: &World, index: u8) -> PathBuf {
    dsr::pins(world, index)
}

/// `lb decap` on a backend, for both service addresses.
pub fn decap<'w>(world: &'w World, index: u8, balancers: &[&str]) -> Decap<'w> {
    Decap::start(world, lb_program(), index, balancers, PATIENCE).unwrap()
}

/// One on every backend.
pub fn decap_on_all<'w>(world: &'w World, balancers: &[&str]) -> Vec<Decap<'w>> {
    (0..world.backends.len() as u8).map(|index| decap(world, index, balancers)).collect()
}
