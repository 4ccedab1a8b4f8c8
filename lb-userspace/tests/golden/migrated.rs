//! Upgrades from and to builds with other instructions and other layouts, and changes of `[limits]`: with live
//! flows, while packets come in.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use aya::{
    maps::{Map, MapData, MapInfo, PerCpuArray},
    programs::Xdp,
};
use aya_obj::programs::XdpAttachType;
use lb_common::{
    abi::{BackendCounters, Mode, Protocol, names},
    flow::{TCP_ACK, TCP_SYN},
};
use lb_userspace::{
    config::{DeadMan, Limits, XdpMode},
    dataplane::{
        Dataplane as _,
        kernel::{Loaded, Pins, load, load_object, upgrade},
    },
};

use crate::{
    lab::{LIMITS, Lab, Side, Spec, from_backend, ifindex, lab, lab_of, packet, run, vip},
    reload::{ROOM, attach, frame, front, options, serve_twenty},
};

const FLOWS: u32 = 100_000;

/// Puts another build on the interfaces, over the maps that are there but for one.
fn put(pin_dir: &Path, limits: &Limits, object: &[u8], without: Option<&str>) -> Loaded {
    if let Some(name) = without {
        std::fs::remove_file(Pins::new(pin_dir).map(name)).unwrap();
    }
    let mut loaded = load_object(&options(pin_dir, limits), object).unwrap();
    attach(&mut loaded);
    loaded
}

/// Bytes of a backend's counters in this version.
const NOW: usize = size_of::<BackendCounters>();

/// Frames sent on to all backends, and flows begun there, whatever else their counters hold.
fn counted(pin_dir: &Path) -> (u64, u64) {
    let map = MapData::from_pin(Pins::new(pin_dir).map(names::BACKEND_STATS)).unwrap();
    match map.info().unwrap().value_size() as usize {
        64 => counted_in::<[u64; 8]>(map),
        NOW => counted_in::<[u64; NOW / 8]>(map),
        other => panic!("counters of {other} bytes"),
    }
}

fn counted_in<T: aya::Pod + AsRef<[u64]>>(map: MapData) -> (u64, u64) {
    let map: PerCpuArray<_, T> = PerCpuArray::try_from(Map::PerCpuArray(map)).unwrap();
    let all: Vec<T> = (0..8).flat_map(|id| map.get(&id, 0).unwrap().iter().copied().collect::<Vec<_>>()).collect();
    // packets and bytes there, packets and bytes back, flows begun.
    (all.iter().map(|cpu| cpu.as_ref()[0]).sum(), all.iter().map(|cpu| cpu.as_ref()[4]).sum())
}

fn value_size(pin_dir: &Path) -> u32 {
    MapInfo::from_pin(Pins::new(pin_dir).map(names::BACKEND_STATS)).unwrap().value_size()
}

/// Packets of one flow, one after the other, through a program until it is told to stop.
struct Transfer<'a> {
    stop: &'a AtomicBool,
    sent: &'a AtomicU64,
}

impl Transfer<'_> {
    fn run(&self, program: &Path, front: u32, frame: &[u8], wanted: &[u8]) {
        let program = Xdp::from_pin(program, XdpAttachType::Interface).unwrap();
        while !self.stop.load(Ordering::SeqCst) {
            let (exit, out) = run(&program, front, frame);
            assert_eq!((exit, out.as_slice()), ("redirect", wanted), "the transfer goes on");
            self.sent.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[test]
fn a_hundred_thousand_flows_and_a_transfer_live_through_an_upgrade_from_shorter_counters_and_back() {
    lab_of(ROOM, |lab| {
        lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        let (pin_dir, limits) = (lab.pin_dir_to_reload().to_owned(), Limits { flows: ROOM, ..LIMITS });
        let mut older = put(&pin_dir, &limits, lb_fixtures::OLDER, Some(names::BACKEND_STATS));
        assert_eq!(value_size(&pin_dir), 64);
        for number in 0..FLOWS {
            assert_eq!(run_on(older.program().unwrap(), &frame(number, TCP_SYN)).0, "redirect");
        }
        let sample: Vec<(u32, Vec<u8>)> =
            (0..FLOWS).step_by(997).map(|n| (n, run_on(older.program().unwrap(), &frame(n, TCP_ACK)).1)).collect();
        let before = counted(&pin_dir);
        assert_eq!(before, (u64::from(FLOWS) + sample.len() as u64, u64::from(FLOWS)));

        // Up, with packets through the old program until the new one is on the first interface and after it.
        let (sent, mut newer) = with_transfer(&pin_dir, &sample[3], || {
            let mut newer = load(&options(&pin_dir, &limits)).unwrap();
            assert!(newer.attach("front", XdpMode::Native).unwrap().replaced);
            thread::sleep(Duration::from_millis(50));
            newer
        });
        assert!(newer.attach("back", XdpMode::Native).unwrap().replaced);
        assert_eq!(value_size(&pin_dir) as usize, NOW);
        assert!(sent > 100, "{sent} packets");
        assert_eq!(counted(&pin_dir), (before.0 + sent, before.1), "not one packet is missing");
        assert_eq!(lab.flows().len(), FLOWS as usize);
        for (number, wanted) in &sample {
            assert_eq!(&run_on(newer.program().unwrap(), &frame(*number, TCP_ACK)).1, wanted, "flow {number}");
        }
        for number in FLOWS..FLOWS + 1000 {
            assert_eq!(run_on(newer.program().unwrap(), &frame(number, TCP_SYN)).0, "redirect", "new ones begin");
        }
        let now = counted(&pin_dir);
        assert_eq!(now, (before.0 + sent + sample.len() as u64 + 1000, before.1 + 1000));

        // And back, with packets through the new one.
        let (sent, back) = with_transfer(&pin_dir, &sample[5], || {
            // The transfer's first packets, at least.
            thread::sleep(Duration::from_millis(20));
            upgrade::rollback(&pin_dir).unwrap()
        });
        assert_eq!(back.maps, [names::BACKEND_STATS]);
        assert_eq!(value_size(&pin_dir), 64);
        let (packets, flows) = counted(&pin_dir);
        assert!((now.0 + 1..=now.0 + sent).contains(&packets) && flows == now.1, "{now:?} + {sent}: {packets} {flows}");
        assert_eq!(lab.flows().len(), FLOWS as usize + 1000, "flows from after the upgrade too");
        for (number, wanted) in &sample {
            assert_eq!(
                &run_on(older.program().unwrap(), &frame(*number, TCP_ACK)).1,
                wanted,
                "flow {number} after the way back"
            );
        }
        assert_eq!(run_on(older.program().unwrap(), &frame(FLOWS + 1000, TCP_SYN)).0, "redirect");
    });
}

fn run_on(program: &Xdp, frame: &[u8]) -> (&'static str, Vec<u8>) {
    run(program, front(), frame)
}

/// Does the work while packets of a flow go through the program that runs; how many did.
fn with_transfer<T>(pin_dir: &Path, (number, wanted): &(u32, Vec<u8>), work: impl FnOnce() -> T) -> (u64, T) {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    let program = Pins::new(pin_dir).program();
    // A pin of its own: an upgrade moves the other one.
    let pin = pin_dir.join("transfer");
    Xdp::from_pin(&program, XdpAttachType::Interface).unwrap().pin(&pin).unwrap();
    let (front, frame) = (front(), frame(*number, TCP_ACK));
    let result = thread::scope(|scope| {
        let (transfer, pin, frame) = (Transfer { stop: &stop, sent: &sent }, &pin, &frame);
        let running = scope.spawn(move || transfer.run(pin, front, frame, wanted));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::SeqCst);
        running.join().unwrap();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    std::fs::remove_file(&pin).unwrap();
    (sent.into_inner(), result)
}

/// Flows of each kind that has a table entry, and what becomes of a packet of each, there and back.
fn flows_and_packets(lab: &mut Lab) -> Vec<(Side, Vec<u8>)> {
    lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
    lab.serve(Spec { backends: 2, port: 81, ..Spec::new(true, Protocol::Tcp, Mode::FullNat) });
    lab.serve(Spec { backends: 2, port: 53, ..Spec::new(false, Protocol::Udp, Mode::FullNat) });
    let mut packets = Vec::new();
    for number in 0..200u16 {
        for (v4, port, protocol) in [(true, 80, Protocol::Tcp), (true, 81, Protocol::Tcp), (false, 53, Protocol::Udp)] {
            let client = (crate::lab::client(v4), 2000 + number).into();
            let frame = |flags| crate::lab::from_client(&packet(client, (vip(v4), port).into(), 64, protocol, flags));
            let (first, next) = if protocol == Protocol::Tcp { (TCP_SYN, TCP_ACK) } else { (0, 0) };
            assert_eq!(lab.run(Side::Front, &frame(first)).0, "redirect");
            packets.push((Side::Front, frame(next)));
        }
    }
    for flow in lab.flows() {
        let n = (flow.backend_id % 4 + 1) as u8;
        let v4 = flow.client.is_ipv4();
        let to = flow.source;
        let reply = packet((crate::lab::backend(v4, n), 8080).into(), to, 64, flow.protocol, TCP_SYN | TCP_ACK);
        packets.push((Side::Back, from_backend(n, &reply)));
    }
    assert_eq!(packets.len(), 1200);
    packets
}

#[test]
fn flows_get_new_places_when_the_flow_table_grows_and_shrinks() {
    lab_of(4096, |lab| {
        let packets = flows_and_packets(lab);
        let wanted: Vec<_> = packets.iter().map(|(side, frame)| lab.run(*side, frame)).collect();
        assert!(wanted.iter().all(|(exit, _)| *exit == "redirect"));
        let mut flows: Vec<_> =
            lab.flows().into_iter().map(|flow| (flow.client, flow.service_port, flow.source)).collect();
        flows.sort();
        let pin_dir = lab.pin_dir_to_reload().to_owned();
        for size in [65_536, 1024, 4096] {
            let limits = Limits { flows: size, ..LIMITS };
            let mut resized = load(&options(&pin_dir, &limits)).unwrap();
            attach(&mut resized);
            let info = MapInfo::from_pin(Pins::new(&pin_dir).map(names::FLOWS)).unwrap();
            assert_eq!(info.max_entries(), size);
            let mut now: Vec<_> =
                lab.flows().into_iter().map(|flow| (flow.client, flow.service_port, flow.source)).collect();
            now.sort();
            assert_eq!(now, flows, "in a table of {size}");
            for ((side, frame), wanted) in packets.iter().zip(&wanted) {
                assert_eq!(&run(resized.program().unwrap(), ifindex(*side), frame), wanted, "in a table of {size}");
            }
            let silence = lb_userspace::dataplane::kernel::silence(&pin_dir).unwrap();
            assert_eq!(silence.policy, lb_userspace::config::DeadManPolicy::Freeze, "flows begin again");
        }
        // 600 live ones: too many for 512 places.
        let refused = format!("{:#}", load(&options(&pin_dir, &Limits { flows: 512, ..LIMITS })).err().unwrap());
        assert!(refused.contains("keep a larger `limits.flows`") && refused.contains("lb detach"), "{refused}");
        assert_eq!(lab.flows().len(), 600);
    });
}

#[test]
fn other_limits_change_with_what_is_in_use() {
    lab(|lab| {
        let packets = flows_and_packets(lab);
        let wanted: Vec<_> = packets.iter().map(|(side, frame)| lab.run(*side, frame)).collect();
        let tables = lab.data.read().unwrap();
        let pin_dir = lab.pin_dir_to_reload().to_owned();
        let more =
            Limits { services: 64, backends: 512, addresses: 128, selection_slots: 1024, port_pools: 32, flows: 1024 };
        let fewer =
            Limits { services: 3, backends: 10, addresses: 12, selection_slots: 48, port_pools: 8, flows: 1024 };
        for limits in [more, fewer] {
            let mut resized = load(&options(&pin_dir, &limits)).unwrap();
            attach(&mut resized);
            let now = lb_userspace::dataplane::kernel::KernelDataplane::open(&pin_dir).unwrap().read().unwrap();
            assert_eq!(now, tables, "{limits:?}");
            for ((side, frame), wanted) in packets.iter().zip(&wanted) {
                assert_eq!(&run(resized.program().unwrap(), ifindex(*side), frame), wanted, "{limits:?}");
            }
        }
        for (limits, setting) in [
            (Limits { services: 2, ..fewer }, "services"),
            (Limits { backends: 9, ..fewer }, "backends"),
            (Limits { selection_slots: 16, ..fewer }, "selection-slots"),
            (Limits { port_pools: 4, ..fewer }, "port-pools"),
            (Limits { addresses: 3, ..fewer }, "addresses"),
        ] {
            let refused = format!("{:#}", load(&options(&pin_dir, &limits)).err().expect(setting));
            assert!(refused.contains(&format!("keep a larger `limits.{setting}`")), "{refused}");
        }
    });
}

#[test]
fn an_upgrade_that_is_killed_on_its_way_begins_again_or_is_done() {
    lab_of(4096, |lab| {
        let packets = flows_and_packets(lab);
        let wanted: Vec<_> = packets.iter().map(|(side, frame)| lab.run(*side, frame)).collect();
        let pin_dir = lab.pin_dir_to_reload().to_owned();
        let elements = || MapInfo::from_pin(Pins::new(&pin_dir).map(names::FLOWS)).unwrap().max_entries();
        let aside = || Pins::new(&pin_dir).map("aside-flows").exists();
        // Before any interface has the new program: as if it had never been.
        std::mem::forget(load(&options(&pin_dir, &Limits { flows: 16_384, ..LIMITS })).unwrap());
        assert!(aside());
        let check = upgrade::outlook(&pin_dir).unwrap().program.unwrap();
        assert!(check.same, "the one that runs is still found: {check:?}");
        drop(load(&options(&pin_dir, &Limits { flows: 4096, ..LIMITS })).unwrap());
        assert_eq!((elements(), aside()), (4096, false));

        // After the first one has it: the new maps are those that count.
        let mut killed = load(&options(&pin_dir, &Limits { flows: 16_384, ..LIMITS })).unwrap();
        killed.attach("front", XdpMode::Native).unwrap();
        std::mem::forget(killed);
        let mut next = load(&options(&pin_dir, &Limits { flows: 16_384, ..LIMITS })).unwrap();
        assert_eq!((elements(), aside()), (16_384, false));
        // The agent's sign of life, which comes before.
        lab.data.beat(&DeadMan::default()).unwrap();
        attach(&mut next);
        for ((side, frame), wanted) in packets.iter().zip(&wanted) {
            assert_eq!(&run(next.program().unwrap(), ifindex(*side), frame), wanted);
        }
        assert_eq!(lab.flows().len(), 600);

        // One that is given up before it is attached is taken back.
        drop(load(&options(&pin_dir, &Limits { flows: 1024, ..LIMITS })).unwrap());
        assert_eq!((elements(), aside()), (16_384, false));
    });
}

#[test]
fn a_check_names_each_packet_that_another_build_treats_otherwise() {
    lab(|lab| {
        serve_twenty(lab);
        let pin_dir = lab.pin_dir_to_reload().to_owned();
        let _twin = put(&pin_dir, &LIMITS, lb_fixtures::TWIN, None);
        let program = upgrade::outlook(&pin_dir).unwrap().program.unwrap();
        assert!(!program.same && program.compared > 20, "{program:?}");
        assert_eq!(program.differences, Vec::<String>::new(), "other instructions, the same behaviour");

        let _changed = put(&pin_dir, &LIMITS, lb_fixtures::CHANGED, None);
        let program = upgrade::outlook(&pin_dir).unwrap().program.unwrap();
        let named = [vip(false), vip(true)].map(|vip| {
            let to = std::net::SocketAddr::from((vip, 80));
            format!("a packet of no connection to {to}: drop before, transmit now")
        });
        let mut differences = program.differences.clone();
        differences.sort();
        let mut named = named.to_vec();
        named.sort();
        assert_eq!(differences, named, "each of them, and no other");
    });
}

#[test]
fn a_check_copies_maps_that_change_and_so_knows_the_flows_of_an_older_build() {
    lab(|lab| {
        lab.serve(Spec { backends: 3, ..Spec::new(true, Protocol::Tcp, Mode::Nat) });
        let pin_dir = lab.pin_dir_to_reload().to_owned();
        let mut older = put(&pin_dir, &LIMITS, lb_fixtures::OLDER, Some(names::BACKEND_STATS));
        for number in 0..50 {
            assert_eq!(run_on(older.program().unwrap(), &frame(number, TCP_SYN)).0, "redirect");
        }
        let outlook = upgrade::outlook(&pin_dir).unwrap();
        let program = outlook.program.unwrap();
        assert_eq!((program.same, program.differences.len()), (false, 0), "{program:?}");
        assert!(program.compared > 50);
        assert_eq!(value_size(&pin_dir), 64, "and nothing was changed");
    });
}
