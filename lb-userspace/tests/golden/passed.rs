//! What is not ours goes to the host's stack untouched, and is counted under its reason.

use lb_common::{
    abi::{Mode, Protocol},
    flow::{TCP_ACK, TCP_SYN},
};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment, fragment, routing},
    lab::{
        Lab, Served, Side, Spec, assert_frame, backend, client, from_backend, from_client, lab, packet, request,
        source, vip,
    },
};

#[track_caller]
fn assert_passed(lab: &mut Lab, side: Side, frame: &[u8], reason: &str) {
    let sent = lab.send(side, frame);
    assert_eq!(sent.exit, "pass", "{reason}");
    assert_frame(&sent.frame, frame);
    assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
}

fn served(lab: &mut Lab, v4: bool) -> Served {
    lab.serve(Spec::new(v4, Protocol::Tcp, Mode::FullNat))
}

fn between(from: &str, to: &str, segment: Segment) -> Vec<u8> {
    from_client(&Packet::new(from, to, segment))
}

fn with_ethertype(mut frame: Vec<u8>, ethertype: u16) -> Vec<u8> {
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame
}

#[test]
fn frames_that_are_no_plain_ip_are_passed() {
    lab(|lab| {
        let served = served(lab, true);
        let ask = from_client(&request(&served, 40_000, TCP_SYN));
        // ARP, LLDP, and a length instead of a type (802.3).
        for ethertype in [0x0806, 0x88cc, 0x0040] {
            assert_passed(lab, Side::Front, &with_ethertype(ask.clone(), ethertype), "not_ip");
        }
    });
}

#[test]
fn packets_to_other_addresses_are_passed_whatever_they_are() {
    lab(|lab| {
        served(lab, true);
        let tcp = || Segment::tcp(40_000, 80, TCP_SYN, b"x");
        let other = "203.0.113.11";
        assert_passed(lab, Side::Front, &between("198.51.100.7", other, tcp()), "not_for_us");
        let options = Packet::new("198.51.100.7", other, tcp()).options(&[7, 4, 4, 0]);
        assert_passed(lab, Side::Front, &from_client(&options), "not_for_us");
        assert_passed(lab, Side::Front, &between("2001:db8:c::7", "2001:db8:f::11", tcp()), "not_for_us");
        let mut fragmented = between("198.51.100.7", other, tcp());
        fragmented[20] = 0x20;
        assert_passed(lab, Side::Front, &fragmented, "not_for_us");
        let mut truncated = between("198.51.100.7", other, tcp());
        truncated.truncate(40);
        assert_passed(lab, Side::Front, &truncated, "not_for_us");
        let echo = Segment::Other { protocol: 1, bytes: vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0] };
        assert_passed(lab, Side::Front, &between("198.51.100.7", "192.0.2.1", echo), "not_for_us");
    });
}

#[test]
fn neighbour_discovery_and_ssh_to_the_host_are_passed() {
    lab(|lab| {
        served(lab, false);
        let solicitation = Segment::Other { protocol: 58, bytes: vec![135, 0, 0, 0, 0, 0, 0, 0] };
        assert_passed(lab, Side::Front, &between("2001:db8:1::fe", "ff02::1:ff00:1", solicitation), "not_for_us");
        let ssh = Segment::tcp(40_000, 22, TCP_SYN, b"");
        assert_passed(lab, Side::Front, &between("2001:db8:c::7", "2001:db8:1::1", ssh), "not_for_us");
    });
}

#[test]
fn other_ports_and_protocols_of_a_service_address_belong_to_the_host() {
    lab(|lab| {
        served(lab, true);
        let to = |segment| between("198.51.100.7", "203.0.113.10", segment);
        assert_passed(lab, Side::Front, &to(Segment::tcp(40_000, 22, TCP_SYN, b"")), "no_service");
        assert_passed(lab, Side::Front, &to(Segment::udp(40_000, 80, b"")), "no_service");
        let timestamp = Segment::Other { protocol: 1, bytes: vec![13, 0, 0xf2, 0xff, 0, 0, 0, 0] };
        assert_passed(lab, Side::Front, &to(timestamp), "not_transport");
        let gre = Segment::Other { protocol: 47, bytes: vec![0; 32] };
        assert_passed(lab, Side::Front, &to(gre), "not_transport");
    });
}

#[test]
fn packets_on_their_way_to_further_nodes_are_left_to_the_host() {
    lab(|lab| {
        let served = served(lab, false);
        let routed = from_client(&request(&served, 40_000, TCP_SYN).extension(routing(1)));
        assert_passed(lab, Side::Front, &routed, "not_transport");
        // An atomic fragment is a whole packet.
        let whole = from_client(&request(&served, 40_000, TCP_SYN).extension(fragment(0, false)));
        assert_eq!(lab.send(Side::Front, &whole).exit, "redirect");
    });
}

#[test]
fn expired_packets_are_left_to_the_host() {
    for v4 in [true, false] {
        lab(move |lab| {
            let served = served(lab, v4);
            for ttl in [0, 1] {
                let ask = packet((client(v4), 40_000).into(), (vip(v4), 80).into(), ttl, Protocol::Tcp, TCP_SYN);
                assert_passed(lab, Side::Front, &from_client(&ask), "ttl_expired");
            }
            assert!(lab.flows().is_empty(), "an expired packet begins nothing");
            lab.send(Side::Front, &from_client(&request(&served, 40_000, TCP_SYN)));
            let answer = packet((backend(v4, 1), 8080).into(), lab.flow().source, 1, Protocol::Tcp, TCP_ACK);
            assert_passed(lab, Side::Back, &from_backend(1, &answer), "ttl_expired");
        });
    }
}

#[test]
fn what_backends_say_outside_of_flows_is_the_hosts() {
    for v4 in [true, false] {
        lab(move |lab| {
            served(lab, v4);
            // The answer to a health check: to the host's own address, of no flow.
            let answer = packet((backend(v4, 1), 8080).into(), (source(v4), 58_000).into(), 64, Protocol::Tcp, TCP_ACK);
            assert_passed(lab, Side::Back, &from_backend(1, &answer), "no_flow");
        });
        lab(move |lab| {
            lab.serve(Spec::new(v4, Protocol::Tcp, Mode::Nat));
            // A backend of a `nat` service that opens a connection of its own through the host.
            let own = packet((backend(v4, 1), 50_000).into(), (client(v4), 443).into(), 64, Protocol::Tcp, TCP_SYN);
            assert_passed(lab, Side::Back, &from_backend(1, &own), "no_flow");
        });
    }
}

/// What makes a whole packet a broken one.
type Break = fn(&mut Vec<u8>);

#[test]
fn malformed_packets_are_dropped_if_they_claim_to_be_for_a_service() {
    lab(|lab| {
        let served = served(lab, true);
        let whole = from_client(&request(&served, 40_000, TCP_SYN));
        let broken: [(&str, Break); 6] = [
            ("header length below 5 words", |f| f[14] = 0x44),
            ("version 5", |f| f[14] = 0x55),
            ("longer than the frame", |f| f[16] = 1),
            ("shorter than its header", |f| (f[16], f[17]) = (0, 19)),
            ("TCP header below 5 words", |f| f[46] = 0x40),
            ("TCP header beyond the end", |f| f[46] = 0xf0),
        ];
        for (what, breaks) in broken {
            let mut frame = whole.clone();
            breaks(&mut frame);
            let sent = lab.send(Side::Front, &frame);
            assert_eq!(sent.exit, "drop", "{what}");
            assert_counted(&sent, &[&format!("malformed 1 x {}", frame.len())]);
        }
        assert!(lab.flows().is_empty());
    });
}

#[test]
fn malformed_packets_to_the_host_itself_are_passed() {
    lab(|lab| {
        served(lab, true);
        let mut frame =
            from_backend(1, &packet((backend(true, 1), 1).into(), (source(true), 2).into(), 64, Protocol::Udp, 0));
        // A UDP length of 4.
        (frame[38], frame[39]) = (0, 4);
        assert_passed(lab, Side::Back, &frame, "malformed_passed");
        let short = &from_client(&packet((client(true), 1).into(), (vip(true), 80).into(), 64, Protocol::Udp, 0))[..30];
        assert_passed(lab, Side::Front, short, "malformed_passed");
    });
}
