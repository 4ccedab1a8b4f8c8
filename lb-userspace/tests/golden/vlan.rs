//! Frames with VLAN tags. Where the kernel has no VLAN interfaces, bridges stand in for them: what
//! the program knows of a VLAN interface is its number.

use lb_common::{
    abi::{BackendState, Mode, Protocol, VlanLink, VlanTag, VlanTags},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::{dataplane::kernel::ifindex, host::VlanDevice};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, verified},
    lab::{
        BACK_MAC, KINDS, Lab, ROUTER_MAC, Side, Spec, assert_frame, backend, backend_mac, client, from_backend,
        from_client, ip_batch, lab, packet, request, vip,
    },
};

const Q: u16 = 0x8100;
const S: u16 = 0x88a8;

/// The frame with tags (TPID and TCI), outer first.
fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    [&frame[..12], &tags.collect::<Vec<_>>(), &frame[12..]].concat()
}

const VLAN_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];

/// An interface that stands in for a VLAN's, with the network 10.9.0.0/24 behind it and a host in
/// that.
fn stand_in(lab: &mut Lab, name: &str, parent: &str, tags: &[(u16, u16)], network: u8) -> u32 {
    ip_batch(&format!(
        "link add {name} address 02:00:00:00:09:01 type bridge\nlink set {name} up\n\
         addr add 10.{network}.0.1/24 dev {name}\n\
         neigh add 10.{network}.0.11 lladdr 02:00:00:00:02:11 dev {name} nud permanent\n"
    ));
    std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"), "1").unwrap();
    let number = ifindex(name).unwrap();
    let mut of = tags.iter().map(|(tpid, id)| VlanTag::new(*tpid, *id));
    let tags = VlanTags { outer: of.next().unwrap(), inner: of.next().unwrap_or(VlanTag::NONE) };
    let device =
        VlanDevice { ifindex: number, mac: VLAN_MAC, link: VlanLink { parent: ifindex(parent).unwrap(), tags } };
    lab.vlans.push(device);
    lab.tell_vlans();
    number
}

#[test]
fn tags_are_kept_both_ways_where_the_host_has_no_such_vlan() {
    for (v4, protocol) in KINDS {
        for mode in [Mode::Nat, Mode::FullNat] {
            for tags in [&[(Q, 100)][..], &[(S, 0xb064)], &[(S, 200), (Q, 0x6014)]] {
                lab(move |lab| {
                    let served = lab.serve(Spec::new(v4, protocol, mode));
                    let ask = from_client(&request(&served, 40_000, TCP_SYN));
                    let sent = lab.send(Side::Front, &tagged(&ask, tags));
                    let (flow, server) = (lab.flow(), (backend(v4, 1), 8080).into());
                    assert_eq!(sent.exit, "redirect");
                    let wanted = lab.to_backend(1, &packet(flow.source, server, 63, protocol, TCP_SYN));
                    assert_frame(&sent.frame, &tagged(&wanted, tags));
                    // Without tags.
                    let n = ask.len();
                    assert!(sent.counted.contains(&format!("to_backend 1 x {n}")), "{:?}", sent.counted);
                    assert!(sent.counted.contains(&format!("service 0 forward 1 x {n}")), "{:?}", sent.counted);

                    let reply = from_backend(1, &packet(server, flow.source, 64, protocol, TCP_ACK));
                    let sent = lab.send(Side::Back, &tagged(&reply, tags));
                    assert_eq!(sent.exit, "redirect");
                    let (us, them) = ((vip(v4), 80).into(), (client(v4), 40_000).into());
                    let wanted = lab.to_client(&packet(us, them, 63, protocol, TCP_ACK));
                    assert_frame(&sent.frame, &tagged(&wanted, tags));
                });
            }
        }
    }
}

#[test]
fn what_is_not_ours_passes_with_its_tags() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        let ask = from_client(&request(&served, 40_000, TCP_SYN));
        let mut other = ask.clone();
        other[33] ^= 1;
        let mut port = ask.clone();
        port[37] ^= 1;
        let mut arp = ask.clone();
        arp[12..14].copy_from_slice(&[8, 6]);
        let mut cases = vec![];
        for tags in [&[(Q, 100)][..], &[(S, 200), (Q, 20)]] {
            cases.extend([
                ("not_for_us", tagged(&other, tags), other.len()),
                ("no_service", tagged(&port, tags), port.len()),
                ("not_ip", tagged(&arp, tags), arp.len()),
            ]);
        }
        // Three tags; a tag and nothing behind it; and broken off in the IP header.
        let three = tagged(&ask, &[(S, 1), (S, 2), (Q, 3)]);
        cases.push(("not_ip", three.clone(), three.len()));
        let broken = tagged(&ask, &[(Q, 5)])[..20].to_vec();
        cases.push(("not_ip", broken[..18].to_vec(), 18));
        cases.push(("malformed_passed", broken, 16));
        for (reason, frame, n) in cases {
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "pass", "{reason}");
            assert_frame(&sent.frame, &frame);
            assert_counted(&sent, &[&format!("{reason} 1 x {n}")]);
        }
    });
}

#[test]
fn answers_go_back_with_the_tags_of_the_question() {
    lab(|lab| {
        let served = lab.serve(Spec { backends: 0, ..Spec::new(true, Protocol::Udp, Mode::Nat) });
        let (tags, n) = ([(S, 0xa0c8), (Q, 20)], request(&served, 40_000, 0).frame().len());
        let ask = from_client(&request(&served, 40_000, 0));
        let plain = lab.send(Side::Front, &ask);
        let sent = lab.send(Side::Front, &tagged(&ask, &tags));
        assert_eq!((plain.exit, sent.exit), ("tx", "tx"));
        assert_frame(&sent.frame, &tagged(&plain.frame, &tags));
        verified(&plain.frame);
        assert_counted(&sent, &[&format!("no_backend 1 x {n}"), "service 0 refused 1"]);

        let mut echo = Packet::new("198.51.100.7", "203.0.113.10", Segment::udp(0, 0, b""));
        echo.segment = Segment::Other { protocol: 1, bytes: vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0] };
        let ping = from_client(&echo);
        let plain = lab.send(Side::Front, &ping);
        let sent = lab.send(Side::Front, &tagged(&ping, &tags));
        assert_eq!((plain.exit, sent.exit), ("tx", "tx"));
        assert_frame(&sent.frame, &tagged(&plain.frame, &tags));
        assert_counted(&sent, &[&format!("echo 1 x {}", ping.len())]);
    });
}

#[test]
fn a_malformed_tagged_packet_is_dropped() {
    lab(|lab| {
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        let mut frame = from_client(&request(&served, 40_000, TCP_SYN));
        frame[46] = 0x40;
        let sent = lab.send(Side::Front, &tagged(&frame, &[(Q, 100)]));
        assert_eq!(sent.exit, "drop");
        assert_counted(&sent, &[&format!("malformed 1 x {}", frame.len())]);
    });
}

#[test]
fn tagged_packets_go_into_tunnels() {
    lab(|lab| {
        let served = lab.serve(Spec { backend_port: 0, ..Spec::new(true, Protocol::Udp, Mode::DsrIpip) });
        let ask = from_client(&request(&served, 40_000, 0));
        let plain = lab.send(Side::Front, &ask);
        let sent = lab.send(Side::Front, &tagged(&ask, &[(Q, 100)]));
        assert_eq!((plain.exit, sent.exit), ("redirect", "redirect"));
        assert_frame(&sent.frame, &tagged(&plain.frame, &[(Q, 100)]));
    });
}

#[test]
fn jumbo_frames_keep_their_tags() {
    lab(|lab| {
        ip_batch("link set front mtu 9000\nlink set back mtu 9000\n");
        let served = lab.serve(Spec::new(true, Protocol::Udp, Mode::Nat));
        let mut ask = request(&served, 40_000, 0);
        ask.segment = Segment::udp(40_000, 80, &[7; 8000]);
        let plain = lab.send(Side::Front, &from_client(&ask));
        let sent = lab.send(Side::Front, &tagged(&from_client(&ask), &[(S, 1), (Q, 2)]));
        assert_eq!(sent.exit, "redirect");
        assert_frame(&sent.frame, &tagged(&plain.frame, &[(S, 1), (Q, 2)]));
        assert_counted(&sent, &["to_backend 1 x 8042", "service 0 forward 1 x 8042", "backend 0 forward 1 x 8042"]);
    });
}

/// A `nat` service of a backend behind the VLAN of network 10.9.0.0/24, and the client's first
/// packet as it has to reach it.
fn behind_the_vlan(lab: &mut Lab, mode: Mode) -> (Vec<u8>, Vec<u8>) {
    use lb_userspace::dataplane::{Dataplane as _, Op};
    let served = lab.serve(Spec::new(true, Protocol::Tcp, mode));
    let id = served.backends[0];
    let mut entry = lab.data.read().unwrap().backends[&id];
    assert_eq!(entry.state, BackendState::Live as u8);
    entry.address = lb_common::abi::Address::v4([10, 9, 0, 11]);
    lab.apply(Op::SetBackend { id, backend: entry });
    let ask = from_client(&request(&served, 40_000, TCP_SYN));
    let server = "10.9.0.11:8080".parse().unwrap();
    let mut wanted = packet((client(true), 40_000).into(), server, 63, Protocol::Tcp, TCP_SYN).frame();
    wanted[..6].copy_from_slice(&backend_mac(1));
    wanted[6..12].copy_from_slice(&VLAN_MAC);
    (ask, wanted)
}

#[test]
fn a_packet_without_tags_gets_those_of_the_vlan_it_leaves_by() {
    for tags in [&[(Q, 100)][..], &[(S, 200), (Q, 20)]] {
        lab(move |lab| {
            stand_in(lab, "v-back", "back", tags, 9);
            let (ask, wanted) = behind_the_vlan(lab, Mode::Nat);
            let sent = lab.send(Side::Front, &ask);
            assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
            assert_frame(&sent.frame, &tagged(&wanted, tags));
            // To a VLAN on the interface that it came in by.
            let sent = lab.send(Side::Back, &ask);
            assert_eq!(sent.exit, "tx", "{:?}", sent.counted);
            assert_frame(&sent.frame, &tagged(&wanted, tags));
        });
    }
}

#[test]
fn a_packet_of_one_vlan_goes_out_by_another_with_its_priority() {
    lab(|lab| {
        stand_in(lab, "v-front", "front", &[(Q, 7)], 8);
        stand_in(lab, "v-back", "back", &[(S, 200), (Q, 20)], 9);
        let (ask, wanted) = behind_the_vlan(lab, Mode::Nat);
        let sent = lab.send(Side::Front, &tagged(&ask, &[(Q, 0xa007)]));
        assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
        assert_frame(&sent.frame, &tagged(&wanted, &[(S, 0xa0c8), (Q, 20)]));
    });
}

#[test]
fn a_packet_of_a_vlan_loses_its_tags_where_its_way_out_has_none() {
    lab(|lab| {
        stand_in(lab, "v-front", "front", &[(Q, 7)], 8);
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        let ask = from_client(&request(&served, 40_000, TCP_SYN));
        let sent = lab.send(Side::Front, &tagged(&ask, &[(Q, 7)]));
        let server = (backend(true, 1), 8080).into();
        assert_eq!(sent.exit, "redirect");
        let wanted = packet((client(true), 40_000).into(), server, 63, Protocol::Tcp, TCP_SYN);
        assert_frame(&sent.frame, &lab.to_backend(1, &wanted));
        // The same from a VLAN on the interface of the backends: back out of it.
        stand_in(lab, "v-other", "back", &[(Q, 8)], 7);
        let sent = lab.send(Side::Back, &tagged(&ask, &[(Q, 8)]));
        assert_eq!(sent.exit, "tx");
        assert_frame(&sent.frame, &lab.to_backend(1, &wanted));
    });
}

#[test]
fn one_arm_on_a_vlan_sends_back_into_it() {
    lab(|lab| {
        stand_in(lab, "v-back", "back", &[(Q, 9)], 9);
        let (ask, wanted) = behind_the_vlan(lab, Mode::Nat);
        let sent = lab.send(Side::Back, &tagged(&ask, &[(Q, 0x2009)]));
        assert_eq!(sent.exit, "tx");
        assert_frame(&sent.frame, &tagged(&wanted, &[(Q, 0x2009)]));
    });
}

#[test]
fn routes_are_asked_for_the_vlan_that_a_packet_came_in_by() {
    lab(|lab| {
        // A rule for the VLAN alone leads elsewhere.
        stand_in(lab, "v-front", "front", &[(Q, 7)], 8);
        ip_batch("rule add iif v-front lookup 77\nroute add 10.0.0.11 via 10.0.0.12 dev back table 77\n");
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        let ask = from_client(&request(&served, 40_000, TCP_SYN));
        assert_eq!(lab.send(Side::Front, &ask).frame[..6], backend_mac(1));
        assert_eq!(lab.send(Side::Front, &tagged(&ask, &[(Q, 8)])).frame[..6], backend_mac(1));
        assert_eq!(lab.send(Side::Front, &tagged(&ask, &[(Q, 7)])).frame[..6], backend_mac(2));
        // Where the VLAN interface does not forward, the host's routes do not lead anywhere.
        std::fs::write("/proc/sys/net/ipv4/conf/v-front/forwarding", "0").unwrap();
        lab.until_ways_are_asked_for();
        let sent = lab.send(Side::Front, &tagged(&ask, &[(Q, 7)]));
        assert!(sent.counted.contains(&format!("no_route 1 x {}", ask.len())), "{:?}", sent.counted);
    });
}

#[test]
fn a_client_without_neighbour_entry_is_answered_into_its_vlan() {
    lab(|lab| {
        stand_in(lab, "v-front", "front", &[(Q, 7)], 8);
        let served = lab.serve(Spec::new(true, Protocol::Tcp, Mode::Nat));
        let near = "10.8.0.77:40000".parse().unwrap();
        let mut frame = from_client(&packet(near, (vip(true), 80).into(), 64, Protocol::Tcp, TCP_SYN));
        frame[6..12].copy_from_slice(&ROUTER_MAC);
        assert_eq!(lab.send(Side::Front, &tagged(&frame, &[(Q, 7)])).exit, "redirect");
        let server = (backend(true, 1), 8080).into();
        let reply = packet(server, near, 64, Protocol::Tcp, TCP_SYN | TCP_ACK);
        let sent = lab.send(Side::Back, &from_backend(1, &reply));
        assert_eq!(sent.exit, "redirect", "{:?}", sent.counted);
        let mut wanted = packet((vip(true), 80).into(), near, 63, Protocol::Tcp, TCP_SYN | TCP_ACK).frame();
        wanted[..6].copy_from_slice(&ROUTER_MAC);
        wanted[6..12].copy_from_slice(&VLAN_MAC);
        assert_frame(&sent.frame, &tagged(&wanted, &[(Q, 7)]));
        assert_eq!(served.id, 0);
    });
}

#[test]
fn vlans_that_are_gone_are_forgotten() {
    lab(|lab| {
        stand_in(lab, "v-back", "back", &[(Q, 100)], 9);
        let (ask, wanted) = behind_the_vlan(lab, Mode::Nat);
        assert_frame(&lab.send(Side::Front, &ask).frame, &tagged(&wanted, &[(Q, 100)]));
        lab.vlans[0].link.tags.outer = VlanTag::new(Q, 101);
        lab.tell_vlans();
        assert_frame(&lab.send(Side::Front, &ask).frame, &tagged(&wanted, &[(Q, 101)]));
        lab.vlans.clear();
        lab.tell_vlans();
        // Now it is an interface like any other.
        assert_frame(&lab.send(Side::Front, &ask).frame, &wanted);
        assert_eq!(BACK_MAC[4], 2);
    });
}
