//! The fuzzer's seeds: one small frame of each kind that the parser tells apart, behind the
//! translation that `lb_common::fuzz` reads first.
mod frames;

use std::{collections::BTreeMap, fs, path::Path};

use etherparse::TcpOptions;
use frames::{Packet, Segment, authentication, extension, fragment, fragments, routing};

const V4: [u8; 36] = [
    192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xee, 0x48,
    0x1f, 0x90,
];
const V6: [u8; 36] = [
    0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11,
    0xee, 0x48, 0x1f, 0x90,
];

fn seeds() -> BTreeMap<String, Vec<u8>> {
    let tcp = |flags, payload: &[u8]| Segment::tcp(40_000, 443, flags, payload);
    let udp = |payload: &[u8]| Segment::udp(40_000, 53, payload);
    let mut packets: Vec<(String, Packet)> = vec![];
    for v4 in [true, false] {
        let family = if v4 { "v4" } else { "v6" };
        let segments = [
            ("tcp-syn", tcp(2, b"")),
            ("tcp-data", tcp(0x18, b"GET / HTTP/1.1\r\n")),
            ("tcp-fin", tcp(0x11, b"")),
            ("tcp-rst", tcp(4, b"")),
            ("udp", udp(b"query")),
            ("udp-empty", udp(b"")),
            ("udp-zero", Segment::Udp { source: 1, destination: 2, checksum: false, payload: b"none".to_vec() }),
            ("sctp", Segment::Other { protocol: 132, bytes: [vec![7; 12], vec![1, 0, 0, 20], vec![9; 16]].concat() }),
            ("other", Segment::Other { protocol: if v4 { 1 } else { 58 }, bytes: vec![8; 8] }),
        ];
        for (name, segment) in segments {
            packets.push((format!("{family}-{name}"), Packet::of_family(v4, segment)));
        }
        for (name, segment) in [("tcp", tcp(0x10, b"some data")), ("udp", udp(b"answer"))] {
            packets.push((format!("{family}-error-{name}"), error(v4, &quoted(v4, segment.clone()))));
            packets.push((
                format!("{family}-error-{name}-8"),
                error(v4, &quoted(v4, segment)[..if v4 { 28 } else { 48 }]),
            ));
        }
        let mut sized = tcp(2, b"");
        if let Segment::Tcp { header, .. } = &mut sized {
            header.options = TcpOptions::try_from_slice(&[1, 3, 3, 7, 1, 2, 4, 0xff, 0xd7, 4, 2]).unwrap();
        }
        packets.push((format!("{family}-tcp-mss"), Packet::of_family(v4, sized)));
        packets.push((format!("{family}-tcp-padded"), Packet::of_family(v4, tcp(0x10, b"")).padded(6)));
    }
    let source_route = Packet::v4(udp(b"source route")).options(&[131, 7, 4, 10, 0, 0, 1, 0]);
    packets.push(("v4-source-route".to_owned(), source_route));
    for words in [1, 10] {
        packets.push((format!("v4-options-{words}"), Packet::v4(udp(b"options")).options(&vec![1; words * 4])));
    }
    let chains = [
        ("hop-by-hop", vec![extension(0, 1)]),
        ("destination", vec![extension(60, 3)]),
        ("mobility", vec![extension(135, 1)]),
        ("routing", vec![routing(0)]),
        ("routing-on", vec![routing(1)]),
        ("authentication", vec![authentication(7)]),
        ("atomic", vec![fragment(0, false)]),
        ("fragment", vec![fragment(7, true)]),
        (
            "six",
            vec![
                extension(0, 1),
                extension(60, 1),
                routing(0),
                authentication(6),
                extension(60, 1),
                fragment(0, false),
            ],
        ),
        ("seven", vec![extension(60, 1); 7]),
        ("long", vec![extension(60, 12)]),
    ];
    for (name, chain) in chains {
        let mut packet = Packet::v6(tcp(2, b"x"));
        packet.extensions = chain;
        packets.push((format!("v6-{name}"), packet));
    }
    let mut frames: Vec<_> = packets.into_iter().map(|(name, packet)| (name, packet.frame())).collect();
    for v4 in [true, false] {
        let whole = Packet::of_family(v4, udp(&[7; 100])).frame();
        for (n, piece) in fragments(&whole, 48, 0xbeef).into_iter().enumerate() {
            frames.push((format!("{}-piece-{n}", if v4 { "v4" } else { "v6" }), piece));
        }
    }
    let named = |(name, frame): (String, Vec<u8>)| {
        let prefix = if frame[12] == 8 { V4 } else { V6 };
        (format!("{name}.seed"), [prefix.as_slice(), &frame].concat())
    };
    frames.into_iter().map(named).collect()
}

/// What the service of the other packets answered.
fn quoted(v4: bool, segment: Segment) -> Vec<u8> {
    let mut packet = Packet::of_family(v4, segment);
    std::mem::swap(&mut packet.source, &mut packet.destination);
    packet.frame()[frames::ETHERNET..].to_vec()
}

/// An ICMP error, whose checksum does not matter here: port unreachable.
fn error(v4: bool, quoted: &[u8]) -> Packet {
    let (protocol, kind) = if v4 { (1, [3, 3]) } else { (58, [1, 4]) };
    Packet::of_family(v4, Segment::Other { protocol, bytes: [&kind, [0; 6].as_slice(), quoted].concat() })
}

#[test]
fn the_seeds_of_the_fuzzer_are_these_frames() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parse");
    let seeds = seeds();
    if std::env::var_os("LB_WRITE_SEEDS").is_some() {
        for (name, bytes) in &seeds {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let files: BTreeMap<String, Vec<u8>> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seed"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    assert!(files == seeds, "write them anew: LB_WRITE_SEEDS=1 cargo test -p lb-common --test seeds");
}
