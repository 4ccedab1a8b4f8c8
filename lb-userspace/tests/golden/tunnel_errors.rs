//! ICMP errors about our tunnels: clients learn what fits, in the service's name.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    abi::{Mode, Protocol},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    counters::assert_counted,
    frames::{ETHERNET, Packet, Segment, verified},
    icmp_wire::{Kind, error},
    lab::{
        KINDS, Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, request,
        source, vip,
    },
};

/// Bytes of the outer IP header.
const fn growth(outer_v4: bool) -> usize {
    if outer_v4 { 20 } else { 40 }
}

fn near_router(v4: bool) -> IpAddr {
    if v4 { "10.0.0.254" } else { "2001:db8:2::fe" }.parse().unwrap()
}

fn serve(lab: &mut Lab, v4: bool, protocol: Protocol, outer_v4: bool) -> Served {
    serve_in(lab, Mode::DsrIpip, v4, protocol, outer_v4)
}

fn serve_in(lab: &mut Lab, mode: Mode, v4: bool, protocol: Protocol, outer_v4: bool) -> Served {
    let served = lab.serve(Spec { backend_port: 0, ..Spec::new(v4, protocol, mode) });
    let mut entry = lab.data.read().unwrap().backends[&served.backends[0]];
    (entry.address, entry.source) = (backend(outer_v4, 1).into(), source(outer_v4).into());
    lab.apply(Op::SetBackend { id: served.backends[0], backend: entry });
    served
}

/// Sends a client's packet with so much payload; gives what goes into the tunnel's wire from the outer
/// header on.
fn tunnelled(lab: &mut Lab, served: &Served, flags: u8, payload: usize) -> Vec<u8> {
    let mut asked = request(served, 40_000, flags);
    let payload: Vec<u8> = (0..payload).map(|n| (n * 3 + 1) as u8).collect();
    asked.segment = match served.spec.protocol {
        Protocol::Tcp => Segment::tcp(40_000, 80, flags, &payload),
        _ => Segment::udp(40_000, 80, &payload),
    };
    let sent = lab.send(Side::Front, &from_client(&asked));
    assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
    sent.frame[ETHERNET..].to_vec()
}

/// What the router has to say about the packet, quoting so many bytes of it.
fn told(outer_v4: bool, kind: Kind, wire: &[u8], quoted: usize) -> Packet {
    error(near_router(outer_v4), source(outer_v4), kind, &wire[..quoted.min(wire.len())])
}

/// What the client is told: less than the outer header takes, and of its own packet as much as is known.
fn relayed(v4: bool, mtu: usize, wire: &[u8], growth: usize, quoted: usize) -> Packet {
    let inner = &wire[growth..quoted.min(wire.len())];
    let most = if v4 { 548 } else { 1232 };
    error(vip(v4), client(v4), Kind::TooBig(mtu as u16), &inner[..inner.len().min(most)])
}

#[test]
fn the_client_is_told_what_fits_into_the_tunnel() {
    told_what_fits(Mode::DsrIpip, 0);
}

#[test]
fn the_client_is_told_what_fits_into_gre() {
    told_what_fits(Mode::DsrGre, 4);
}

/// `between`: bytes between the outer IP header and the client's packet.
fn told_what_fits(mode: Mode, between: usize) {
    for (v4, protocol) in KINDS {
        for outer_v4 in [true, false] {
            lab(move |lab| {
                let served = serve_in(lab, mode, v4, protocol, outer_v4);
                tunnelled(lab, &served, TCP_SYN, 0);
                let wire = tunnelled(lab, &served, TCP_ACK, 1300);
                let growth = growth(outer_v4) + between;
                let shortest = growth + if v4 { 28 } else { 48 };
                for quoted in [shortest, shortest + 1, shortest + 13, 548, 1232, 1500] {
                    let frame = from_backend(1, &told(outer_v4, Kind::TooBig(1400), &wire, quoted));
                    let sent = lab.send(Side::Back, &frame);
                    assert_eq!(sent.exit, "redirect", "{quoted}: {:?}", sent.counted);
                    let wanted = relayed(v4, 1400 - growth, &wire, growth, quoted);
                    assert_frame(&sent.frame, &lab.to_client(&wanted));
                    verified(&sent.frame);
                    assert_counted(&sent, &[&format!("error_to_client 1 x {}", frame.len())]);
                }
                assert_eq!(lab.flows().len(), 1);
            });
        }
    }
}

#[test]
fn an_old_routers_silence_about_the_mtu_is_passed_on() {
    lab(|lab| {
        let served = serve(lab, true, Protocol::Udp, true);
        let wire = tunnelled(lab, &served, 0, 1000);
        let frame = from_backend(1, &told(true, Kind::TooBig(0), &wire, 548));
        let sent = lab.send(Side::Back, &frame);
        assert_frame(&sent.frame, &lab.to_client(&relayed(true, 0, &wire, 20, 548)));
    });
}

#[test]
fn no_ipv6_client_is_told_less_than_every_link_takes() {
    lab(|lab| {
        let served = serve(lab, false, Protocol::Udp, true);
        let wire = tunnelled(lab, &served, 0, 1300);
        let frame = from_backend(1, &told(true, Kind::TooBig(1000), &wire, 548));
        let sent = lab.send(Side::Back, &frame);
        assert_frame(&sent.frame, &lab.to_client(&relayed(false, 1280, &wire, 20, 548)));
    });
}

#[track_caller]
fn assert_passed(lab: &mut Lab, frame: &[u8], reason: &str) {
    let sent = lab.send(Side::Back, frame);
    assert_eq!(sent.exit, "pass", "{:?}", sent.counted);
    assert_frame(&sent.frame, frame);
    assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
}

#[test]
fn what_no_client_can_be_told_is_the_hosts() {
    for (v4, outer_v4) in [(true, true), (true, false), (false, true), (false, false)] {
        lab(move |lab| {
            let served = serve(lab, v4, Protocol::Tcp, outer_v4);
            let wire = tunnelled(lab, &served, TCP_SYN, 400);
            let big = Kind::TooBig(1400);
            let shortest = growth(outer_v4) + if v4 { 28 } else { 48 };
            let mut pass = |packet: &Packet| assert_passed(lab, &from_backend(1, packet), "tunnel_error");
            pass(&told(outer_v4, Kind::PortUnreachable, &wire, 548));
            pass(&told(outer_v4, Kind::TimeExceeded, &wire, 548));
            // Without the client's ports.
            pass(&told(outer_v4, big, &wire, shortest - 1));
            pass(&told(outer_v4, big, &wire, growth(outer_v4) + 8));
            // Of a flow that is none.
            let mut other = wire.clone();
            other[shortest - 7] ^= 1;
            pass(&told(outer_v4, big, &other, 548));
            // From a tunnel to another host.
            let mut other = wire.clone();
            other[if outer_v4 { 19 } else { 39 }] ^= 1;
            pass(&told(outer_v4, big, &other, 548));
            // Damaged on its way.
            let mut frame = from_backend(1, &told(outer_v4, big, &wire, 548));
            *frame.last_mut().unwrap() ^= 1;
            assert_passed(lab, &frame, "tunnel_error");
        });
    }
}

#[test]
fn an_error_that_quotes_ipip_of_a_flow_without_tunnel_is_the_hosts() {
    lab(|lab| {
        let tunnel = serve(lab, true, Protocol::Udp, true);
        let wire = tunnelled(lab, &tunnel, 0, 100);
        lab.serve(Spec { backend_port: 0, ..Spec::new(true, Protocol::Udp, Mode::DsrL2) });
        // The key of the first service has the second's value now, and its flow is another.
        let asker: SocketAddr = (client(true), 40_000).into();
        let asked = packet(asker, (vip(true), 80).into(), 64, Protocol::Udp, 0);
        assert_eq!(lab.send(Side::Front, &from_client(&asked)).exit, "redirect");
        assert_passed(lab, &from_backend(1, &told(true, Kind::TooBig(1400), &wire, 548)), "tunnel_error");
    });
}

#[test]
fn an_error_that_quotes_another_tunnel_than_the_flows_is_the_hosts() {
    for (mode, protocol) in [(Mode::DsrIpip, 47), (Mode::DsrGre, 4)] {
        lab(move |lab| {
            let served = serve_in(lab, mode, true, Protocol::Udp, true);
            let mut wire = tunnelled(lab, &served, 0, 100);
            wire[9] = protocol;
            if mode == Mode::DsrIpip {
                wire.splice(20..20, [0, 0, 8, 0]);
            } else {
                wire.drain(20..24);
            }
            let error = told(true, Kind::TooBig(1400), &wire, 548);
            assert_passed(lab, &from_backend(1, &error), "tunnel_error");
        });
    }
}

#[test]
fn what_is_told_about_tunnels_is_limited() {
    lab(|lab| {
        let served = serve(lab, true, Protocol::Udp, true);
        let wire = tunnelled(lab, &served, 0, 1000);
        let frame = from_backend(1, &told(true, Kind::TooBig(1400), &wire, 548));
        let exits =
            lab.send_from_all_cpus(Side::Back, |cpu| if cpu == 0 { vec![frame.clone(); 20_000] } else { vec![] });
        assert_eq!(exits["redirect"] + exits["drop"], 20_000);
        assert!((128..=16 * 128).contains(&exits["redirect"]), "{exits:?}");
    });
}
