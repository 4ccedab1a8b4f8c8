//! The agent's signs of life in the map `settings`, and what the data path makes of them.

use std::{path::Path, time::Duration};

use lb_common::abi::{Settings, names};

use super::{
    maps::{List, kernel},
    pins::Pins,
    sys,
};
use crate::{
    config::{DeadMan, DeadManPolicy},
    dataplane::DataplaneError,
};

const POLICIES: u32 = Settings::SILENT_PASS | Settings::SILENT_DROP;

/// What the data path was told to do without an agent, and since when it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    pub policy: DeadManPolicy,
    /// The generation that packets meet.
    pub generation: u32,
    /// The agent's silence in excess of what it may have; `None`: it is not silent, or was not to say
    /// anything.
    pub over: Option<Duration>,
}

/// Reads it off the pinned maps; needs no agent.
///
/// # Errors
/// Nothing is pinned, or the map cannot be read.
pub fn silence(pin_dir: &Path) -> Result<Silence, DataplaneError> {
    let list: List<Settings> = List::open(&Pins::new(pin_dir), names::SETTINGS)?;
    let settings = list.map.get(&0, 0).map_err(|error| kernel("reading the settings", error))?;
    let policy = match settings.flags & POLICIES {
        0 => DeadManPolicy::Freeze,
        Settings::SILENT_DROP => DeadManPolicy::Drop,
        _ => DeadManPolicy::Pass,
    };
    let over = (settings.silent_at != 0).then(|| sys::coarse_ns().checked_sub(settings.silent_at)).flatten();
    Ok(Silence { policy, generation: settings.generation, over: over.map(Duration::from_nanos) })
}

/// Moves the time on from which the agent counts as silent.
pub(super) fn beat(settings: &mut List<Settings>, rule: &DeadMan) -> Result<(), DataplaneError> {
    let what = "writing a sign of life";
    let mut value = settings.map.get(&0, 0).map_err(|error| kernel(what, error))?;
    value.silent_at = sys::coarse_ns() + u64::try_from(rule.after.as_nanos()).unwrap_or(u64::MAX / 2);
    let policy = match rule.policy {
        DeadManPolicy::Freeze => 0,
        DeadManPolicy::Pass => Settings::SILENT_PASS,
        DeadManPolicy::Drop => Settings::SILENT_DROP,
    };
    value.flags = value.flags & !POLICIES | policy;
    settings.map.set(0, value, 0).map_err(|error| kernel(what, error))
}
