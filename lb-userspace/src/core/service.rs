//! A service and its backends as the core keeps them: what is wanted of them, what is known, and
//! which places they have in the maps.

use std::{net::SocketAddr, time::Duration};

use lb_common::{
    abi::{Address, AddressRoles, Backend, BackendState, Granularity, HashedBy, Mode, Port, Scheduler, ServiceKey},
    quic::ServerId,
};

use super::{
    Admin, FastPace, HealthState, Now, Override, ProbeKey, ProbeOutcome, Way,
    agent_word::AgentWord,
    election::{RoleState, Standing},
    ending::Ending,
    extents::Extent,
    freeze::Frozen,
    health::Health,
    maglev::Turn,
    suspicion::Suspicion,
    tiers,
    tracked::{Hash, Tracked},
    tunnel::Tunnel,
};
use crate::{
    config::{self, Check},
    dataplane::{EndedFlows, KnockCounts},
};

/// Who a service is: the same key in another mode is another service with an id of its own, because
/// flows find the mode by the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceRef {
    pub key: ServiceKey,
    /// [`Mode`], or another number where the maps held one that is not known.
    pub mode: u8,
    /// 0, or for a leftover in the maps that cannot be told apart otherwise its id and one.
    pub leftover: u32,
}

impl ServiceRef {
    pub(super) fn of(service: &config::Service) -> Self {
        let (address, port) = (Address::from(service.listen.ip()), Port::new(service.listen.port()));
        let key = ServiceKey::new(address, port, service.protocol as u8);
        Self { key, mode: service.mode as u8, leftover: 0 }
    }

    pub(super) fn full_nat(&self) -> bool {
        self.mode == Mode::FullNat as u8
    }

    /// Whether the host's source address towards each backend must be known.
    pub(super) fn needs_source(&self) -> bool {
        Mode::needs_source(self.mode)
    }

    /// Roles that the service's own address has through it.
    pub(super) fn own_roles(&self) -> u32 {
        AddressRoles::SERVICE | if self.key.port == Port::ANY { AddressRoles::ANY_PORT } else { 0 }
    }
}

/// On the way out: waits until nothing names it any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leave {
    /// The generation that no longer offers it to new flows.
    pub generation: u32,
    /// Walks over the flow table in a row, begun after that, that found no flow of it.
    pub empty_walks: u8,
}

impl Leave {
    /// A walk may have begun before the last packet that still saw the old tables was through;
    /// the one after it did not.
    const EMPTY_WALKS: u8 = 2;

    pub(super) fn at(generation: u32) -> Self {
        Self { generation, empty_walks: 0 }
    }

    /// Takes a walk in that counts.
    pub(super) fn walked(&mut self, flows: u64) {
        self.empty_walks = if flows == 0 { self.empty_walks.saturating_add(1) } else { 0 };
    }

    pub(super) fn over(&self) -> bool {
        self.empty_walks >= Self::EMPTY_WALKS
    }
}

/// Every address is a client.
const ALL_BITS: (u8, u8) = (32, 128);

#[derive(Clone, Debug)]
pub(super) struct Service {
    pub id: Option<u32>,
    /// As configured (file's backends, without the operator's layer); the last one where it is
    /// leaving, none where only the maps knew it.
    pub config: Option<config::Service>,
    pub leaving: Option<Leave>,
    /// Configured ones in order (file, then operator's), then leaving ones.
    pub members: Vec<Member>,
    /// Where its selection table is; `None`: it has none.
    pub table: Option<Table>,
    /// What the table was made of; `None`: not as wanted, or not known.
    pub made: Option<Made>,
    /// Where flows without an entry are; `None`: all have one.
    pub tracked: Option<Tracked>,
    /// Whether the service holds the role of its address.
    pub holds_address: bool,
    pub active_tier: Option<u8>,
    /// Who is its primary, where its backends have roles.
    pub standing: Standing,
    /// When who takes new flows, or how much, changes by time alone.
    pub due: Option<Now>,
    /// No flow begins.
    pub frozen: Option<Frozen>,
    pub live_flows: u64,
    /// What keeps it from being published as wanted.
    pub problem: Option<String>,
}

impl Service {
    pub(super) fn new() -> Self {
        Self {
            id: None,
            config: None,
            leaving: None,
            members: Vec::new(),
            table: None,
            made: None,
            tracked: None,
            holds_address: false,
            active_tier: None,
            standing: Standing::default(),
            due: None,
            frozen: None,
            live_flows: 0,
            problem: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        self.config.as_ref().map_or("", |config| &config.name)
    }

    pub(super) fn scheduler(&self) -> Scheduler {
        self.config.as_ref().map_or(Scheduler::RoundRobin, |config| config.scheduler)
    }

    pub(super) fn granularity(&self) -> Granularity {
        self.config.as_ref().map_or(Granularity::Flow, |config| config.granularity)
    }

    /// Bits of an address that name one client: IPv4, IPv6.
    pub(super) fn client_bits(&self) -> (u8, u8) {
        let config = self.config.as_ref().filter(|config| config.granularity == Granularity::Client);
        config.map_or(ALL_BITS, |config| config.clients.bits)
    }

    /// What is hashed where flows need no entry: with direct server return, by a scheduler with a table
    /// of hashes.
    pub(super) fn tracked_hash(&self, me: ServiceRef) -> Option<Hash> {
        let granularity = self.granularity();
        // A connection ID says more than a hash.
        let quic = self.config.as_ref().is_some_and(|config| config.quic.server_id_length != 0);
        if !Mode::is_one_sided(me.mode) || granularity == Granularity::Packet || quic {
            return None;
        }
        let by = HashedBy::of(self.scheduler() as u8, granularity as u8)?;
        let client_bits = if by == HashedBy::Client { self.client_bits() } else { ALL_BITS };
        Some(Hash { by, client_bits })
    }

    /// Time in which a client is remembered.
    pub(super) fn client_timeout(&self) -> Option<Duration> {
        let config = self.config.as_ref().filter(|config| config.granularity == Granularity::Client);
        config.map(|config| config.clients.timeout)
    }
}

/// Where a service's selection table is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    /// The slots reserved for it.
    pub extent: Extent,
    /// Its first slot.
    pub base: u32,
    /// Its length; `base + len` is within the extent.
    pub len: u32,
    pub shape: Shape,
}

/// What the slots of a table are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Slots that the scheduler goes by, from the first.
    pub turns: u32,
    /// Slots that tell where flows without an entry are, from the first.
    pub stable: u32,
    /// What those are found by; `None`: there are none.
    pub hash: Option<Hash>,
    /// Both are the same slots.
    pub paired: bool,
}

impl Shape {
    /// All for the scheduler.
    pub(super) fn plain(len: u32) -> Self {
        Self { turns: len, stable: 0, hash: None, paired: false }
    }
}

/// What a selection table is made of: the same of these is the same table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Made {
    pub scheduler: Scheduler,
    /// What is hashed where flows need no entry.
    pub hash: Option<Hash>,
    /// By id.
    pub turns: Vec<Turn>,
    pub maglev_table: u32,
}

/// A backend of one service.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub address: SocketAddr,
    pub weight: u16,
    pub tier: u8,
    pub admin: Admin,
    pub overridden: Option<Override>,
    /// Wanted by file and operator, and counted so in the indexes; never while `leaving` is set.
    pub configured: bool,
    pub leaving: Option<Leave>,
    pub health: Health,
    /// Checked instead of its address; port 0: on the port that is checked otherwise.
    pub check_address: Option<SocketAddr>,
    /// Open flows with which it gets no new ones; 0: as many as come.
    pub max_flows: u32,
    /// What is asked about it.
    pub probes: Probes,
    /// How its last health probe ended.
    pub last_probe: Option<ProbeOutcome>,
    /// The days that its certificate was said to have left.
    pub days_told: Option<i64>,
    pub role: RoleState,
    /// Whether its service's policy on roles lets it have new flows; true where there is none.
    pub elected: bool,
    /// It has lost the role that its service wants of it.
    pub demoted: bool,
    /// The time of its drain is over.
    pub drained: bool,
    /// It takes new flows.
    pub used: bool,
    /// It was down, or in maintenance, before.
    pub was_out: bool,
    /// Since when it may take new flows; `None`: it may not.
    pub ready_since: Option<Now>,
    /// Since when it may, and is not held back.
    pub serves_since: Option<Now>,
    /// It has come back to an earlier tier, which waits for it to stay.
    pub held: bool,
    /// How far its share has grown, of [`tiers::WHOLE`].
    pub step: u16,
    /// The end of its last good probe.
    pub last_good: Option<Now>,
    /// What has become of its flows, each time that they were over with it.
    pub ended: EndedFlows,
    /// Connections that it did not take, at the last walk.
    pub knocks: KnockCounts,
    /// Connections that another backend got instead, at the walk before that.
    pub rescued_earlier: u64,
    /// What the maps said of its flows when they were taken over.
    pub inherited: Ending,
    pub agent: AgentWord,
    /// What the data path has seen of it.
    pub suspicion: Suspicion,
    /// Set while it has an element of the map `backends`.
    pub place: Option<Place>,
    /// `full-nat` and tunnels: the route to it was lost.
    pub no_route: bool,
    pub live_flows: u64,
    /// What keeps it from being published as wanted.
    pub problem: Option<String>,
}

/// What is asked about a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Probes {
    /// To know its health; `None`: nothing.
    pub health: Option<ProbeKey>,
    /// Its own agent; `None`: it has none.
    pub agent: Option<ProbeKey>,
}

/// An element of the map `backends`, and what hangs on it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub id: u32,
    pub generation: u32,
    /// `full-nat`: source of new flows. Tunnels: source of every packet.
    pub source: Option<Address>,
    /// `full-nat`: sources of older flows.
    pub old_sources: Vec<(Address, Leave)>,
    pub pool: Option<u32>,
    pub tunnel: Tunnel,
    /// What its connection IDs say; kept while it leaves.
    pub server_id: Option<ServerId>,
}

impl Member {
    /// A backend that waits for its first probe.
    pub(super) fn new(address: SocketAddr, health: Health) -> Self {
        Self {
            address,
            weight: 1,
            tier: 0,
            admin: Admin::Ready,
            overridden: None,
            configured: false,
            leaving: None,
            health,
            check_address: None,
            max_flows: 0,
            probes: Probes::default(),
            last_probe: None,
            days_told: None,
            role: RoleState::default(),
            elected: true,
            demoted: false,
            drained: false,
            used: false,
            was_out: false,
            ready_since: None,
            serves_since: None,
            held: false,
            step: tiers::WHOLE,
            last_good: None,
            ended: EndedFlows::default(),
            knocks: KnockCounts::default(),
            rescued_earlier: 0,
            inherited: Ending::LIVE,
            agent: AgentWord::default(),
            suspicion: Suspicion::default(),
            place: None,
            no_route: false,
            live_flows: 0,
            problem: None,
        }
    }

    /// Whether new flows may go to it, if its tier serves.
    pub(super) fn ready(&self) -> bool {
        self.leaving.is_none()
            && self.place.is_some()
            && !self.no_route
            && self.suspicion.suspended.is_none()
            && self.willing()
    }

    /// Ready as far as operator, agent, weight, health and role go.
    pub(super) fn willing(&self) -> bool {
        self.elected && self.able()
    }

    /// Willing, whatever its role.
    pub(super) fn able(&self) -> bool {
        let wanted = self.admin == Admin::Ready && self.agent.refuses().is_none() && self.share() > 0;
        wanted && self.health.state == HealthState::Up
    }

    /// Its weight, as far as its agent lets it have it.
    pub(super) fn share(&self) -> u16 {
        self.agent.share(self.weight)
    }

    pub(super) fn ip(&self) -> Address {
        self.address.ip().into()
    }

    pub(super) fn port(&self) -> Port {
        Port::new(self.address.port())
    }

    /// The address that has a role through this backend, and the role.
    pub(super) fn own_role(&self, service: ServiceRef) -> Option<(Address, u32)> {
        match Mode::from_number(service.mode)? {
            Mode::Nat => Some((self.ip(), AddressRoles::NAT_BACKEND)),
            Mode::FullNat => Some((self.place.as_ref()?.source?, AddressRoles::SOURCE)),
            // Its replies take another way.
            Mode::DsrL2 | Mode::DsrIpip | Mode::DsrGue | Mode::DsrGre => None,
        }
    }

    /// Its element of the map `backends`.
    pub(super) fn entry(&self, place: &Place, service_id: u32, ending: Ending) -> Backend {
        Backend {
            address: self.ip(),
            source: place.source.unwrap_or(Address::v6([0; 16])),
            port: self.port(),
            state: ending.state as u8,
            cause: ending.cause as u8,
            generation: place.generation,
            service_id,
            port_pool: place.pool.unwrap_or(0),
            weight: self.grown_share().into(),
            tunnel_port: place.tunnel.port,
            dont_fragment: place.tunnel.dont_fragment,
            source_bits: place.tunnel.source_bits,
            max_flows: self.max_flows,
            reserved: 0,
        }
    }
}

/// What to ask about a backend at `address`.
pub(super) fn probes(address: SocketAddr, check_address: Option<SocketAddr>, service: &config::Service) -> Probes {
    let health = &service.health;
    let host = check_address.unwrap_or(address).ip();
    let own_port = check_address.map(|at| at.port()).filter(|&port| port != 0);
    let port = own_port.or(health.port).unwrap_or(address.port());
    let fast = health.fast_interval.filter(|&fast| fast < health.interval);
    // The agent is no part of the service.
    let way = if check_address.is_none() { Way::of(service, host, port) } else { None };
    let key = |port, check: &Check, interval: Duration, fast, way| ProbeKey {
        target: SocketAddr::new(host, port),
        check: check.clone(),
        interval,
        fast,
        // The agent may be asked more often than the check.
        timeout: if interval < health.interval { health.timeout.min(interval) } else { health.timeout },
        jitter_percent: health.jitter_percent,
        way,
    };
    let asked = health.check != Check::None && (port != 0 || matches!(health.check, Check::Exec(_)));
    let pace = fast.map(|interval| FastPace { interval, results: health.fall.max(health.rise) });
    Probes {
        health: asked.then(|| key(port, &health.check, health.interval, pace, way)),
        agent: health.agent.as_ref().map(|a| key(a.port, &Check::Agent(a.check.clone()), a.interval, None, None)),
    }
}

/// An element of `backends` that nobody uses; its generation is remembered.
pub(super) fn empty_entry(generation: u32) -> Backend {
    let nothing = Address::v6([0; 16]);
    Backend {
        address: nothing,
        source: nothing,
        port: Port::ANY,
        state: BackendState::Empty as u8,
        cause: 0,
        generation,
        service_id: 0,
        port_pool: 0,
        weight: 0,
        tunnel_port: Port::ANY,
        dont_fragment: 0,
        source_bits: 0,
        max_flows: 0,
        reserved: 0,
    }
}
