//! Packets that do not fit where they should go: their senders learn what does.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Mode, Protocol},
    flow::TCP_SYN,
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{ETHERNET, Packet, Segment, mark, verified},
    icmp_wire::{Kind, WHOLE, error, quote},
    lab::{
        Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, ip_batch, lab, packet,
        request, source, vip,
    },
};

/// What of a packet is quoted: as much as gives 576 bytes (IPv4) or 1,280 (IPv6) in all.
fn quotation(packet: &Packet) -> Vec<u8> {
    let mut quoted = quote(packet, WHOLE);
    quoted.truncate(if packet.source.is_ipv4() { 576 - 28 } else { 1280 - 48 });
    quoted
}

/// A packet of so many bytes.
fn sized(from: SocketAddr, to: SocketAddr, length: usize) -> Packet {
    let headers = if from.is_ipv4() { 28 } else { 48 };
    let mut packet = packet(from, to, 64, Protocol::Udp, 0);
    // Bytes that a sum tells apart, and their order too.
    let payload: Vec<u8> = (0..length - headers).map(|n| (n * 7 + n / 256) as u8).collect();
    packet.segment = Segment::udp(from.port(), to.port(), &payload);
    packet
}

/// The frame that answers: it goes where the other came from.
fn answer(asked: &[u8], from: IpAddr, to: IpAddr, mtu: u16, quoted: &[u8]) -> Vec<u8> {
    let mut frame = error(from, to, Kind::TooBig(mtu), quoted).frame();
    frame[..6].copy_from_slice(&asked[6..12]);
    frame[6..12].copy_from_slice(&asked[..6]);
    frame
}

#[track_caller]
fn assert_told(lab: &mut Lab, side: Side, packet: &Packet, from: IpAddr, mtu: u16) {
    let mut asked = packet.frame();
    let padding = if side == Side::Front { from_client(packet) } else { from_backend(1, packet) };
    asked[..12].copy_from_slice(&padding[..12]);
    let sent = lab.send(side, &asked);
    assert_eq!(sent.exit, "tx", "{:?}", sent.counted);
    let wanted = answer(&asked, from, packet.source, mtu, &quotation(packet));
    assert_frame(&sent.frame, &wanted);
    verified(&sent.frame);
    let counted = [format!("too_big 1 x {}", asked.len()), "service 0 refused 1".to_owned()];
    // The first packet of a flow begins it.
    let begun = ["service 0 flows 1".to_owned(), "backend 0 flows 1".to_owned()];
    let lines: Vec<&str> = counted.iter().map(String::as_str).collect();
    let with_flow: Vec<&str> = counted.iter().chain(&begun).map(String::as_str).collect();
    let first = sent.counted.iter().any(|line| line == "service 0 flows 1");
    assert_counted(&sent, if first { &with_flow } else { &lines });
}

fn serve(lab: &mut Lab, v4: bool, mode: Mode) -> Served {
    lab.serve(Spec {
        backend_port: if Mode::is_one_sided(mode as u8) { 0 } else { 8080 },
        ..Spec::new(v4, Protocol::Udp, mode)
    })
}

#[test]
fn clients_learn_the_mtu_of_the_way_to_the_backend() {
    for v4 in [true, false] {
        for mode in [Mode::Nat, Mode::FullNat, Mode::DsrL2] {
            lab(move |lab| {
                ip_batch("link set back mtu 1400\n");
                serve(lab, v4, mode);
                let asker = (client(v4), 40_000).into();
                // Whole words and not.
                for length in [1401, 1402, 1403, 1404, 1500] {
                    assert_told(lab, Side::Front, &sized(asker, (vip(v4), 80).into(), length), vip(v4), 1400);
                }
                let fits = sized(asker, (vip(v4), 80).into(), 1400);
                assert_eq!(lab.send(Side::Front, &from_client(&fits)).exit, "redirect");
            });
        }
    }
}

#[test]
fn clients_learn_what_fits_into_the_tunnel() {
    for v4 in [true, false] {
        for (outer_v4, growth) in [(true, 20), (false, 40)] {
            lab(move |lab| {
                let served = serve(lab, v4, Mode::DsrIpip);
                let mut entry = lab.data.read().unwrap().backends[&served.backends[0]];
                (entry.address, entry.source) = (backend(outer_v4, 1).into(), source(outer_v4).into());
                lab.apply(Op::SetBackend { id: served.backends[0], backend: entry });
                let asked = sized((client(v4), 40_000).into(), (vip(v4), 80).into(), 1500);
                assert_told(lab, Side::Front, &asked, vip(v4), 1500 - growth);
            });
        }
    }
}

#[test]
fn backends_learn_the_mtu_of_the_way_to_the_client() {
    for v4 in [true, false] {
        for mode in [Mode::Nat, Mode::FullNat] {
            lab(move |lab| {
                let served = serve(lab, v4, mode);
                lab.send(Side::Front, &from_client(&request(&served, 40_000, 0)));
                ip_batch("link set front mtu 1300\n");
                let seen_as = lab.flow().source;
                let reply = sized((backend(v4, 1), 8080).into(), seen_as, 1500);
                let from = if mode == Mode::Nat { vip(v4) } else { source(v4) };
                assert_told(lab, Side::Back, &reply, from, 1300);
            });
        }
    }
}

#[test]
fn what_routes_say_of_the_way_counts_and_not_only_the_interface() {
    lab(|lab| {
        serve(lab, true, Mode::Nat);
        ip_batch("route add 10.0.0.11/32 dev back mtu lock 1200\n");
        assert_told(
            lab,
            Side::Front,
            &sized((client(true), 40_000).into(), (vip(true), 80).into(), 1300),
            vip(true),
            1200,
        );
    });
}

#[test]
fn ipv4_without_dont_fragment_is_told_too() {
    lab(|lab| {
        ip_batch("link set back mtu 1400\n");
        serve(lab, true, Mode::FullNat);
        let asked = sized((client(true), 40_000).into(), (vip(true), 80).into(), 1500);
        let mut frame = from_client(&asked);
        mark(&mut frame, 0, 0x1234, false);
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "tx");
        let wanted = answer(&frame, vip(true), client(true), 1400, &frame[ETHERNET..ETHERNET + 548]);
        assert_frame(&sent.frame, &wanted);
    });
}

#[test]
fn a_packet_shorter_than_what_is_quoted_is_quoted_whole() {
    lab(|lab| {
        ip_batch("link set back mtu 300\n");
        serve(lab, true, Mode::FullNat);
        for length in [301, 302, 303, 548, 549] {
            let asked = sized((client(true), 40_000).into(), (vip(true), 80).into(), length);
            assert_told(lab, Side::Front, &asked, vip(true), 300);
        }
        // With bytes behind the packet, which nobody sent.
        let asked = sized((client(true), 40_000).into(), (vip(true), 80).into(), 305).padded(9);
        let frame = from_client(&asked);
        let sent = lab.send(Side::Front, &frame);
        let quoted = &quotation(&asked)[..305];
        assert_frame(&sent.frame, &answer(&frame, vip(true), client(true), 300, quoted));
    });
}

#[test]
fn a_sender_that_is_no_host_is_not_told() {
    lab(|lab| {
        ip_batch("link set back mtu 1400\n");
        serve(lab, true, Mode::FullNat);
        let asked = sized("224.0.0.5:40000".parse().unwrap(), (vip(true), 80).into(), 1500);
        let frame = from_client(&asked);
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "drop");
        assert_frame(&sent.frame, &frame);
        let counted = [format!("unanswerable 1 x {}", frame.len()), "service 0 dropped 1".to_owned()];
        assert_counted(&sent, &[&counted[0], &counted[1], "service 0 flows 1", "backend 0 flows 1"]);
    });
}

#[test]
fn a_flood_of_packets_too_big_is_answered_at_a_limited_rate() {
    lab(|lab| {
        ip_batch("link set back mtu 1400\n");
        serve(lab, true, Mode::FullNat);
        let asked = from_client(&sized((client(true), 40_000).into(), (vip(true), 80).into(), 1500));
        let exits =
            lab.send_from_all_cpus(Side::Front, |cpu| if cpu == 0 { vec![asked.clone(); 20_000] } else { vec![] });
        let (answered, dropped) = (exits["tx"], exits["drop"]);
        assert_eq!(answered + dropped, 20_000);
        // The flood takes less than two seconds: fifteen ticks of 128 answers.
        assert!((128..=16 * 128).contains(&answered), "{exits:?}");
    });
}

#[test]
fn an_error_that_does_not_fit_is_dropped_without_another() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
        ip_batch("link set back mtu 100\n");
        lab.until_ways_are_asked_for();
        let mut reply = packet((vip(true), 80).into(), (client(true), 40_000).into(), 57, Protocol::Tcp, 0x10);
        reply.segment = Segment::tcp(80, 40_000, 0x10, &[7; 200]);
        let router: IpAddr = "198.51.100.254".parse().unwrap();
        let frame = from_client(&error(router, vip(true), Kind::TimeExceeded, &quote(&reply, WHOLE)));
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "drop");
        assert_counted(&sent, &[&format!("unanswerable 1 x {}", frame.len())]);
    });
}
