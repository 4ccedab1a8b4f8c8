//! Keeps the way of probes to the addresses of services: the programs are loaded while a backend is
//! asked that way, and are on the interfaces that lead to such backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{
    run_loop::Finding,
    way_routes::{Found, Routes, Wanted},
};
use crate::{
    api::model::WaysStatus,
    core::ProbeKey,
    dataplane::kernel::probe_ways::{Hook, ProbeSockets, ProbeWays, sweep},
    health::{KnownWays, Ways},
    host::{LinkEvents, Netlink, RouteEvents},
};

/// Looks at everything again at least so often.
const AGAIN: Duration = Duration::from_secs(30);
/// Between two looks at least: changes come in crowds.
const REST: Duration = Duration::from_millis(100);

/// What others see of it.
#[derive(Clone, Debug)]
pub(super) struct WayKeeper {
    wanted: watch::Sender<Wanted>,
    known: KnownWays,
    shown: Arc<Mutex<Shown>>,
}

/// What there is to be shown.
#[derive(Debug, Default)]
struct Shown {
    sockets: Option<Arc<ProbeSockets>>,
    interfaces: Vec<String>,
}

impl WayKeeper {
    /// The keeper, and the work to be run for it.
    pub(super) fn new(
        netlink: Netlink,
        findings: mpsc::Sender<Finding>,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (wanted, asked) = watch::channel(Wanted::default());
        let (publish, known) = watch::channel(Ways::default());
        let known = KnownWays { known, missed: Arc::new(Notify::new()) };
        let shown = Arc::default();
        let work = Work {
            routes: Routes::new(netlink),
            findings,
            publish,
            shown: Arc::clone(&shown),
            programs: None,
            told: BTreeSet::new(),
        };
        let run = work.run(asked, Arc::clone(&known.missed));
        (Self { wanted, known, shown }, run)
    }

    /// For the probes.
    pub(super) fn ways(&self) -> KnownWays {
        self.known.clone()
    }

    /// Keeps the ways that these probes go, and no others.
    pub(super) fn keep(&self, keys: &[ProbeKey]) {
        let ways = keys.iter().filter_map(|key| Some((key.target.ip(), key.way.as_ref()?.service.ip())));
        let (backends, services) = ways.unzip();
        let now = Wanted { backends, services };
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != now;
            *wanted = now;
            changed
        });
    }

    /// As it is now; `None`: no probe goes such a way.
    pub(super) fn status(&self) -> Option<WaysStatus> {
        let wanted = self.wanted.borrow().backends.len();
        if wanted == 0 {
            return None;
        }
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = shown.sockets.as_ref().and_then(|sockets| sockets.counts().ok()).unwrap_or_default();
        let refused = self.known.known.borrow().backends.values().find_map(|way| way.clone().err());
        Some(WaysStatus {
            backends: wanted,
            interfaces: shown.interfaces.clone(),
            sent: counts.sent,
            answered: counts.answered,
            dropped: counts.dropped,
            problem: refused,
        })
    }
}

struct Work {
    routes: Routes,
    findings: mpsc::Sender<Finding>,
    publish: watch::Sender<Ways>,
    shown: Arc<Mutex<Shown>>,
    programs: Option<ProbeWays>,
    /// What was wrong at the last look, so that it is told once.
    told: BTreeSet<String>,
}

impl Work {
    /// Ends when nobody asks or listens any more.
    async fn run(mut self, mut wanted: watch::Receiver<Wanted>, missed: Arc<Notify>) {
        let mut changes = Changes::subscribe();
        // What an agent left that was killed.
        let _ = spawn_blocking(sweep).await;
        let mut unsure = false;
        loop {
            let asked = wanted.borrow_and_update().clone();
            self.look(&asked, std::mem::take(&mut unsure)).await;
            let some = !asked.backends.is_empty();
            let rested = Instant::now() + REST;
            tokio::select! {
                named = wanted.changed() => if named.is_err() {
                    return;
                } else {
                    // New backends wait for this.
                    continue;
                },
                () = missed.notified() => unsure = true,
                () = changes.next(), if some => {}
                () = sleep_until(Instant::now() + AGAIN), if some => {}
            }
            let news = timeout(rested.saturating_duration_since(Instant::now()), wanted.changed()).await;
            if matches!(news, Ok(Err(_))) {
                return;
            }
        }
    }

    /// `unsure`: packets did not go the way that is known.
    async fn look(&mut self, wanted: &Wanted, unsure: bool) {
        if wanted.backends.is_empty() {
            self.programs = None;
            *self.shown() = Shown::default();
            self.publish.send_replace(Ways::default());
            return;
        }
        let (found, others) = self.routes.find(wanted, unsure).await;
        let programs = self.programs.take();
        let done = spawn_blocking(move || put(programs, found)).await;
        let Ok(Put { programs, backends, interfaces }) = done else { return };
        self.tell(&backends).await;
        let sockets = programs.as_ref().map(ProbeWays::sockets);
        self.programs = programs;
        *self.shown() = Shown { sockets: sockets.clone(), interfaces };
        self.publish.send_replace(Ways { sockets: sockets.map(|sockets| sockets as _), backends, others });
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is wrong, once for each reason.
    async fn tell(&mut self, backends: &BTreeMap<IpAddr, Result<(), String>>) {
        let wrong: BTreeSet<String> = backends.values().filter_map(|way| way.clone().err()).collect();
        for why in wrong.difference(&self.told) {
            let text = format!("checks cannot go to the addresses of services: {why}; backends' own are asked instead");
            if self.findings.send(Finding::Warning(text)).await.is_err() {
                break;
            }
        }
        self.told = wrong;
    }
}

/// What a look came to.
#[derive(Default)]
struct Put {
    programs: Option<ProbeWays>,
    /// As in [`Ways`].
    backends: BTreeMap<IpAddr, Result<(), String>>,
    /// Those with the programs.
    interfaces: Vec<String>,
}

/// Loads the programs where they are missing, and has them on the interfaces found, and no others.
fn put(programs: Option<ProbeWays>, found: Found) -> Put {
    let mut programs = match programs.map_or_else(|| ProbeWays::load(Hook::of_kernel()), Ok) {
        Ok(programs) => programs,
        Err(error) => {
            let why = format!("{error:#}");
            let backends = found.into_keys().map(|backend| (backend, Err(why.clone()))).collect();
            return Put { backends, ..Put::default() };
        }
    };
    let links: BTreeMap<u32, String> = found.values().flatten().map(|link| (link.ifindex, link.name.clone())).collect();
    let old: Vec<u32> = programs.interfaces().filter(|ifindex| !links.contains_key(ifindex)).collect();
    old.into_iter().for_each(|ifindex| programs.detach(ifindex));
    let attached: BTreeMap<u32, Result<(), String>> = links
        .iter()
        .map(|(&ifindex, name)| (ifindex, programs.attach(ifindex, name).map_err(|error| format!("{error:#}"))))
        .collect();
    let interfaces =
        links.iter().filter(|(ifindex, _)| attached[ifindex].is_ok()).map(|(_, name)| name.clone()).collect();
    let backends = found
        .into_iter()
        .map(|(backend, way)| (backend, way.and_then(|link| attached[&link.ifindex].clone())))
        .collect();
    Put { programs: Some(programs), backends, interfaces }
}

/// What may change the way to a backend.
struct Changes {
    routes: Option<RouteEvents>,
    links: Option<LinkEvents>,
}

impl Changes {
    fn subscribe() -> Self {
        let warn = |error: &crate::host::HostError| {
            tracing::warn!(%error, "new ways of checks are found within 30 s only");
        };
        Self {
            routes: RouteEvents::subscribe().inspect_err(warn).ok(),
            links: LinkEvents::subscribe().inspect_err(warn).ok(),
        }
    }

    /// Never returns where nothing can be watched.
    async fn next(&mut self) {
        tokio::select! {
            Some(()) = async { self.routes.as_mut()?.next().await } => {}
            Some(_) = async { self.links.as_mut()?.next().await } => {}
            else => std::future::pending().await,
        }
    }
}
