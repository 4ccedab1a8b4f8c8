//! A fixed world: services of every kind in every mode, three backends, a network on either side.
//!
//! ```text
//! clients 198.51.100.x -- router 192.0.2.254 -- front [lb] back -- 10.0.0.11, .12, .13
//!         2001:db8:c::x          2001:db8:1::fe                    2001:db8:2::11 ...
//! ```

use std::rc::Rc;

use aya_ebpf::{Routes, bindings::bpf_fib_lookup};
use lb_common::abi::{
    Address, AddressRoles, Backend, BackendState, DontFragment, Granularity, HashedBy, Mode, Port, Protocol, QuicKey,
    Scheduler, ServiceInfo, ServiceKey, ServiceValue, Slot,
};

/// Interface numbers, where nobody else says them.
pub const FRONT: u32 = 2;
pub const BACK: u32 = 3;

pub const FRONT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const BACK_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0xfe];

/// Backends of each service, called 1, 2 and 3.
pub const BACKENDS: u8 = 3;
/// Bytes of a QUIC server id.
pub const SERVER_ID: u8 = 4;
/// Bytes of the IP packets that each network takes.
pub const MTU: u16 = 1500;

/// Ids of backends are the service's times this; slots likewise.
const IDS: u32 = 4;
const SLOTS: u32 = 16;

/// Source ports of `full-nat`: few, so that they can be used up.
pub const PORTS: (u16, u16) = (20_000, 20_063);

pub const LIMITS: Limits =
    Limits { services: 64, backends: 256, addresses: 64, selection_slots: 1024, flows: 1024, port_pools: 16 };

/// How large the maps are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub services: u32,
    pub backends: u32,
    pub addresses: u32,
    pub selection_slots: u32,
    pub flows: u32,
    pub port_pools: u32,
}

/// One change of the maps, as the agent makes it.
#[derive(Clone, Debug)]
pub enum Change {
    PortPool { pool: u32 },
    Backend { id: u32, backend: Backend },
    ServiceInfo { id: u32, info: ServiceInfo },
    Selection { base: u32, slots: Vec<Slot> },
    Service { key: ServiceKey, value: ServiceValue },
    Address { address: Address, roles: AddressRoles },
    QuicId { key: QuicKey, backend: u32 },
}

/// A service as it is published at first.
#[derive(Clone, Debug)]
pub struct Service {
    pub id: u32,
    pub v4: bool,
    pub protocol: Protocol,
    pub mode: Mode,
    pub key: ServiceKey,
    pub value: ServiceValue,
    pub info: ServiceInfo,
    pub backends: Vec<Backend>,
}

pub struct World {
    pub front: u32,
    pub back: u32,
    pub services: Vec<Service>,
}

/// What services differ by.
#[derive(Clone, Copy)]
struct Spec {
    protocol: Protocol,
    mode: Mode,
    scheduler: Scheduler,
    /// Backends are of the other family.
    across: bool,
    granularity: Granularity,
    /// Flows need no entry.
    tracked: bool,
    any_port: bool,
    more: More,
}

/// What only some have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum More {
    Nothing,
    Mss,
    /// Refused and unanswered connections go to another backend.
    Retries,
    Quic,
    /// A backend has at most two flows.
    Limited,
}

const PLAIN: Spec = Spec {
    protocol: Protocol::Tcp,
    mode: Mode::Nat,
    scheduler: Scheduler::RoundRobin,
    across: false,
    granularity: Granularity::Flow,
    tracked: false,
    any_port: false,
    more: More::Nothing,
};

/// Of each family of services.
const SPECS: &[Spec] = &[
    PLAIN,
    Spec { mode: Mode::FullNat, scheduler: Scheduler::WeightedRoundRobin, ..PLAIN },
    Spec { mode: Mode::FullNat, scheduler: Scheduler::LeastConnections, across: true, ..PLAIN },
    Spec { mode: Mode::DsrL2, scheduler: Scheduler::Maglev, tracked: true, ..PLAIN },
    Spec { mode: Mode::DsrIpip, scheduler: Scheduler::SourceHash, tracked: true, ..PLAIN },
    Spec { mode: Mode::DsrGue, scheduler: Scheduler::Maglev, tracked: true, across: true, ..PLAIN },
    Spec { mode: Mode::DsrIpip, across: true, granularity: Granularity::Client, ..PLAIN },
    Spec { mode: Mode::DsrGue, ..PLAIN },
    Spec { mode: Mode::DsrGre, scheduler: Scheduler::Maglev, tracked: true, ..PLAIN },
    Spec { mode: Mode::DsrGre, across: true, more: More::Limited, ..PLAIN },
    Spec { mode: Mode::Nat, scheduler: Scheduler::LeastConnections, more: More::Limited, ..PLAIN },
    Spec { mode: Mode::Nat, more: More::Mss, scheduler: Scheduler::Maglev, ..PLAIN },
    Spec { mode: Mode::FullNat, more: More::Retries, ..PLAIN },
    Spec { protocol: Protocol::Udp, granularity: Granularity::Packet, ..PLAIN },
    Spec { protocol: Protocol::Udp, mode: Mode::FullNat, ..PLAIN },
    Spec { protocol: Protocol::Udp, mode: Mode::FullNat, across: true, ..PLAIN },
    Spec { protocol: Protocol::Udp, mode: Mode::DsrGue, granularity: Granularity::Client, ..PLAIN },
    Spec { protocol: Protocol::Udp, mode: Mode::FullNat, more: More::Quic, ..PLAIN },
    Spec { protocol: Protocol::Udp, mode: Mode::DsrL2, any_port: true, ..PLAIN },
    Spec { protocol: Protocol::Udp, mode: Mode::DsrIpip, scheduler: Scheduler::Maglev, tracked: true, ..PLAIN },
    Spec { protocol: Protocol::Sctp, mode: Mode::DsrL2, ..PLAIN },
    Spec { protocol: Protocol::Sctp, mode: Mode::DsrIpip, across: true, ..PLAIN },
];

pub fn vip(v4: bool) -> Address {
    if v4 { Address::v4([203, 0, 113, 10]) } else { v6([0xf, 0, 0, 0, 0x10]) }
}

/// The balancer's address towards the backends.
pub fn source(v4: bool) -> Address {
    if v4 { Address::v4([10, 0, 0, 1]) } else { v6([2, 0, 0, 0, 1]) }
}

pub fn client(v4: bool, n: u8) -> Address {
    if v4 { Address::v4([198, 51, 100, n]) } else { v6([0xc, 0, 0, 0, u16::from(n)]) }
}

/// Backend `n`, from 1.
pub fn backend(v4: bool, n: u8) -> Address {
    if v4 { Address::v4([10, 0, 0, 10 + n]) } else { v6([2, 0, 0, 0, 0x10 + u16::from(n)]) }
}

pub const fn backend_mac(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 2, 0x10 + n]
}

/// 2001:db8:...
fn v6(rest: [u16; 5]) -> Address {
    let [third, ..] = rest;
    let mut words = [0x2001, 0xdb8, third, 0, 0, 0, 0, rest[4]];
    words[6] = rest[3];
    let mut octets = [0; 16];
    for (two, word) in octets.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        *two = word.to_be_bytes();
    }
    Address::v6(octets)
}

impl World {
    /// With these numbers of interfaces.
    pub fn new(front: u32, back: u32) -> Self {
        let specs = [true, false].into_iter().flat_map(|v4| SPECS.iter().map(move |spec| (v4, spec)));
        let services = (0..).zip(specs).map(|(id, (v4, spec))| Service::new(id, v4, spec)).collect();
        Self { front, back, services }
    }

    /// All that is published, in an order that packets may see.
    pub fn changes(&self) -> Vec<Change> {
        let mut changes: Vec<_> = (0..12).map(|pool| Change::PortPool { pool }).collect();
        for service in &self.services {
            changes.extend(service.changes());
        }
        for v4 in [true, false] {
            let roles = AddressRoles(AddressRoles::SERVICE | AddressRoles::ANY_PORT);
            changes.push(Change::Address { address: vip(v4), roles });
            changes.push(Change::Address { address: source(v4), roles: AddressRoles(AddressRoles::SOURCE) });
            for n in 1..=BACKENDS {
                let roles = AddressRoles(AddressRoles::NAT_BACKEND);
                changes.push(Change::Address { address: backend(v4, n), roles });
            }
        }
        changes
    }

    /// What the kernel's routing and neighbour tables say in this world.
    pub fn routes(&self) -> Routes {
        let (front, back) = (self.front, self.back);
        Rc::new(move |params| look_up(params, front, back))
    }
}

impl Service {
    fn new(id: u32, v4: bool, spec: &Spec) -> Self {
        let port = if spec.any_port { Port::ANY } else { Port::new(80 + (id % SPECS.len() as u32) as u16) };
        let key = ServiceKey::new(vip(v4), port, spec.protocol as u8);
        let mut value = ServiceValue {
            id,
            selection_base: id * SLOTS,
            selection_len: slots(id, spec.tracked).len() as u32,
            generation: 7,
            mode: spec.mode as u8,
            scheduler: spec.scheduler as u8,
            granularity: spec.granularity as u8,
            ..ServiceValue::EMPTY
        };
        if spec.tracked {
            value.flags |= ServiceValue::TRACKED | ServiceValue::PAIRED;
            value.stable_len = value.selection_len;
            let by = HashedBy::of(value.scheduler, value.granularity);
            value.stable_hash = by.unwrap_or(HashedBy::Flow) as u8;
        }
        match spec.more {
            More::Nothing | More::Limited => {}
            More::Mss => value.mss = ServiceValue::MSS_AUTO,
            More::Retries => {
                value.flags |= ServiceValue::WATCHED;
                value.retries = 2;
            }
            More::Quic => value.quic_server_id = SERVER_ID,
        }
        let mut info = ServiceInfo::new(vip(v4), port, spec.protocol as u8, spec.mode as u8);
        info.client_timeout = 100;
        let backends = (1..=BACKENDS).map(|n| entry(id, v4 != spec.across, n, spec)).collect();
        Self { id, v4, protocol: spec.protocol, mode: spec.mode, key, value, info, backends }
    }

    pub fn backend_id(&self, n: u8) -> u32 {
        self.id * IDS + u32::from(n) - 1
    }

    /// The service's port; of one that takes any, some port.
    pub fn port(&self) -> u16 {
        if self.key.port == Port::ANY { 7000 } else { self.key.port.get() }
    }

    pub fn is_tracked(&self) -> bool {
        self.value.has(ServiceValue::TRACKED)
    }

    pub fn is_watched(&self) -> bool {
        self.value.has(ServiceValue::WATCHED)
    }

    pub fn slots(&self) -> Vec<Slot> {
        slots(self.id, self.is_tracked())
    }

    fn changes(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (n, backend) in (1..).zip(&self.backends) {
            changes.push(Change::Backend { id: self.backend_id(n), backend: *backend });
            if self.value.quic_server_id != 0 {
                let mut server_id = [0; 16];
                server_id[..4].copy_from_slice(&[0xc0, 0xff, 0xee, n]);
                let key = QuicKey::new(self.id, server_id);
                changes.push(Change::QuicId { key, backend: self.backend_id(n) });
            }
        }
        changes.push(Change::ServiceInfo { id: self.id, info: self.info });
        changes.push(Change::Selection { base: self.value.selection_base, slots: self.slots() });
        changes.push(Change::Service { key: self.key, value: self.value });
        changes
    }
}

/// A service's table: each backend once, or as a table of hashes.
fn slots(id: u32, tracked: bool) -> Vec<Slot> {
    let names: &[u32] = if tracked { &[0, 1, 2, 1, 0, 2, 0] } else { &[0, 1, 2] };
    names.iter().map(|n| Slot::clean(id * IDS + n)).collect()
}

fn entry(service: u32, v4: bool, n: u8, spec: &Spec) -> Backend {
    let needs_source = Mode::needs_source(spec.mode as u8);
    // One pool for each endpoint, whatever the service.
    let udp = spec.protocol == Protocol::Udp;
    let port_pool = (u32::from(!v4) * 2 + u32::from(udp)) * 3 + u32::from(n) - 1;
    let tunnel = Mode::is_tunnel(spec.mode as u8);
    Backend {
        address: backend(v4, n),
        source: if needs_source { source(v4) } else { Address::v6([0; 16]) },
        port: if Mode::is_one_sided(spec.mode as u8) { Port::ANY } else { Port::new(8080) },
        state: BackendState::Live as u8,
        cause: 0,
        generation: 1,
        service_id: service,
        port_pool: if spec.mode == Mode::FullNat { port_pool } else { 0 },
        weight: u32::from(n),
        tunnel_port: if spec.mode == Mode::DsrGue { Port::new(6080) } else { Port::ANY },
        dont_fragment: if tunnel { DontFragment::ALL[usize::from(n) % 3] as u8 } else { 0 },
        source_bits: 0,
        max_flows: if matches!(spec.more, More::Limited) { 2 } else { 0 },
        reserved: 0,
    }
}

/// `bpf_fib_lookup`, as net/core/filter.c does it, over the tables of this world.
fn look_up(params: &mut bpf_fib_lookup, front: u32, back: u32) -> i64 {
    const SUCCESS: i64 = 0;
    const NOT_FORWARDED: i64 = 4;
    const NO_NEIGHBOUR: i64 = 7;
    const TOO_LONG: i64 = 8;
    // SAFETY: plain integers in every union.
    let (v4, length, words) = unsafe {
        let v4 = u32::from(params.family) == libc_inet();
        let words = if v4 { [0, 0, 0, params.__bindgen_anon_4.ipv4_dst] } else { params.__bindgen_anon_4.ipv6_dst };
        (v4, params.__bindgen_anon_1.tot_len, words)
    };
    let to = if v4 { Address::v4(words[3].to_ne_bytes()) } else { Address::from_words(words) };
    if is_own(&to) {
        return NOT_FORWARDED;
    }
    let on_back = prefix(&to) == prefix(&source(v4));
    let on_front = prefix(&to) == prefix(&gateway(v4));
    params.ifindex = if on_back { back } else { front };
    if length > MTU {
        params.__bindgen_anon_1.mtu_result = MTU;
        return TOO_LONG;
    }
    let next = if on_back || on_front { to } else { gateway(v4) };
    if v4 {
        params.__bindgen_anon_4.ipv4_dst = next.words()[3];
    } else {
        params.__bindgen_anon_4.ipv6_dst = next.words();
    }
    let known = (1..=BACKENDS).find(|n| next == backend(v4, *n)).map(backend_mac);
    let Some(mac) = known.or_else(|| (next == gateway(v4)).then_some(ROUTER_MAC)) else { return NO_NEIGHBOUR };
    params.dmac = mac;
    params.smac = if on_back { BACK_MAC } else { FRONT_MAC };
    params.__bindgen_anon_1.mtu_result = MTU;
    SUCCESS
}

const fn libc_inet() -> u32 {
    2
}

fn gateway(v4: bool) -> Address {
    if v4 { Address::v4([192, 0, 2, 254]) } else { v6([1, 0, 0, 0, 0xfe]) }
}

/// The network that an address is in: 24 or 64 bits.
fn prefix(address: &Address) -> Vec<u8> {
    if address.is_v4() { address.v4_octets()[..3].to_vec() } else { address.octets()[..8].to_vec() }
}

/// Addresses of the host itself, those of its networks that mean several hosts, and multicast and link-local
/// ones, as far as routing tells them from others.
fn is_own(to: &Address) -> bool {
    if to.is_v4() {
        let octets = to.v4_octets();
        let last = [0, 1, 255].contains(&octets[3]);
        return octets[0] == 127
            || last && ([[10, 0, 0], [192, 0, 2]].contains(&[octets[0], octets[1], octets[2]]) && (octets[3] != 0));
    }
    let octets = to.octets();
    let own = [source(false), v6([1, 0, 0, 0, 1]), v6([1, 0, 0, 0, 0]), v6([2, 0, 0, 0, 0])];
    octets[0] == 0xff || octets[..2] == [0xfe, 0x80] || own.contains(to) || octets == Address::v6(LOOPBACK).octets()
}

const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
