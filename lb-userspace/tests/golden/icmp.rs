//! ICMP to our addresses: echo requests are answered for services and left to the host otherwise.

use std::net::IpAddr;

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, SlicedPacket, TransportSlice};
use lb_common::abi::{Mode, Protocol};

use crate::{
    counters::assert_counted,
    frames::{Packet, Segment},
    lab::{Side, Spec, assert_frame, client, from_client, lab, source, vip},
};

const DATA: &[u8] = b"are you there?";
const ECHO: IcmpEchoHeader = IcmpEchoHeader { id: 0x1234, seq: 7 };

fn echo(from: IpAddr, to: IpAddr, request: bool) -> Packet {
    let segment = match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let kind = if request { Icmpv6Type::EchoRequest(ECHO) } else { Icmpv6Type::EchoReply(ECHO) };
            let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), DATA).unwrap();
            Segment::Other { protocol: 58, bytes: [&header.to_bytes()[..], DATA].concat() }
        }
        _ => {
            let kind = if request { Icmpv4Type::EchoRequest(ECHO) } else { Icmpv4Type::EchoReply(ECHO) };
            let header = Icmpv4Header::with_checksum(kind, DATA);
            Segment::Other { protocol: 1, bytes: [&header.to_bytes()[..], DATA].concat() }
        }
    };
    Packet::new(&from.to_string(), &to.to_string(), segment)
}

#[test]
fn a_ping_of_a_service_is_answered_in_its_name() {
    for v4 in [true, false] {
        lab(move |lab| {
            lab.serve(Spec::new(v4, Protocol::Tcp, Mode::FullNat));
            let mut request = echo(client(v4), vip(v4), true);
            request.ttl = 3;
            let request = from_client(&request);
            let sent = lab.send(Side::Front, &request);
            assert_eq!(sent.exit, "tx");
            let mut reply = from_client(&echo(vip(v4), client(v4), false));
            reply.copy_within(6..12, 0);
            reply[0..6].copy_from_slice(&request[6..12]);
            reply[6..12].copy_from_slice(&request[0..6]);
            assert_frame(&sent.frame, &reply);
            assert_counted(&sent, &[&format!("echo 1 x {}", request.len())]);
            let sliced = SlicedPacket::from_ethernet(&sent.frame).unwrap();
            match sliced.transport.unwrap() {
                TransportSlice::Icmpv4(icmp) => assert_eq!(icmp.icmp_type(), Icmpv4Type::EchoReply(ECHO)),
                TransportSlice::Icmpv6(icmp) => assert_eq!(icmp.icmp_type(), Icmpv6Type::EchoReply(ECHO)),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn other_pings_are_left_to_the_host() {
    for v4 in [true, false] {
        lab(move |lab| {
            lab.serve(Spec::new(v4, Protocol::Tcp, Mode::FullNat));
            let mut pass = |frame: Vec<u8>, reason: &str| {
                let sent = lab.send(Side::Front, &frame);
                assert_eq!(sent.exit, "pass");
                assert_frame(&sent.frame, &frame);
                assert_counted(&sent, &[&format!("{reason} 1 x {}", frame.len())]);
            };
            // To the balancer's own address, which is that of full-nat towards the backends.
            pass(from_client(&echo(client(v4), source(v4), true)), "not_transport");
            pass(from_client(&echo(client(v4), vip(v4), false)), "not_transport");
            // From nobody who could be answered.
            let loopback: IpAddr = if v4 { "127.0.0.1" } else { "::1" }.parse().unwrap();
            pass(from_client(&echo(loopback, vip(v4), true)), "not_transport");
            if v4 {
                pass(from_client(&echo(client(v4), vip(v4), true).options(&[1, 1, 1, 0])), "not_transport");
            }
        });
    }
}
