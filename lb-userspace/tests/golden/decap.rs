//! The backend's end of tunnels: frames in, and out come the exit, the whole frame and every counter.

use std::{
    borrow::Cow,
    net::IpAddr,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use aya::programs::{Xdp, loaded_programs};
use aya_obj::programs::XdpAttachType;
use lb_userspace::{
    config::XdpMode,
    dataplane::kernel::{
        decap::{self, Prefix, Rules, Stripping},
        ifindex,
    },
};

use crate::{
    frames::{Packet, Segment, in_gre, mark, tunnelled},
    lab::{KINDS, assert_frame, client, ip_batch, packet, run, run_in_parts, vip},
};

const GUE_PORT: u16 = 6080;
const INTERFACE: &str = "up.link";
/// Where the outer IP header begins.
const IP: usize = 14;

/// A backend that strips tunnels, in a network namespace of its own.
struct Backend {
    program: Xdp,
    ifindex: u32,
    pin_dir: PinDir,
}

struct PinDir(PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        decap::off(&self.0, INTERFACE).expect("the program comes off");
        assert!(!self.0.exists(), "{} is left behind", self.0.display());
    }
}

fn prefix(address: &str, length: u8) -> Prefix {
    Prefix { address: address.parse().unwrap(), length }
}

fn rules() -> Rules {
    Rules {
        vips: vec![vip(true), vip(false)],
        balancers: vec![prefix("10.0.0.1", 32), prefix("10.77.0.0", 16), prefix("2001:db8:2::", 64)],
        own: vec![],
        gue_port: Some(GUE_PORT),
    }
}

fn backend(rules: Rules, test: impl FnOnce(&Backend) + Send + 'static) {
    let result = thread::spawn(move || {
        // SAFETY: no preconditions.
        assert_eq!(unsafe { libc::geteuid() }, 0, "golden packets need root");
        // SAFETY: concerns this thread only, and the namespace ends with it.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "a network namespace");
        // The far end has no address: it would solicit and report, and that would be counted.
        ip_batch(&format!(
            "link add {INTERFACE} type veth peer name far\nlink set far addrgenmode none\n\
             link set {INTERFACE} up\nlink set far up\n"
        ));
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pin_dir = Path::new("/sys/fs/bpf").join(format!("lb-golden-decap-{}-{number}", process::id()));
        let pin_dir = PinDir(pin_dir);
        test(&Backend::new(pin_dir, &rules));
    })
    .join();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

impl Backend {
    fn new(pin_dir: PinDir, rules: &Rules) -> Self {
        let attached = decap::attach(&pin_dir.0, INTERFACE, XdpMode::Native, rules).expect("the program attaches");
        let info = loaded_programs().map(Result::unwrap).find(|info| info.id() == attached.program_id).unwrap();
        let program = Xdp::from_program_info(info, Cow::Borrowed("lb_decap"), XdpAttachType::Interface).unwrap();
        Self { program, ifindex: ifindex(INTERFACE).unwrap(), pin_dir }
    }

    fn state(&self) -> Stripping {
        let mut states = decap::read(&self.pin_dir.0).unwrap();
        assert_eq!(states.len(), 1);
        states.remove(0)
    }

    /// What becomes of a frame, and every counter that it changed.
    #[track_caller]
    fn expect(&self, frame: &[u8], exit: &str, left: &[u8], counted: &[&str]) {
        let before = self.state();
        let (got, out) = run(&self.program, self.ifindex, frame);
        assert_eq!(changes(&before, &self.state()), counted);
        assert_eq!(got, exit);
        assert_frame(&out, left);
    }

    /// It is left as it is, and counted under one name.
    #[track_caller]
    fn passes(&self, frame: &[u8], reason: &str) {
        self.expect(frame, "pass", frame, &[&format!("{reason} 1 x {}", frame.len())]);
    }

    #[track_caller]
    fn drops(&self, frame: &[u8], reason: &str) {
        let before = self.state();
        let (exit, _) = run(&self.program, self.ifindex, frame);
        assert_eq!((exit, changes(&before, &self.state())), ("drop", vec![format!("{reason} 1 x {}", frame.len())]));
    }
}

fn changes(before: &Stripping, after: &Stripping) -> Vec<String> {
    let outcomes = before.outcomes.iter().zip(&after.outcomes);
    let outcomes = outcomes.filter(|(old, new)| old != new).map(|((_, old), (outcome, new))| {
        format!("{} {} x {}", outcome.name(), new.packets - old.packets, new.bytes - old.bytes)
    });
    let vips = before
        .vips
        .iter()
        .zip(&after.vips)
        .filter(|(old, new)| old != new)
        .map(|((_, old), (vip, new))| format!("{vip} {} x {}", new.packets - old.packets, new.bytes - old.bytes));
    outcomes.chain(vips).collect()
}

fn ends(outer_v4: bool) -> (IpAddr, IpAddr) {
    let ends = if outer_v4 { ("10.0.0.1", "10.0.0.11") } else { ("2001:db8:2::1", "2001:db8:2::11") };
    (ends.0.parse().unwrap(), ends.1.parse().unwrap())
}

fn wrapped(inner: &[u8], outer_v4: bool, gue: Option<bool>) -> Vec<u8> {
    let (source, destination) = ends(outer_v4);
    tunnelled(inner, source, destination, 0xabcde, gue.map(|checksum| (50_000, GUE_PORT, checksum)))
}

fn request(v4: bool, protocol: lb_common::abi::Protocol) -> Packet {
    packet((client(v4), 40_000).into(), (vip(v4), 80).into(), 63, protocol, 0x10)
}

fn tcp(v4: bool) -> Vec<u8> {
    request(v4, lb_common::abi::Protocol::Tcp).frame()
}

#[test]
fn every_family_comes_out_of_every_tunnel() {
    backend(rules(), |backend| {
        for (v4, protocol) in KINDS {
            for outer_v4 in [true, false] {
                let mut inner = request(v4, protocol).padded(7).frame();
                mark(&mut inner, 0xb9, 0x1234, true);
                let (source, destination) = ends(outer_v4);
                for (frame, name) in [
                    (wrapped(&inner, outer_v4, None), "ipip"),
                    (wrapped(&inner, outer_v4, Some(true)), "gue"),
                    (wrapped(&inner, outer_v4, Some(false)), "gue"),
                    (in_gre(&inner, source, destination, 0xabcde), "gre"),
                ] {
                    let n = frame.len();
                    let counted = [format!("{name} 1 x {n}"), format!("{} 1 x {n}", vip(v4))];
                    backend.expect(&frame, "pass", &inner, &[&counted[0], &counted[1]]);
                }
            }
        }
    });
}

/// The frame with these tags.
fn tagged(frame: &[u8], tags: &[[u8; 4]]) -> Vec<u8> {
    [&frame[..12], tags.as_flattened(), &frame[12..]].concat()
}

const VLAN: [u8; 4] = [0x81, 0, 0, 7];
const OUTER_VLAN: [u8; 4] = [0x88, 0xa8, 0xe0, 200];

#[test]
fn tagged_frames_are_stripped_and_keep_their_tags() {
    backend(rules(), |backend| {
        for tags in [&[VLAN][..], &[OUTER_VLAN, VLAN]] {
            for (v4, outer_v4, gue) in [(true, true, None), (false, true, Some(true)), (true, false, Some(true))] {
                let plain = tcp(v4);
                let frame = wrapped(&plain, outer_v4, gue);
                let (name, n) = (if gue.is_some() { "gue" } else { "ipip" }, frame.len());
                let counted = [format!("{name} 1 x {n}"), format!("{} 1 x {n}", vip(v4))];
                backend.expect(&tagged(&frame, tags), "pass", &tagged(&plain, tags), &[&counted[0], &counted[1]]);
            }
            // What is not ours leaves as it came; what is wrong is dropped.
            let n = tcp(true).len();
            let other = tagged(&tcp(true), tags);
            backend.expect(&other, "pass", &other, &[&format!("not_tunnel 1 x {n}")]);
            let mut torn = wrapped(&tcp(true), true, None);
            torn[IP + 3] += 1;
            let (before, bytes) = (backend.state(), torn.len());
            let (exit, _) = run(&backend.program, backend.ifindex, &tagged(&torn, tags));
            assert_eq!((exit, changes(&before, &backend.state())), ("drop", vec![format!("malformed 1 x {bytes}")]));
        }
        let deep = tagged(&wrapped(&tcp(true), true, None), &[OUTER_VLAN, VLAN, VLAN]);
        backend.passes(&deep, "not_tunnel");
        let short = tagged(&[2; 14], &[VLAN]);
        backend.passes(&short, "not_tunnel");
    });
}

#[test]
fn jumbo_frames_in_several_buffers_are_stripped() {
    backend(rules(), |backend| {
        ip_batch(&format!("link set {INTERFACE} mtu 9100\n"));
        for (v4, protocol) in KINDS {
            for gue in [None, Some(true)] {
                for tags in [&[][..], &[OUTER_VLAN, VLAN]] {
                    let mut inner = request(v4, protocol);
                    match &mut inner.segment {
                        Segment::Tcp { payload, .. } | Segment::Udp { payload, .. } => *payload = vec![0x5a; 8_900],
                        Segment::Other { .. } => unreachable!("no kind of these"),
                    }
                    let inner = inner.frame();
                    let frame = wrapped(&inner, v4, gue);
                    let (name, n) = (if gue.is_some() { "gue" } else { "ipip" }, frame.len());
                    let counted = [format!("{name} 1 x {n}"), format!("{} 1 x {n}", vip(v4))];
                    let (frame, left) = (tagged(&frame, tags), tagged(&inner, tags));
                    backend.expect(&frame, "pass", &left, &[&counted[0], &counted[1]]);
                    // Only the headers in the first buffer, where the kernel makes such frames.
                    let before = backend.state();
                    if let Some((exit, out)) = run_in_parts(&backend.program, backend.ifindex, &frame, 192) {
                        assert_eq!((exit, changes(&before, &backend.state())), ("pass", counted.to_vec()));
                        assert_frame(&out, &left);
                    }
                }
            }
        }
    });
}

#[test]
fn congestion_marks_are_taken_over() {
    backend(rules(), |backend| {
        for v4 in [true, false] {
            for outer_v4 in [true, false] {
                let with = |class| {
                    let mut frame = tcp(v4);
                    mark(&mut frame, class, 0, true);
                    frame
                };
                let mut frame = wrapped(&with(0xb8 | 2), outer_v4, None);
                mark(&mut frame, 0xb8 | 3, 0, true);
                let n = frame.len();
                let counted = [format!("ipip 1 x {n}"), format!("{} 1 x {n}", vip(v4))];
                backend.expect(&frame, "pass", &with(0xb8 | 3), &[&counted[0], &counted[1]]);
                let mut frame = wrapped(&with(0), outer_v4, None);
                mark(&mut frame, 3, 0, true);
                backend.drops(&frame, "congestion");
            }
        }
    });
}

#[test]
fn only_tunnels_of_balancers_for_our_addresses_are_opened() {
    backend(rules(), |backend| {
        backend.passes(&tcp(true), "not_tunnel");
        for outer_v4 in [true, false] {
            let (source, destination) = ends(outer_v4);
            for (gue, other) in [(None, 47), (Some((50_000, GUE_PORT, true)), 6)] {
                let from = |address: &str| tunnelled(&tcp(true), address.parse().unwrap(), destination, 0, gue);
                backend.passes(&from(if outer_v4 { "10.0.0.2" } else { "2001:db8:3::1" }), "wrong_source");
                let another = Packet::new("198.51.100.7", "203.0.113.11", Segment::udp(1, 2, b"x")).frame();
                backend.passes(&tunnelled(&another, source, destination, 0, gue), "wrong_vip");
                let mut unknown = wrapped(&tcp(true), outer_v4, None);
                unknown[IP + if outer_v4 { 9 } else { 6 }] = other;
                backend.passes(&unknown, "not_tunnel");
            }
            let other_port = Some((50_000, GUE_PORT + 1, true));
            backend.passes(&tunnelled(&tcp(true), source, destination, 0, other_port), "not_tunnel");
        }
        let mut fragment = wrapped(&tcp(true), true, None);
        fragment[IP + 6] = 0x20;
        backend.passes(&fragment, "fragment");
        // Every address of the prefix.
        for source in ["10.77.0.0", "10.77.255.255", "10.77.1.2"] {
            let frame = tunnelled(&tcp(true), source.parse().unwrap(), ends(true).1, 0, None);
            let n = frame.len();
            let counted = [format!("ipip 1 x {n}"), format!("203.0.113.10 1 x {n}")];
            backend.expect(&frame, "pass", &tcp(true), &[&counted[0], &counted[1]]);
        }
    });
}

#[test]
fn tunnels_may_be_bound_to_addresses_of_the_host() {
    backend(Rules { own: vec![ends(true).1], gue_port: None, ..rules() }, |backend| {
        let frame = wrapped(&tcp(true), true, None);
        let n = frame.len();
        backend.expect(&frame, "pass", &tcp(true), &[&format!("ipip 1 x {n}"), &format!("203.0.113.10 1 x {n}")]);
        let elsewhere = tunnelled(&tcp(true), ends(true).0, "10.0.0.12".parse().unwrap(), 0, None);
        backend.passes(&elsewhere, "wrong_destination");
        backend.passes(&wrapped(&tcp(true), false, None), "wrong_destination");
        backend.passes(&wrapped(&tcp(true), true, Some(true)), "not_tunnel");
    });
}

#[test]
fn what_is_not_whole_is_dropped() {
    backend(rules(), |backend| {
        for outer_v4 in [true, false] {
            let at = IP + if outer_v4 { 20 } else { 40 };
            let changed = |gue, change: &dyn Fn(&mut Vec<u8>)| {
                let mut frame = wrapped(&tcp(true), outer_v4, gue);
                change(&mut frame);
                frame
            };
            backend.drops(&changed(None, &|frame| frame[at + 3] += 1), "malformed");
            backend.drops(&changed(None, &|frame| frame.truncate(frame.len() - 1)), "malformed");
            backend.drops(&changed(None, &|frame| frame.truncate(at + 18)), "malformed");
            backend.drops(&changed(Some(true), &|frame| frame[at + 5] = 200), "malformed");
            backend.drops(&changed(Some(true), &|frame| frame[at + 1] ^= 1), "bad_checksum");
            backend.drops(&changed(Some(true), &|frame| frame[at + 6] ^= 1), "bad_checksum");
            backend.drops(&changed(None, &|frame| frame[at + 8] = 0), "ttl_expired");
        }
    });
}

#[test]
fn another_program_takes_over_at_once_with_its_own_rules_and_counters() {
    backend(rules(), |backend| {
        run(&backend.program, backend.ifindex, &wrapped(&tcp(true), true, None));
        let before = backend.state();
        assert_eq!(before.rules, Rules { balancers: before.rules.balancers.clone(), ..rules() });
        let changed = Rules { vips: vec![vip(false)], balancers: vec![prefix("192.0.2.1", 32)], ..rules() };
        let attached = decap::attach(&backend.pin_dir.0, INTERFACE, XdpMode::Auto, &changed).unwrap();
        assert!(attached.replaced);
        let after = backend.state();
        assert_eq!(after.rules, changed);
        assert_ne!(after.attachment.unwrap().program_id, before.attachment.unwrap().program_id);
        assert!(after.outcomes.iter().all(|(_, counted)| counted.packets == 0), "{:?}", after.outcomes);
        // One that cannot be loaded changes nothing.
        let none = Rules { vips: vec![], ..rules() };
        decap::attach(&backend.pin_dir.0, INTERFACE, XdpMode::Auto, &none).unwrap_err();
        assert_eq!(backend.state().rules, changed);
    });
}

#[test]
fn an_interface_that_is_not_there_leaves_nothing_behind() {
    backend(rules(), |backend| {
        let error = decap::attach(&backend.pin_dir.0, "nowhere", XdpMode::Auto, &rules()).unwrap_err();
        assert!(format!("{error:#}").contains("there is no interface nowhere"), "{error:#}");
        assert_eq!(decap::read(&backend.pin_dir.0).unwrap().len(), 1);
    });
}
