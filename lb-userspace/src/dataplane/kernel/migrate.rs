//! Maps of an older layout: what can be taken over is, and what cannot is refused with the reason.
//!
//! An array that grew is set aside, made anew by the loader, filled, and kept for a way back:
//!
//! ```text
//! NAME -> aside-NAME      NAME (longer)  <- content      aside-NAME -> previous-NAME
//! ```
//!
//! Whatever interrupts that, the next start finds `aside-NAME` and begins again. What the old program
//! counts after its counters were read, until it is replaced, stays with it.

use std::{fs, io, path::Path};

use anyhow::{Context as _, Result, bail};
use aya::maps::MapData;
use lb_common::abi::ABI_VERSION;

use super::{
    detach,
    object::MapSpec,
    pins::{self, Pins},
    sys,
};

/// Elements of a map per CPU are rounded up to so many bytes.
const PER_CPU_STEP: usize = 8;

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

/// After an upgrade that was cut short: everything is as before it.
///
/// # Errors
/// A pin could not be moved.
pub(super) fn recover(pins: &Pins, specs: &[MapSpec]) -> Result<()> {
    specs.iter().try_for_each(|spec| put_back(pins, spec))
}

/// Makes room for maps that grow.
///
/// # Errors
/// A pin could not be moved.
pub(super) fn set_aside(pins: &Pins, growing: &[MapSpec]) -> Result<()> {
    growing.iter().try_for_each(|spec| {
        let path = pins.map(spec.name);
        rename(&path, &pins.set_aside(&path))
    })
}

/// Undoes [`set_aside`].
///
/// # Errors
/// A pin could not be moved.
pub(super) fn put_back(pins: &Pins, spec: &MapSpec) -> Result<()> {
    let path = pins.map(spec.name);
    let aside = pins.set_aside(&path);
    if aside.exists() { rename(&aside, &path) } else { Ok(()) }
}

/// Fills the longer maps with what the shorter ones held, and keeps those for a way back.
///
/// # Errors
/// A map could not be read or written.
pub(super) fn take_over(pins: &Pins, growing: &[MapSpec]) -> Result<()> {
    for spec in growing {
        let path = pins.map(spec.name);
        let aside = pins.set_aside(&path);
        let elements = copy(&aside, &path).with_context(|| format!("filling the longer map {}", path.display()))?;
        rename(&aside, &pins.previous(&path))?;
        tracing::info!(map = spec.name, elements, to = spec.max_entries, "a map of an older version was taken over");
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<u32> {
    use std::os::fd::AsFd as _;
    let (old, new) = (MapData::from_pin(from)?, MapData::from_pin(to)?);
    let info = old.info()?;
    let per_cpu = info.map_type()? == aya::maps::MapType::PerCpuArray;
    let size = info.value_size() as usize;
    let bytes = if per_cpu {
        size.next_multiple_of(PER_CPU_STEP) * aya::util::nr_cpus().map_err(|(_, error)| error)?
    } else {
        size
    };
    let mut value = vec![0; bytes];
    for index in 0..info.max_entries() {
        sys::array_element(old.fd().as_fd(), index, &mut value)?;
        sys::set_array_element(new.fd().as_fd(), index, &mut value)?;
    }
    Ok(info.max_entries())
}

/// One pin takes the place of another, if there is one, at once.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.with_context(|| format!("moving the pin {} to {}", from.display(), to.display())),
    }
}
