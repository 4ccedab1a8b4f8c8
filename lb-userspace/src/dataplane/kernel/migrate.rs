//! Maps of another layout or size: what can be taken over is, and what cannot is refused with the reason.
//!
//! A map that changes is set aside, made anew by the loader, filled, and kept for a way back when the new
//! program is on every interface:
//!
//! ```text
//! NAME -> aside-NAME      NAME (new)  <- content      aside-NAME -> previous-NAME
//! ```
//!
//! Whatever interrupts that, the next start finds `aside-NAME`. Where no interface has the new program yet,
//! everything is put back and begins again; otherwise the new maps are those that count.

use std::{fs, io, mem::offset_of, path::Path};

use anyhow::{Context as _, Result, bail};
use aya::{
    maps::{MapData, MapInfo},
    programs::ProgramInfo,
};
use lb_common::abi::{ABI_VERSION, Backend, ServiceInfo, ServiceValue, names};

use super::{
    attach, detach, load,
    object::MapSpec,
    pins::{self, Change, Fit, Pins},
    takeover::{prefix, read_elements},
    transfer,
    transfer_flows::FlowMaps,
};

/// The flow table: they change together.
pub(super) const FLOW_TABLE: [&str; 3] = [names::FLOW_WORDS, names::REPLY_WORDS, names::FLOWS];
/// Of a flow table's places, those that live flows may have when it is made smaller.
const FULL: (u32, u32) = (2, 3);

/// Refuses to begin beside the program of another layout, which is on interfaces.
///
/// # Errors
/// There is one, and what to type.
pub(super) fn refuse_other_layouts(pins: &Pins) -> Result<()> {
    for version in detach::versions(pins.root())?.into_iter().filter(|version| version != pins.dir()) {
        let entries = detach::entries(&version)?;
        let attached: Vec<String> =
            entries.iter().filter_map(|path| pins::interface_of(path.file_name()?.to_str()?)).collect();
        if !attached.is_empty() {
            let layout = version.file_name().unwrap_or_default().to_string_lossy().into_owned();
            bail!(
                "a data path of layout {layout} is on {}; this version has v{ABI_VERSION}, and cannot read its flows. It \
                 goes on forwarding. `lb detach` takes it off and ends its flows, then start again",
                attached.join(", ")
            );
        }
    }
    Ok(())
}

/// How every map fits.
pub(super) fn fits(pins: &Pins, specs: &[MapSpec]) -> Vec<(MapSpec, Result<Fit>)> {
    let mut fits: Vec<(MapSpec, Result<Fit>)> = specs.iter().map(|spec| (*spec, pins.fit(spec))).collect();
    let of_table = |name: &str| FLOW_TABLE.contains(&name);
    if fits.iter().any(|(spec, fit)| of_table(spec.name) && matches!(fit, Ok(Fit::Changes(_)))) {
        for (spec, fit) in fits.iter_mut().filter(|(spec, fit)| of_table(spec.name) && matches!(fit, Ok(Fit::Same))) {
            let (value, elements) = ((spec.value_size, spec.value_size), (spec.max_entries, spec.max_entries));
            *fit = Ok(Fit::Changes(Change { value, elements }));
        }
    }
    for (spec, fit) in &mut fits {
        if let Ok(Fit::Changes(change)) = fit
            && let Err(why) = room(pins, spec, change)
        {
            *fit = Err(why);
        }
    }
    fits
}

/// Maps that have to be made anew.
///
/// # Errors
/// Names the first map that does not fit.
pub(super) fn changing(pins: &Pins, specs: &[MapSpec]) -> Result<Vec<MapSpec>> {
    let mut changing = Vec::new();
    for (spec, fit) in fits(pins, specs) {
        if let Fit::Changes(_) = fit? {
            changing.push(spec);
        }
    }
    Ok(changing)
}

/// Whether what is in use fits into fewer elements.
fn room(pins: &Pins, spec: &MapSpec, change: &Change) -> Result<()> {
    let (from, to) = change.elements;
    if to >= from {
        return Ok(());
    }
    let used = used(pins, spec.name).with_context(|| format!("looking what is in use of the map {}", spec.name))?;
    if used > to {
        let setting = spec.setting.unwrap_or_default();
        bail!(
            "the pinned map {} has {from} elements, of which the first {used} are needed by what is in use, and the \
             configuration wants {to}: keep a larger `limits.{setting}`, or run `lb detach` first (its flows are \
             lost), then start again",
            pins.map(spec.name).display()
        );
    }
    Ok(())
}

/// Elements that a map must have for what is in use.
fn used(pins: &Pins, name: &str) -> Result<u32> {
    let open = |name: &str| -> Result<MapData> { Ok(MapData::from_pin(pins.map(name))?) };
    Ok(match name {
        names::SERVICE_INFO | names::CURSORS | names::SERVICE_STATS | names::HANDSHAKES => {
            highest(&open(names::SERVICE_INFO)?, offset_of!(ServiceInfo, protocol))?
        }
        names::BACKENDS | names::BACKEND_LOAD | names::BACKEND_STATS | names::SILENCES => {
            highest(&open(names::BACKENDS)?, offset_of!(Backend, state))?
        }
        names::SELECTION => slots(&open(names::SERVICES)?)?,
        names::PORT_POOLS => highest(&open(names::PORT_POOLS)?, 0)?,
        names::FLOW_WORDS | names::REPLY_WORDS | names::FLOWS => {
            let [words, replies, flows] = FLOW_TABLE.map(open);
            let (words, flows) = (words?, flows?);
            let live = FlowMaps::map([&words, &replies?, &flows])?.live();
            let places = (u64::from(live) * u64::from(FULL.1)).div_ceil(u64::from(FULL.0));
            // In elements of this map.
            let elements = MapInfo::from_pin(pins.map(name))?.max_entries();
            let all = flows.info()?.max_entries();
            (places * u64::from(elements)).div_ceil(u64::from(all)) as u32
        }
        _ => transfer::entries(open(name)?)? as u32,
    })
}

/// One more than the last element whose byte at `offset` is not zero.
fn highest(map: &MapData, offset: usize) -> Result<u32> {
    let mut highest = 0;
    read_elements(map, |index, value| {
        // The bit of port 0 says that a pool is ready; the state and the protocol that something is there.
        if value.get(offset).is_some_and(|byte| *byte != 0) {
            highest = index + 1;
        }
    })?;
    Ok(highest)
}

/// One more than the last slot of a selection table that a service points to.
fn slots(services: &MapData) -> Result<u32> {
    let mut end = 0;
    transfer::each_entry(services, |value| {
        let known: ServiceValue = prefix(value);
        end = end.max(known.selection_base + known.selection_len.max(known.stable_len));
    })?;
    Ok(end)
}

/// After an upgrade that was cut short: everything is as before it, or as after it where the new program is
/// on an interface already.
///
/// # Errors
/// A pin could not be moved.
pub(super) fn recover(pins: &Pins, specs: &[MapSpec]) -> Result<()> {
    let aside: Vec<MapSpec> =
        specs.iter().filter(|spec| pins.set_aside(&pins.map(spec.name)).exists()).copied().collect();
    if aside.is_empty() {
        return Ok(());
    }
    if switched(pins, &aside)? { keep(pins, &aside) } else { put_back(pins, &aside) }
}

/// Whether the program that was loaded last, over the new maps, is on an interface.
fn switched(pins: &Pins, aside: &[MapSpec]) -> Result<bool> {
    let Ok(last) = ProgramInfo::from_pin(pins.program()) else { return Ok(false) };
    if attach::attachments(pins)?.iter().all(|attachment| attachment.program_id != last.id()) {
        return Ok(false);
    }
    let new: Vec<u32> =
        aside.iter().filter_map(|spec| Some(MapInfo::from_pin(pins.map(spec.name)).ok()?.id())).collect();
    let uses = |name: &str| -> Option<bool> {
        let maps = ProgramInfo::from_pin(pins.program_named(name)).ok()?.map_ids().ok()??;
        Some(maps.iter().any(|map| new.contains(map)))
    };
    Ok(load::programs().any(|name| uses(name) == Some(true)))
}

/// Makes room for maps that change.
///
/// # Errors
/// A pin could not be moved.
pub(super) fn set_aside(pins: &Pins, changing: &[MapSpec]) -> Result<()> {
    changing.iter().try_for_each(|spec| {
        let path = pins.map(spec.name);
        rename(&path, &pins.set_aside(&path))
    })
}

/// Undoes [`set_aside`].
///
/// # Errors
/// A pin could not be moved.
pub(super) fn put_back(pins: &Pins, changing: &[MapSpec]) -> Result<()> {
    changing.iter().try_for_each(|spec| {
        let path = pins.map(spec.name);
        let aside = pins.set_aside(&path);
        if aside.exists() { rename(&aside, &path) } else { Ok(()) }
    })
}

/// Keeps the maps that were set aside for a way back.
///
/// # Errors
/// A pin could not be moved.
pub(super) fn keep(pins: &Pins, changing: &[MapSpec]) -> Result<()> {
    changing.iter().try_for_each(|spec| {
        let path = pins.map(spec.name);
        rename(&pins.set_aside(&path), &pins.previous(&path))
    })
}

/// One pin takes the place of another, if there is one, at once.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("moving the pin {} to {}", from.display(), to.display())),
    }
}
