//! The programs that the main one goes on with. The kernel empties a map of programs when nobody
//! in userspace holds it, so that each main program's is pinned for as long as it is attached.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    maps::{MapData, ProgramArray},
    programs::ProgramInfo,
};
use lb_common::{abi::names, verdict::Stage};

use super::{
    attach, load,
    pins::{self, Pins},
};

/// Puts the loaded stages where the main program finds them, and pins them.
///
/// # Errors
/// A stage is not loaded, or the kernel's.
pub(super) fn fill(ebpf: &mut Ebpf, pins: &Pins, program_id: u32) -> Result<()> {
    let map = put(ebpf)?;
    let path = pins.stages(program_id);
    // Left by a program of the same number, before the machine's last start at the latest.
    let _ = fs::remove_file(&path);
    map.pin(&path).with_context(|| format!("pinning the stages as {}", path.display()))
}

/// Puts the loaded stages where the main program finds them, for as long as `ebpf` is held.
///
/// # Errors
/// A stage is not loaded, or the kernel's.
pub(super) fn put(ebpf: &mut Ebpf) -> Result<ProgramArray<&mut MapData>> {
    let mut programs = Vec::new();
    for stage in Stage::ALL {
        let program = load::program(ebpf, stage.program())?;
        programs.push((*stage as u32, program.fd()?.try_clone()?));
    }
    let map = ebpf.map_mut(names::STAGES).context("the data path has no stages")?;
    let mut map = ProgramArray::try_from(map)?;
    for (index, program) in programs {
        map.set(index, &program, 0).context("telling the data path its stages")?;
    }
    Ok(map)
}

/// Removes the stages of programs that are on no interface any more.
///
/// # Errors
/// The pin directory cannot be read or changed.
pub(super) fn retire(pins: &Pins, current: u32) -> Result<()> {
    let mut used: BTreeSet<u32> = attach::attachments(pins)?.into_iter().map(|attached| attached.program_id).collect();
    used.insert(current);
    // A way back needs its stages.
    used.extend(ProgramInfo::from_pin(pins.previous(&pins.program())).map(|info| info.id()));
    for entry in fs::read_dir(pins.dir()).with_context(|| format!("listing {}", pins.dir().display()))? {
        let entry = entry?;
        let id = entry.file_name().to_str().and_then(pins::stages_of);
        if id.is_some_and(|id| !used.contains(&id)) {
            fs::remove_file(entry.path()).with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}
