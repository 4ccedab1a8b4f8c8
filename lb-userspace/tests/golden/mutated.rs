//! Frames that no host would send: the loaded programs never abort, never lose count, and hand what
//! they pass to the host's stack untouched. The seed of a failure is printed.

use std::net::SocketAddr;

use lb_common::{
    abi::{Granularity, Mode, Protocol},
    flow::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    verdict::Reason,
};
use lb_userspace::dataplane::kernel::FlowRecord;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    frames::{Packet, Segment, authentication, extension, fragment, routing},
    icmp_wire::{self, KINDS as KINDS_OF_ERRORS, quote},
    lab::{KINDS, Lab, Served, Side, Spec, backend, client, from_backend, from_client, lab, packet, request, vip},
};

/// Frames for each world: enough for every header byte to be hit thousands of times.
const FRAMES: usize = 40_000;
/// Headers lie here, and so do the quotations of ICMP errors.
const HEADERS: usize = 140;

#[test]
fn mutated_frames_never_abort_and_are_counted_once() {
    let across = [(Mode::FullNat, true)];
    for (mode, across) in Mode::ALL.iter().map(|mode| (*mode, false)).chain(across) {
        lab(move |lab| {
            let seed: u64 = rand::random();
            println!("{}, across families {across}: seed {seed}", mode.name());
            let seeds = seeds(lab, mode, across);
            assert_counted_once(lab, &seeds, &mut StdRng::seed_from_u64(seed));
        });
    }
}

fn assert_counted_once(lab: &mut Lab, seeds: &[(Side, Vec<u8>)], random: &mut StdRng) {
    let before = lab.verdicts();
    for _ in 0..FRAMES {
        let (side, frame) = &seeds[random.random_range(0..seeds.len())];
        let other = &seeds[random.random_range(0..seeds.len())].1;
        let frame = mutate(frame, other, random);
        // Panics for every verdict but pass, drop, transmit and redirect.
        let (exit, out) = lab.run(*side, &frame);
        if exit == "pass" {
            assert_eq!(out, frame, "a frame that is passed is left as it was");
        }
    }
    let verdicts: u64 = lab.verdicts() - before;
    assert_eq!(verdicts, FRAMES as u64, "each frame has one verdict");
}

/// Counted beside the verdict of a packet.
const NO_VERDICTS: [Reason; 2] = [Reason::Evicted, Reason::FragmentGuessed];

impl Lab {
    /// Verdicts counted so far.
    fn verdicts(&self) -> u64 {
        let verdicts = self.stats().verdicts().unwrap();
        verdicts.iter().filter(|(reason, _)| !NO_VERDICTS.contains(reason)).map(|(_, counted)| counted.packets).sum()
    }
}

/// Frames of every kind, some of flows that have begun. `across`: to backends of the other family.
fn seeds(lab: &mut Lab, mode: Mode, across: bool) -> Vec<(Side, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (v4, protocol) in KINDS {
        let mut served =
            vec![lab.serve(Spec { backends: 3, backends_v4: v4 != across, ..Spec::new(v4, protocol, mode) })];
        if protocol == Protocol::Udp {
            let spec = Spec { granularity: Granularity::Packet, port: 0, ..served[0].spec };
            served.push(lab.serve(spec));
        }
        for served in served {
            seeds.extend(of_service(lab, &served));
        }
    }
    seeds
}

fn of_service(lab: &mut Lab, served: &Served) -> Vec<(Side, Vec<u8>)> {
    let v4 = served.spec.v4;
    let mut packets: Vec<Packet> = [TCP_SYN, TCP_ACK, TCP_ACK | TCP_FIN, TCP_RST, TCP_SYN | TCP_ACK]
        .map(|flags| request(served, 40_000, flags))
        .into();
    let plain = request(served, 40_001, TCP_SYN);
    if v4 {
        packets.push(plain.clone().options(&[7, 7, 4, 0, 0, 0, 0, 0]));
    } else {
        for header in [extension(60, 1), fragment(0, false), fragment(0, true), routing(0), authentication(4)] {
            packets.push(plain.clone().extension(header));
        }
    }
    let mut seeds: Vec<(Side, Vec<u8>)> = packets.iter().map(|packet| (Side::Front, from_client(packet))).collect();
    for (_, frame) in &seeds {
        lab.run(Side::Front, frame);
    }
    let whole = seeds[0].1.clone();
    seeds.push((Side::Front, tagged(&whole, &[0x8100])));
    seeds.push((Side::Front, tagged(&whole, &[0x88a8, 0x8100])));
    seeds.push((Side::Front, from_client(&error(v4, &whole[14..]))));
    for flow in lab.flows().into_iter().filter(|flow| flow.protocol == served.spec.protocol) {
        for flags in [TCP_SYN | TCP_ACK, TCP_ACK, TCP_ACK | TCP_FIN, TCP_RST] {
            let from = (backend(flow.source.is_ipv4(), 1), 8080).into();
            let reply = packet(from, flow.source, 64, flow.protocol, flags);
            seeds.push((Side::Back, from_backend(1, &reply)));
        }
        seeds.extend(errors_about(&flow));
    }
    seeds
}

fn tagged(frame: &[u8], ethertypes: &[u16]) -> Vec<u8> {
    let mut out = frame[..12].to_vec();
    for ethertype in ethertypes {
        out.extend(ethertype.to_be_bytes());
        out.extend([0x20, 0x64]);
    }
    out.extend(&frame[12..]);
    out
}

/// Errors about a reply and about a client's packet of a flow, as routers send them.
fn errors_about(flow: &FlowRecord) -> Vec<(Side, Vec<u8>)> {
    let (to, source) = (flow.client, flow.source);
    let service: SocketAddr = (vip(to.is_ipv4()), 80).into();
    let server: SocketAddr = (backend(source.is_ipv4(), 1), 8080).into();
    KINDS_OF_ERRORS
        .into_iter()
        .flat_map(|kind| {
            let about = |from, to| quote(&packet(from, to, 60, flow.protocol, TCP_ACK), 20);
            let of_reply = icmp_wire::error(to.ip(), service.ip(), kind, &about(service, to));
            let of_packet = icmp_wire::error(server.ip(), source.ip(), kind, &about(source, server));
            [(Side::Front, from_client(&of_reply)), (Side::Back, from_backend(1, &of_packet))]
        })
        .collect()
}

/// "Fragmentation needed" or "packet too big" that quotes a packet, with a checksum that is wrong.
fn error(v4: bool, quoted: &[u8]) -> Packet {
    let head: &[u8] = if v4 { &[3, 4, 0, 0, 0, 0, 5, 0] } else { &[2, 0, 0, 0, 0, 0, 5, 0] };
    let segment = Segment::Other { protocol: if v4 { 1 } else { 58 }, bytes: [head, quoted].concat() };
    Packet::new(&client(v4).to_string(), &vip(v4).to_string(), segment)
}

fn mutate(frame: &[u8], other: &[u8], random: &mut StdRng) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if random.random_ratio(1, 10) {
        let at = random.random_range(0..frame.len().min(other.len()));
        frame = [&frame[..at], &other[at..]].concat();
    }
    for _ in 0..random.random_range(0..6) {
        let end = frame.len().min(HEADERS);
        // Behind the link-layer addresses, or nothing would be for us.
        let at = random.random_range(12.min(end - 1)..end);
        frame[at] = match random.random_range(0..4) {
            0 => random.random(),
            1 => frame[at] ^ 1 << random.random_range(0..8),
            2 => frame[at].wrapping_add(random.random_range(0..5)).wrapping_sub(2),
            _ => [0, 0xff, 0x7f, 0x80][random.random_range(0..4)],
        };
    }
    match random.random_range(0..8) {
        // The kernel takes no frame without a link-layer header.
        0 => frame.truncate(random.random_range(14..=frame.len().max(14))),
        1 => frame.extend((0..random.random_range(0..64)).map(|_| random.random::<u8>())),
        _ => {}
    }
    frame.resize(frame.len().max(14), 0);
    frame
}
