//! What is known of the packet under way. It lives in a per-CPU map, because the stack of a BPF
//! program ends at 512 bytes; a CPU works on one packet at a time.

use core::{cell::UnsafeCell, marker::PhantomPinned};

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_sock_tuple};
use lb_common::{
    abi::{Address, Backend, Flow, Granularity, Mode, Port, ServiceValue, Slot, VlanTags},
    encap::Tunnel,
    family::{Header, error},
    hash::CLIENT_EXTRA,
    icmp::quote::{IcmpError, Quoted},
    mss::Cursor,
    parse::{Network, Transport},
    rewrite::Translation,
};

use crate::{
    copy::copy,
    maps::SCRATCH,
    stages::{
        fragment::Fragmented,
        knock::Rescue,
        table::{Place, Tuple},
    },
    sum, tunnel,
};

#[repr(C)]
pub struct Packet {
    /// Functions that find the packet by [`Packet::current`] change it while their callers hold a
    /// reference: with these two the compiler does not take that for impossible.
    shared: (PhantomPinned, UnsafeCell<()>),
    /// The interface that the packet came in by, as the host's routes see it: the VLAN's where the
    /// host has one for the frame's tags.
    pub ingress: u32,
    /// The tags that the frame came with; only set where a stage goes on with the packet.
    pub tags: VlanTags,
    pub network: Network,
    pub transport: Transport,
    pub fragmented: Fragmented,
    pub service: ServiceValue,
    /// The packet's own tuple.
    pub tuple: Tuple,
    /// What the backend will answer to it; before that is known, what the backend of a flow that
    /// ends answered.
    pub reply_tuple: Tuple,
    /// Where the flow was found or begun, and a copy of it.
    pub place: Place,
    pub flow: Flow,
    pub to: Translation,
    /// In tunnel modes, towards the backend.
    pub tunnel: Tunnel,
    /// Between IPv4 and IPv6: not 0 for a packet from the backend; what its header will be; and a part
    /// of it on its way through a checksum.
    pub reply: u32,
    pub header: Header,
    pub chunk: [u64; sum::CHUNK / 8],
    pub hop: Hop,
    pub fib: bpf_fib_lookup,
    pub socket: bpf_sock_tuple,
    /// In the stage for ICMP: the error, the packet it quotes, and what that one will be.
    pub error: IcmpError,
    pub quoted: Quoted,
    pub quoted_to: Translation,
    /// Of a flow between IPv4 and IPv6: the error's new headers, and the MTU of its way on.
    pub error_headers: error::Headers,
    pub mtu: u32,
    /// Where the walk over TCP options is.
    pub cursor: Cursor,
    /// While a place is searched: the least valuable way, a free reply way, and
    /// how many are taken.
    pub least: u64,
    pub free: u32,
    pub taken: u32,
    /// While backends are compared: the best one so far, its flows and its weight.
    pub best: u32,
    pub best_weight: u32,
    pub best_load: u64,
    /// Ticks of the coarse clock.
    pub now: u32,
    /// ICMP errors that this CPU has sent in a tick; kept from packet to packet.
    pub icmp_tick: u32,
    pub icmp_sent: u32,
    /// The backend the packet was scheduled to, or [`NO_BACKEND`] where its flow decides.
    pub backend_id: u32,
    /// What is looked for in the flow table, a [`Granularity`]: a flow, a flow to the backend that the
    /// packet was scheduled to, or a client.
    pub sought: u32,
    /// Not 0: the flow is to begin.
    pub begins: u32,
    /// Not 0: a backend that was picked has as many flows as it may have.
    pub full: u32,
    /// Not 0: the flow began earlier, without an entry.
    pub adopted: u32,
    /// Of a service whose flows need no entry: the slot of the packet's hash.
    pub slot: Slot,
    /// What the slot, or the one that the scheduler picks, follows from.
    pub slot_hash: u64,
    /// Tells flows apart; the same for all packets of one.
    pub hash: u64,
    /// In the stage for connections without an answer.
    pub rescue: Rescue,
    /// QUIC: the backend that the connection ID names, or [`NO_BACKEND`]: where a flow begins.
    pub named: u32,
}

/// No backend has this id.
pub const NO_BACKEND: u32 = u32::MAX;

/// Where a frame goes next.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hop {
    pub ifindex: u32,
    pub source: [u8; 6],
    pub destination: [u8; 6],
}

impl Packet {
    /// The CPU's packet, with its headers. Everything else is as the last packet left it.
    #[inline(always)]
    pub fn new(network: Network, transport: Transport) -> Option<&'static mut Self> {
        let packet: *mut Self = SCRATCH.get_ptr_mut(0)?.cast();
        // SAFETY: the map's value has the type's size and alignment and is this CPU's alone. The
        // headers are written before the reference is made; all other fields take any bytes.
        unsafe {
            (&raw mut (*packet).network).write(network);
            (&raw mut (*packet).transport).write(transport);
            Some(&mut *packet)
        }
    }

    /// The packet under way, for functions that are verified on their own.
    #[inline(always)]
    pub fn current() -> Option<&'static mut Self> {
        let packet: *mut Self = SCRATCH.get_ptr_mut(0)?.cast();
        // SAFETY: as in `new`, which every packet passes first.
        Some(unsafe { &mut *packet })
    }

    /// The packet's own tuple; `extra` as in `tuple_hash`.
    #[inline(always)]
    pub fn set_tuple(&mut self, extra: u32) {
        self.tuple = Tuple::new(
            self.network.source,
            self.network.destination,
            self.transport.source_port,
            self.transport.destination_port,
            self.transport.protocol as u8,
            extra,
        );
    }

    /// The tuple of the packet's client, as a key of its entry.
    #[inline(always)]
    pub fn set_client(&mut self) {
        let (network, service) = (&self.network, &self.service);
        let client = network.source.masked(service.client_prefix_v4, service.client_prefix_v6);
        let protocol = self.transport.protocol as u8;
        self.tuple = Tuple::new(client, network.destination, Port::ANY, Port::ANY, protocol, CLIENT_EXTRA);
        self.sought = Granularity::Client as u32;
    }

    /// The packet goes to the backend of its flow.
    #[inline(always)]
    pub fn send_to_backend(&mut self, backend: &Backend) {
        copy(&self.flow.source, &mut self.to.source);
        copy(&backend.address, &mut self.to.destination);
        self.to.source_port = self.flow.source_port;
        self.to.destination_port = backend.port_for(self.flow.service_port);
        if Mode::is_tunnel(self.flow.mode) {
            self.enter_tunnel(backend);
        }
    }

    #[inline(always)]
    fn enter_tunnel(&mut self, backend: &Backend) {
        let tunnel = tunnel::to(self.flow.mode, backend, self.hash);
        copy(&tunnel.source, &mut self.to.source);
        self.tunnel = tunnel;
    }

    /// The packet goes to the client of its flow, from the address it knows.
    #[inline(always)]
    pub fn send_to_client(&mut self, service: Address) {
        self.to = Translation {
            source: service,
            destination: self.flow.client,
            source_port: self.flow.service_port,
            destination_port: self.flow.client_port,
        };
    }
}
