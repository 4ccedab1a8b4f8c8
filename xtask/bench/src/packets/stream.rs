//! Streams: which frames follow each other.

use lb_common::{
    abi::Protocol,
    bench::{FRAME_WORDS, STREAM_FLOWS, Stream, StreamFlow},
};

use super::{
    frame::{self, Template},
    lab,
};

/// The port that every service listens on.
pub const SERVICE_PORT: u16 = 80;
/// The port that every backend of a service with translation listens on.
pub const BACKEND_PORT: u16 = 8080;

/// TCP flags (RFC 9293, 3.1).
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// Family and transport.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub struct Kind {
    pub v4: bool,
    pub protocol: Protocol,
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self { v4: true, protocol: Protocol::Tcp },
        Self { v4: true, protocol: Protocol::Udp },
        Self { v4: false, protocol: Protocol::Tcp },
        Self { v4: false, protocol: Protocol::Udp },
    ];

    /// The end of a harness program's name: `tcp4`.
    pub const fn name(self) -> &'static str {
        match (self.protocol, self.v4) {
            (Protocol::Tcp, true) => "tcp4",
            (Protocol::Tcp, false) => "tcp6",
            (Protocol::Udp | Protocol::Sctp, true) => "udp4",
            (Protocol::Udp | Protocol::Sctp, false) => "udp6",
        }
    }
}

/// How flows become other flows, each time all were sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Renewal {
    /// They stay as they are.
    None,
    /// The same clients with other source ports.
    Ports,
    /// Other clients.
    Sources,
}

/// Which frames follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    pub frame: [u64; FRAME_WORDS],
    pub flows: u32,
    pub renewal: Renewal,
}

impl Order {
    /// A stream of a template's frames.
    pub fn of(template: &Template, flows: u32, renewal: Renewal) -> Self {
        Self { frame: template.frame(), flows, renewal }
    }

    /// The same frame again and again.
    pub const fn fixed(frame: [u64; FRAME_WORDS]) -> Self {
        Self { frame, flows: 1, renewal: Renewal::None }
    }

    /// The stream's state at the beginning of a lap.
    pub fn begin(&self, lap: u32) -> Stream {
        let (port_step, source_step) = match self.renewal {
            Renewal::None => (0, 0),
            Renewal::Ports => (1, 0),
            Renewal::Sources => (0, STREAM_FLOWS as u32),
        };
        Stream {
            next: 0,
            flows: self.flows,
            lap,
            port_step,
            source_step,
            ifindex: 0,
            sent: 0,
            zero: 0,
            frame: self.frame,
        }
    }
}

/// Frames from clients to the first service.
pub fn requests(kind: Kind, flags: u8) -> Template {
    Template {
        source: lab::client(kind.v4, 0),
        destination: lab::service(kind.v4, 0),
        protocol: kind.protocol,
        flags: if kind.protocol == Protocol::Tcp { flags } else { 0 },
    }
}

/// Frames from backends; the destination's last bytes are filled in, the others are those of `to`.
pub fn replies(kind: Kind, flags: u8, to: std::net::IpAddr) -> Template {
    Template { source: lab::backend(kind.v4, 0), destination: to, ..requests(kind, flags) }
}

/// Frames to an address of nobody we know, for the kernel to route.
pub fn strangers(kind: Kind) -> Template {
    Template { destination: lab::client(kind.v4, 0), ..requests(kind, ACK) }
}

/// As many flows as fit, of 65,536 clients with 16 source ports each, to `services` services in
/// turn, in a random order. Ports leave room for 4,031 laps of [`Renewal::Ports`].
pub fn client_flows(v4: bool, services: u32) -> Vec<StreamFlow> {
    // 198.18.0.0/15 is for measurements (RFC 2544, appendix C.2.2).
    flows(|n| StreamFlow {
        source: 0xc612_0000 + (n & 0xffff),
        destination: lab::last_word(lab::service(v4, n % services)),
        source_port: 1024 + 4032 * (n >> 16) as u16,
        destination_port: SERVICE_PORT,
    })
}

/// As many clients as fit, of one flow each, in a random order. [`Renewal::Sources`] brings as many
/// others.
pub fn flood_flows(v4: bool) -> Vec<StreamFlow> {
    flows(|n| StreamFlow {
        source: 0x2000_0000 + n,
        destination: lab::last_word(lab::service(v4, 0)),
        source_port: 1024 + (n.wrapping_mul(0x9e37_79b9) >> 16) as u16 / 2,
        destination_port: SERVICE_PORT,
    })
}

/// Flows to addresses beyond the gateway.
pub fn stranger_flows() -> Vec<StreamFlow> {
    flows(|n| StreamFlow {
        source: 0xc612_0000 + (n & 0xffff),
        destination: 0x0808_0000 + (n & 0xfff),
        source_port: 1024 + 4032 * (n >> 16) as u16,
        destination_port: 443,
    })
}

/// What backends answer to flows as they arrived there.
pub fn reply_flows(seen: &[StreamFlow]) -> Vec<StreamFlow> {
    let reply = |flow: &StreamFlow| StreamFlow {
        source: flow.destination,
        destination: flow.source,
        source_port: flow.destination_port,
        destination_port: flow.source_port,
    };
    seen.iter().map(reply).collect()
}

fn flows(flow: impl Fn(u32) -> StreamFlow) -> Vec<StreamFlow> {
    let mut flows: Vec<_> = (0..STREAM_FLOWS as u32).map(flow).collect();
    shuffle(&mut flows);
    flows
}

/// An order without pattern, the same each time: tables that hand out memory in the order of arrival
/// must not be read in that order.
pub fn shuffle(flows: &mut [StreamFlow]) {
    let mut random = 0x2545_f491_4f6c_dd1du64;
    for last in (1..flows.len()).rev() {
        // Xorshift (G. Marsaglia, 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        flows.swap(last, (random % (last as u64 + 1)) as usize);
    }
}

/// UDP over IPv4 from so many flows to one socket, in frames to a link-layer address.
pub fn udp_order(target: std::net::SocketAddr, mac: [u8; 6], flows: u32) -> (Order, Vec<StreamFlow>) {
    let kind = Kind { v4: true, protocol: Protocol::Udp };
    let mut order = Order::of(&requests(kind, 0), flows, Renewal::None);
    let mut frame: [u8; lb_common::bench::FRAME_BYTES] = bytemuck::cast(order.frame);
    frame[..6].copy_from_slice(&mac);
    order.frame = bytemuck::cast(frame);
    let destination = lab::last_word(target.ip());
    let to = |flow: &StreamFlow| StreamFlow { destination, destination_port: target.port(), ..*flow };
    let table = client_flows(true, 1).iter().take(flows as usize).map(to).collect();
    (order, table)
}

/// ARP, which no stream of flows has.
pub fn arp() -> Order {
    Order::fixed(frame::arp())
}

/// See [`frame::fragment`].
pub fn fragment(v4: bool) -> Order {
    Order::fixed(frame::fragment(v4))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_flow_of_a_stream_is_another_one() {
        for flows in [client_flows(true, 1), flood_flows(false), stranger_flows()] {
            assert_eq!(flows.len(), STREAM_FLOWS);
            let tuples: HashSet<_> = flows.iter().collect();
            assert_eq!(tuples.len(), STREAM_FLOWS);
        }
    }

    #[test]
    fn laps_of_new_ports_never_meet() {
        let ports: HashSet<u16> = client_flows(true, 1).iter().map(|flow| flow.source_port).collect();
        let mut ports: Vec<_> = ports.into_iter().collect();
        ports.sort_unstable();
        assert!(ports.is_sorted_by(|a, b| b - a >= 4032) && ports[15] <= u16::MAX - 4031, "{ports:?}");
    }

    #[test]
    fn a_reply_turns_the_tuple_round() {
        let flow = StreamFlow { source: 1, destination: 2, source_port: 3, destination_port: 4 };
        assert_eq!(reply_flows(&reply_flows(&[flow])), [flow]);
        assert_eq!(reply_flows(&[flow])[0].source_port, 4);
    }
}
