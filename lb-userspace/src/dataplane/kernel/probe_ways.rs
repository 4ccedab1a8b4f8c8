//! The programs that take probes to the addresses of services (`lb-ebpf/src/bin/probe`): they are put
//! on interfaces by the agent, for as long as it holds them. Nothing is pinned.
//!
//! Since Linux 6.6 by links (TCX), which end with their holder however it ends. Before by netlink, as
//! filters of the `clsact` queueing discipline: those of an agent that was killed stay without effect,
//! because no socket has a way any more, and are taken off by the next one or by [`sweep`]. The `clsact`
//! itself, which does nothing, stays.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    fmt, io,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues, SkStorage},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions},
    },
    sys::SyscallError,
    util::KernelVersion,
};
use lb_common::abi::probe::{self, Count, Way};

use super::load;
use crate::health::Sockets;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probe"));

/// How programs are put on interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Tcx,
    Netlink,
}

impl Hook {
    /// What this kernel has.
    pub fn of_kernel() -> Self {
        match KernelVersion::current() {
            Ok(kernel) if kernel >= KernelVersion::new(6, 6, 0) => Self::Tcx,
            _ => Self::Netlink,
        }
    }
}

/// Packets, since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WayCounts {
    /// Sent to addresses of services.
    pub sent: u64,
    /// Come from there.
    pub answered: u64,
    /// Not sent: the kernel refused to make room for a tunnel's headers, or to note the answer's way.
    pub dropped: u64,
}

/// The programs, loaded, and where they are.
#[derive(Debug)]
pub struct ProbeWays {
    ebpf: Ebpf,
    hook: Hook,
    sockets: Arc<ProbeSockets>,
    attached: BTreeMap<u32, [SchedClassifierLink; 2]>,
}

const BOTH: [(&str, TcAttachType); 2] =
    [(probe::PROGRAM_OUT, TcAttachType::Egress), (probe::PROGRAM_IN, TcAttachType::Ingress)];

impl ProbeWays {
    /// Loads them.
    ///
    /// # Errors
    /// The kernel refuses, or rights are missing.
    pub fn load(hook: Hook) -> Result<Self> {
        ensure!(!OBJECT.is_empty(), "this binary was built without its programs (AYA_BUILD_SKIP was set)");
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("making the maps of the probes' way")?;
        for (name, _) in BOTH {
            let loaded = program(&mut ebpf, name)?.load();
            loaded.map_err(load::explain_refusal).with_context(|| format!("loading the program `{name}`"))?;
        }
        let ways = SkStorage::try_from(take(&mut ebpf, probe::WAYS)?)?;
        let stats = PerCpuArray::try_from(take(&mut ebpf, probe::STATS)?)?;
        let sockets = Arc::new(ProbeSockets { ways: Mutex::new(ways), stats });
        Ok(Self { ebpf, hook, sockets, attached: BTreeMap::new() })
    }

    /// For whoever opens sockets.
    pub fn sockets(&self) -> Arc<ProbeSockets> {
        Arc::clone(&self.sockets)
    }

    /// Where they are.
    pub fn interfaces(&self) -> impl Iterator<Item = u32> {
        self.attached.keys().copied()
    }

    /// Puts both on an interface; nothing where they are there already.
    ///
    /// # Errors
    /// The kernel's; then none is there.
    pub fn attach(&mut self, ifindex: u32, name: &str) -> Result<()> {
        if self.attached.contains_key(&ifindex) {
            return Ok(());
        }
        if self.hook == Hook::Netlink {
            // Where it is there already, so may be the filters of an agent that was killed. Where it cannot
            // be, attaching says why.
            let _ = tc::qdisc_add_clsact(name);
            remove(name);
        }
        // Out after all others and in before them: they see the backend's own address both times.
        let [out, back] = [LinkOrder::last(), LinkOrder::first()];
        let out = self.attach_one(name, BOTH[0], out)?;
        let back = self.attach_one(name, BOTH[1], back)?;
        self.attached.insert(ifindex, [out, back]);
        Ok(())
    }

    /// Takes both off an interface, which may be gone.
    pub fn detach(&mut self, ifindex: u32) {
        // The links do it as they are dropped.
        self.attached.remove(&ifindex);
    }

    fn attach_one(
        &mut self,
        interface: &str,
        (name, direction): (&str, TcAttachType),
        order: LinkOrder,
    ) -> Result<SchedClassifierLink> {
        let options = match self.hook {
            Hook::Tcx => TcAttachOptions::TcxOrder(order),
            Hook::Netlink => TcAttachOptions::Netlink(NlOptions::default()),
        };
        let program = program(&mut self.ebpf, name)?;
        let attached = program.attach_with_options(interface, direction, options);
        let link = attached.with_context(|| format!("putting the program `{name}` on {interface}"))?;
        Ok(program.take_link(link)?)
    }
}

/// Hangs ways on sockets, and reads what became of them.
pub struct ProbeSockets {
    ways: Mutex<SkStorage<MapData, Way>>,
    stats: PerCpuArray<MapData, u64>,
}

impl ProbeSockets {
    /// What went which way.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counts(&self) -> Result<WayCounts> {
        let [sent, answered, dropped] = Count::ALL.map(|what| self.stats.get(&(what as u32), 0));
        let sum = |values: Result<PerCpuValues<u64>, MapError>| Ok::<_, MapError>(values?.iter().sum());
        Ok(WayCounts { sent: sum(sent)?, answered: sum(answered)?, dropped: sum(dropped)? })
    }

    fn locked(&self) -> MutexGuard<'_, SkStorage<MapData, Way>> {
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ProbeSockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeSockets").finish_non_exhaustive()
    }
}

impl Sockets for ProbeSockets {
    fn hang_on(&self, socket: BorrowedFd<'_>, way: &Way) -> io::Result<()> {
        self.locked().insert(&socket, way, 0).map_err(to_io)
    }

    fn sent(&self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        self.locked().get(&socket, 0).map(|way| way.sent).map_err(to_io)
    }
}

/// Takes off what an agent that was killed has left on any interface of this network namespace, where
/// the kernel did not do it by itself.
pub fn sweep() {
    interfaces().iter().for_each(|name| remove(name));
}

/// Takes off whatever has the name of one of these programs and was put on by netlink.
fn remove(interface: &str) {
    for (name, direction) in BOTH {
        // Nothing there, no `clsact`, the interface on its way out: nothing to do.
        let _ = tc::qdisc_detach_program(interface, direction, name);
    }
}

/// The names of all interfaces.
fn interfaces() -> Vec<String> {
    let mut names = Vec::new();
    // SAFETY: gives a list that ends with an element of zeros, or null.
    let list = unsafe { libc::if_nameindex() };
    let mut next = list;
    // SAFETY: `next` stays within the list, whose names are C strings; it is given back once.
    unsafe {
        while !next.is_null() && !(*next).if_name.is_null() {
            names.push(CStr::from_ptr((*next).if_name).to_string_lossy().into_owned());
            next = next.add(1);
        }
        if !list.is_null() {
            libc::if_freenameindex(list);
        }
    }
    names
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("there is no program `{name}`"))?.try_into()?)
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map> {
    ebpf.take_map(name).with_context(|| format!("there is no map `{name}`"))
}

fn to_io(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(SyscallError { io_error, .. }) => io_error,
        other => io::Error::other(other),
    }
}
