//! ICMP errors between the families (RFC 7915, 4.2, 4.3, 5.2 and 5.3): an error about a packet that was
//! translated becomes one of the other family, about the packet that the receiver once sent.
//!
//! ```text
//! | header | ICMP | quoted header and what is behind it | segment ... | extensions |
//!          | new header | new ICMP | new quoted header  | segment, cut |
//! ```
//!
//! The segment stays where it is: the caller reads the headers with [`read`], asks for the way of a packet
//! of [`Headers::packet_len`] bytes, moves the start of the frame by [`Headers::growth`], cuts it to that
//! length and has [`write`] write them. All checksums are made anew, so the caller must have found the
//! error's own right. Who sends the error to whom is the caller's choice too: addresses of routers on the
//! other side have no form in this family.
//!
//! Unlike RFC 7915, extensions (RFC 4884) end here, as there is nothing in them that a sender acts on.

use super::{
    Header, IPV4_LEN, IPV6_LEN,
    icmp::{Message, Mtus},
    write_header,
};
use crate::{
    abi::Address,
    checksum::{Delta, Sum},
    icmp::{
        error::translate_segment,
        quote::{ICMP_LEN, IcmpError, Quoted},
        too_big::PACKET_MAX,
    },
    numbers,
    packet::{PacketAccess, SUM_MAX, kept},
    parse::NETWORK_OFFSET,
    rewrite::Translation,
};

/// What is read of an error before its frame is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Headers {
    outer: Header,
    quoted: Header,
    /// As it came, and the total length that the quoted header says.
    message: Message,
    quoted_len: u16,
    /// Bytes of the quoted segment that the new error quotes.
    segment: u16,
}

impl Headers {
    /// Bytes by which the frame grows at its start; negative: shrinks.
    #[inline(always)]
    pub const fn growth(&self, quoted: &Quoted) -> i32 {
        (NETWORK_OFFSET + self.before_segment()) as i32 - quoted.transport as i32
    }

    /// Bytes of the translated IP packet.
    #[inline(always)]
    pub const fn packet_len(&self) -> u16 {
        self.outer.packet_len()
    }

    #[inline(always)]
    const fn before_segment(&self) -> usize {
        self.outer.len() as usize + ICMP_LEN + self.quoted.len() as usize
    }
}

/// Reads an error about a packet of TCP or UDP. `id`: the identification of an IPv4 packet, another one each
/// time. `None`: the other family has no such error, or it contradicts itself, or it is longer than
/// errors are.
#[inline(always)]
pub fn read<P: PacketAccess>(frame: &P, error: &IcmpError, quoted: &Quoted, id: u16) -> Option<Headers> {
    let v4 = !error.outer.v4;
    let [kind, code, _, _, a, b, c, d]: [u8; ICMP_LEN] = frame.read(kept(error.offset))?;
    let message = Message { kind, code, rest: [a, b, c, d] };
    if error.packet_len as usize > SUM_MAX {
        return None;
    }
    let said = said(frame, quoted)?;
    translated(message, v4, &Mtus::ANY, said.total)?;
    let header = |traffic_class, hop_limit, protocol, id, payload| Header {
        v4,
        dont_fragment: false,
        traffic_class,
        hop_limit,
        protocol,
        id,
        replaced: 0,
        payload,
    };
    // Of "fragmentation needed" it would be said at least; what else the packet was is not known.
    let quoted_header =
        Header { dont_fragment: true, ..header(said.traffic_class, said.hop_limit, quoted.protocol, 0, said.payload) };
    let headers = 2 * if v4 { IPV4_LEN } else { IPV6_LEN } + ICMP_LEN as u16;
    let segment = error.end.checked_sub(quoted.transport)?.min(PACKET_MAX[v4 as usize] - headers);
    let outer_class = class(frame, error.outer.v4, NETWORK_OFFSET)?;
    let payload = headers - if v4 { IPV4_LEN } else { IPV6_LEN } + segment;
    let outer = header(outer_class, error.ttl.wrapping_sub(1), numbers::icmp(v4), id, payload);
    Some(Headers { outer, quoted: quoted_header, message, quoted_len: said.total, segment })
}

/// What a quoted header says.
struct Said {
    traffic_class: u8,
    hop_limit: u8,
    /// Bytes of the packet, and of what is behind its headers.
    total: u16,
    payload: u16,
}

#[inline(always)]
fn said<P: PacketAccess>(frame: &P, quoted: &Quoted) -> Option<Said> {
    let start = kept(quoted.start);
    let v4 = quoted.network.v4;
    let traffic_class = class(frame, v4, start)?;
    let (total, hop_limit) = if v4 {
        let [high, low]: [u8; 2] = frame.read(start + 2)?;
        (u16::from_be_bytes([high, low]), frame.read(start + 8)?)
    } else {
        let [high, low, _, hop_limit]: [u8; 4] = frame.read(start + 4)?;
        (u16::from_be_bytes([high, low]).checked_add(IPV6_LEN)?, hop_limit)
    };
    let payload = total.checked_sub(quoted.transport.checked_sub(quoted.start)?)?;
    Some(Said { traffic_class, hop_limit, total, payload })
}

#[inline(always)]
fn class<P: PacketAccess>(frame: &P, v4: bool, start: usize) -> Option<u8> {
    let [a, b]: [u8; 2] = frame.read(start)?;
    Some(if v4 { b } else { a << 4 | b >> 4 })
}

#[inline(always)]
const fn translated(message: Message, to_v4: bool, mtus: &Mtus, quoted_len: u16) -> Option<Message> {
    if to_v4 { message.to_v4(mtus) } else { message.to_v6(mtus, quoted_len) }
}

/// Writes the error's headers into a frame that was moved and cut since `headers` and `quoted` were read
/// from it: from `source` to `destination`, about the packet that `quoted_to` says. Link-layer addresses are
/// the caller's. `None` when the frame is shorter; it is then to be dropped.
#[inline(always)]
pub fn write<P: PacketAccess>(
    frame: &mut P,
    headers: &Headers,
    quoted: &Quoted,
    mtus: &Mtus,
    source: &Address,
    destination: &Address,
    quoted_to: &Translation,
) -> Option<()> {
    let v4 = headers.outer.v4;
    let icmp = NETWORK_OFFSET + headers.outer.len() as usize;
    let (start, transport) = (icmp + ICMP_LEN, NETWORK_OFFSET + headers.before_segment());
    let ethertype: [u8; 2] = if v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    frame.write(NETWORK_OFFSET - 2, ethertype)?;
    write_header(frame, NETWORK_OFFSET, &headers.outer, source, destination)?;
    write_header(frame, start, &headers.quoted, &quoted_to.source, &quoted_to.destination)?;
    let (was, is) = (&quoted.network, quoted_to);
    let addresses = Delta::ZERO.address(&was.source, &is.source).address(&was.destination, &is.destination);
    let end = NETWORK_OFFSET + headers.packet_len() as usize;
    translate_segment(frame, quoted, transport, end, addresses, quoted_to)?;

    let Message { kind, code, rest: [a, b, c, d] } = translated(headers.message, v4, mtus, headers.quoted_len)?;
    let quotation = headers.quoted.len() + headers.segment;
    let mut sum = frame.sum(start, quotation as usize)?.pair([kind, code]).pair([a, b]).pair([c, d]);
    if !v4 {
        sum = sum.pseudo_header(source, destination, numbers::ICMPV6, ICMP_LEN as u16 + quotation);
    }
    let [check_high, check_low] = Sum::finish(sum);
    frame.write(icmp, [kind, code, check_high, check_low, a, b, c, d])
}
