//! Direct server return through tunnels: the whole packet in another one.

use std::collections::BTreeSet;

use lb_common::{
    abi::{Address, Mode, Protocol},
    flow::{State, TCP_ACK, TCP_SYN},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, mark, tunnelled},
    lab::{
        BACK_MAC, KINDS, Lab, Served, Side, Spec, assert_frame, backend, backend_mac, from_client, ip_batch, lab,
        request, source,
    },
};

/// Where the outer IP header begins.
const IP: usize = 14;

/// A service of one family whose backends have addresses of another.
fn serve(lab: &mut Lab, v4: bool, protocol: Protocol, mode: Mode, outer_v4: bool) -> Served {
    let served = lab.serve(Spec { backend_port: 0, backends: 2, ..Spec::new(v4, protocol, mode) });
    for (n, &id) in (1..).zip(&served.backends) {
        let mut entry = lab.data.read().unwrap().backends[&id];
        (entry.address, entry.source) = (backend(outer_v4, n).into(), source(outer_v4).into());
        lab.apply(Op::SetBackend { id, backend: entry });
    }
    lab.select(&served, &[1]);
    served
}

/// What comes out for backend 1, with the flow label that the frame has.
fn expected(got: &[u8], frame: &[u8], outer_v4: bool) -> Vec<u8> {
    let label = if outer_v4 { 0 } else { u32::from_be_bytes(got[IP..IP + 4].try_into().unwrap()) & 0xf_ffff };
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&backend_mac(1));
    frame[6..12].copy_from_slice(&BACK_MAC);
    tunnelled(&frame, source(outer_v4), backend(outer_v4, 1), label, None)
}

/// A client's packet with marks that travel, and the packet that is to be in the tunnel.
fn asked(served: &Served, port: u16, flags: u8, dont_fragment: bool) -> (Vec<u8>, Vec<u8>) {
    let packet = request(served, port, flags).padded(9);
    let mut frame = from_client(&packet);
    mark(&mut frame, 0xb9, 0x1234, dont_fragment);
    let mut inner = Packet { ttl: packet.ttl - 1, ..packet }.frame();
    mark(&mut inner, 0xb9, 0x1234, dont_fragment);
    (frame, inner)
}

#[test]
fn dsr_ipip_puts_every_family_into_every_other() {
    for (v4, protocol) in KINDS {
        for outer_v4 in [true, false] {
            lab(move |lab| {
                let served = serve(lab, v4, protocol, Mode::DsrIpip, outer_v4);
                for (flags, dont_fragment) in [(TCP_SYN, true), (TCP_ACK, false)] {
                    let (frame, inner) = asked(&served, 40_000, flags, dont_fragment);
                    let n = frame.len();
                    let sent = lab.send(Side::Front, &frame);
                    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
                    assert_frame(&sent.frame, &expected(&sent.frame, &inner, outer_v4));
                    // As received, not as sent.
                    let forward = [format!("service 0 forward 1 x {n}"), format!("backend 0 forward 1 x {n}")];
                    let verdict = format!("to_backend 1 x {n}");
                    let mut wanted = vec![forward[0].as_str(), &forward[1], &verdict];
                    if flags == TCP_SYN {
                        wanted.extend(["service 0 flows 1", "backend 0 flows 1"]);
                    }
                    assert_counted(&sent, &wanted);
                }
                let state = lab.flow().state;
                assert_eq!(state, if protocol == Protocol::Tcp { State::Established } else { State::OneWay });
            });
        }
    }
}

#[test]
fn the_flow_label_is_one_per_flow() {
    lab(|lab| {
        let served = serve(lab, true, Protocol::Tcp, Mode::DsrIpip, false);
        let mut labels = BTreeSet::new();
        for port in 20_000..20_050 {
            let label = |sent: crate::lab::Sent| sent.frame[IP + 1..IP + 4].to_vec();
            let first = label(lab.send(Side::Front, &asked(&served, port, TCP_SYN, true).0));
            assert_eq!(label(lab.send(Side::Front, &asked(&served, port, TCP_ACK, true).0)), first);
            labels.insert(first);
        }
        assert!(labels.len() >= 49, "{} labels for 50 flows", labels.len());
    });
}

#[test]
fn a_backend_behind_a_gateway_is_reached() {
    lab(|lab| {
        ip_batch("route add 10.9.0.0/24 via 10.0.0.12\n");
        let served = serve(lab, true, Protocol::Tcp, Mode::DsrIpip, true);
        let mut entry = lab.data.read().unwrap().backends[&served.backends[0]];
        entry.address = Address::v4([10, 9, 0, 1]);
        lab.apply(Op::SetBackend { id: served.backends[0], backend: entry });
        let (frame, mut inner) = asked(&served, 40_000, TCP_SYN, true);
        let sent = lab.send(Side::Front, &frame);
        assert_eq!(sent.exit, "redirect");
        inner[..6].copy_from_slice(&backend_mac(2));
        inner[6..12].copy_from_slice(&BACK_MAC);
        assert_frame(&sent.frame, &tunnelled(&inner, source(true), "10.9.0.1".parse().unwrap(), 0, None));
    });
}

#[test]
fn a_packet_fits_with_its_outer_headers_or_is_refused() {
    for (outer_v4, growth) in [(true, 20), (false, 40)] {
        lab(move |lab| {
            let served = serve(lab, true, Protocol::Udp, Mode::DsrIpip, outer_v4);
            for (length, exit, reason) in [(1500 - growth, "redirect", "to_backend"), (1501 - growth, "tx", "too_big")]
            {
                let mut packet = request(&served, 40_000, 0);
                packet.segment = Segment::udp(40_000, 80, &vec![7; length - 28]);
                let frame = from_client(&packet);
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, exit);
                assert!(sent.counted.contains(&format!("{reason} 1 x {}", frame.len())), "{:?}", sent.counted);
            }
        });
    }
}

#[test]
fn a_tunnel_that_got_another_source_uses_it_for_the_next_packet() {
    lab(|lab| {
        let served = serve(lab, true, Protocol::Tcp, Mode::DsrIpip, true);
        lab.send(Side::Front, &asked(&served, 40_000, TCP_SYN, true).0);
        let mut entry = lab.data.read().unwrap().backends[&served.backends[0]];
        entry.source = Address::v4([10, 0, 0, 2]);
        lab.apply(Op::SetBackend { id: served.backends[0], backend: entry });
        let sent = lab.send(Side::Front, &asked(&served, 40_000, TCP_ACK, true).0);
        assert_eq!(sent.frame[IP + 12..IP + 16], [10, 0, 0, 2]);
        assert_eq!(lab.flows().len(), 1);
    });
}
