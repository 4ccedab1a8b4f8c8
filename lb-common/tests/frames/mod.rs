//! Frames for the tests, built and checked with another implementation of the same RFCs.
// Each test file uses its own part of this.
#![allow(dead_code)]

use std::net::IpAddr;

use etherparse::{
    IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, NetSlice, SlicedPacket, TcpHeader, TransportSlice, UdpHeader,
};
use lb_common::{
    abi::{Address, Port},
    parse::{self, Network, Transport},
    rewrite::Translation,
};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Where the network header begins.
pub const ETHERNET: usize = 14;

/// What a packet is made of; [`Packet::frame`] makes it.
#[derive(Clone, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub ttl: u8,
    /// IPv4: a multiple of four bytes, at most 40.
    pub options: Vec<u8>,
    /// IPv6: protocol number and whole header, whose first byte is set when the frame is made.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub segment: Segment,
    /// Bytes behind the IP packet, as in short Ethernet frames.
    pub padding: usize,
}

#[derive(Clone, Debug)]
pub enum Segment {
    Tcp { header: TcpHeader, payload: Vec<u8> },
    Udp { source: u16, destination: u16, checksum: bool, payload: Vec<u8> },
    Other { protocol: u8, bytes: Vec<u8> },
}

impl Packet {
    pub fn new(source: &str, destination: &str, segment: Segment) -> Self {
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ttl: 64,
            options: vec![],
            extensions: vec![],
            segment,
            padding: 0,
        }
    }

    pub fn v4(segment: Segment) -> Self {
        Self::new("198.51.100.7", "203.0.113.10", segment)
    }

    pub fn v6(segment: Segment) -> Self {
        Self::new("2001:db8:1::7", "2001:db8::10", segment)
    }

    /// The same of either family.
    pub fn of_family(v4: bool, segment: Segment) -> Self {
        if v4 { Self::v4(segment) } else { Self::v6(segment) }
    }

    pub fn options(mut self, options: &[u8]) -> Self {
        self.options = options.to_vec();
        self
    }

    pub fn extension(mut self, (kind, bytes): (u8, Vec<u8>)) -> Self {
        self.extensions.push((kind, bytes));
        self
    }

    pub fn padded(mut self, padding: usize) -> Self {
        self.padding = padding;
        self
    }

    /// Bytes from the start of the frame to the transport header.
    pub fn transport_offset(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, bytes)| bytes.len()).sum();
        ETHERNET + if self.source.is_ipv4() { 20 + self.options.len() } else { 40 + extensions }
    }

    pub fn frame(&self) -> Vec<u8> {
        let segment = self.segment_bytes();
        let ethertype: u16 = if self.source.is_ipv4() { 0x0800 } else { 0x86dd };
        let mut frame = [OUR_MAC.as_slice(), &CLIENT_MAC, &ethertype.to_be_bytes()].concat();
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let protocol = IpNumber(self.segment.protocol());
                let mut header = Ipv4Header::new(0, self.ttl, protocol, source.octets(), destination.octets()).unwrap();
                header.options = Ipv4Options::try_from(self.options.as_slice()).unwrap();
                header.set_payload_len(segment.len()).unwrap();
                header.header_checksum = header.calc_header_checksum();
                frame.extend_from_slice(&header.to_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut next = self.segment.protocol();
                let mut extensions = vec![];
                for (kind, bytes) in self.extensions.iter().rev() {
                    let mut bytes = bytes.clone();
                    bytes[0] = next;
                    extensions.splice(0..0, bytes);
                    next = *kind;
                }
                let header = Ipv6Header {
                    traffic_class: 0,
                    flow_label: Default::default(),
                    payload_length: u16::try_from(extensions.len() + segment.len()).unwrap(),
                    next_header: IpNumber(next),
                    hop_limit: self.ttl,
                    source: source.octets(),
                    destination: destination.octets(),
                };
                frame.extend_from_slice(&header.to_bytes());
                frame.extend_from_slice(&extensions);
            }
            _ => panic!("addresses of two families"),
        }
        frame.extend_from_slice(&segment);
        frame.resize(frame.len() + self.padding, 0xa5);
        frame
    }

    fn segment_bytes(&self) -> Vec<u8> {
        match &self.segment {
            Segment::Tcp { header, payload } => {
                let mut header = header.clone();
                header.checksum = match (self.source, self.destination) {
                    (IpAddr::V4(s), IpAddr::V4(d)) => header.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload),
                    (IpAddr::V6(s), IpAddr::V6(d)) => header.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload),
                    _ => panic!("addresses of two families"),
                }
                .unwrap();
                [header.to_bytes().as_slice(), payload].concat()
            }
            Segment::Udp { source, destination, checksum, payload } => {
                let mut header = UdpHeader {
                    source_port: *source,
                    destination_port: *destination,
                    length: (payload.len() + 8) as u16,
                    checksum: 0,
                };
                if *checksum {
                    header.checksum = match (self.source, self.destination) {
                        (IpAddr::V4(s), IpAddr::V4(d)) => {
                            header.calc_checksum_ipv4_raw(s.octets(), d.octets(), payload)
                        }
                        (IpAddr::V6(s), IpAddr::V6(d)) => {
                            header.calc_checksum_ipv6_raw(s.octets(), d.octets(), payload)
                        }
                        _ => panic!("addresses of two families"),
                    }
                    .unwrap();
                }
                [header.to_bytes().as_slice(), payload].concat()
            }
            Segment::Other { bytes, .. } => bytes.clone(),
        }
    }
}

impl Segment {
    pub fn tcp(source: u16, destination: u16, flags: u8, payload: &[u8]) -> Self {
        let mut header = TcpHeader::new(source, destination, 0x1234_5678, 0xfaf0);
        header.acknowledgment_number = if flags & 0x10 != 0 { 0x9abc_def0 } else { 0 };
        (header.fin, header.syn, header.rst) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
        (header.psh, header.ack) = (flags & 8 != 0, flags & 0x10 != 0);
        Self::Tcp { header, payload: payload.to_vec() }
    }

    pub fn udp(source: u16, destination: u16, payload: &[u8]) -> Self {
        Self::Udp { source, destination, checksum: true, payload: payload.to_vec() }
    }

    fn protocol(&self) -> u8 {
        match self {
            Self::Tcp { .. } => 6,
            Self::Udp { .. } => 17,
            Self::Other { protocol, .. } => *protocol,
        }
    }
}

/// An IPv6 extension header of `units` of 8 bytes: hop-by-hop (0), destination options (60),
/// mobility (135).
pub fn extension(kind: u8, units: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0; units as usize * 8];
    bytes[1] = units - 1;
    // One PadN option fills it (RFC 8200, 4.2).
    bytes[2] = 1;
    bytes[3] = (bytes.len() - 4).min(255) as u8;
    (kind, bytes)
}

pub fn routing(segments_left: u8) -> (u8, Vec<u8>) {
    (43, vec![0, 0, 4, segments_left, 0, 0, 0, 0])
}

/// `offset` in units of 8 bytes.
pub fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let [a, b] = (offset << 3 | more as u16).to_be_bytes();
    (44, vec![0, 0, a, b, 0, 0, 0, 1])
}

/// An authentication header of `words` of 4 bytes.
pub fn authentication(words: u8) -> (u8, Vec<u8>) {
    let mut bytes = vec![0x11; words as usize * 4];
    bytes[1] = words - 2;
    (51, bytes)
}

/// The frame's packet in a tunnel between two addresses, as another implementation builds it. Flow
/// label and GUE ports are given; `gue`: source and destination port, and the checksum is summed over
/// everything or left out.
pub fn tunnelled(
    frame: &[u8],
    source: IpAddr,
    destination: IpAddr,
    label: u32,
    gue: Option<(u16, u16, bool)>,
) -> Vec<u8> {
    let (inner, _) = packet_and_padding(frame);
    let Some((from, to, checksum)) = gue else {
        let protocol = IpNumber(if inner[0] >> 4 == 4 { 4 } else { 41 });
        return around(frame, source, destination, label, (protocol, &[]));
    };
    let mut header =
        UdpHeader { source_port: from, destination_port: to, length: (inner.len() + 8) as u16, checksum: 0 };
    if checksum {
        header.checksum = match (source, destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => header.calc_checksum_ipv4_raw(s.octets(), d.octets(), inner),
            (IpAddr::V6(s), IpAddr::V6(d)) => header.calc_checksum_ipv6_raw(s.octets(), d.octets(), inner),
            _ => panic!("addresses of two families"),
        }
        .unwrap();
    }
    around(frame, source, destination, label, (IpNumber(17), &header.to_bytes()))
}

/// The same in GRE, as RFC 2784 has it without a checksum.
pub fn in_gre(frame: &[u8], source: IpAddr, destination: IpAddr, label: u32) -> Vec<u8> {
    let protocol = if frame[ETHERNET] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    let header = [[0, 0], protocol].concat();
    around(frame, source, destination, label, (IpNumber(47), &header))
}

/// The packet in a frame, and what follows it.
fn packet_and_padding(frame: &[u8]) -> (&[u8], &[u8]) {
    let inner_v4 = frame[ETHERNET] >> 4 == 4;
    let length = if inner_v4 {
        u16::from_be_bytes([frame[ETHERNET + 2], frame[ETHERNET + 3]]) as usize
    } else {
        u16::from_be_bytes([frame[ETHERNET + 4], frame[ETHERNET + 5]]) as usize + 40
    };
    frame[ETHERNET..].split_at(length)
}

/// The frame's packet behind an IP header of that protocol and the header that belongs to it.
fn around(
    frame: &[u8],
    source: IpAddr,
    destination: IpAddr,
    label: u32,
    (protocol, header): (IpNumber, &[u8]),
) -> Vec<u8> {
    let (inner, padding) = packet_and_padding(frame);
    let inner_v4 = inner[0] >> 4 == 4;
    let (class, id, dont_fragment) = if inner_v4 {
        (inner[1], u16::from_be_bytes([inner[4], inner[5]]), inner[6] & 0x40 != 0)
    } else {
        (inner[0] << 4 | inner[1] >> 4, 0, true)
    };
    let payload = [header, inner].concat();
    let mut out = frame[..12].to_vec();
    match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            let mut header = Ipv4Header::new(payload.len() as u16, 64, protocol, s.octets(), d.octets()).unwrap();
            (header.dscp, header.ecn) = ((class >> 2).try_into().unwrap(), (class & 3).try_into().unwrap());
            header.identification = if dont_fragment { 0 } else { id };
            header.dont_fragment = dont_fragment;
            header.header_checksum = header.calc_header_checksum();
            out.extend([[8, 0].as_slice(), &header.to_bytes()].concat());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            let header = Ipv6Header {
                traffic_class: class,
                flow_label: label.try_into().unwrap(),
                payload_length: payload.len() as u16,
                next_header: protocol,
                hop_limit: 64,
                source: s.octets(),
                destination: d.octets(),
            };
            out.extend([[0x86, 0xdd].as_slice(), &header.to_bytes()].concat());
        }
        _ => panic!("addresses of two families"),
    }
    [out.as_slice(), &payload, padding].concat()
}

/// Sets ToS or traffic class, and of IPv4 identification and "don't fragment".
pub fn mark(frame: &mut [u8], class: u8, id: u16, dont_fragment: bool) {
    let ip = &mut frame[ETHERNET..];
    if ip[0] >> 4 == 6 {
        (ip[0], ip[1]) = (0x60 | class >> 4, class << 4 | ip[1] & 0xf);
        return;
    }
    ip[1] = class;
    ip[4..6].copy_from_slice(&id.to_be_bytes());
    ip[6] = if dont_fragment { 0x40 } else { 0 };
    let (header, _) = Ipv4Header::from_slice(ip).unwrap();
    ip[10..12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

/// Both steps of the parser.
pub fn parse(frame: &mut [u8]) -> (Network, Transport) {
    let network = parse::network(&&mut *frame).expect("the network header");
    let transport = parse::transport(&&mut *frame, &network).expect("the transport header");
    (network, transport)
}

pub fn translation(source: (&str, u16), destination: (&str, u16)) -> Translation {
    Translation {
        source: source.0.parse::<IpAddr>().unwrap().into(),
        destination: destination.0.parse::<IpAddr>().unwrap().into(),
        source_port: Port::new(source.1),
        destination_port: Port::new(destination.1),
    }
}

pub fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

/// Takes the frame apart and checks the checksum of every header, as a receiver would. Gives the
/// slices for more.
pub fn verified(frame: &[u8]) -> SlicedPacket<'_> {
    let packet = SlicedPacket::from_ethernet(frame).expect("a well-formed frame");
    match packet.net.as_ref().expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
            let (s, d) = (header.source, header.destination);
            match packet.transport.as_ref().expect("a transport header") {
                TransportSlice::Tcp(tcp) => assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv4(s, d).unwrap()),
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv4_raw(s, d, udp.payload()).unwrap();
                    assert!(udp.checksum() == 0 || udp.checksum() == right, "UDP checksum");
                }
                TransportSlice::Icmpv4(icmp) => {
                    assert_eq!(icmp.checksum(), icmp.icmp_type().calc_checksum(icmp.payload()));
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        NetSlice::Ipv6(ip) => {
            let (s, d) = (ip.header().source(), ip.header().destination());
            match packet.transport.as_ref().expect("a transport header") {
                TransportSlice::Tcp(tcp) => assert_eq!(tcp.checksum(), tcp.calc_checksum_ipv6(s, d).unwrap()),
                TransportSlice::Udp(udp) => {
                    let right = udp.to_header().calc_checksum_ipv6_raw(s, d, udp.payload()).unwrap();
                    assert!(udp.checksum() == 0 || udp.checksum() == right, "UDP checksum");
                }
                TransportSlice::Icmpv6(icmp) => assert!(icmp.is_checksum_valid(s, d), "ICMPv6 checksum"),
                other => panic!("unexpected {other:?}"),
            }
        }
        other => panic!("unexpected {other:?}"),
    }
    packet
}

/// The frame's packet, which has no options or extension headers, in fragments of `chunk` bytes of
/// data (a multiple of 8), with this identification.
pub fn fragments(frame: &[u8], chunk: usize, id: u32) -> Vec<Vec<u8>> {
    let v4 = frame[ETHERNET] >> 4 == 4;
    let (head, data) = frame.split_at(ETHERNET + if v4 { 20 } else { 40 });
    let cut = |(n, piece): (usize, &[u8])| {
        let (offset, more) = (n * chunk, (n + 1) * chunk < data.len());
        let mut head = head.to_vec();
        if v4 {
            head[16..18].copy_from_slice(&(20 + piece.len() as u16).to_be_bytes());
            head[18..20].copy_from_slice(&(id as u16).to_be_bytes());
            head[20..22].copy_from_slice(&((offset as u16) >> 3 | (more as u16) << 13).to_be_bytes());
            right_header(&mut head);
        } else {
            head[18..20].copy_from_slice(&(8 + piece.len() as u16).to_be_bytes());
            let [a, b] = (offset as u16 | more as u16).to_be_bytes();
            head.extend([head[20], 0, a, b]);
            head.extend(id.to_be_bytes());
            head[20] = 44;
        }
        [head.as_slice(), piece].concat()
    };
    data.chunks(chunk).enumerate().map(cut).collect()
}

/// The whole of what [`fragments`] cut, from pieces in any order, and their identification. Panics
/// where something is missing or overlaps, or where a header's checksum is wrong.
pub fn reassembled(pieces: &[Vec<u8>]) -> (Vec<u8>, u32) {
    let v4 = pieces[0][ETHERNET] >> 4 == 4;
    let start = ETHERNET + if v4 { 20 } else { 48 };
    let place = |piece: &[u8]| {
        let bits = if v4 { [piece[20], piece[21]] } else { [piece[56], piece[57]] };
        let bits = u16::from_be_bytes(bits);
        if v4 { ((bits & 0x1fff) << 3, bits & 0x2000 != 0) } else { (bits & 0xfff8, bits & 1 != 0) }
    };
    let id = |piece: &[u8]| match v4 {
        true => u16::from_be_bytes([piece[18], piece[19]]) as u32,
        false => u32::from_be_bytes(piece[58..62].try_into().unwrap()),
    };
    let mut sorted: Vec<_> = pieces.iter().collect();
    sorted.sort_by_key(|piece| place(piece).0);
    let mut head = sorted[0][..start.min(ETHERNET + 40)].to_vec();
    let mut data: Vec<u8> = vec![];
    for (n, piece) in sorted.iter().enumerate() {
        assert_eq!(place(piece), (data.len() as u16, n + 1 < sorted.len()), "fragment {n}");
        assert_eq!(id(piece), id(sorted[0]), "one identification");
        if v4 {
            let (header, _) = Ipv4Header::from_slice(&piece[ETHERNET..]).unwrap();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
        }
        data.extend(&piece[start..]);
    }
    if v4 {
        head[16..18].copy_from_slice(&(20 + data.len() as u16).to_be_bytes());
        // As a packet's is, "don't fragment" included.
        head[18..22].copy_from_slice(&[0, 0, 0x40, 0]);
        right_header(&mut head);
    } else {
        head[18..20].copy_from_slice(&(data.len() as u16).to_be_bytes());
        head[20] = sorted[0][ETHERNET + 40];
    }
    head.extend(data);
    (head, id(sorted[0]))
}

/// Sums the IPv4 header anew.
pub fn right_header(frame: &mut [u8]) {
    let (header, _) = Ipv4Header::from_slice(&frame[ETHERNET..]).unwrap();
    frame[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}
