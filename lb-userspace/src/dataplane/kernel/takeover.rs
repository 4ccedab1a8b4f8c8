//! From the maps of one program to those of another one that takes its place on the interfaces: what is in
//! them is copied, and what the one does until the other is everywhere is not lost.
//!
//! While interfaces change hands no flow begins, where the flow table or the ports are among what changes:
//! for some milliseconds the rule for a silent agent is `drop`, and clients whose first packet came then send
//! it again. So the new table has every flow before the first packet meets it.

use std::{collections::BTreeMap, mem::offset_of, os::fd::AsFd as _};

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use bytemuck::Pod;
use lb_common::abi::{Backend, ServiceInfo, Settings, names};

use super::{
    migrate::FLOW_TABLE,
    sys,
    transfer::Transfer,
    transfer_flows::{FlowMaps, FlowTransfer, FlowsMoved, Known},
};

/// What changes hands, and how far it is.
pub(super) struct Takeover {
    maps: Vec<Transfer>,
    flows: Option<FlowTransfer>,
    /// The map `settings` of both sides, which may be one.
    settings: Vec<MapData>,
    holds: bool,
    held: Option<Hold>,
}

impl Takeover {
    /// `names`: the maps that change. `from` and `to` open a map of either side, also those that do not.
    ///
    /// # Errors
    /// A map cannot be opened.
    pub(super) fn new(
        changing: &[&'static str],
        from: impl Fn(&str) -> Result<MapData>,
        to: impl Fn(&str) -> Result<MapData>,
    ) -> Result<Self> {
        let plain = changing.iter().filter(|name| !FLOW_TABLE.contains(name));
        let maps: Result<Vec<_>> = plain.map(|name| Transfer::new(name, from(name)?, to(name)?)).collect();
        let has_table = changing.iter().any(|name| FLOW_TABLE.contains(name));
        let flows = if has_table {
            let [a, b] = [&from as &dyn Fn(&str) -> Result<MapData>, &to].map(table);
            Some(FlowTransfer::new(a?, b?, known(&from)?))
        } else {
            None
        };
        let mut settings = vec![from(names::SETTINGS)?];
        if changing.contains(&names::SETTINGS) {
            settings.push(to(names::SETTINGS)?);
        }
        let holds = flows.is_some() || changing.contains(&names::PORT_POOLS);
        Ok(Self { maps: maps?, flows, settings, holds, held: None })
    }

    /// Fills the maps of the other side.
    ///
    /// # Errors
    /// A map could not be read or written.
    pub(super) fn copy(&mut self) -> Result<FlowsMoved> {
        self.maps.iter_mut().try_for_each(Transfer::copy)?;
        Ok(self.flows.as_mut().map(FlowTransfer::copy).unwrap_or_default())
    }

    /// Before the first interface has the other program; again is fine.
    ///
    /// # Errors
    /// A map could not be read or written.
    pub(super) fn begin(&mut self) -> Result<()> {
        if !self.holds || self.held.is_some() {
            return Ok(());
        }
        self.held = Some(Hold::begin(&self.settings)?);
        // Whoever had read the rule before has begun its flow by then.
        sys::wait_for_cpus().context("waiting for the CPUs")?;
        if let Some(flows) = &mut self.flows {
            flows.pass(false);
        }
        self.maps.iter_mut().try_for_each(Transfer::catch_up)
    }

    /// When every interface has the other program.
    ///
    /// # Errors
    /// A map could not be read or written.
    pub(super) fn finish(&mut self) -> Result<FlowsMoved> {
        sys::wait_for_cpus().context("waiting for the CPUs")?;
        let moved = self.flows.as_mut().map(|flows| flows.pass(true)).unwrap_or_default();
        self.maps.iter_mut().try_for_each(Transfer::finish)?;
        self.held = None;
        Ok(moved)
    }
}

/// While it lives, no flow begins.
struct Hold(Vec<(MapData, Vec<u8>)>);

const FLAGS: usize = offset_of!(Settings, flags);
const SILENT_AT: usize = offset_of!(Settings, silent_at);
const POLICIES: u32 = Settings::SILENT_PASS | Settings::SILENT_DROP;

impl Hold {
    fn begin(settings: &[MapData]) -> Result<Self> {
        let mut held = Self(Vec::new());
        for map in settings {
            let before = element(map, 0)?;
            let mut value = before.clone();
            set_policy(&mut value, Settings::SILENT_DROP, &1u64.to_ne_bytes());
            let copy = MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?;
            held.0.push((copy, before));
            sys::set_array_element(map.fd().as_fd(), 0, &mut value).context("keeping flows from beginning")?;
        }
        Ok(held)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        for (map, before) in &self.0 {
            let restored = element(map, 0).and_then(|mut value| {
                let policy = u32::from_ne_bytes(before[FLAGS..FLAGS + 4].try_into()?) & POLICIES;
                set_policy(&mut value, policy, &before[SILENT_AT..SILENT_AT + 8]);
                Ok(sys::set_array_element(map.fd().as_fd(), 0, &mut value)?)
            });
            if let Err(error) = restored {
                tracing::error!("flows begin again only with the agent's next sign of life: {error:#}");
            }
        }
    }
}

fn set_policy(settings: &mut [u8], policy: u32, silent_at: &[u8]) {
    let flags: [u8; 4] = settings[FLAGS..FLAGS + 4].try_into().unwrap_or_default();
    let flags = u32::from_ne_bytes(flags) & !POLICIES | policy;
    settings[FLAGS..FLAGS + 4].copy_from_slice(&flags.to_ne_bytes());
    settings[SILENT_AT..SILENT_AT + 8].copy_from_slice(silent_at);
}

fn table(open: &dyn Fn(&str) -> Result<MapData>) -> Result<FlowMaps> {
    let [words, replies, flows] = FLOW_TABLE.map(open);
    FlowMaps::map([&words?, &replies?, &flows?])
}

/// What keys and replies of flows follow from.
fn known(open: &impl Fn(&str) -> Result<MapData>) -> Result<Known> {
    let seed = prefix::<Settings>(&element(&open(names::SETTINGS)?, 0)?).hash_seed;
    let mut services = BTreeMap::new();
    read_elements(&open(names::SERVICE_INFO)?, |id, value| {
        let info: ServiceInfo = prefix(value);
        if info.protocol != 0 {
            services.insert(id, info.address);
        }
    })?;
    let mut backends = Vec::new();
    read_elements(&open(names::BACKENDS)?, |_, value| backends.push(prefix::<Backend>(value)))?;
    Ok(Known { seed, services, backends })
}

/// The element as this version knows it: what an older one did not have is zero.
pub(super) fn prefix<T: Pod>(value: &[u8]) -> T {
    let mut known = T::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut known);
    let common = bytes.len().min(value.len());
    bytes[..common].copy_from_slice(&value[..common]);
    known
}

/// Every element of an array, whatever its layout.
///
/// # Errors
/// The kernel's.
pub(super) fn read_elements(map: &MapData, mut each: impl FnMut(u32, &[u8])) -> Result<()> {
    let info = map.info()?;
    let mut value = vec![0; info.value_size() as usize];
    for index in 0..info.max_entries() {
        sys::array_element(map.fd().as_fd(), index, &mut value)?;
        each(index, &value);
    }
    Ok(())
}

/// One element of an array, whatever its layout.
///
/// # Errors
/// The kernel's.
pub(super) fn element(map: &MapData, index: u32) -> Result<Vec<u8>> {
    let mut value = vec![0; map.info()?.value_size() as usize];
    sys::array_element(map.fd().as_fd(), index, &mut value)?;
    Ok(value)
}
