//! Makes a sequence of packets, changes and time of any bytes. The later packets answer, repeat or quote the
//! earlier ones as they came out.

use std::collections::VecDeque;

use lb_common::abi::{BackendState, EndCause, Protocol, ServiceValue, Slot};

use crate::{
    frame::{self, ACK, Ends, FIN, RST, SYN},
    judge::{Right, judge},
    world::{
        self, BACK_MAC, BACKENDS, Change, FRONT_MAC, ROUTER_MAC, Service, World, backend, backend_mac, client, source,
        vip,
    },
};

/// Packets of one sequence at most.
const PACKETS_MAX: usize = 64;
/// Frames that are answered or quoted.
const RECENT: usize = 16;
/// The headers that are changed at random are within so many bytes.
const HEADERS: usize = 110;
/// Longest frame.
const LONGEST: usize = 3000;

/// The interface a frame comes from or leaves by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Front,
    Back,
}

/// What became of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// An `xdp_action`.
    pub action: u32,
    pub frame: Vec<u8>,
    /// The interface it left by, of a frame that was sent on; `None`: the target does not tell.
    pub ifindex: Option<u32>,
}

/// Where a sequence is played.
pub trait Target {
    fn change(&mut self, change: &Change);
    /// Lets time pass, in nanoseconds.
    fn wait(&mut self, ns: u64);
    /// Runs the program on a frame, of which the first buffer has `first` bytes.
    fn run(&mut self, side: Side, frame: &[u8], first: usize) -> Sent;
}

/// What was sent on, as it came and as it went.
#[derive(Clone)]
struct Recent {
    came_by: Side,
    came: Vec<u8>,
    left_by: Side,
    left: Vec<u8>,
}

pub struct Player<'a> {
    world: &'a World,
    recent: VecDeque<Recent>,
    /// What has become of the world.
    backends: Vec<Vec<lb_common::abi::Backend>>,
    values: Vec<ServiceValue>,
    packets: usize,
    /// Whether connections that a backend does not answer are left out: what becomes of them depends on a
    /// clock that not every target lets be set.
    without_retries: bool,
}

/// The bytes of a sequence.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    /// 0 at the end.
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number below `end`.
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.next()) % end
    }
}

impl<'a> Player<'a> {
    pub fn new(world: &'a World) -> Self {
        Self {
            world,
            recent: VecDeque::new(),
            backends: world.services.iter().map(|service| service.backends.clone()).collect(),
            values: world.services.iter().map(|service| service.value).collect(),
            packets: 0,
            without_retries: false,
        }
    }

    /// Without what depends on a clock that the target does not set.
    pub fn without_retries(self) -> Self {
        Self { without_retries: true, ..self }
    }

    /// Plays a sequence. Gives the number of packets.
    pub fn play(&mut self, data: &[u8], target: &mut impl Target) -> usize {
        let mut bytes = Bytes(data);
        self.packets = 0;
        while !bytes.0.is_empty() && self.packets < PACKETS_MAX {
            match bytes.below(16) {
                0..=4 => self.ask(&mut bytes, target),
                5..=8 => self.answer(&mut bytes, target),
                9 => self.report(&mut bytes, target),
                10 => self.again(&mut bytes, target),
                11 => self.in_pieces(&mut bytes, target),
                12 => self.any(&mut bytes, target),
                13 => self.turn(&mut bytes, target),
                14 => self.publish(&mut bytes, target),
                _ => target.wait(1 << (20 + bytes.below(16))),
            }
        }
        self.packets
    }

    /// A client's packet, sometimes with what is rarely seen.
    fn ask(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let packet = self.question(bytes);
        let udp = packet[if packet[0] >> 4 == 4 { 9 } else { 6 }] == Protocol::Udp as u8;
        let packet = match bytes.next() {
            240.. => frame::with_options(&packet),
            few @ 225.. if udp => frame::with_surplus(&packet, &vec![few; usize::from(few - 224)]),
            210.. if udp => frame::without_checksum(packet),
            _ => packet,
        };
        self.send(bytes, target, Side::Front, packet);
    }

    fn question(&self, bytes: &mut Bytes<'_>) -> Vec<u8> {
        let service = self.service(bytes);
        let (who, what) = (bytes.next(), bytes.next());
        let ends = Ends {
            source: client(service.v4, who & 3),
            destination: vip(service.v4),
            source_port: 40_000 + u16::from(who >> 2 & 7),
            destination_port: service.port() + u16::from(who >= 0xf8),
        };
        let payload: Vec<u8> = if service.value.quic_server_id != 0 {
            let id = [0x10, 0xc0, 0xff, 0xee, what & 3, 1, 2, 3, 4];
            [&id[..], &[0; 24]].concat()
        } else {
            vec![what; [0, 5, 64, 1200][usize::from(what >> 6)]]
        };
        frame::packet(ends, ttl(bytes), service.protocol, flags(what), &payload)
    }

    fn service(&self, bytes: &mut Bytes<'_>) -> &'a Service {
        let service = &self.world.services[bytes.below(self.world.services.len())];
        if self.without_retries && service.is_watched() { &self.world.services[0] } else { service }
    }

    /// A backend's answer to what was sent to it, or a client's to what it was sent.
    fn answer(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let Some(Recent { left_by, left, .. }) = self.pick(bytes) else { return self.ask(bytes, target) };
        let what = bytes.next();
        let Some((ends, protocol)) = ends_of(&left) else { return };
        let packet = frame::packet(ends.back(), ttl(bytes), protocol, flags(what), &vec![what; usize::from(what >> 5)]);
        self.send(bytes, target, left_by, packet);
    }

    /// An ICMP error about what was sent on, to whom it says it is from.
    fn report(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let Some(Recent { left_by, left, .. }) = self.pick(bytes) else { return self.ask(bytes, target) };
        let Ok(right) = judge(&left) else { return };
        let (kind, cut) = (bytes.next(), bytes.next());
        let packet = &left[right.start..right.end];
        let quoted = &packet[..packet.len().min(usize::from(cut) + 28)];
        let next_mtu = u16::from(kind) << 3;
        let [high, low] = next_mtu.to_be_bytes();
        let head = match (right.v4, kind & 3) {
            (true, 0) => [3, 1, 0, 0, 0, 0],
            (true, 1) => [3, 4, 0, 0, high, low],
            (true, 2) => [11, 0, 0, 0, 0, 0],
            (true, _) => [12, 0, kind, 0, 0, 0],
            (false, 0) => [1, 4, 0, 0, 0, 0],
            (false, 1) => [2, 0, 0, 0, high, low],
            (false, 2) => [3, 0, 0, 0, 0, 0],
            (false, _) => [4, 1, 0, 0, 0, kind],
        };
        let from = if kind & 4 == 0 { right.destination } else { client(right.v4, 9) };
        let error = frame::icmp_error(from, right.source, head, quoted);
        self.send(bytes, target, left_by, error);
    }

    /// What came before, once more, on the same side.
    fn again(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let Some(Recent { came_by, came, .. }) = self.pick(bytes) else { return self.ask(bytes, target) };
        let came = mutated(bytes, came);
        self.run(target, came_by, &came, came.len());
    }

    /// A client's datagram in pieces, in any order.
    fn in_pieces(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let packet = self.question(bytes);
        let (chunk, order) = (8 * (3 + bytes.below(20)), bytes.next());
        let mut pieces = frame::pieces(&packet, chunk, order & 7);
        if order & 0x80 != 0 {
            pieces.reverse();
        }
        let count = pieces.len();
        for piece in pieces.into_iter().take(8) {
            self.send(bytes, target, Side::Front, piece);
        }
        if count > 1 && order & 0x40 != 0 {
            self.send(bytes, target, Side::Front, packet);
        }
    }

    /// Bytes as they are, behind addresses that may be anybody's.
    fn any(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let (kind, len) = (bytes.next(), bytes.below(64));
        let v4 = kind & 1 == 0;
        let (from, to) = match kind >> 1 & 3 {
            0 => (client(v4, 1), vip(v4)),
            1 => (backend(v4, 1), client(v4, 1)),
            2 => (backend(v4, 2), source(v4)),
            _ => (client(v4, 1), client(v4, 2)),
        };
        let payload: Vec<u8> = (0..len).map(|_| bytes.next()).collect();
        let protocol = [6, 17, 132, 1, 58, 4, 41, 47][usize::from(kind >> 3 & 7)];
        let packet = frame::ip(from, to, ttl(bytes), protocol, &payload);
        let side = if kind & 0x80 == 0 { Side::Front } else { Side::Back };
        self.send(bytes, target, side, packet);
    }

    /// A backend gets another state.
    fn turn(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let service = self.service(bytes);
        let n = bytes.below(usize::from(BACKENDS));
        let what = bytes.next();
        let entry = &mut self.backends[service.id as usize][n];
        entry.state = match what & 7 {
            0..=2 => BackendState::Live,
            3 | 4 => BackendState::Dead,
            5 => BackendState::Kept,
            6 => BackendState::Moved,
            _ => BackendState::Empty,
        } as u8;
        entry.cause = EndCause::ALL[usize::from(what >> 3) % EndCause::ALL.len()] as u8;
        let id = service.backend_id(n as u8 + 1);
        target.change(&Change::Backend { id, backend: *entry });
    }

    /// A service gets other slots, or is frozen, or thawed.
    fn publish(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target) {
        let service = self.service(bytes);
        let what = bytes.next();
        let value = &mut self.values[service.id as usize];
        let mut slots = service.slots();
        value.flags &= !ServiceValue::PARKED;
        match what & 3 {
            0 => value.selection_len = slots.len() as u32,
            1 if !service.is_tracked() => value.selection_len = u32::from(what >> 2) % 4,
            1 => {
                // New flows go elsewhere; those that are there stay.
                for slot in &mut slots {
                    let old = slot.current();
                    let next = service.backend_id(1 + (old % 4 + 1 + u32::from(what >> 6)) as u8 % BACKENDS);
                    *slot = Slot::unsettled(next, old);
                }
            }
            2 => value.flags |= ServiceValue::PARKED,
            _ => {}
        }
        value.generation += 1;
        let base = value.selection_base;
        target.change(&Change::Selection { base, slots });
        target.change(&Change::Service { key: service.key, value: *value });
    }

    fn pick(&self, bytes: &mut Bytes<'_>) -> Option<Recent> {
        let which = bytes.next();
        (!self.recent.is_empty()).then(|| self.recent[usize::from(which) % self.recent.len()].clone())
    }

    /// Sends a packet in a frame, with tags, changed or in several buffers where the bytes say so.
    fn send(&mut self, bytes: &mut Bytes<'_>, target: &mut impl Target, side: Side, packet: Vec<u8>) {
        let (to, from) = match side {
            Side::Front => (FRONT_MAC, ROUTER_MAC),
            Side::Back => (BACK_MAC, backend_mac(1)),
        };
        let shape = bytes.next();
        let tag = [0x81, 0, 0x20, 100];
        let tags: &[[u8; 4]] = match shape >> 5 {
            6 => &[tag],
            7 => &[[0x88, 0xa8, 0, 7], tag],
            _ => &[],
        };
        let mut frame = frame::frame(to, from, tags, &packet);
        if shape >> 5 == 5 {
            frame = mutated(bytes, frame);
        }
        if shape & 31 == 31 {
            frame.extend_from_slice(&[0; 6]);
        }
        let first = if shape & 31 == 30 { frame.len().min(256 + bytes.below(256)) } else { frame.len() };
        self.run(target, side, &frame, first);
    }

    fn run(&mut self, target: &mut impl Target, side: Side, frame: &[u8], first: usize) {
        if self.packets == PACKETS_MAX || frame.len() > LONGEST {
            return;
        }
        self.packets += 1;
        let sent = target.run(side, frame, first);
        if sent.action >= 3 {
            // By its link-layer source, which every target tells.
            let left_by = if sent.frame.get(6..12) == Some(&BACK_MAC[..]) { Side::Back } else { Side::Front };
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(Recent { came_by: side, came: frame.to_vec(), left_by, left: sent.frame });
        }
    }
}

fn flags(what: u8) -> u8 {
    [SYN, ACK, SYN | ACK, ACK | FIN, RST, RST | ACK, ACK, SYN][usize::from(what & 7)]
}

fn ttl(bytes: &mut Bytes<'_>) -> u8 {
    match bytes.next() {
        few @ 250.. => few - 250,
        _ => 64,
    }
}

/// Who a packet is from and to, where its ports are to be seen.
fn ends_of(frame: &[u8]) -> Option<(Ends, Protocol)> {
    let Right { source, destination, transport, .. } = judge(frame).ok()?;
    let (protocol, at) = transport?;
    let port = |at: usize| Some(u16::from_be_bytes(*frame.get(at..)?.first_chunk()?));
    let ends = Ends { source, destination, source_port: port(at)?, destination_port: port(at + 2)? };
    Some((ends, Protocol::from_number(protocol)?))
}

/// A frame with some of its bytes changed, or another length.
fn mutated(bytes: &mut Bytes<'_>, mut frame: Vec<u8>) -> Vec<u8> {
    let what = bytes.next();
    for _ in 0..what & 3 {
        // Behind the link-layer addresses, or nothing would be for us.
        let at = 12 + bytes.below(frame.len().min(HEADERS) - 12);
        frame[at] = match what >> 2 & 3 {
            0 => bytes.next(),
            1 => frame[at] ^ 1 << bytes.below(8),
            2 => frame[at].wrapping_add(1),
            _ => frame[at].wrapping_sub(1),
        };
    }
    if what & 0x80 != 0 {
        let len = bytes.below(frame.len().min(256)).max(frame::ETHERNET);
        frame.truncate(len);
    }
    frame
}

const _: () = assert!(world::MTU as usize <= LONGEST);
