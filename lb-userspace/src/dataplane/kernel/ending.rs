//! Flows that are over with their backend, and whose next packet has not come yet: those of connections
//! are brought to speak, and the data path answers; those that are scheduled anew are removed.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
};

use lb_common::{
    abi::{Address, Backend, BackendState, EndCause, Flow, Mode, Protocol, ServiceInfo},
    flow::{State, Word},
};

use super::challenge::Challenger;
use crate::dataplane::EndedFlows;

/// Connections that are brought to speak in one walk.
const PACE: usize = 10_000;
/// Times that a connection is asked before it is taken for gone.
const TRIES: u8 = 3;
/// Clients of a backend that are told apart.
const CLIENTS: usize = 65_536;

/// What to do with a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It goes on, or waits for its turn.
    Leave,
    /// Its entry goes.
    Remove,
}

/// What is remembered from walk to walk.
#[derive(Debug, Default)]
pub(super) struct Endings {
    challenger: Challenger,
    /// By place: the tag of the flow there, and how often it was asked.
    asked: HashMap<u32, (u32, u8)>,
    /// Removed here, by backend id: of which generation.
    removed: BTreeMap<u32, (u32, EndedFlows)>,
    /// Whether packets could be sent, the last time.
    failed: bool,
}

/// One walk.
pub(super) struct Walk<'a> {
    endings: &'a mut Endings,
    services: &'a [ServiceInfo],
    /// Places that were seen and may be asked again.
    asked: HashMap<u32, (u32, u8)>,
    left: BTreeMap<u32, u64>,
    clients: BTreeMap<u32, HashSet<Address>>,
    sent: usize,
}

impl Endings {
    pub fn walk<'a>(&'a mut self, services: &'a [ServiceInfo]) -> Walk<'a> {
        let asked = HashMap::new();
        Walk { endings: self, services, asked, left: BTreeMap::new(), clients: BTreeMap::new(), sent: 0 }
    }
}

impl Walk<'_> {
    /// Decides about a live flow of this backend.
    pub fn meet(&mut self, at: u32, word: Word, flow: &Flow, backend: &Backend) -> Fate {
        if BackendState::keeps_flows(backend.state) || backend.state == BackendState::Empty as u8 || !flow.has_load() {
            return Fate::Leave;
        }
        let tcp = flow.protocol == Protocol::Tcp as u8;
        // Of those that were closed both ends know; one that opens begins elsewhere with its next packet.
        if matches!(word.state(), State::Closed) || tcp && matches!(word.state(), State::Opening) {
            return Fate::Leave;
        }
        let clients = self.clients.entry(flow.backend_id).or_default();
        if clients.len() < CLIENTS {
            clients.insert(flow.client);
        }
        if backend.state == BackendState::Moved as u8 {
            return Fate::Remove;
        }
        if !tcp {
            // Nothing can be asked; the next packet is told.
            *self.left.entry(flow.backend_id).or_default() += 1;
            return Fate::Leave;
        }
        let tries = self.endings.asked.get(&at).filter(|(tag, _)| *tag == word.tag()).map_or(0, |(_, tries)| *tries);
        if tries >= TRIES {
            return Fate::Remove;
        }
        *self.left.entry(flow.backend_id).or_default() += 1;
        let tries = if self.sent < PACE { tries + u8::from(self.ask(flow, backend)) } else { tries };
        self.asked.insert(at, (word.tag(), tries));
        Fate::Leave
    }

    /// A flow that was to be removed is.
    pub fn removed(&mut self, flow: &Flow, backend: &Backend) {
        let moved = backend.state == BackendState::Moved as u8;
        let (generation, ended) = self.endings.removed.entry(flow.backend_id).or_default();
        if *generation != backend.generation {
            (*generation, *ended) = (backend.generation, EndedFlows::default());
        }
        if moved {
            ended.moved += 1;
        } else {
            ended.reset += 1;
        }
    }

    /// What was found, by backend id. `counted` tells what the data path has ended; a backend whose
    /// flows are not over has nothing to tell.
    pub fn finish(
        self,
        backends: &[Backend],
        counted: impl Fn(u32) -> Option<EndedFlows>,
    ) -> BTreeMap<u32, EndedFlows> {
        self.endings.asked = self.asked;
        let over =
            |backend: &Backend| backend.state != BackendState::Empty as u8 && !BackendState::keeps_flows(backend.state);
        let removed = &mut self.endings.removed;
        removed.retain(|id, (generation, _)| backends.get(*id as usize).is_some_and(|b| b.generation == *generation));
        let told = (0..).zip(backends).filter(|(_, backend)| over(backend)).map(|(id, _)| {
            let here = removed.get(&id).map(|(_, ended)| *ended).unwrap_or_default();
            let there = counted(id).unwrap_or_default();
            let ended = EndedFlows {
                left: self.left.get(&id).copied().unwrap_or(0),
                clients: self.clients.get(&id).map_or(0, |clients| clients.len() as u64),
                reset: here.reset + there.reset,
                moved: here.moved + there.moved,
            };
            (id, ended)
        });
        told.collect()
    }

    /// Asks both ends where both come by here. Whether it counts as asked.
    fn ask(&mut self, flow: &Flow, backend: &Backend) -> bool {
        let Some(service) = self.services.get(flow.service_id as usize) else { return true };
        let client = SocketAddr::new(flow.client.into(), flow.client_port.get());
        let asked_for = SocketAddr::new(service.address.into(), flow.service_port.get());
        self.sent += 1;
        let mut sent = self.endings.challenger.send(asked_for, client);
        if !Mode::is_one_sided(flow.mode) && backend.cause != EndCause::Down as u8 {
            let port = backend.port_for(flow.service_port);
            let source = SocketAddr::new(flow.source.into(), flow.source_port.get());
            let server = SocketAddr::new(backend.address.into(), port.get());
            self.sent += 1;
            sent = sent.and(self.endings.challenger.send(source, server));
        }
        let failed = sent.as_ref().is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock);
        if failed && !std::mem::replace(&mut self.endings.failed, true) {
            let error = sent.as_ref().err().map(tracing::field::display);
            tracing::warn!(error, "idle connections cannot be told that they are over: they are forgotten instead");
        }
        self.endings.failed = failed;
        true
    }
}
