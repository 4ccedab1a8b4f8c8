//! Frames to try a program with, made of what the maps hold. None of them begins a flow or changes one.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use anyhow::Result;
use aya::maps::MapData;
use lb_common::{
    abi::{Flow, Protocol, ServiceInfo, names},
    flow::TCP_ACK,
};

use super::{
    pins::Pins,
    takeover::{prefix, read_elements},
    transfer_flows::FlowMaps,
};

/// Of the live flows.
const FLOWS: usize = 1000;

pub(super) struct Probe {
    /// In words.
    pub what: String,
    pub frame: Vec<u8>,
    /// The flow that it belongs to, and its place in the table.
    pub flow: Option<(u32, Flow)>,
}

impl Probe {
    fn of_no_flow(what: String, frame: Vec<u8>) -> Self {
        Self { what, frame, flow: None }
    }
}

/// Packets of live flows in `table`, to services, and to nobody. The maps may be of an older layout.
pub(super) fn probes(pins: &Pins, table: &FlowMaps) -> Result<Vec<Probe>> {
    let mut services: BTreeMap<u32, ServiceInfo> = BTreeMap::new();
    read_elements(&MapData::from_pin(pins.map(names::SERVICE_INFO))?, |id, value| {
        let info: ServiceInfo = prefix(value);
        if info.protocol != 0 {
            services.insert(id, info);
        }
    })?;
    let mut probes = Vec::new();
    for (at, flow) in table.live_flows().take(FLOWS) {
        let Some(service) = services.get(&flow.service_id) else { continue };
        let Some(protocol) = Protocol::from_number(flow.protocol).filter(|_| flow.client_port.get() != 0) else {
            continue;
        };
        let client = SocketAddr::new(flow.client.into(), flow.client_port.get());
        let to = SocketAddr::new(service.address.into(), flow.service_port.get());
        let what = format!("a packet of the flow {client} -> {to} ({})", protocol.name());
        probes.push(Probe { what, frame: frame(client, to, protocol), flow: Some((at, flow)) });
    }
    for info in services.values() {
        let Some(protocol) = Protocol::from_number(info.protocol) else { continue };
        let to = SocketAddr::new(info.address.into(), info.port.get().max(1));
        let stranger = SocketAddr::new(stranger(to.ip()), 9);
        // UDP would begin a flow; TCP that nobody knows does not.
        if protocol == Protocol::Tcp {
            let what = format!("a packet of no connection to {to}");
            probes.push(Probe::of_no_flow(what, frame(stranger, to, protocol)));
        }
        let what = format!("a ping to {}", to.ip());
        probes.push(Probe::of_no_flow(what, ping(stranger.ip(), to.ip())));
        let mut cut = frame(stranger, to, protocol);
        cut.truncate(cut.len() - 15);
        probes.push(Probe::of_no_flow(format!("half a packet to {to}"), cut));
    }
    let nobody = SocketAddr::from((Ipv4Addr::new(198, 18, 0, 2), 53));
    let from = SocketAddr::from((Ipv4Addr::new(198, 18, 0, 1), 53));
    probes.push(Probe::of_no_flow("a packet to nobody here".to_owned(), frame(from, nobody, Protocol::Udp)));
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.resize(60, 0);
    probes.push(Probe::of_no_flow("a frame that is not IP".to_owned(), arp));
    Ok(probes)
}

/// A client of networks for benchmarks (RFC 2544, RFC 5180).
fn stranger(of: IpAddr) -> IpAddr {
    let text = if of.is_ipv4() { "198.18.0.1" } else { "2001:2::1" };
    text.parse().unwrap_or(of)
}

fn frame(from: SocketAddr, to: SocketAddr, protocol: Protocol) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    match protocol {
        Protocol::Tcp => {
            segment.extend([0; 8]);
            segment.extend([5 << 4, TCP_ACK, 0xff, 0xff, 0x12, 0x34, 0, 0]);
        }
        Protocol::Udp => segment.extend([0, 16, 0x12, 0x34]),
        Protocol::Sctp => {
            // A common header and a chunk that keeps an association alive (RFC 9260, 3.3.5).
            segment.extend([1, 2, 3, 4, 0, 0, 0, 0]);
            segment.extend([4, 0, 0, 8, 0, 1, 0, 4]);
        }
    }
    segment.extend(*b"lb-probe");
    ip(from.ip(), to.ip(), protocol as u8, &segment)
}

fn ping(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let (kind, protocol) = if to.is_ipv4() { (8, 1) } else { (128, 58) };
    ip(from, to, protocol, &[kind, 0, 0x12, 0x34, 0, 1, 0, 1, b'l', b'b', b'-', b'p', b'r', b'o', b'b', b'e'])
}

/// Ethernet and IP around it. The header's checksum is right; those above it are changed by what the
/// program changes, whatever they are.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00]);
            let length = (20 + payload.len()) as u16;
            let mut header = vec![0x45, 0];
            header.extend(length.to_be_bytes());
            header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        _ => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(octets(from));
            frame.extend(octets(to));
        }
    }
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// RFC 1071.
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
