//! MSS clamping: SYNs announce what fits, in both directions, and other packets are as they were.

use std::net::SocketAddr;

use etherparse::TcpOptions;
use lb_common::{
    abi::{Mode, Protocol, ServiceValue},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::dataplane::{Dataplane as _, Op};

use crate::{
    frames::{Packet, Segment, tunnelled},
    lab::{
        Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, ip_batch, lab, packet,
        source, vip,
    },
};

fn serve(lab: &mut Lab, spec: Spec, mss: u16) -> Served {
    let served = lab.serve(spec);
    lab.publish(&served, ServiceValue { mss, ..served.value });
    served
}

/// A TCP packet that announces this MSS, behind options of an odd length.
fn announcing(from: SocketAddr, to: SocketAddr, ttl: u8, flags: u8, mss: u16) -> Packet {
    let mut packet = packet(from, to, ttl, Protocol::Tcp, flags);
    let [high, low] = mss.to_be_bytes();
    if let Segment::Tcp { header, .. } = &mut packet.segment {
        header.options = TcpOptions::try_from_slice(&[3, 3, 7, 2, 4, high, low, 1]).unwrap();
    }
    packet
}

/// What arrives of an MSS of 1,460 in a SYN and in its SYN-ACK.
#[track_caller]
fn assert_clamped(lab: &mut Lab, v4: bool, mode: Mode, wanted: u16) {
    let (service, server) = ((vip(v4), 80).into(), (backend(v4, 1), 8080).into());
    let asker: SocketAddr = (client(v4), 40_000).into();
    let sent = lab.send(Side::Front, &from_client(&announcing(asker, service, 64, TCP_SYN, 1460)));
    assert_eq!(sent.exit, "redirect");
    let seen_as = lab.flow().source;
    assert!(mode == Mode::FullNat || seen_as == asker);
    assert_frame(&sent.frame, &lab.to_backend(1, &announcing(seen_as, server, 63, TCP_SYN, wanted)));
    let reply = from_backend(1, &announcing(server, seen_as, 64, TCP_SYN | TCP_ACK, 1460));
    let sent = lab.send(Side::Back, &reply);
    assert_eq!(sent.exit, "redirect");
    assert_frame(&sent.frame, &lab.to_client(&announcing(service, asker, 63, TCP_SYN | TCP_ACK, wanted)));
    // What only looks like it: not a SYN.
    let sent = lab.send(Side::Front, &from_client(&announcing(asker, service, 64, TCP_ACK, 1460)));
    assert_frame(&sent.frame, &lab.to_backend(1, &announcing(seen_as, server, 63, TCP_ACK, 1460)));
}

#[test]
fn a_number_bounds_what_both_sides_announce() {
    for (v4, mode) in [true, false].iter().flat_map(|v4| [Mode::Nat, Mode::FullNat].map(|mode| (*v4, mode))) {
        for (mss, wanted) in [(0, 1460), (1300, 1300), (1460, 1460), (9000, 1460)] {
            lab(move |lab| {
                serve(lab, Spec::new(v4, Protocol::Tcp, mode), mss);
                assert_clamped(lab, v4, mode, wanted);
            });
        }
    }
}

#[test]
fn automatically_it_follows_the_smaller_mtu_of_both_sides() {
    for (v4, mode) in [true, false].iter().flat_map(|v4| [Mode::Nat, Mode::FullNat].map(|mode| (*v4, mode))) {
        for (narrow, mtu) in [("front", 1400), ("back", 1300)] {
            lab(move |lab| {
                ip_batch(&format!("link set {narrow} mtu {mtu}\n"));
                serve(lab, Spec::new(v4, Protocol::Tcp, mode), ServiceValue::MSS_AUTO);
                assert_clamped(lab, v4, mode, mtu - if v4 { 40 } else { 60 });
            });
        }
    }
}

#[test]
fn automatically_a_syn_to_a_tunnel_has_room_for_its_headers() {
    for (v4, outer_v4, growth) in [(true, true, 20), (true, false, 40), (false, true, 20), (false, false, 40)] {
        lab(move |lab| {
            let spec = Spec { backend_port: 0, ..Spec::new(v4, Protocol::Tcp, Mode::DsrIpip) };
            let served = serve(lab, spec, ServiceValue::MSS_AUTO);
            let mut entry = lab.data.read().unwrap().backends[&served.backends[0]];
            (entry.address, entry.source) = (backend(outer_v4, 1).into(), source(outer_v4).into());
            lab.apply(Op::SetBackend { id: served.backends[0], backend: entry });
            let (asker, service) = ((client(v4), 40_000).into(), (vip(v4), 80).into());
            let sent = lab.send(Side::Front, &from_client(&announcing(asker, service, 64, TCP_SYN, 1460)));
            let label =
                if outer_v4 { 0 } else { u32::from_be_bytes(sent.frame[14..18].try_into().unwrap()) & 0xf_ffff };
            let mss = 1500 - growth - if v4 { 40 } else { 60 };
            let inner = lab.to_backend(1, &announcing(asker, service, 63, TCP_SYN, mss));
            assert_frame(&sent.frame, &tunnelled(&inner, source(outer_v4), backend(outer_v4, 1), label, None));
        });
    }
}

#[test]
fn a_service_on_every_port_clamps_replies_too() {
    lab(|lab| {
        let spec = Spec { port: 0, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) };
        serve(lab, spec, 1000);
        assert_clamped(lab, true, Mode::FullNat, 1000);
    });
}
