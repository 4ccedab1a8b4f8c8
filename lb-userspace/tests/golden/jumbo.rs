//! Frames that are larger than a page: they come in several buffers, of which the program sees the
//! first.

use std::net::SocketAddr;

use lb_common::{
    abi::{Mode, Protocol},
    flow::{TCP_ACK, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, tunnelled, verified},
    lab::{
        BACK_MAC, KINDS, Lab, Served, Side, Spec, assert_frame, backend, backend_mac, client, from_backend,
        from_client, ip_batch, lab, packet, request, source, vip,
    },
};

/// Room for jumbo frames on both sides.
fn jumbo_lab(test: impl FnOnce(&mut Lab) + Send + 'static) {
    lab(|lab| {
        ip_batch("link set front mtu 9000\nlink set back mtu 9000\n");
        test(lab);
    });
}

/// The packet with a payload so long that the IP packet has 9,000 bytes.
fn filled(mut packet: Packet) -> Packet {
    let v6 = packet.source.is_ipv6();
    let payload: Vec<u8> = (0..9000 - if v6 { 40 } else { 20 }).map(|i: usize| (i * 7) as u8).collect();
    match &mut packet.segment {
        Segment::Tcp { payload: old, .. } => *old = payload[20..].to_vec(),
        Segment::Udp { payload: old, .. } => *old = payload[8..].to_vec(),
        Segment::Other { bytes, .. } => *bytes = payload,
    }
    assert_eq!(packet.frame().len(), 9014);
    packet
}

fn large(served: &Served, flags: u8) -> Packet {
    filled(request(served, 40_000, flags))
}

#[test]
fn jumbo_frames_are_translated_both_ways_and_counted_whole() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            jumbo_lab(move |lab| {
                let served = lab.serve(Spec::new(v4, protocol, mode));
                lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
                let flow = lab.flow();
                let (us, them): (SocketAddr, SocketAddr) = ((vip(v4), 80).into(), (client(v4), 40_000).into());
                let server = (backend(v4, 1), 8080).into();

                let sent = lab.send(Side::Front, &from_client(&large(&served, TCP_ACK)));
                assert_eq!(sent.exit, "redirect");
                let wanted = filled(packet(flow.source, server, 63, protocol, TCP_ACK));
                assert_frame(&sent.frame, &lab.to_backend(1, &wanted));
                let counted = ["to_backend 1 x 9014", "service 0 forward 1 x 9014", "backend 0 forward 1 x 9014"];
                assert_counted(&sent, &counted);

                let reply = filled(packet(server, flow.source, 64, protocol, TCP_ACK));
                let sent = lab.send(Side::Back, &from_backend(1, &reply));
                assert_eq!(sent.exit, "redirect");
                assert_frame(&sent.frame, &lab.to_client(&filled(packet(us, them, 63, protocol, TCP_ACK))));
                let counted = ["to_client 1 x 9014", "service 0 reply 1 x 9014", "backend 0 reply 1 x 9014"];
                assert_counted(&sent, &counted);
            });
        }
    }
}

#[test]
fn jumbo_frames_go_into_tunnels() {
    for v4 in [true, false] {
        lab(move |lab| {
            ip_batch("link set front mtu 9000\nlink set back mtu 9040\n");
            let served = lab.serve(Spec { backend_port: 0, ..Spec::new(v4, Protocol::Udp, Mode::DsrIpip) });
            let asked = large(&served, 0);
            let sent = lab.send(Side::Front, &from_client(&asked));
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            let mut inner = Packet { ttl: asked.ttl - 1, ..asked }.frame();
            inner[..6].copy_from_slice(&backend_mac(1));
            inner[6..12].copy_from_slice(&BACK_MAC);
            let label = if v4 { 0 } else { u32::from_be_bytes(sent.frame[14..18].try_into().unwrap()) & 0xf_ffff };
            assert_frame(&sent.frame, &tunnelled(&inner, source(v4), backend(v4, 1), label, None));
        });
    }
}

#[test]
fn a_jumbo_frame_that_does_not_fit_the_next_interface_is_too_big() {
    jumbo_lab(|lab| {
        ip_batch("link set back mtu 8999\n");
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let frame = from_client(&large(&served, 0));
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "tx", "the sender is told");
        assert!(sent.frame.len() < 1514);
        assert!(sent.counted.contains(&"too_big 1 x 9014".to_owned()), "{:?}", sent.counted);
    });
}

#[test]
fn a_refused_jumbo_frame_is_cut_through_all_its_buffers() {
    for (v4, protocol) in KINDS {
        jumbo_lab(move |lab| {
            let served = lab.serve(Spec { backends: 0, ..Spec::new(v4, protocol, Mode::Nat) });
            let sent = lab.send(Side::Front, &from_client(&large(&served, TCP_SYN)));
            assert_eq!(sent.exit, "tx");
            verified(&sent.frame);
            assert!(sent.frame.len() < 120, "{}", sent.frame.len());
            assert_counted(&sent, &["no_backend 1 x 9014", "service 0 refused 1"]);
        });
    }
}

#[test]
fn what_is_not_forwarded_is_counted_whole_too() {
    jumbo_lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let frame = from_client(&large(&served, 0));
        let mut cases = vec![("not_for_us", "pass", frame.clone()); 4];
        cases[0].2[33] ^= 1;
        cases[1] = ("not_ip", "pass", frame.clone());
        cases[1].2[12..14].copy_from_slice(&[0x88, 0xcc]);
        // To another port.
        cases[2] = ("no_service", "pass", frame.clone());
        cases[2].2[37] ^= 1;
        // Says that it is longer than it is.
        cases[3] = ("malformed", "drop", frame);
        cases[3].2[17] += 1;
        for (reason, exit, frame) in cases {
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, exit, "{reason}");
            assert_frame(&sent.frame, &frame);
            assert_counted(&sent, &[&format!("{reason} 1 x 9014")]);
        }
    });
}

#[test]
fn a_long_ping_of_a_service_is_answered_whole() {
    jumbo_lab(|lab| {
        lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let mut ask = Packet::new("198.51.100.7", "203.0.113.10", Segment::Other { protocol: 1, bytes: vec![] });
        ask.segment = Segment::Other { protocol: 1, bytes: [&[8, 0, 0xf7, 0xff], &[0; 8976][..]].concat() };
        let frame = from_client(&ask);
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "tx");
        assert_eq!(sent.frame.len(), frame.len());
        assert_eq!(sent.frame[34], 0, "a reply");
        assert_counted(&sent, &[&format!("echo 1 x {}", frame.len())]);
    });
}

#[test]
fn headers_are_enough_in_the_first_buffer() {
    jumbo_lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
        let frame = from_client(&large(&served, TCP_ACK));
        for first in [54, 128, 2048] {
            let Some(sent) = lab.send_in_parts(Side::Front, &frame, first) else {
                println!("this kernel makes no test frames with a short first buffer (Linux 6.18 does)");
                return;
            };
            assert_eq!(sent.exit, "redirect");
            let wanted = filled(packet(lab.flow().source, (backend(true, 1), 8080).into(), 63, Protocol::Tcp, TCP_ACK));
            assert_frame(&sent.frame, &lab.to_backend(1, &wanted));
            let counted = ["to_backend 1 x 9014", "service 0 forward 1 x 9014", "backend 0 forward 1 x 9014"];
            assert_counted(&sent, &counted);
        }
    });
}
