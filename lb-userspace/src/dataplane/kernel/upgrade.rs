//! Before an upgrade: what it would meet. After one: the way back.

use std::{collections::BTreeMap, os::fd::AsFd as _, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, TestRun as _,
    maps::{Map, MapData, MapInfo},
    programs::{
        ProgramInfo, TestRunOptions, Xdp,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use aya_obj::programs::XdpAttachType;
use lb_common::abi::names;

use super::{
    attach,
    load::{self, Globals, LoadOptions, Verified},
    migrate, object,
    pins::{Fit, Pins},
    probe_frames::{Probe, probes},
    stages,
    takeover::Takeover,
    transfer_flows::FlowMaps,
};
use crate::config::Limits;

/// What an upgrade of the attached data path to this version would meet.
#[derive(Debug)]
pub struct Outlook {
    /// How each map fits; why not.
    pub maps: Vec<(&'static str, Result<Fit, String>)>,
    /// `None`: a map does not fit, so nothing was loaded.
    pub program: Option<ProgramOutlook>,
}

#[derive(Debug)]
pub struct ProgramOutlook {
    pub verified: Verified,
    /// Frames that both programs were given.
    pub compared: usize,
    /// Frames that both did not make the same of, in words, each of them.
    pub differences: Vec<String>,
    /// The program that is attached, and each of its stages, has the same instructions.
    pub same: bool,
}

/// Loads this version's program beside the attached one, over the same maps, and gives both the same
/// frames: of live flows, to every service, and to nobody. Maps that change are copied for this moment. Nothing
/// is sent and no flow begins; the frames are counted like others.
///
/// # Errors
/// Nothing is attached, or the kernel refuses the new program.
pub fn outlook(pin_dir: &Path) -> Result<Outlook> {
    let pins = Pins::new(pin_dir);
    migrate::refuse_other_layouts(&pins)?;
    let attached = attach::attachments(&pins)?;
    let Some(interface) = attached.first() else { bail!("nothing is attached: any version may start") };
    let limits = limits(&pins)?;
    let fits = migrate::fits(&pins, &object::map_specs(&limits)?);
    let fits: Vec<_> = fits.into_iter().map(|(spec, fit)| (spec, fit.map_err(|why| format!("{why:#}")))).collect();
    let maps = fits.iter().map(|(spec, fit)| (spec.name, fit.clone())).collect();
    if fits.iter().any(|(_, fit)| fit.is_err()) {
        return Ok(Outlook { maps, program: None });
    }
    let options = LoadOptions { pin_dir, limits: &limits, debug_log: false };
    let mut globals = Globals::new(&options, &load::settings(&pins)?);
    let mut loader = globals.loader();
    for (spec, fit) in &fits {
        loader.map_max_entries(spec.name, spec.max_entries);
        // Others are made for this moment only.
        if *fit == Ok(Fit::Same) {
            loader.map_pin_path(spec.name, pins.map(spec.name));
        }
    }
    loader.map_max_entries(names::HOPS, limits.backends);
    let mut ebpf = loader.load(object::object()?).context("opening the maps for the new program")?;
    let changing: Vec<_> =
        fits.iter().filter(|(_, fit)| matches!(fit, Ok(Fit::Changes(_)))).map(|(spec, _)| spec.name).collect();
    if !changing.is_empty() {
        let mut takeover = Takeover::new(&changing, |name| open(&pins.map(name)), |name| made(&ebpf, name))?;
        takeover.copy()?;
    }
    let verified = load::verify(&mut ebpf)?;
    stages::put(&mut ebpf)?;
    let (old, same) = running(&pins, &mut ebpf, interface.program_id)?;
    let new = load::program(&mut ebpf, names::PROGRAM)?;
    let [words, replies, flows] = migrate::FLOW_TABLE.map(|name| open(&pins.map(name)));
    let table = FlowMaps::map([&words?, &replies?, &flows?])?;
    let tried = probes(&pins, &table)?;
    let mut differences = Vec::new();
    for probe in &tried {
        if let Some(difference) = compare(probe, interface.ifindex, &old, new)?
            // A flow may have ended since maps were copied, and then only one of the programs knows it.
            && probe.flow.is_none_or(|(at, flow)| table.still_holds(at, &flow))
        {
            differences.push(difference);
        }
    }
    let program = ProgramOutlook { verified, compared: tried.len(), differences, same };
    Ok(Outlook { maps, program: Some(program) })
}

/// The program that is on an interface, and whether it and its stages have the instructions of the loaded ones.
fn running(pins: &Pins, ebpf: &mut Ebpf, id: u32) -> Result<(Xdp, bool)> {
    let of = |name: &str, before: bool| {
        let path = pins.program_named(name);
        if before { pins.previous(&path) } else { path }
    };
    // After an upgrade that was cut short the one that runs is the one before.
    let before = !ProgramInfo::from_pin(of(names::PROGRAM, false)).is_ok_and(|last| last.id() == id);
    let mut same = true;
    for name in load::programs() {
        let tag = load::program(ebpf, name)?.info()?.tag();
        same &= ProgramInfo::from_pin(of(name, before)).is_ok_and(|old| old.tag() == tag);
    }
    let program = previous(&of(names::PROGRAM, before))?;
    ensure!(program.info()?.id() == id, "the program that runs (id {id}) is not among the pinned ones");
    Ok((program, same))
}

fn open(path: &Path) -> Result<MapData> {
    MapData::from_pin(path).with_context(|| format!("opening the pinned map {}", path.display()))
}

/// A map that was made with a program.
fn made(ebpf: &Ebpf, name: &str) -> Result<MapData> {
    let map = ebpf.map(name).with_context(|| format!("the data path has no map `{name}`"))?;
    let (Map::Array(data) | Map::PerCpuArray(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::RingBuf(data)) =
        map
    else {
        bail!("the map {name} is of an unexpected type");
    };
    Ok(MapData::from_fd(data.fd().as_fd().try_clone_to_owned()?)?)
}

/// What a rollback did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBack {
    /// Interfaces with the program from before, sorted.
    pub interfaces: Vec<String>,
    pub program_id: u32,
    /// Maps that were exchanged for those from before.
    pub maps: Vec<&'static str>,
}

/// Puts the program from before the last upgrade on every interface again, each at once. Where it had other
/// maps, they get what is in those of now. Flows and counters stay. Done twice, everything is as it was.
///
/// # Errors
/// There is none from before, or the kernel's.
pub fn rollback(pin_dir: &Path) -> Result<RolledBack> {
    let pins = Pins::new(pin_dir);
    let path = pins.previous(&pins.program());
    ensure!(path.exists(), "no program of another version was here before: there is no way back");
    let mut program = previous(&path)?;
    let program_id = program.info()?.id();
    ensure!(pins.stages(program_id).exists(), "the stages of the program from before are gone: there is no way back");
    let others: Vec<&'static str> =
        names::PINNED.iter().filter(|name| pins.previous(&pins.map(name)).exists()).copied().collect();
    let now = |name: &str| open(&pins.map(name));
    let before = |name: &str| {
        let path = pins.map(name);
        open(&if others.contains(&name) { pins.previous(&path) } else { path })
    };
    let mut takeover = Takeover::new(&others, now, before)?;
    takeover.copy()?;
    takeover.begin()?;
    let mut interfaces = Vec::new();
    for attachment in attach::attachments(&pins)? {
        let link = pins.link(&attachment.interface);
        let link = PinnedLink::from_pin(&link).with_context(|| format!("opening {}", link.display()))?;
        let id = program
            .attach_to_link(XdpLink::try_from(FdLink::from(link))?)
            .with_context(|| format!("replacing the program on {}", attachment.interface))?;
        drop(program.take_link(id)?);
        interfaces.push(attachment.interface);
    }
    takeover.finish()?;
    for name in load::programs() {
        exchange(&pins, &pins.program_named(name))?;
    }
    for name in &others {
        exchange(&pins, &pins.map(name))?;
    }
    Ok(RolledBack { interfaces, program_id, maps: others })
}

/// Exchanges what is pinned with what was before, if there was anything.
fn exchange(pins: &Pins, path: &Path) -> Result<()> {
    let before = pins.previous(path);
    if !before.exists() {
        return Ok(());
    }
    rustix::fs::renameat_with(rustix::fs::CWD, path, rustix::fs::CWD, &before, rustix::fs::RenameFlags::EXCHANGE)
        .with_context(|| format!("exchanging {} and {}", path.display(), before.display()))
}

fn previous(path: &Path) -> Result<Xdp> {
    Xdp::from_pin(path, XdpAttachType::Interface).with_context(|| format!("opening the program {}", path.display()))
}

/// The capacities that the pinned maps were made with.
fn limits(pins: &Pins) -> Result<Limits> {
    let capacity = |name: &str| -> Result<u32> {
        let path = pins.map(name);
        let info = MapInfo::from_pin(&path).with_context(|| format!("opening the pinned map {}", path.display()))?;
        Ok(info.max_entries())
    };
    Ok(Limits {
        services: capacity(names::SERVICES)?,
        backends: capacity(names::BACKENDS)?,
        addresses: capacity(names::ADDRESSES)?,
        selection_slots: capacity(names::SELECTION)?,
        flows: capacity(names::FLOWS)?,
        port_pools: capacity(names::PORT_POOLS)?,
    })
}

/// Of a frame that the program that runs treats now so, now so.
const TRIES: u32 = 5;

/// Action and frame.
type Ran = (u32, Vec<u8>);

fn run(program: &Xdp, ifindex: u32, frame: &[u8]) -> Result<Ran> {
    // Room for tunnel headers and ICMP errors.
    let mut out = vec![0; frame.len() + 512];
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(frame),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        ..TestRunOptions::new()
    };
    let result = program.test_run(options).context("running a program on a frame")?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out))
}

/// What both make of a frame, in words, if it is not the same. Traffic goes on meanwhile: what the program that
/// runs does not make of the frame again was no difference between the programs, and both are asked once more.
fn compare(probe: &Probe, ifindex: u32, old: &Xdp, new: &Xdp) -> Result<Option<String>> {
    for _ in 0..TRIES {
        let before = run(old, ifindex, &probe.frame)?;
        let after = run(new, ifindex, &probe.frame)?;
        let Some(difference) = difference(probe, &before, &after) else { return Ok(None) };
        if run(old, ifindex, &probe.frame)? == before {
            return Ok(Some(difference));
        }
    }
    Ok(None)
}

fn difference(probe: &Probe, (old, before): &Ran, (new, after): &Ran) -> Option<String> {
    let words = BTreeMap::from([(1, "drop"), (2, "pass"), (3, "transmit"), (4, "redirect")]);
    let word = |action: &u32| words.get(action).copied().unwrap_or("abort");
    if old != new {
        return Some(format!("{}: {} before, {} now", probe.what, word(old), word(new)));
    }
    // What is dropped is seen by nobody.
    if *old == 1 || before == after {
        return None;
    }
    let at = before.iter().zip(after).position(|(a, b)| a != b).unwrap_or(before.len().min(after.len()));
    Some(format!(
        "{}: {}, but byte {at} differs ({} bytes before, {} now)",
        probe.what,
        word(old),
        before.len(),
        after.len()
    ))
}
