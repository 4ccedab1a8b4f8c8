//! Clamping the MSS option, wherever it stands among the options.
mod frames;

use etherparse::{TcpOptionElement, TcpOptions};
use frames::{Packet, Segment, extension, parse, verified};
use lb_common::{
    flow::TCP_SYN,
    mss::{Cursor, clamp},
};

fn syn(v4: bool, options: &[u8]) -> Packet {
    let mut segment = Segment::tcp(40_000, 80, TCP_SYN, b"early data, which is odd");
    if let Segment::Tcp { header, .. } = &mut segment {
        header.options = TcpOptions::try_from_slice(options).unwrap();
    }
    Packet::of_family(v4, segment)
}

fn clamped(packet: &Packet, most: u16) -> Vec<u8> {
    let mut frame = packet.frame();
    let (_, transport) = parse(&mut frame);
    clamp(&mut frame.as_mut_slice(), &transport, most, &mut Cursor::default()).unwrap();
    frame
}

#[test]
fn the_mss_is_lowered_wherever_it_stands() {
    let before: [&[u8]; 5] =
        [&[], &[1], &[1, 1, 4, 2], &[3, 3, 7], &[8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 1, 1, 1, 254, 3, 9]];
    for v4 in [true, false] {
        for (options, most) in before.iter().flat_map(|before| [536, 1220, 1400, 1459].map(|most| (before, most))) {
            let with = |mss: u16| {
                let [high, low] = mss.to_be_bytes();
                syn(v4, &[*options, &[2, 4, high, low], &[4, 2]].concat())
            };
            let frame = clamped(&with(1460), most);
            verified(&frame);
            assert_eq!(frame, with(most).frame(), "{options:?} {most}");
        }
    }
}

#[test]
fn an_mss_that_is_low_enough_and_a_syn_without_one_stay() {
    for options in [&[2, 4, 5, 0xb4][..], &[1, 3, 3, 7], &[]] {
        let packet = syn(true, options);
        assert_eq!(clamped(&packet, 1460), packet.frame());
    }
}

#[test]
fn it_is_found_behind_extension_headers_too() {
    let packet = syn(false, &[1, 1, 2, 4, 5, 0xb4, 1, 1]).extension(extension(0, 4)).extension(extension(60, 1));
    let frame = clamped(&packet, 1000);
    let tcp = verified(&frame).transport.unwrap();
    let etherparse::TransportSlice::Tcp(tcp) = tcp else { panic!("{tcp:?}") };
    assert!(tcp.options_iterator().any(|option| option == Ok(TcpOptionElement::MaximumSegmentSize(1000))));
}

#[test]
fn broken_options_are_left_alone() {
    let broken: [&[u8]; 7] = [
        // The end comes first.
        &[0, 2, 4, 0xff, 0xff, 0, 0, 0],
        // A length that leads nowhere: none, less than itself, over the end.
        &[3, 0, 2, 4, 0xff, 0xff, 1, 1],
        &[3, 1, 2, 4, 0xff, 0xff, 1, 1],
        &[254, 40, 2, 4, 0xff, 0xff, 1, 1],
        // Not as long as it should be.
        &[2, 3, 0xff, 2, 6, 0xff, 0xff, 0],
        // Cut by the header's end.
        &[1, 1, 1, 1, 1, 2, 4, 0xff],
        &[1; 40],
    ];
    for options in broken {
        // Raw, because no implementation builds such.
        let mut packet = syn(true, &vec![1; options.len()]);
        packet.ttl = 9;
        let mut frame = packet.frame();
        let at = packet.transport_offset() + 20;
        frame[at..at + options.len()].copy_from_slice(options);
        let before = frame.clone();
        let (_, transport) = parse(&mut frame);
        assert_eq!(clamp(&mut frame.as_mut_slice(), &transport, 536, &mut Cursor::default()), Some(()));
        assert_eq!(frame, before, "{options:?}");
    }
}
