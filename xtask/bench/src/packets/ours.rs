//! The product's data path under test: loaded by its own loader, its maps filled by its own core and
//! reconciler.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::ProgramFd;
use lb_common::{
    bench::Step,
    verdict::{Action, Reason},
};
use lb_userspace::{
    config::{Limits, XdpMode},
    core::{Core, Input, reconcile::Reconciler},
    dataplane::{
        Dataplane as _,
        kernel::{self, KernelDataplane, LoadOptions, Loaded, Stats},
    },
};

use super::{lab, setting::Setting};

/// Sizes of a loaded program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProgramSize {
    /// Instructions that the verifier walked.
    pub verified: u32,
    /// Bytes after the verifier's rewriting, and as machine code.
    pub xlated_bytes: u32,
    pub jited_bytes: u32,
}

/// Dropped, everything of it is taken off and away.
pub struct Ours {
    // The program goes before its pins.
    loaded: Loaded,
    stats: Stats,
    limits: Limits,
    pin_dir: PinDir,
}

/// The data path with marks between its steps.
static MARKED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-steps"));

/// Our data path up to a step, over the maps of the whole one.
pub struct Marked(Loaded);

impl Marked {
    /// The program, to be put under test.
    ///
    /// # Errors
    /// It is not loaded.
    pub fn program(&mut self) -> Result<ProgramFd> {
        Ok(self.0.program()?.fd()?.try_clone()?)
    }
}

impl Ours {
    /// Loads the data path and publishes the setting, on [`lab::INTERFACE`] of this namespace.
    ///
    /// # Errors
    /// The configuration is refused, or the kernel refuses.
    pub fn load(setting: &Setting) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut core = setting.core()?;
        let limits = setting.config()?.limits;
        lb_userspace::host::ensure_bpffs(Path::new(BPFFS))?;
        sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pin_dir = PinDir(Path::new(BPFFS).join(format!("{PREFIX}{}-{number}", process::id())));
        let mut loaded = kernel::load(&LoadOptions { pin_dir: &pin_dir.0, limits: &limits, debug_log: false })?;
        loaded.attach(lab::INTERFACE, XdpMode::Native)?;
        let mut data = KernelDataplane::open(&pin_dir.0)?;
        let report = Reconciler::new().step(&mut data, core.desired()).context("filling the maps")?;
        core.handle(Input::Published { generation: report.generation }, Duration::ZERO);
        settle(&mut core, &mut data)?;
        let stats = Stats::open(&pin_dir.0)?;
        Ok(Self { loaded, stats, limits, pin_dir })
    }

    /// The program, to be put under test.
    ///
    /// # Errors
    /// It is not loaded.
    pub fn program(&mut self) -> Result<ProgramFd> {
        Ok(self.loaded.program()?.fd()?.try_clone()?)
    }

    /// Loads the data path once more, with packets ending at a step.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn marked(&self, step: Step) -> Result<Marked> {
        let options = LoadOptions { pin_dir: &self.pin_dir.0, limits: &self.limits, debug_log: false };
        Ok(Marked(kernel::load_marked(&options, MARKED, step as u32)?))
    }

    /// # Errors
    /// The kernel tells nothing about the program.
    pub fn size(&mut self) -> Result<ProgramSize> {
        let verified = self.loaded.verified.first().and_then(|(_, walked)| *walked).unwrap_or(0);
        let info = self.loaded.program()?.info()?;
        let xlated_bytes = info.size_translated().unwrap_or(0);
        Ok(ProgramSize { verified, xlated_bytes, jited_bytes: info.size_jitted() })
    }

    /// Packets so far by reason, those that never happened left out.
    ///
    /// # Errors
    /// The kernel's.
    pub fn verdicts(&self) -> Result<BTreeMap<Reason, u64>> {
        let verdicts = self.stats.verdicts()?.into_iter().map(|(reason, counters)| (reason, counters.packets));
        Ok(verdicts.filter(|(_, packets)| *packets > 0).collect())
    }

    /// Where its maps are pinned.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir.0
    }
}

/// What was counted between two readings of [`Ours::verdicts`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted(BTreeMap<Reason, u64>);

impl Counted {
    pub fn between(before: &BTreeMap<Reason, u64>, after: &BTreeMap<Reason, u64>) -> Self {
        let new = |(reason, packets): (&Reason, &u64)| {
            let new = packets - before.get(reason).copied().unwrap_or(0);
            (new > 0).then_some((*reason, new))
        };
        Self(after.iter().filter_map(new).collect())
    }

    /// Packets sent on.
    pub fn forwarded(&self) -> u64 {
        self.with(Action::Forward)
    }

    /// Packets left to the kernel's stack.
    pub fn passed(&self) -> u64 {
        self.with(Action::Pass)
    }

    /// Flows that gave way to others.
    pub fn evicted(&self) -> u64 {
        self.0.get(&Reason::Evicted).copied().unwrap_or(0)
    }

    /// In words: `to_backend 65536, evicted 12`.
    pub fn words(&self) -> String {
        let words = self.0.iter().map(|(reason, packets)| format!("{} {packets}", reason.name()));
        words.collect::<Vec<_>>().join(", ")
    }

    fn with(&self, action: Action) -> u64 {
        self.0.iter().filter(|(reason, _)| reason.action() == action).map(|(_, packets)| packets).sum()
    }
}

/// Walks over the flow table, with the time between two: as many as it takes until the slots of a new
/// service are settled.
const WALKS: u32 = 8;
const BETWEEN: Duration = Duration::from_secs(11);

/// Lets time pass until flows that need no entry have none: the state in which a service is for as long as
/// its backends are the same.
fn settle(core: &mut Core, data: &mut KernelDataplane) -> Result<()> {
    for walk in 1..=WALKS {
        let now = BETWEEN * walk;
        core.handle(Input::Flows(data.sweep()?), now);
        let report = Reconciler::new().step(data, core.desired()).context("filling the maps")?;
        core.handle(Input::Published { generation: report.generation }, now);
    }
    let unsettled = core.service("s0").and_then(|view| view.tracking).map_or(0, |tracking| tracking.unsettled);
    ensure!(unsettled == 0, "{unsettled} slots have not settled");
    Ok(())
}

const BPFFS: &str = "/sys/fs/bpf";
const PREFIX: &str = "lb-bench-";

/// Removes the pins of runs that were killed. Those of living processes stay.
fn sweep() {
    let Ok(entries) = fs::read_dir(BPFFS) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(run_of) else { continue };
        if !Path::new("/proc").join(pid.to_string()).exists() {
            drop(PinDir(entry.path()));
        }
    }
}

/// The process that a name of ours tells: `lb-bench-12-0` -> 12.
fn run_of(name: &str) -> Option<u32> {
    let (pid, number) = name.strip_prefix(PREFIX)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

struct PinDir(PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        if let Err(error) = kernel::detach(&self.0) {
            eprintln!("cleaning up {}: {error:#}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::run_of;

    #[test]
    fn only_our_own_pins_are_swept() {
        assert_eq!(run_of("lb-bench-12-0"), Some(12));
        for other in ["lb", "lb-bench-", "lb-bench-x-0", "lb-bench-12", "lb-golden-12-0", "lb-bench-12-a"] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }
}
