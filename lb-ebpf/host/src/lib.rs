//! The whole data path on the host: every stage of the XDP program, compiled for this machine, between maps
//! and helpers in plain memory. One function, [`check`], makes of any bytes a sequence of packets, changes and
//! time, and panics when something does not hold that has to hold for all of them. libFuzzer calls it
//! (lb-common/fuzz), and a bounded run among the normal tests; with [`play::Target`] the same sequences run
//! elsewhere too, for a comparison.

pub mod frame;
pub mod host;
pub mod judge;
pub mod play;
pub mod rules;
pub mod world;

use crate::{host::Host, play::Player, rules::Ruled, world::World};

/// Plays a sequence; panics when a rule is broken. Gives the number of packets in it.
pub fn check(data: &[u8]) -> usize {
    let world = World::new(world::FRONT, world::BACK);
    let mut ruled = Ruled::new(Host::new(&world), &world);
    Player::new(&world).play(data, &mut ruled)
}
