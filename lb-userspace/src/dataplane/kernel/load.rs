//! Brings the data path into the kernel: maps from their pins or new, then the program.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData},
    programs::{ProgramError, ProgramInfo, Xdp},
};
use aya_log::EbpfLogger;
use lb_common::{
    abi::{ABI_VERSION, Interface, Settings, names},
    verdict::Stage,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    attach::{self, Attachment},
    migrate, netlink,
    object::{self, MapSpec},
    pins::{self, Pins},
    stages, sys,
    takeover::{self, Takeover},
    transfer_flows::FlowsMoved,
};
use crate::config::{Limits, XdpMode};

/// Instructions that the verifier walked, by program.
pub type Verified = Vec<(&'static str, Option<u32>)>;

/// What is fixed when the data path is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions<'a> {
    /// Usually [`super::DEFAULT_PIN_DIR`].
    pub pin_dir: &'a Path,
    pub limits: &'a Limits,
    /// Lets the program write a log line per decision. Costs much; without it the verifier prunes
    /// the code.
    pub debug_log: bool,
}

/// The loaded program. Dropping it changes nothing that is attached.
pub struct Loaded {
    ebpf: Ebpf,
    pins: Pins,
    /// Whether another program on an interface is thrown off.
    replace: bool,
    pub program_id: u32,
    /// For each program, the main one first, the instructions that the verifier walked; its limit is
    /// one million each (Linux 5.16 tells).
    pub verified: Verified,
    /// Maps that changed, until the program is on every interface.
    pending: Option<Pending>,
}

/// An upgrade under way. Dropped before the program is on any interface, everything is as before.
struct Pending {
    takeover: Takeover,
    pins: Pins,
    changing: Vec<MapSpec>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Err(error) = migrate::recover(&self.pins, &self.changing) {
            tracing::error!("an upgrade that was begun is not taken back; the next start does it: {error:#}");
        }
    }
}

/// Loads the data path, with the maps that are pinned already if they fit.
///
/// # Errors
/// Rights are missing, pinned maps do not fit (names the map and what to do), or the kernel or its
/// verifier refuses.
pub fn load(options: &LoadOptions<'_>) -> Result<Loaded> {
    load_specs(options, object::object()?, object::map_specs(options.limits)?, NO_MARKS)
}

/// Loads another build of the data path: another version, in tests of upgrades.
///
/// # Errors
/// As [`load`].
#[doc(hidden)]
pub fn load_object(options: &LoadOptions<'_>, object: &[u8]) -> Result<Loaded> {
    load_specs(options, object, object::map_specs_of(object, options.limits)?, NO_MARKS)
}

/// As a version would that needed only so many elements of a map: the older one in tests of upgrades.
///
/// # Errors
/// As [`load`].
#[doc(hidden)]
pub fn load_as_if(options: &LoadOptions<'_>, map: &str, max_entries: u32) -> Result<Loaded> {
    let mut specs = object::map_specs(options.limits)?;
    specs.iter_mut().filter(|spec| spec.name == map).for_each(|spec| spec.max_entries = max_entries);
    load_specs(options, object::object()?, specs, NO_MARKS)
}

/// The data path from an object that was built with marks between its steps, ending packets at one of them:
/// for the bench.
///
/// # Errors
/// As [`load`].
#[doc(hidden)]
pub fn load_marked(options: &LoadOptions<'_>, object: &[u8], last_step: u32) -> Result<Loaded> {
    load_specs(options, object, object::map_specs(options.limits)?, last_step)
}

/// Of programs without marks: packets end at none.
const NO_MARKS: u32 = 0;

fn load_specs(options: &LoadOptions<'_>, object: &[u8], specs: Vec<MapSpec>, last_step: u32) -> Result<Loaded> {
    let pins = Pins::new(options.pin_dir);
    pins.create()?;
    migrate::refuse_other_layouts(&pins)?;
    migrate::recover(&pins, &specs)?;
    let changing = migrate::changing(&pins, &specs)?;
    let settings = settings(&pins)?;
    migrate::set_aside(&pins, &changing)?;
    let loaded = load_maps(options, (object, last_step), &pins, &specs, &settings).and_then(|mut ebpf| {
        let pending = take_over(&pins, &changing)?;
        // The seed is stored before the program runs, so that every flow in the maps follows it.
        store_settings(&mut ebpf, &settings)?;
        let (program_id, verified) = load_programs(&mut ebpf, &pins, !changing.is_empty())?;
        Ok(Loaded { ebpf, pins: pins.clone(), replace: false, program_id, verified, pending })
    });
    if loaded.is_err() {
        migrate::recover(&pins, &changing)?;
    }
    loaded
}

/// Makes the maps, or takes those that are pinned.
fn load_maps(
    options: &LoadOptions<'_>,
    (object, last_step): (&[u8], u32),
    pins: &Pins,
    specs: &[MapSpec],
    settings: &Settings,
) -> Result<Ebpf> {
    let mut globals = Globals::new(options, settings);
    let mut loader = globals.loader();
    for spec in specs {
        loader.map_max_entries(spec.name, spec.max_entries).map_pin_path(spec.name, pins.map(spec.name));
    }
    loader.map_max_entries(names::HOPS, options.limits.backends);
    loader.override_global("LAST_STEP", &last_step, false);
    loader.load(object).context("making the maps of the data path")
}

/// Fills maps that changed with what those that were set aside hold.
fn take_over(pins: &Pins, changing: &[MapSpec]) -> Result<Option<Pending>> {
    if changing.is_empty() {
        return Ok(None);
    }
    let names: Vec<_> = changing.iter().map(|spec| spec.name).collect();
    let open = |path: &Path| -> Result<MapData> {
        MapData::from_pin(path).with_context(|| format!("opening the pinned map {}", path.display()))
    };
    let before = |name: &str| {
        let path = pins.map(name);
        open(&if names.contains(&name) { pins.set_aside(&path) } else { path })
    };
    let mut takeover = Takeover::new(&names, before, |name: &str| open(&pins.map(name)))?;
    takeover.copy()?;
    Ok(Some(Pending { takeover, pins: pins.clone(), changing: changing.to_vec() }))
}

/// What is fixed in the program before it is verified.
pub(super) struct Globals {
    hash_seed: u64,
    flow_mask: u32,
    reply_mask: u32,
    log_level: u8,
}

impl Globals {
    pub(super) fn new(options: &LoadOptions<'_>, settings: &Settings) -> Self {
        Self {
            hash_seed: settings.hash_seed,
            flow_mask: object::flow_buckets(options.limits) - 1,
            reply_mask: object::reply_buckets(options.limits) - 1,
            log_level: if options.debug_log { aya_log::Level::Debug as u8 } else { 0 },
        }
    }

    pub(super) fn loader(&mut self) -> EbpfLoader<'_> {
        let mut loader = EbpfLoader::new();
        loader
            .override_global("HASH_SEED", &self.hash_seed, true)
            .override_global("FLOW_MASK", &self.flow_mask, true)
            .override_global("REPLY_MASK", &self.reply_mask, true)
            // Not there when the program has no log statement.
            .override_global(aya_log::LEVEL, &self.log_level, false);
        loader
    }
}

impl Loaded {
    /// Puts the program on an interface; call it for each one in turn.
    ///
    /// # Errors
    /// See [`attach::attach`].
    pub fn attach(&mut self, interface: &str, mode: XdpMode) -> Result<Attachment> {
        // The program may answer from here as soon as it is attached.
        self.announce(attach::ifindex(interface)?).with_context(|| format!("preparing the interface {interface}"))?;
        if let Some(pending) = &mut self.pending {
            pending.takeover.begin()?;
        }
        let program = program(&mut self.ebpf, names::PROGRAM)?;
        let attachment = attach::attach(program, &self.pins, interface, mode, self.replace)?;
        stages::retire(&self.pins, self.program_id)?;
        if self.pending.is_some()
            && attach::attachments(&self.pins)?.iter().all(|attached| attached.program_id == self.program_id)
        {
            self.settle()?;
        }
        Ok(attachment)
    }

    /// The program is on every interface that it is to be on: what the one before did until then is added, and
    /// its maps are kept for a way back. Done by [`Self::attach`] where no interface has another program.
    ///
    /// # Errors
    /// A map could not be read or written.
    pub fn settle(&mut self) -> Result<()> {
        let Some(mut pending) = self.pending.take() else { return Ok(()) };
        let moved = pending.takeover.finish().context("taking over what was counted meanwhile")?;
        migrate::keep(&self.pins, &pending.changing)?;
        let maps: Vec<_> = pending.changing.iter().map(|spec| spec.name).collect();
        let FlowsMoved { kept, evicted, lost } = moved;
        tracing::info!(
            maps = maps.join(","),
            kept,
            evicted,
            lost,
            "maps of another layout were taken over, with their flows"
        );
        Ok(())
    }

    /// From now on another program that is on an interface is thrown off it.
    pub fn replace_others(&mut self) {
        self.replace = true;
    }

    /// Tells the program the address of an interface, and forgets interfaces that are gone.
    ///
    /// # Errors
    /// The interface is gone, or is no Ethernet interface.
    pub fn announce(&mut self, ifindex: u32) -> Result<()> {
        let map = self.ebpf.map_mut(names::INTERFACES).context("the data path has no interfaces")?;
        let mut map: HashMap<_, u32, Interface> = HashMap::try_from(map)?;
        let known: Vec<u32> = map.keys().collect::<Result<_, _>>()?;
        for known in known {
            if matches!(netlink::attached(known), Err(error) if error.raw_os_error() == Some(libc::ENODEV)) {
                map.remove(&known)?;
            }
        }
        let mac = netlink::ethernet_address(ifindex)?.context("it is no Ethernet interface")?;
        map.insert(ifindex, Interface { mac, zero: [0; 2] }, 0).context("telling the data path its address")
    }

    /// The program itself, to run it on frames that never were on a wire.
    ///
    /// # Errors
    /// The object has no program of that name.
    pub fn program(&mut self) -> Result<&Xdp> {
        Ok(program(&mut self.ebpf, names::PROGRAM)?)
    }

    pub fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Passes the program's log lines on to the `log` crate's logger for as long as it is polled.
    ///
    /// # Errors
    /// The program has no log, or the ring buffer cannot be watched.
    pub fn debug_log(&mut self) -> Result<impl Future<Output = Result<()>> + Send + use<>> {
        let logger = EbpfLogger::init(&mut self.ebpf).context("opening the data path's log")?;
        // SAFETY: the logger owns its ring buffer's descriptor and keeps it for life.
        let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let mut logger = logger.map_err(std::io::Error::from).context("watching the data path's log")?;
        Ok(async move {
            loop {
                let mut ready = logger.readable_mut().await?;
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        })
    }
}

/// The pinned settings, or new ones with a random seed.
pub(super) fn settings(pins: &Pins) -> Result<Settings> {
    let fresh = || -> Result<Settings> {
        let hash_seed = sys::random_u64().context("asking the kernel for a random number")?;
        Ok(Settings {
            abi_version: ABI_VERSION,
            generation: 0,
            hash_seed,
            flags: 0,
            zero: 0,
            silent_at: 0,
            reserved: [0; 4],
        })
    };
    let path = pins.map(names::SETTINGS);
    let map = match MapData::from_pin(&path) {
        Ok(map) => map,
        Err(error) if pins::is_missing(&error) => return fresh(),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    let stored: Settings = takeover::prefix(&takeover::element(&map, 0).context("reading the pinned settings")?);
    if stored.abi_version == 0 {
        // An agent ended between making the map and filling it in: no program has used it.
        return fresh();
    }
    ensure!(
        stored.abi_version == ABI_VERSION,
        "{} holds maps of layout {}, this version has {ABI_VERSION}: run `lb detach` first",
        pins.dir().display(),
        stored.abi_version
    );
    Ok(stored)
}

fn store_settings(ebpf: &mut Ebpf, settings: &Settings) -> Result<()> {
    let map = ebpf.map_mut(names::SETTINGS).context("the data path has no settings")?;
    let mut map: Array<_, Settings> = Array::try_from(map)?;
    if map.get(&0, 0)?.abi_version == 0 {
        map.set(0, settings, 0).context("storing the settings")?;
    }
    Ok(())
}

/// The main program's id, and what the verifier walked in each program.
fn load_programs(ebpf: &mut Ebpf, pins: &Pins, other_maps: bool) -> Result<(u32, Verified)> {
    let verified = verify(ebpf)?;
    keep_previous(ebpf, pins, other_maps)?;
    for name in programs() {
        let path = pins.program_named(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing the old pin {}", path.display()));
            }
            _ => {}
        }
        program(ebpf, name)?.pin(&path).with_context(|| format!("pinning the program as {}", path.display()))?;
    }
    let id = program(ebpf, names::PROGRAM)?.info()?.id();
    // Before the program is attached anywhere: it never misses a stage.
    stages::fill(ebpf, pins, id)?;
    Ok((id, verified))
}

/// The main program and its stages, by name.
pub(super) fn programs() -> impl Iterator<Item = &'static str> {
    [names::PROGRAM].into_iter().chain(Stage::ALL.iter().map(|stage| stage.program()))
}

/// Has the kernel take every program, and tells what its verifier walked.
pub(super) fn verify(ebpf: &mut Ebpf) -> Result<Verified> {
    let mut verified = Vec::new();
    for name in programs() {
        let program = program(ebpf, name)?;
        program.load().map_err(explain_refusal).with_context(|| format!("loading the program `{name}`"))?;
        verified.push((name, program.info()?.verified_instruction_count()));
    }
    Ok(verified)
}

/// Programs of another version than these, or over other maps, stay for a way back; the same ones, loaded
/// before, need not, nor do those that never were on an interface.
fn keep_previous(ebpf: &mut Ebpf, pins: &Pins, other_maps: bool) -> Result<()> {
    let attached: Vec<u32> = attach::attachments(pins)?.into_iter().map(|attached| attached.program_id).collect();
    if !ProgramInfo::from_pin(pins.program()).is_ok_and(|before| attached.contains(&before.id())) {
        return Ok(());
    }
    let mut differ = other_maps;
    for name in programs() {
        let Ok(before) = ProgramInfo::from_pin(pins.program_named(name)) else { continue };
        differ |= before.tag() != program(ebpf, name)?.info()?.tag();
    }
    if !differ {
        return Ok(());
    }
    for name in programs() {
        let path = pins.program_named(name);
        migrate::rename(&path, &pins.previous(&path))?;
    }
    // Maps of the version before that one; those of this upgrade come when it is done.
    for name in names::PINNED {
        let path = pins.previous(&pins.map(name));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing the old pin {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

pub(super) fn explain_refusal(error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } if io_error.raw_os_error() == Some(libc::EPERM) => {
            let hint = "loading the data path needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: run it as root";
            anyhow!(io_error).context(format!("{hint} {verifier_log}").trim_end().to_owned())
        }
        ProgramError::LoadError { io_error, verifier_log } => {
            anyhow!(io_error).context(format!("the kernel's verifier refused the data path:\n{verifier_log}"))
        }
        other => anyhow!(other).context("loading the data path"),
    }
}

pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the data path has no program `{name}`"))?;
    Ok(program.try_into()?)
}
