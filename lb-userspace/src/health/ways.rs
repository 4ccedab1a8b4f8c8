//! Probes to the addresses of services: whether a socket's packets can be taken there, and whether they
//! were.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lb_common::abi::probe;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use crate::core::Way;

/// Says which way the packets of sockets go.
pub trait Sockets: Debug + Send + Sync {
    /// From now on.
    ///
    /// # Errors
    /// The kernel's.
    fn hang_on(&self, socket: BorrowedFd<'_>, way: &probe::Way) -> io::Result<()>;

    /// How many of its packets went that way.
    ///
    /// # Errors
    /// The kernel's.
    fn sent(&self, socket: BorrowedFd<'_>) -> io::Result<u32>;
}

/// Which backends can be asked at the addresses of services, and how.
#[derive(Clone, Debug, Default)]
pub struct Ways {
    pub sockets: Option<Arc<dyn Sockets>>,
    /// By a backend's own address; why not. One that is missing has not been looked at yet.
    pub backends: BTreeMap<IpAddr, Result<(), String>>,
    /// By a backend's own address: this host's address of the other family, to which the backend's answers come
    /// where its service is of that family.
    pub others: BTreeMap<IpAddr, IpAddr>,
}

/// The ways as probes see them, and a bell for whoever keeps them.
#[derive(Clone, Debug)]
pub struct KnownWays {
    pub known: watch::Receiver<Ways>,
    /// Rung when packets did not go the way that is known.
    pub missed: Arc<Notify>,
}

/// Longest wait for a new backend's way: programs are loaded and attached meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);

impl KnownWays {
    /// A way for one probe of `backend`; why its own address is to be asked instead.
    pub(super) async fn mark(&self, way: &Way, backend: IpAddr) -> Result<Mark, String> {
        let mut known = self.known.clone();
        let seen = timeout(PATIENCE, known.wait_for(|ways| ways.backends.contains_key(&backend))).await;
        let ways = match seen {
            Ok(Ok(ways)) => ways,
            Ok(Err(_)) => return Err("the agent is ending".to_owned()),
            Err(_) => return Err(format!("its way was not found within {} s", PATIENCE.as_secs())),
        };
        match (ways.backends.get(&backend), &ways.sockets) {
            (Some(Err(why)), _) => Err(why.clone()),
            (_, Some(sockets)) => {
                let local = ways.others.get(&backend).copied().filter(|_| way.is_across(backend));
                if way.is_across(backend) && local.is_none() {
                    let family = if way.service.is_ipv4() { "IPv4" } else { "IPv6" };
                    return Err(format!("this host has no {family} address that it could answer to"));
                }
                let (sockets, way) = (Arc::clone(sockets), way.clone());
                Ok(Mark { sockets, way, local, passed_by: AtomicBool::new(false) })
            }
            (_, None) => Err("no programs are loaded for it".to_owned()),
        }
    }
}

/// The way of one probe's sockets.
#[derive(Debug)]
pub struct Mark {
    sockets: Arc<dyn Sockets>,
    way: Way,
    local: Option<IpAddr>,
    passed_by: AtomicBool,
}

impl Mark {
    /// Whether its packets go through a tunnel, whose headers need room.
    pub fn is_tunnel(&self) -> bool {
        self.way.tunnel.is_some()
    }

    /// Whether its packets become those of another family: their port is to be nobody else's there either.
    pub fn is_across(&self) -> bool {
        self.local.is_some()
    }

    pub(super) fn hang_on(&self, socket: BorrowedFd<'_>, backend: SocketAddr) -> io::Result<()> {
        self.sockets.hang_on(socket, &self.way.entry(backend, self.local))
    }

    /// An answer to packets that nobody took to the service's address came from the backend's own.
    pub(super) fn look_at(&self, socket: BorrowedFd<'_>) {
        if !matches!(self.sockets.sent(socket), Ok(1..)) {
            self.passed_by.store(true, Ordering::Relaxed);
        }
    }

    /// Whether one of its sockets was answered by the backend's own address.
    pub(super) fn passed_by(&self) -> bool {
        self.passed_by.load(Ordering::Relaxed)
    }
}
