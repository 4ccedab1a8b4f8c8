//! The data path's object, embedded at build time, and what it says about its maps.

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{
    limits::{REPLY_FACTOR, WAYS},
    names,
};

use crate::config::Limits;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"));

/// The embedded ELF object.
///
/// # Errors
/// The build left it out.
pub fn object() -> Result<&'static [u8]> {
    ensure!(
        !OBJECT.is_empty(),
        "this binary was built without its data path (AYA_BUILD_SKIP was set): build it again without that variable"
    );
    Ok(OBJECT)
}

/// What a map must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapSpec {
    pub name: &'static str,
    /// `enum bpf_map_type`
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    /// Key under `limits` in the configuration that sets `max_entries`.
    pub setting: Option<&'static str>,
}

/// The maps that the program needs, with the configured capacities.
///
/// # Errors
/// The object is missing or has no such map, or a limit is not possible.
pub fn map_specs(limits: &Limits) -> Result<Vec<MapSpec>> {
    map_specs_of(object()?, limits)
}

/// The same of any build of the data path.
///
/// # Errors
/// As [`map_specs`].
pub(super) fn map_specs_of(object: &[u8], limits: &Limits) -> Result<Vec<MapSpec>> {
    ensure!(
        limits.flows.is_power_of_two() && limits.flows >= 64,
        "limits.flows is {}: it must be a power of two of at least 64",
        limits.flows
    );
    let parsed = aya_obj::Object::parse(object).context("reading the embedded data path")?;
    let spec = |&name: &&'static str| {
        let map = parsed.maps.get(name).with_context(|| format!("the embedded data path has no map `{name}`"))?;
        let capacity = capacity(name, limits);
        Ok(MapSpec {
            name,
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: map.value_size(),
            max_entries: capacity.map_or(map.max_entries(), |(elements, _)| elements),
            flags: map.map_flags(),
            setting: capacity.map(|(_, setting)| setting),
        })
    };
    names::PINNED.iter().map(spec).collect()
}

/// Buckets of `flow_words`.
pub fn flow_buckets(limits: &Limits) -> u32 {
    limits.flows / WAYS as u32
}

/// Buckets of `reply_words`.
pub fn reply_buckets(limits: &Limits) -> u32 {
    flow_buckets(limits) * REPLY_FACTOR
}

/// Elements of a map whose size is configured, and the setting it follows.
pub(crate) fn capacity(name: &str, limits: &Limits) -> Option<(u32, &'static str)> {
    Some(match name {
        names::ADDRESSES => (limits.addresses, "addresses"),
        names::SERVICES | names::SERVICE_INFO | names::CURSORS | names::SERVICE_STATS | names::HANDSHAKES => {
            (limits.services, "services")
        }
        names::BACKENDS | names::BACKEND_LOAD | names::BACKEND_STATS | names::QUIC_IDS | names::SILENCES => {
            (limits.backends, "backends")
        }
        names::SELECTION => (limits.selection_slots, "selection-slots"),
        names::FLOW_WORDS => (flow_buckets(limits), "flows"),
        names::REPLY_WORDS => (reply_buckets(limits), "flows"),
        names::FLOWS => (limits.flows, "flows"),
        names::PORT_POOLS => (limits.port_pools, "port-pools"),
        _ => return None,
    })
}
