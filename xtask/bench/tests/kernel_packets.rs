//! The bench measures what it says: frames are restored for every repeat, and the product and the
//! textbook balancer forward the same ones. Nothing here asserts a time.

use std::collections::HashSet;

use lb_bench::packets::{Bench, Capacity, Case, Effort, Harness, Kind, Object, PROGRAMS, Setting, Which};
use lb_common::abi::{Mode, Protocol, Scheduler};

const TCP4: Kind = Kind { v4: true, protocol: Protocol::Tcp };

fn setting(mode: Mode, kind: Kind) -> Setting {
    Setting { mode, scheduler: Scheduler::Maglev, kind, services: 1, visited: 1, lines: "" }
}

/// Runs in a namespace of its own, on the first CPU.
fn inside(work: impl FnOnce() -> anyhow::Result<()> + Send) {
    lb_bench::packets::inside(0, work).unwrap_or_else(|error| panic!("{error:#}"));
}

/// What is in the frame that would be sent next, by a parser that is not ours; its checksums are
/// right.
fn parsed(frame: &[u8]) -> (String, String, u16, u16) {
    let packet = etherparse::PacketHeaders::from_ethernet_slice(frame).expect("a whole frame");
    let (source, destination) = match packet.net.as_ref().expect("an IP header") {
        etherparse::NetHeaders::Ipv4(header, _) => {
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "{header:?}");
            (format!("{:?}", header.source), format!("{:?}", header.destination))
        }
        etherparse::NetHeaders::Ipv6(header, _) => {
            (format!("{:02x?}", header.source), format!("{:02x?}", header.destination))
        }
        other => panic!("{other:?}"),
    };
    let transport = packet.transport.as_ref().expect("a transport header");
    let payload = packet.payload.slice();
    let (good, ports) = match (packet.net.as_ref().unwrap(), transport) {
        (etherparse::NetHeaders::Ipv4(ip, _), etherparse::TransportHeader::Tcp(tcp)) => {
            (tcp.calc_checksum_ipv4(ip, payload).unwrap() == tcp.checksum, (tcp.source_port, tcp.destination_port))
        }
        (etherparse::NetHeaders::Ipv4(ip, _), etherparse::TransportHeader::Udp(udp)) => {
            (udp.calc_checksum_ipv4(ip, payload).unwrap() == udp.checksum, (udp.source_port, udp.destination_port))
        }
        (etherparse::NetHeaders::Ipv6(ip, _), etherparse::TransportHeader::Tcp(tcp)) => {
            (tcp.calc_checksum_ipv6(ip, payload).unwrap() == tcp.checksum, (tcp.source_port, tcp.destination_port))
        }
        (etherparse::NetHeaders::Ipv6(ip, _), etherparse::TransportHeader::Udp(udp)) => {
            (udp.calc_checksum_ipv6(ip, payload).unwrap() == udp.checksum, (udp.source_port, udp.destination_port))
        }
        other => panic!("{other:?}"),
    };
    assert!(good, "a wrong transport checksum in {frame:02x?}");
    (source, destination, ports.0, ports.1)
}

#[test]
fn every_program_passes_the_verifier() {
    inside(|| {
        let mut object = Object::load(Capacity::flows(64, 64))?;
        for name in PROGRAMS {
            object.program(name)?;
        }
        for name in ["sink", "run_fixed"] {
            object.program(name)?;
        }
        for kind in Kind::ALL {
            for kinds in ["run", "capture", "generate"] {
                object.program(&format!("{kinds}_{}", kind.name()))?;
            }
        }
        Ok(())
    });
}

#[test]
fn frames_are_restored_for_every_repeat_and_each_is_another_flow_with_right_checksums() {
    inside(|| {
        for kind in Kind::ALL {
            let mut bench = Bench::new(setting(Mode::DsrIpip, kind))?;
            let mut lanes = bench.lanes(Case::New)?;
            // A program that grows each frame, and writes over what was its beginning.
            let floor = lanes.iter_mut().find(|lane| lane.which == Which::Floor).expect("a floor");
            let ran = bench.turn(floor, 1)?;
            assert_eq!((ran.packets, ran.action), (4097, 3));
            // A program that changes nothing shows the frame that the harness has made.
            let lane = lanes.iter_mut().find(|lane| lane.which == Which::Harness).expect("the harness alone");
            let mut seen = HashSet::new();
            for _ in 0..64 {
                bench.turn(lane, 0)?;
                let (_, frame) = bench.next_frame(lane)?;
                assert_eq!(frame.len(), 96);
                assert!(seen.insert(parsed(&frame)), "a flow came twice");
            }
        }
        Ok(())
    });
}

#[test]
fn ours_and_the_textbook_forward_every_packet_of_every_kind_of_row() {
    // What was forwarded is compared with what was sent within: an error otherwise.
    let cases = |row: &lb_bench::packets::Row| {
        let small =
            matches!(row.case, Case::Hit(1) | Case::Hit(65_536) | Case::NotService | Case::Arp | Case::Fragment);
        small && row.setting.kind == TCP4 && row.setting.scheduler == Scheduler::Maglev && row.setting.services == 1
    };
    let rows: Vec<_> = lb_bench::packets::rows().into_iter().filter(cases).collect();
    let measured =
        lb_bench::packets::measure(&rows, Effort::LEAST, &|_| {}).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(measured.rows.len(), rows.len());
    assert!(measured.rows.len() >= 4 * 2 + 2, "{}", measured.rows.len());
    for row in &measured.rows {
        assert!(
            row.textbook_ratio.is_some() != row.name.contains("fragment") && row.median_ns > 0.0 && row.floor_ns > 0.0,
            "{row:?}"
        );
    }
    assert!(measured.program.is_some_and(|size| size.jited_bytes > 0 && size.xlated_bytes > 0));
}

#[test]
fn replies_of_both_translating_modes_find_their_flows() {
    let cases = |row: &lb_bench::packets::Row| {
        matches!(row.case, Case::Reply(_))
            && row.setting.scheduler == Scheduler::Maglev
            && matches!((row.setting.mode, row.setting.kind.name()), (Mode::Nat, "udp6") | (Mode::FullNat, "tcp4"))
    };
    let rows: Vec<_> = lb_bench::packets::rows().into_iter().filter(cases).collect();
    assert_eq!(rows.len(), 2);
    let measured =
        lb_bench::packets::measure(&rows, Effort::LEAST, &|_| {}).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(measured.rows.iter().all(|row| row.evicted == 0), "{:?}", measured.rows);
}

#[test]
fn a_frame_that_no_program_is_aimed_at_is_an_error() {
    inside(|| {
        let mut object = Object::load(Capacity::flows(64, 64))?;
        let error = object.run(Harness::Fixed, 0, 1).expect_err("nothing is under test").to_string();
        assert!(error.contains("could not call"), "{error}");
        Ok(())
    });
}
