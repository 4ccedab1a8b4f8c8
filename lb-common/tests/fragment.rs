//! Fragments are read, refused where no honest sender made them, and translated so that the whole
//! is right.

mod frames;

use frames::{ETHERNET, Packet, Segment, extension, fragments, reassembled, right_header, translation, verified};
use lb_common::{
    abi::{FragmentFlow, Port, Protocol},
    fragment::{self, Fragment},
    parse::{self, Network, Part, Problem, Transport},
    rewrite,
};

const ID: u32 = 0x0000_beef;

fn datagram(v4: bool, tcp: bool) -> Packet {
    let payload: Vec<u8> = (0..3_000u32).map(|i| (i * 7) as u8).collect();
    let segment = if tcp { Segment::tcp(40_000, 80, 0x18, &payload) } else { Segment::udp(40_000, 53, &payload) };
    Packet::of_family(v4, segment)
}

fn pieces(v4: bool, tcp: bool) -> Vec<Vec<u8>> {
    fragments(&datagram(v4, tcp).frame(), 1_000, ID)
}

/// Both steps for the piece of a datagram.
fn read(frame: &mut [u8]) -> Result<(Network, Fragment), Problem> {
    let network = parse::network(&&mut *frame).expect("the network header");
    assert_eq!(parse::transport(&&mut *frame, &network), Err(Problem::Fragment));
    Ok((network, fragment::read(&&mut *frame, &network)?))
}

fn first(frame: &mut [u8]) -> Result<Transport, Problem> {
    let (network, fragment) = read(frame)?;
    assert!(fragment.is_first());
    fragment::first(&&mut *frame, &network, &fragment)
}

fn told(transport: &Transport) -> FragmentFlow {
    FragmentFlow {
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        protocol: transport.protocol as u8,
        tcp_flags: transport.tcp_flags,
        id: [0; 2],
        backend_id: 0,
        seen: 0,
        passed: 0,
        guessed: 0,
        zero: [0; 2],
    }
}

#[test]
fn all_fragments_of_a_datagram_have_one_key_and_their_places() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut keys = vec![];
        for (n, mut piece) in pieces(v4, tcp).into_iter().enumerate() {
            let (network, fragment) = read(&mut piece).unwrap();
            assert_eq!((fragment.offset as usize, fragment.is_first()), (n * 1_000, n == 0));
            assert_eq!(fragment.packet_len as usize, piece.len() - ETHERNET);
            keys.push(fragment.key(&network));
        }
        assert_eq!(keys.len(), 4);
        assert!(keys.iter().all(|key| *key == keys[0]));
        let other = fragments(&datagram(v4, tcp).frame(), 1_000, ID + 1);
        let (network, fragment) = read(&mut other[1].clone()).unwrap();
        assert_ne!(fragment.key(&network), keys[0]);
    }
}

#[test]
fn the_first_fragment_tells_ports_and_flags() {
    for v4 in [true, false] {
        let transport = first(&mut pieces(v4, true)[0]).unwrap();
        assert_eq!((transport.source_port, transport.destination_port), (Port::new(40_000), Port::new(80)));
        assert_eq!((transport.protocol, transport.tcp_flags, transport.part), (Protocol::Tcp, 0x18, Part::First));
        let transport = first(&mut pieces(v4, false)[0]).unwrap();
        assert_eq!((transport.protocol, transport.destination_port), (Protocol::Udp, Port::new(53)));
    }
    // IPv6: extension headers before the fragment's header, and behind it in the first fragment.
    let mut packet = datagram(false, false).extension(extension(0, 1)).extension(frames::fragment(0, true));
    packet = packet.extension(extension(60, 2));
    let transport = first(&mut packet.frame()).unwrap();
    assert_eq!(transport.offset as usize, packet.transport_offset());
    assert_eq!(transport.destination_port, Port::new(53));
}

#[test]
fn translated_fragments_make_a_right_whole() {
    for (v4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
        let (source, destination) = if v4 {
            (("10.0.0.1", 1_024), ("10.0.0.11", 8080))
        } else {
            (("2001:db8:2::1", 9), ("2001:db8:2::11", 80))
        };
        let to = translation(source, destination);
        let mut pieces = pieces(v4, tcp);
        let flow = told(&first(&mut pieces[0]).unwrap());
        for piece in &mut pieces {
            let (network, fragment) = read(piece).unwrap();
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let transport =
                if fragment.is_first() { first(piece).unwrap() } else { fragment.transport(&flow, protocol) };
            assert_eq!(transport.ttl, 64);
            rewrite::translate(&mut piece.as_mut_slice(), &network, &transport, &to).unwrap();
            if v4 {
                fragment::renumber(&mut piece.as_mut_slice(), [0x12, 0x34]).unwrap();
            }
        }
        let (whole, id) = reassembled(&pieces);
        assert_eq!(id, if v4 { 0x1234 } else { ID });
        verified(&whole);
        let mut wanted = Packet { source: source.0.parse().unwrap(), ttl: 63, ..datagram(v4, tcp) };
        wanted.destination = destination.0.parse().unwrap();
        match &mut wanted.segment {
            Segment::Udp { source: from, destination: to, .. } => (*from, *to) = (source.1, destination.1),
            Segment::Tcp { header, .. } => (header.source_port, header.destination_port) = (source.1, destination.1),
            Segment::Other { .. } => unreachable!(),
        }
        assert!(whole == wanted.frame(), "{:02x?}", &whole[..80]);
    }
}

/// What makes an honest fragment another.
type Break = fn(&mut Vec<u8>);

#[test]
fn what_no_honest_sender_makes_is_malformed() {
    let v4: [(&str, usize, bool, Break); 6] = [
        ("a first fragment of less than a TCP header", 0, true, |f| shorten(f, 20 + 16)),
        ("a TCP header that says it goes on in the next", 0, true, |f| {
            shorten(f, 20 + 24);
            f[46] = 0xf0;
        }),
        ("a fragment over the TCP header's flags", 1, true, |f| offset(f, 1)),
        ("a fragment in the middle that is no whole units", 1, false, |f| shorten(f, 20 + 996)),
        ("one that ends behind the longest packet", 1, false, |f| offset(f, 0x1fff)),
        ("no data at all", 1, false, |f| shorten(f, 20)),
    ];
    for (what, n, tcp, breaks) in v4 {
        let mut piece = pieces(true, tcp)[n].clone();
        breaks(&mut piece);
        right_header(&mut piece);
        let (network, found) = match read(&mut piece) {
            Err(problem) => {
                assert_eq!(problem, Problem::Malformed, "{what}");
                continue;
            }
            Ok(found) => found,
        };
        assert!(found.is_first(), "{what}");
        assert_eq!(fragment::first(&piece.as_mut_slice(), &network, &found), Err(Problem::Malformed), "{what}");
    }
    // IPv6: headers that are not all in the first fragment (RFC 7112).
    let chain = datagram(false, false).extension(frames::fragment(0, true)).extension(extension(60, 3));
    let mut piece = chain.frame()[..ETHERNET + 40 + 8 + 16].to_vec();
    piece[18..20].copy_from_slice(&24u16.to_be_bytes());
    assert_eq!(first(&mut piece), Err(Problem::Malformed));
}

/// Cuts the IPv4 packet to so many bytes.
fn shorten(frame: &mut Vec<u8>, length: usize) {
    frame.truncate(ETHERNET + length);
    frame[16..18].copy_from_slice(&(length as u16).to_be_bytes());
}

/// In units of 8 bytes; more follow.
fn offset(frame: &mut [u8], units: u16) {
    frame[20..22].copy_from_slice(&(0x2000 | units).to_be_bytes());
}

#[test]
fn fragments_of_other_protocols_are_told() {
    for (v4, protocol) in [(true, 1), (true, 47), (false, 58), (false, 47)] {
        let whole = Packet::of_family(v4, Segment::Other { protocol, bytes: vec![1; 2_000] });
        for mut piece in fragments(&whole.frame(), 1_000, ID) {
            assert_eq!(read(&mut piece).err(), Some(Problem::NotTransport), "{protocol}");
        }
    }
}

#[test]
fn a_fragment_cut_anywhere_never_reads_behind_the_frame() {
    for v4 in [true, false] {
        for piece in &pieces(v4, true)[..2] {
            for len in ETHERNET + if v4 { 20 } else { 40 }..piece.len().min(200) {
                let mut cut = piece[..len].to_vec();
                let network = parse::network(&cut.as_mut_slice()).unwrap();
                if let Ok(found) = fragment::read(&cut.as_mut_slice(), &network)
                    && found.is_first()
                {
                    let _ = fragment::first(&cut.as_mut_slice(), &network, &found);
                }
            }
        }
    }
}
