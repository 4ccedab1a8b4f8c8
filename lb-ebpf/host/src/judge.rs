//! Reads frames a second time, in the plainest way, to say whether their lengths and checksums are right.

use lb_common::abi::Address;

use crate::frame::{ETHERNET, ICMP, ICMPV6};

const TCP: u8 = 6;
const UDP: u8 = 17;
const IPIP: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;
/// Extension headers of IPv6 that are followed: hop-by-hop, routing, destination options, authentication.
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const WALKED: [u8; 5] = [0, 43, 60, 135, AUTHENTICATION];
/// Where GUE is expected.
const GUE: u16 = 6080;

/// What a right frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// Offset and end of the outermost IP packet.
    pub start: usize,
    pub end: usize,
    pub v4: bool,
    /// Of the outermost packet, where its transport header is in it.
    pub transport: Option<(u8, usize)>,
    /// Offset of a packet in a tunnel.
    pub inner: Option<usize>,
    pub source: Address,
    pub destination: Address,
}

/// Looks at a frame with an IP packet. `Err` says what is wrong with it.
pub fn judge(frame: &[u8]) -> Result<Right, String> {
    let mut at = ETHERNET - 2;
    let mut ethertype = pair(frame, at)?;
    while [0x8100, 0x88a8].contains(&ethertype) {
        at += 4;
        ethertype = pair(frame, at)?;
    }
    let start = at + 2;
    match ethertype {
        0x0800 => v4(frame, start),
        0x86dd => v6(frame, start),
        other => Err(format!("ether type {other:#x}")),
    }
}

/// The one's complement sum of 16-bit words over all of it, the last one padded.
pub fn fold(parts: &[&[u8]]) -> u16 {
    let all = parts.concat();
    let words = all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What checksums cover besides the segment, but for its length.
pub fn pseudo_header(source: &Address, destination: &Address, protocol: u8) -> Vec<u8> {
    let addresses = if source.is_v4() {
        [source.v4_octets(), destination.v4_octets()].concat()
    } else {
        [source.octets(), destination.octets()].concat()
    };
    [addresses, vec![0, protocol]].concat()
}

fn v4(frame: &[u8], start: usize) -> Result<Right, String> {
    let header = slice(frame, start, 20)?;
    let header_len = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || header_len < 20 {
        return Err(format!("version and length {:#x}", header[0]));
    }
    let total = usize::from(pair(frame, start + 2)?);
    if total < header_len || start + total > frame.len() {
        return Err(format!("total length {total} of {}", frame.len() - start));
    }
    let options = slice(frame, start, header_len)?;
    if fold(&[options]) != 0xffff {
        return Err("the IPv4 header's checksum is wrong".to_owned());
    }
    let fragment = pair(frame, start + 6)? & 0x3fff != 0;
    let address = |at: usize| Address::v4(header[at..at + 4].try_into().expect("four bytes"));
    let right = Right {
        start,
        end: start + total,
        v4: true,
        transport: None,
        inner: None,
        source: address(12),
        destination: address(16),
    };
    if fragment { Ok(right) } else { transport(frame, right, header[9], start + header_len) }
}

fn v6(frame: &[u8], start: usize) -> Result<Right, String> {
    let header = slice(frame, start, 40)?;
    if header[0] >> 4 != 6 {
        return Err(format!("version {:#x}", header[0]));
    }
    let end = start + 40 + usize::from(pair(frame, start + 4)?);
    if end > frame.len() {
        return Err(format!("payload length ends at {end} of {}", frame.len()));
    }
    let address = |at: usize| Address::v6(header[at..at + 16].try_into().expect("sixteen bytes"));
    let (source, destination) = (address(8), address(24));
    let right = Right { start, end, v4: false, transport: None, inner: None, source, destination };
    let (mut next, mut at) = (header[6], start + 40);
    while WALKED.contains(&next) || next == FRAGMENT {
        let extension = slice(&frame[..end], at, 8)?;
        // A whole packet may have such a header too (RFC 6946).
        if next == FRAGMENT && (extension[2] != 0 || extension[3] & !6 != 0) {
            return Ok(right);
        }
        // With segments left the destination is not the last one, and no checksum can be told.
        if next == 43 && extension[3] != 0 {
            return Ok(right);
        }
        let len = usize::from(extension[1]);
        at += match next {
            AUTHENTICATION => (len + 2) * 4,
            FRAGMENT => 8,
            _ => (len + 1) * 8,
        };
        next = extension[0];
    }
    transport(frame, right, next, at)
}

fn transport(frame: &[u8], right: Right, protocol: u8, at: usize) -> Result<Right, String> {
    let segment = frame.get(at..right.end).ok_or("the headers end behind the packet")?;
    let right = Right { transport: Some((protocol, at)), ..right };
    let pseudo = pseudo_header(&right.source, &right.destination, protocol);
    let wrong = |length: usize| fold(&[&pseudo, &(length as u32).to_be_bytes(), &segment[..length]]) != 0xffff;
    match protocol {
        TCP if segment.len() < 20 || usize::from(segment[12] >> 4) * 4 > segment.len() => Err("short TCP".to_owned()),
        TCP if wrong(segment.len()) => Err("TCP's checksum is wrong".to_owned()),
        UDP => {
            let length = usize::from(pair(segment, 4)?);
            if length < 8 || length > segment.len() {
                return Err(format!("UDP's length is {length} of {}", segment.len()));
            }
            // Tunnels over IPv6 may go without one (RFC 6935, 5).
            let (none, tunnel) = (segment[6..8] == [0, 0], pair(segment, 2)? == GUE);
            if none && !right.v4 && !tunnel || !none && wrong(length) {
                return Err("UDP's checksum is wrong".to_owned());
            }
            if tunnel { tunnelled(frame, right, at + 8, None) } else { Ok(right) }
        }
        ICMP if right.v4 => match segment.len() >= 8 && fold(&[segment]) == 0xffff {
            true => Ok(right),
            false => Err("ICMP's checksum is wrong".to_owned()),
        },
        ICMPV6 if !right.v4 => match segment.len() >= 8 && !wrong(segment.len()) {
            true => Ok(right),
            false => Err("ICMPv6's checksum is wrong".to_owned()),
        },
        IPIP => tunnelled(frame, right, at, Some(4)),
        IPV6 => tunnelled(frame, right, at, Some(6)),
        GRE => match slice(segment, 0, 4)? {
            [0, 0, 0x08, 0x00] => tunnelled(frame, right, at + 4, Some(4)),
            [0, 0, 0x86, 0xdd] => tunnelled(frame, right, at + 4, Some(6)),
            other => Err(format!("a GRE header of {other:?}")),
        },
        _ => Ok(right),
    }
}

/// A packet in a packet, which has to end with it.
fn tunnelled(frame: &[u8], outer: Right, at: usize, version: Option<u8>) -> Result<Right, String> {
    let first = frame.get(at).ok_or("nothing is in the tunnel")? >> 4;
    let inner = match (first, version) {
        (4, None | Some(4)) => v4(&frame[..outer.end], at),
        (6, None | Some(6)) => v6(&frame[..outer.end], at),
        _ => Err(format!("version {first} in the tunnel")),
    };
    inner.map_err(|error| format!("in the tunnel: {error}"))?;
    Ok(Right { inner: Some(at), ..outer })
}

fn pair(bytes: &[u8], at: usize) -> Result<u16, String> {
    slice(bytes, at, 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

fn slice(bytes: &[u8], at: usize, len: usize) -> Result<&[u8], String> {
    bytes.get(at..at + len).ok_or_else(|| format!("{} bytes end before {}", bytes.len(), at + len))
}
