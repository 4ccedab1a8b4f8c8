//! Listing live flows, for `lb flows`. Needs no agent.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use lb_common::{
    abi::{Flow, Granularity, Port, Protocol, ServiceInfo, names},
    flow::{State, TICK_SHIFT, Timeouts, Word},
};

use super::{flow_table::FlowTable, maps::List, pins::Pins};
use crate::dataplane::DataplaneError;

/// One live flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    pub service_id: u32,
    pub backend_id: u32,
    /// Of the backend when the flow began: another one means that its backend is gone.
    pub backend_generation: u32,
    pub client: SocketAddr,
    /// The port of the service that the client asked for.
    pub service_port: u16,
    /// Source towards the backend: the client itself in mode `nat`.
    pub source: SocketAddr,
    pub protocol: Protocol,
    pub state: State,
    /// Since the last packet, of a client's entry since its last new flow; exact to 134 ms, but for a
    /// flow that has seen none since the timeouts of its service changed.
    pub idle: Duration,
    /// [`Granularity::Client`]: no flow, but where the next one of the client goes. Its ports are 0, and
    /// its address is masked.
    pub granularity: Granularity,
}

/// Which flows to list; everything that is `Some` must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    pub service_id: Option<u32>,
    pub backend_id: Option<u32>,
    pub client: Option<IpAddr>,
    pub state: Option<State>,
}

impl FlowFilter {
    fn takes(&self, flow: &FlowRecord) -> bool {
        self.service_id.is_none_or(|id| id == flow.service_id)
            && self.backend_id.is_none_or(|id| id == flow.backend_id)
            && self.client.is_none_or(|client| client == flow.client.ip())
            && self.state.is_none_or(|state| state == flow.state)
    }
}

/// Reader of the flow table.
pub struct Flows {
    table: FlowTable,
    /// By service id, as they were when the table was opened: of flows, and of clients.
    timeouts: BTreeMap<u32, (Timeouts, u32)>,
}

impl Flows {
    /// From the pins of a data path that was loaded before, also by another process.
    ///
    /// # Errors
    /// A map is not pinned or may not be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        let pins = &Pins::new(pin_dir);
        let services: List<ServiceInfo> = List::open(pins, names::SERVICE_INFO)?;
        let services = services.read_all().map_err(|source| {
            let what = "reading the service infos".to_owned();
            DataplaneError::Kernel { what, source }
        })?;
        let timeouts = services
            .into_iter()
            .filter(|(_, info)| info.protocol != 0)
            .map(|(id, info)| (id, (info.timeouts, info.client_timeout)))
            .collect();
        Ok(Self { table: FlowTable::open(pins)?, timeouts })
    }

    /// Places for flows.
    pub fn capacity(&self) -> u32 {
        self.table.len()
    }

    /// Live flows that the filter takes, in the order of the table. The table changes meanwhile: a
    /// flow that begins or ends during the walk may be missing, none is shown half-written.
    pub fn iter<'a>(&'a self, filter: &'a FlowFilter) -> impl Iterator<Item = FlowRecord> + 'a {
        let now = FlowTable::now();
        self.table.taken().filter(move |(_, word)| word.live(now)).filter_map(move |(at, word)| {
            let flow = self.table.whole_flow(at, word)?;
            self.record(&flow, word, now).filter(|flow| filter.takes(flow))
        })
    }
}

impl Flows {
    /// `None` for a protocol that is not balanced.
    fn record(&self, flow: &Flow, word: Word, now: u32) -> Option<FlowRecord> {
        let granularity = Granularity::from_number(flow.granularity)?;
        let (timeouts, of_client) = self.timeouts.get(&flow.service_id).unwrap_or(&(State::TIMEOUTS, 0));
        let age = match granularity {
            Granularity::Client => word.age_of(*of_client, now),
            Granularity::Flow | Granularity::Packet => word.age(now, timeouts),
        };
        let socket = |address, port: Port| SocketAddr::new(IpAddr::from(address), port.get());
        Some(FlowRecord {
            service_id: flow.service_id,
            backend_id: flow.backend_id,
            backend_generation: flow.backend_generation,
            client: socket(flow.client, flow.client_port),
            service_port: flow.service_port.get(),
            source: socket(flow.source, flow.source_port),
            protocol: Protocol::from_number(flow.protocol)?,
            state: word.state(),
            idle: Duration::from_nanos(u64::from(age) << TICK_SHIFT),
            granularity,
        })
    }
}
