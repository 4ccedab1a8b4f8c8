//! Direct server return through tunnels: the whole packet in another one.

use std::{collections::BTreeSet, net::IpAddr};

use lb_common::{
    abi::{Address, Backend, DontFragment, Mode, Port, Protocol},
    flow::{State, TCP_ACK, TCP_SYN},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, in_gre, mark, tunnelled},
    lab::{
        BACK_MAC, KINDS, Lab, Served, Side, Spec, assert_frame, backend, backend_mac, from_client, ip_batch, lab,
        request, source,
    },
};

/// Where the outer IP header begins.
const IP: usize = 14;

const GUE_PORT: u16 = 6080;

/// A service of one family whose backends have addresses of another.
fn serve(lab: &mut Lab, v4: bool, protocol: Protocol, mode: Mode, outer_v4: bool) -> Served {
    let served = lab.serve(Spec { backend_port: 0, backends: 2, ..Spec::new(v4, protocol, mode) });
    for n in [1, 2] {
        change(lab, &served, n, |entry| {
            (entry.address, entry.source) = (backend(outer_v4, n).into(), source(outer_v4).into());
            entry.tunnel_port = if mode == Mode::DsrGue { Port::new(GUE_PORT) } else { Port::ANY };
        });
    }
    lab.select(&served, &[1]);
    served
}

/// Changes the element of backend `n`.
fn change(lab: &mut Lab, served: &Served, n: u8, change: impl FnOnce(&mut Backend)) {
    let id = served.backends[usize::from(n) - 1];
    let mut entry = lab.data.read().unwrap().backends[&id];
    change(&mut entry);
    lab.apply(Op::SetBackend { id, backend: entry });
}

/// What comes out for backend 1, with the flow label and the source port that the frame has.
fn expected(mode: Mode, got: &[u8], frame: &[u8], outer_v4: bool, checksum: bool) -> Vec<u8> {
    expected_from(source(outer_v4), mode, got, frame, checksum)
}

fn expected_from(source: IpAddr, mode: Mode, got: &[u8], frame: &[u8], checksum: bool) -> Vec<u8> {
    let outer_v4 = source.is_ipv4();
    let label = if outer_v4 { 0 } else { u32::from_be_bytes(got[IP..IP + 4].try_into().unwrap()) & 0xf_ffff };
    let udp = IP + if outer_v4 { 20 } else { 40 };
    let gue = (mode == Mode::DsrGue).then(|| (u16::from_be_bytes([got[udp], got[udp + 1]]), GUE_PORT, checksum));
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&backend_mac(1));
    frame[6..12].copy_from_slice(&BACK_MAC);
    if mode == Mode::DsrGre {
        return in_gre(&frame, source, backend(outer_v4, 1), label);
    }
    tunnelled(&frame, source, backend(outer_v4, 1), label, gue)
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

/// Sends the beginning of a flow and its next packet, and checks frames, counters and flow.
fn both_families_in_both(mode: Mode) {
    for (v4, protocol) in KINDS {
        for outer_v4 in [true, false] {
            lab(move |lab| {
                let served = serve(lab, v4, protocol, mode, outer_v4);
                for (flags, dont_fragment) in [(TCP_SYN, true), (TCP_ACK, false)] {
                    let (frame, inner) = asked(&served, 40_000, flags, dont_fragment);
                    let n = frame.len();
                    let sent = lab.send(Side::Front, &frame);
                    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
                    assert_frame(&sent.frame, &expected(mode, &sent.frame, &inner, outer_v4, true));
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
                match protocol {
                    Protocol::Tcp => assert_eq!(state, State::Established),
                    // The client's second packet counts only when it comes some time after the first.
                    _ => assert!(matches!(state, State::OneWay | State::BothWays), "{state:?}"),
                }
            });
        }
    }
}

#[test]
fn dsr_ipip_puts_every_family_into_every_other() {
    both_families_in_both(Mode::DsrIpip);
}

#[test]
fn dsr_gue_puts_every_family_into_udp_of_every_other() {
    both_families_in_both(Mode::DsrGue);
}

#[test]
fn dsr_gre_puts_every_family_into_gre_of_every_other() {
    both_families_in_both(Mode::DsrGre);
}

#[test]
fn gue_around_udp_without_a_checksum_has_none() {
    for outer_v4 in [true, false] {
        lab(move |lab| {
            let served = serve(lab, true, Protocol::Udp, Mode::DsrGue, outer_v4);
            let mut packet = request(&served, 40_000, 0);
            if let Segment::Udp { checksum, .. } = &mut packet.segment {
                *checksum = false;
            }
            let sent = lab.send(Side::Front, &from_client(&packet));
            let inner = Packet { ttl: packet.ttl - 1, ..packet }.frame();
            assert_frame(&sent.frame, &expected(Mode::DsrGue, &sent.frame, &inner, outer_v4, false));
        });
    }
}

#[test]
fn gue_has_one_source_port_per_flow() {
    lab(|lab| {
        let served = serve(lab, true, Protocol::Tcp, Mode::DsrGue, true);
        let mut ports = BTreeSet::new();
        for port in 20_000..20_050 {
            let udp = |sent: crate::lab::Sent| u16::from_be_bytes([sent.frame[IP + 20], sent.frame[IP + 21]]);
            let first = udp(lab.send(Side::Front, &asked(&served, port, TCP_SYN, true).0));
            assert_eq!(udp(lab.send(Side::Front, &asked(&served, port, TCP_ACK, true).0)), first);
            assert!(first >= 49_152);
            ports.insert(first);
        }
        assert!(ports.len() >= 45, "{} source ports for 50 flows", ports.len());
    });
}

#[test]
fn sources_are_chosen_from_a_prefix_one_per_flow() {
    let modes = [Mode::DsrIpip, Mode::DsrGue, Mode::DsrGre];
    for (mode, outer_v4) in modes.into_iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        lab(move |lab| {
            let served = serve(lab, true, Protocol::Tcp, mode, outer_v4);
            let prefix: IpAddr = if outer_v4 { "10.77.0.0" } else { "2001:db8:77::" }.parse().unwrap();
            change(lab, &served, 1, |entry| (entry.source, entry.source_bits) = (prefix.into(), 16));
            let mut sources = BTreeSet::new();
            for port in 20_000..20_050 {
                let mut of_flow = BTreeSet::new();
                for flags in [TCP_SYN, TCP_ACK] {
                    let (frame, inner) = asked(&served, port, flags, true);
                    let sent = lab.send(Side::Front, &frame);
                    let source = outer_source(&sent.frame);
                    assert_frame(&sent.frame, &expected_from(source, mode, &sent.frame, &inner, true));
                    of_flow.insert(source);
                }
                let [source] = of_flow.into_iter().collect::<Vec<_>>()[..] else { panic!("a flow with two sources") };
                assert_eq!(leading(source), leading(prefix), "{source} is in {prefix}");
                sources.insert(source);
            }
            assert!(sources.len() >= 48, "{} sources for 50 flows", sources.len());
        });
    }
}

fn outer_source(frame: &[u8]) -> IpAddr {
    if frame[IP] >> 4 == 4 {
        IpAddr::from(<[u8; 4]>::try_from(&frame[IP + 12..IP + 16]).unwrap())
    } else {
        IpAddr::from(<[u8; 16]>::try_from(&frame[IP + 8..IP + 24]).unwrap())
    }
}

/// All bits but the last 16.
fn leading(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address) >> 16),
        IpAddr::V6(address) => u128::from(address) >> 16,
    }
}

#[test]
fn the_outer_header_follows_the_policy_about_fragmenting() {
    lab(|lab| {
        let served = serve(lab, true, Protocol::Tcp, Mode::DsrIpip, true);
        let outer = |lab: &mut Lab, policy: DontFragment, dont_fragment| {
            change(lab, &served, 1, |entry| entry.dont_fragment = policy as u8);
            let frame = lab.send(Side::Front, &asked(&served, 40_000, TCP_SYN, dont_fragment).0).frame;
            let (id, flags) = (u16::from_be_bytes([frame[IP + 4], frame[IP + 5]]), frame[IP + 6]);
            (id, flags & 0x40 != 0)
        };
        assert_eq!(outer(lab, DontFragment::Copy, true), (0, true));
        assert_eq!(outer(lab, DontFragment::Copy, false), (0x1234, false));
        assert_eq!(outer(lab, DontFragment::Set, false), (0, true));
        assert_eq!(outer(lab, DontFragment::Clear, false), (0x1234, false));
        let ids: BTreeSet<u16> = (0..50)
            .map(|_| {
                let (id, dont_fragment) = outer(lab, DontFragment::Clear, true);
                assert!(!dont_fragment);
                id
            })
            .collect();
        assert!(ids.len() >= 48, "{} identifications for 50 packets", ids.len());
    });
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
        change(lab, &served, 1, |entry| entry.address = Address::v4([10, 9, 0, 1]));
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
    for (mode, outer_v4, growth) in [
        (Mode::DsrIpip, true, 20),
        (Mode::DsrIpip, false, 40),
        (Mode::DsrGre, true, 24),
        (Mode::DsrGre, false, 44),
        (Mode::DsrGue, true, 28),
        (Mode::DsrGue, false, 48),
    ] {
        lab(move |lab| {
            let served = serve(lab, true, Protocol::Udp, mode, outer_v4);
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
        change(lab, &served, 1, |entry| entry.source = Address::v4([10, 0, 0, 2]));
        let sent = lab.send(Side::Front, &asked(&served, 40_000, TCP_ACK, true).0);
        assert_eq!(sent.frame[IP + 12..IP + 16], [10, 0, 0, 2]);
        assert_eq!(lab.flows().len(), 1);
    });
}
