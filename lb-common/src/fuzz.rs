//! What must hold for any bytes that arrive: one function for libFuzzer (`fuzz/`) and for the
//! bounded run among the normal tests. Checksums are summed here a second time, in the plainest way.

mod family;
mod icmp;
mod mss;

use network_types::eth::EthHdr;

use crate::{
    abi::{Address, Port, Protocol},
    answer,
    flow::{TCP_ACK, TCP_RST},
    fragment,
    packet::{HEADERS_MAX, PacketAccess},
    parse::{self, NETWORK_OFFSET, Network, Part, Problem, Transport},
    plain::{Head, HeadV4, HeadV6},
    rewrite::{self, Translation},
};

/// Bytes before the frame: source and destination (16 each), source and destination port (2 each)
/// of a translation.
pub const PREFIX: usize = 36;

/// How far an input came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Depth {
    NotOurs,
    Problem,
    Transport,
}

/// Parses, translates and answers the frame behind the [`PREFIX`]; panics when a rule is broken.
pub fn check(data: &[u8]) -> Depth {
    let Some((prefix, original)) = data.split_first_chunk::<PREFIX>() else { return Depth::NotOurs };
    let mut arena = Arena::new(original, 0);
    let Ok(network) = parse::network(&arena.frame()) else { return Depth::NotOurs };
    assert_eq!(network.v4, network.source.is_v4(), "the family of the source");
    assert_eq!(network.v4, network.destination.is_v4(), "the family of the destination");
    icmp::check(original, &network, prefix);
    let result = parse::transport(&arena.frame(), &network);
    assert_eq!(arena.frame(), original, "the parser writes");
    check_plain(&arena.frame(), &network, &result);
    if result == Err(Problem::Fragment) {
        return check_fragment(original, &network);
    }
    let Ok(transport) = result else { return Depth::Problem };

    check_bounds(original, &network, &transport);
    check_padding(original, &network, &transport);
    if transport.protocol != Protocol::Sctp {
        check_translate(original, &network, &transport, prefix);
        family::check(original, &network, &transport, prefix);
    }
    check_lower_ttl(original, &network, &transport);
    if transport.protocol == Protocol::Tcp {
        check_reset(original, &network, &transport);
    }
    check_unreachable(original, &network, &transport);
    icmp::check_too_big(original, &network, &transport);
    mss::check(original, &network, &transport, u16::from_be_bytes([prefix[34], prefix[35]]));
    Depth::Transport
}

/// Plain headers say the same where they are read at once.
fn check_plain<P: PacketAccess>(frame: &P, network: &Network, transport: &Result<Transport, Problem>) {
    if network.v4 {
        check_head::<HeadV4, P>(frame, network, transport);
    } else {
        check_head::<HeadV6, P>(frame, network, transport);
    }
}

fn check_head<H: Head, P: PacketAccess>(frame: &P, network: &Network, transport: &Result<Transport, Problem>) {
    let Some(head) = frame.read::<H>(NETWORK_OFFSET) else { return };
    assert_eq!(head.network().as_ref(), Some(network), "another way to read addresses");
    if let Some(plain) = head.transport(frame.len()) {
        assert_eq!(transport.as_ref(), Ok(&plain), "another way to read the transport header");
    }
}

/// A fragment lies within the frame, a first one has its transport header, and what is written into
/// either stays within its headers.
fn check_fragment(original: &[u8], network: &Network) -> Depth {
    let mut arena = Arena::new(original, 0);
    let Ok(found) = fragment::read(&arena.frame(), network) else { return Depth::Problem };
    let (start, end) = (found.start as usize, NETWORK_OFFSET + found.packet_len as usize);
    assert!(start < end && end <= original.len() && found.offset as usize + (end - start) <= 65_535);
    let transport = if found.is_first() {
        let Ok(first) = fragment::first(&arena.frame(), network, &found) else { return Depth::Problem };
        check_bounds(original, network, &first);
        check_unreachable(original, network, &first);
        if first.protocol == Protocol::Sctp {
            // Never translated.
            return Depth::Transport;
        }
        first
    } else {
        let (source_port, destination_port) = (Port::new(1), Port::new(2));
        let (protocol, tcp_flags, ttl, packet_len) = (Protocol::Udp, 0, found.ttl, found.packet_len);
        Transport { protocol, source_port, destination_port, tcp_flags, ttl, part: Part::Later, offset: 0, packet_len }
    };
    assert_eq!(arena.frame(), original, "the parser writes");
    let to = Translation {
        source: network.destination,
        destination: network.source,
        source_port: transport.destination_port,
        destination_port: transport.source_port,
    };
    rewrite::translate(&mut arena.frame(), network, &transport, &to).expect("the parser saw every field");
    if network.v4 {
        fragment::renumber(&mut arena.frame(), [0xab, 0xcd]).expect("the parser saw the field");
    }
    let after = arena.into_frame();
    let headers = if found.is_first() { transport.offset as usize + 20 } else { NETWORK_OFFSET + 40 };
    assert_eq!(after[headers.min(end)..], original[headers.min(end)..], "data is written to");
    Depth::Transport
}

/// A frame between guard bytes.
struct Arena {
    bytes: Vec<u8>,
}

impl Arena {
    const GUARD: usize = 32;
    const MARK: u8 = 0xc7;

    /// With `growth` bytes before the frame.
    fn new(frame: &[u8], growth: usize) -> Self {
        let guard = [Self::MARK; Self::GUARD];
        Self { bytes: [guard.as_slice(), &vec![0xee; growth], frame, &guard].concat() }
    }

    fn frame(&mut self) -> &mut [u8] {
        let end = self.bytes.len() - Self::GUARD;
        &mut self.bytes[Self::GUARD..end]
    }

    /// The frame, after a look at the guards.
    fn into_frame(mut self) -> Vec<u8> {
        let end = self.bytes.len() - Self::GUARD;
        assert!(self.bytes[..Self::GUARD].iter().all(|&b| b == Self::MARK), "a write before the frame");
        assert!(self.bytes[end..].iter().all(|&b| b == Self::MARK), "a write behind the frame");
        self.frame().to_vec()
    }
}

fn check_bounds(frame: &[u8], network: &Network, transport: &Transport) {
    let (offset, end) = (transport.offset as usize, NETWORK_OFFSET + transport.packet_len as usize);
    let (fixed, header) = match transport.protocol {
        Protocol::Tcp => (20, (frame[offset + 12] >> 4) as usize * 4),
        Protocol::Udp => (8, 8),
        Protocol::Sctp => (16, 16),
    };
    assert!(offset >= NETWORK_OFFSET + if network.v4 { 20 } else { 40 });
    assert!(header >= fixed && offset + header <= end && end <= frame.len());
    assert!(offset + fixed <= HEADERS_MAX);
    assert_eq!((offset - NETWORK_OFFSET) % 4, 0, "headers before the transport are whole words");
}

/// Bytes behind the packet are nobody's.
fn check_padding(frame: &[u8], network: &Network, transport: &Transport) {
    let mut cut = frame[..NETWORK_OFFSET + transport.packet_len as usize].to_vec();
    assert_eq!(parse::network(&cut.as_mut_slice()), Ok(*network));
    assert_eq!(parse::transport(&cut.as_mut_slice(), network), Ok(*transport));
}

fn check_translate(original: &[u8], network: &Network, transport: &Transport, prefix: &[u8; PREFIX]) {
    let to = translation(network.v4, prefix);
    let mut right = original.to_vec();
    make_right(&mut right, network, transport);
    for before in [original, &right] {
        let was_right = checksums_are_right(before, network, transport);
        let mut arena = Arena::new(before, 0);
        rewrite::translate(&mut arena.frame(), network, transport, &to).expect("the parser saw every field");
        let mut after = arena.into_frame();
        assert_eq!(checksums_are_right(&after, network, transport), was_right, "checksums of the translation");
        check_fields(before, &after, network, transport, &to);
        if network.v4 || !to.source.is_v4() && !to.destination.is_v4() {
            let expected = Network { v4: network.v4, source: to.source, destination: to.destination };
            assert_eq!(parse::network(&after.as_mut_slice()), Ok(expected));
            let expected = Transport {
                source_port: to.source_port,
                destination_port: to.destination_port,
                ttl: transport.ttl.wrapping_sub(1),
                ..*transport
            };
            assert_eq!(parse::transport(&after.as_mut_slice(), network), Ok(expected));
        }
    }
}

/// The translation before the frame, in one family.
fn translation(v4: bool, prefix: &[u8; PREFIX]) -> Translation {
    let address = |at: usize| {
        let octets: [u8; 16] = prefix[at..at + 16].try_into().expect("sixteen bytes");
        if v4 { Address::v4([octets[0], octets[1], octets[2], octets[3]]) } else { Address::v6(octets) }
    };
    Translation {
        source: address(0),
        destination: address(16),
        source_port: Port::from_wire([prefix[32], prefix[33]]),
        destination_port: Port::from_wire([prefix[34], prefix[35]]),
    }
}

fn check_lower_ttl(original: &[u8], network: &Network, transport: &Transport) {
    let mut arena = Arena::new(original, 0);
    rewrite::lower_ttl(&mut arena.frame(), network, transport).expect("the parser saw the field");
    let mut after = arena.into_frame();
    assert_eq!(parse::network(&after.as_mut_slice()), Ok(*network));
    let expected = Transport { ttl: transport.ttl.wrapping_sub(1), ..*transport };
    assert_eq!(parse::transport(&after.as_mut_slice(), network), Ok(expected));
    let was_right = checksums_are_right(original, network, transport);
    assert_eq!(checksums_are_right(&after, network, transport), was_right, "checksums of the lowered TTL");
}

/// Only TTL, checksums, addresses and ports differ, and a UDP checksum is there as before.
fn check_fields(before: &[u8], after: &[u8], network: &Network, transport: &Transport, to: &Translation) {
    let offset = transport.offset as usize;
    let check = check_offset(transport);
    if transport.protocol == Protocol::Udp {
        assert_eq!(before[check..check + 2] == [0, 0], after[check..check + 2] == [0, 0], "\"no checksum\"");
    }
    let mut expected = before.to_vec();
    expected[check..check + 2].copy_from_slice(&after[check..check + 2]);
    expected[offset..offset + 2].copy_from_slice(&to.source_port.to_wire());
    expected[offset + 2..offset + 4].copy_from_slice(&to.destination_port.to_wire());
    if network.v4 {
        expected[NETWORK_OFFSET + 8] = before[NETWORK_OFFSET + 8].wrapping_sub(1);
        expected[NETWORK_OFFSET + 10..NETWORK_OFFSET + 12]
            .copy_from_slice(&after[NETWORK_OFFSET + 10..NETWORK_OFFSET + 12]);
        expected[NETWORK_OFFSET + 12..NETWORK_OFFSET + 16].copy_from_slice(&to.source.v4_octets());
        expected[NETWORK_OFFSET + 16..NETWORK_OFFSET + 20].copy_from_slice(&to.destination.v4_octets());
    } else {
        expected[NETWORK_OFFSET + 7] = before[NETWORK_OFFSET + 7].wrapping_sub(1);
        expected[NETWORK_OFFSET + 8..NETWORK_OFFSET + 24].copy_from_slice(&to.source.octets());
        expected[NETWORK_OFFSET + 24..NETWORK_OFFSET + 40].copy_from_slice(&to.destination.octets());
    }
    assert_eq!(after, expected);
}

fn check_reset(original: &[u8], network: &Network, transport: &Transport) {
    let mut arena = Arena::new(original, 0);
    answer::reset(&mut arena.frame(), network, transport).expect("every TCP packet has room for a reset");
    let mut frame = arena.into_frame();
    frame.truncate(answer::reset_len(network.v4));

    let back = Network { v4: network.v4, source: network.destination, destination: network.source };
    assert_eq!(parse::network(&frame.as_mut_slice()), Ok(back));
    let reset = parse::transport(&frame.as_mut_slice(), &back).expect("a whole packet");
    assert_eq!((reset.source_port, reset.destination_port), (transport.destination_port, transport.source_port));
    assert_eq!(NETWORK_OFFSET + reset.packet_len as usize, frame.len());
    assert_eq!(checksums_are_right(&frame, &back, &reset), [true; 2], "checksums of the reset");
    let acked = transport.tcp_flags & TCP_ACK != 0;
    assert_eq!(reset.tcp_flags, if acked { TCP_RST } else { TCP_RST | TCP_ACK });
    let (theirs, ours) = (transport.offset as usize, reset.offset as usize);
    if acked {
        assert_eq!(frame[ours + 4..ours + 8], original[theirs + 8..theirs + 12], "sequence number");
    }
    assert_eq!(frame[0..6], original[6..12]);
    assert_eq!(frame[6..12], original[0..6]);
}

fn check_unreachable(original: &[u8], network: &Network, transport: &Transport) {
    let ethernet = EthHdr {
        dst_addr: original[0..6].try_into().expect("six bytes"),
        src_addr: original[6..12].try_into().expect("six bytes"),
        ether_type: u16::from_ne_bytes([original[12], original[13]]),
    };
    let mut arena = Arena::new(original, answer::unreachable_growth(network.v4));
    let len = answer::unreachable_len(network, transport);
    assert!(len <= arena.frame().len(), "longer than the grown frame");
    let behind = arena.frame()[len..].to_vec();
    answer::unreachable(&mut &mut arena.frame()[..len], &ethernet, network, transport).expect("room for the answer");
    let frame = arena.into_frame();
    assert_eq!(frame[len..], behind, "a write behind the cut");

    let icmp = NETWORK_OFFSET + if network.v4 { 20 } else { 40 };
    let quote = &frame[icmp + 8..len];
    assert_eq!(quote, &original[NETWORK_OFFSET..NETWORK_OFFSET + quote.len()]);
    let wanted = transport.offset as usize - NETWORK_OFFSET + 8;
    assert_eq!(quote.len(), wanted.min(answer::QUOTE_MAX));
    let message = &frame[icmp..len];
    let length = (message.len() as u16).to_be_bytes();
    if network.v4 {
        assert_eq!(sum(&[&frame[NETWORK_OFFSET..icmp]]), 0xffff, "header checksum of the answer");
        assert_eq!(frame[NETWORK_OFFSET + 2..NETWORK_OFFSET + 4], ((len - NETWORK_OFFSET) as u16).to_be_bytes());
        assert_eq!(sum(&[message]), 0xffff, "ICMP checksum");
    } else {
        assert_eq!(frame[NETWORK_OFFSET + 4..NETWORK_OFFSET + 6], length);
        let addresses = &frame[NETWORK_OFFSET + 8..NETWORK_OFFSET + 40];
        assert_eq!(sum(&[addresses, &[0, 0], &length, &[0, 0, 0, 58], message]), 0xffff, "ICMPv6 checksum");
    }
}

/// Offset of TCP's or UDP's checksum.
fn check_offset(transport: &Transport) -> usize {
    transport.offset as usize + if transport.protocol == Protocol::Tcp { 16 } else { 6 }
}

/// The ones' complement sum of RFC 1071 over parts of even length, the last of any.
fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Sum over pseudo-header and segment as they stand in the frame.
fn segment_sum(frame: &[u8], network: &Network, transport: &Transport) -> u16 {
    let offset = transport.offset as usize;
    let length = match transport.protocol {
        Protocol::Tcp => NETWORK_OFFSET + transport.packet_len as usize - offset,
        Protocol::Udp => u16::from_be_bytes([frame[offset + 4], frame[offset + 5]]) as usize,
        Protocol::Sctp => unreachable!("its checksum is no sum"),
    };
    let addresses = if network.v4 { 12..20 } else { 8..40 };
    let addresses = &frame[NETWORK_OFFSET + addresses.start..NETWORK_OFFSET + addresses.end];
    sum(&[addresses, &[0, transport.protocol as u8], &(length as u16).to_be_bytes(), &frame[offset..offset + length]])
}

/// The IPv4 header with its options.
fn header_v4(frame: &[u8]) -> &[u8] {
    &frame[NETWORK_OFFSET..NETWORK_OFFSET + (frame[NETWORK_OFFSET] & 0xf) as usize * 4]
}

/// For IPv4's and the segment's: a sum of ones, or no UDP checksum at all.
fn checksums_are_right(frame: &[u8], network: &Network, transport: &Transport) -> [bool; 2] {
    if transport.protocol == Protocol::Sctp {
        return [!network.v4 || sum(&[header_v4(frame)]) == 0xffff, true];
    }
    let check = check_offset(transport);
    let absent = transport.protocol == Protocol::Udp && frame[check..check + 2] == [0, 0];
    [!network.v4 || sum(&[header_v4(frame)]) == 0xffff, absent || segment_sum(frame, network, transport) == 0xffff]
}

/// Writes the right checksums; none where there was none.
fn make_right(frame: &mut [u8], network: &Network, transport: &Transport) {
    if network.v4 {
        frame[NETWORK_OFFSET + 10..NETWORK_OFFSET + 12].fill(0);
        let check = !sum(&[header_v4(frame)]);
        frame[NETWORK_OFFSET + 10..NETWORK_OFFSET + 12].copy_from_slice(&check.to_be_bytes());
    }
    let at = check_offset(transport);
    let udp = transport.protocol == Protocol::Udp;
    if udp && frame[at..at + 2] == [0, 0] {
        return;
    }
    frame[at..at + 2].fill(0);
    let check = match !segment_sum(frame, network, transport) {
        0 if udp => 0xffff,
        check => check,
    };
    frame[at..at + 2].copy_from_slice(&check.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the deterministic run.
    const INPUTS: u64 = 200_000;

    /// SplitMix64 (S. Vigna, public domain).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }

        fn below(&mut self, limit: usize) -> usize {
            (self.next() % limit as u64) as usize
        }
    }

    fn seeds() -> Vec<Vec<u8>> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/parse");
        let mut files: Vec<_> = std::fs::read_dir(folder)
            .expect("the seeds of the fuzzer")
            .map(|entry| entry.expect("a file").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "seed"))
            .collect();
        files.sort();
        files.iter().map(|path| std::fs::read(path).expect("a seed")).collect()
    }

    /// Bytes that mean something in headers, besides random ones.
    fn byte(random: &mut Random) -> u8 {
        const TELLING: [u8; 16] = [0, 1, 4, 6, 8, 17, 43, 44, 51, 58, 60, 0x45, 0x4f, 0x60, 0x80, 0xff];
        if random.below(2) == 0 { TELLING[random.below(TELLING.len())] } else { random.next() as u8 }
    }

    fn mutate(input: &mut Vec<u8>, random: &mut Random) {
        for _ in 0..random.below(5) {
            // Mostly where headers are.
            let at = if random.below(4) == 0 { random.below(input.len()) } else { random.below(input.len().min(160)) };
            match random.below(8) {
                0 => input.truncate(at.max(1)),
                1 => input.insert(at, byte(random)),
                2 => drop(input.remove(at)),
                3 => input[at] ^= 1 << random.below(8),
                4 => input[at] = input[at].wrapping_add(1),
                _ => input[at] = byte(random),
            }
            if input.is_empty() {
                input.push(0);
            }
        }
        for _ in 0..random.below(3) {
            // Another translation.
            let at = random.below(PREFIX.min(input.len()));
            input[at] = byte(random);
        }
    }

    #[test]
    fn every_seed_and_its_mutations_keep_the_rules() {
        let seeds = seeds();
        assert!(seeds.len() >= 20, "{} seeds", seeds.len());
        for seed in &seeds {
            check(seed);
        }
        let mut random = Random(0x1b);
        let mut depths = [0u64; 3];
        for _ in 0..INPUTS {
            let mut input = seeds[random.below(seeds.len())].clone();
            mutate(&mut input, &mut random);
            depths[check(&input) as usize] += 1;
        }
        assert!(depths.iter().all(|&n| n > INPUTS / 20), "not ours, problems, whole: {depths:?}");
    }

    #[test]
    fn any_bytes_at_all_keep_the_rules() {
        let mut random = Random(0x2c);
        for _ in 0..INPUTS / 10 {
            let mut input: Vec<u8> = (0..random.below(200)).map(|_| byte(&mut random)).collect();
            if let Some(ethertype) = input.get_mut(PREFIX + 12..PREFIX + 14) {
                ethertype.copy_from_slice(if random.below(2) == 0 { &[8, 0] } else { &[0x86, 0xdd] });
            }
            check(&input);
        }
    }
}
