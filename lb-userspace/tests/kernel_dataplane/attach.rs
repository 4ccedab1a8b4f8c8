use std::path::PathBuf;

use lb_common::abi::{Interface, names};
use lb_userspace::{
    config::XdpMode,
    dataplane::kernel::{AttachedMode, Pins, attached, attachments, detach, ifindex},
};

use crate::support::{LIMITS, Namespace, PinDir, run};

fn on(interface: &str) -> Vec<(AttachedMode, u32)> {
    attached(ifindex(interface).unwrap()).unwrap()
}

fn link(pins: &PinDir, interface: &str) -> PathBuf {
    Pins::new(&pins.0).link(interface)
}

#[test]
fn native_and_generic_attach_as_asked() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| {
        let mut loaded = pins.load();
        let native = loaded.attach("a.1", XdpMode::Native).unwrap();
        assert_eq!((native.mode, native.replaced, &native.note), (AttachedMode::Native, false, &None));
        let generic = loaded.attach("side-b", XdpMode::Generic).unwrap();
        assert_eq!((generic.mode, generic.program_id), (AttachedMode::Generic, native.program_id));
        assert_eq!(on("a.1"), [(AttachedMode::Native, native.program_id)]);
        assert_eq!(on("side-b"), [(AttachedMode::Generic, native.program_id)]);
        assert_eq!(attachments(&Pins::new(&pins.0)).unwrap(), [native, generic]);
    });
}

#[test]
fn the_program_is_told_the_addresses_of_its_interfaces() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.ip(&["link", "set", "a.1", "address", "02:00:00:00:00:0a"]);
    let known = || pins.hash::<u32, Interface>(names::INTERFACES).iter().collect::<Result<Vec<_>, _>>().unwrap();
    let old = namespace.enter(|| {
        let attachment = pins.load().attach("a.1", XdpMode::Native).unwrap();
        let expected = Interface { mac: [2, 0, 0, 0, 0, 10], zero: [0; 2] };
        assert_eq!(known(), [(attachment.ifindex, expected)]);
        attachment.ifindex
    });
    namespace.ip(&["link", "del", "a.1"]);
    namespace.ip(&["link", "add", "c", "type", "veth", "peer", "name", "d"]);
    namespace.enter(|| {
        let attachment = pins.load().attach("c", XdpMode::Native).unwrap();
        assert_ne!(attachment.ifindex, old);
        assert_eq!(known().into_iter().map(|(ifindex, _)| ifindex).collect::<Vec<_>>(), [attachment.ifindex]);
    });
}

#[test]
fn jumbo_frames_are_taken_natively() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.ip(&["link", "set", "side-b", "mtu", "9000"]);
    namespace.ip(&["link", "set", "a.1", "mtu", "9000"]);
    namespace.enter(|| {
        let attachment = pins.load().attach("a.1", XdpMode::Native).unwrap();
        assert_eq!((attachment.mode, attachment.note), (AttachedMode::Native, None));
    });
    // And later: an interface may become larger while the program is on it.
    namespace.ip(&["link", "set", "side-b", "mtu", "65535"]);
}

#[test]
fn a_refusal_is_told_in_the_drivers_words() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    // A veth with fewer queues to receive than its peer has to send.
    namespace.ip(&["link", "add", "few", "type", "veth", "peer", "name", "many", "numtxqueues", "4"]);
    namespace.enter(|| {
        run("ethtool", &["-L", "many", "tx", "4"]);
        let error = format!("{:#}", pins.load().attach("few", XdpMode::Native).unwrap_err());
        assert!(error.contains("number of rx queues"), "{error}");
        let note = pins.load().attach("few", XdpMode::Auto).unwrap().note.expect("says so");
        assert!(note.contains("number of rx queues"), "{note}");
    });
}

#[test]
fn auto_falls_back_to_generic_with_the_kernels_reason() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.ip(&["link", "add", "bridge1", "type", "bridge"]);
    namespace.ip(&["link", "set", "bridge1", "up"]);
    namespace.enter(|| {
        let mut loaded = pins.load();
        let error = format!("{:#}", loaded.attach("bridge1", XdpMode::Native).unwrap_err());
        assert!(error.contains("does not support XDP in native mode"), "{error}");
        assert!(error.contains("not supported (os error 95)"), "{error}");
        assert_eq!(on("bridge1"), []);
        assert!(!link(&pins, "bridge1").exists());

        let attachment = loaded.attach("bridge1", XdpMode::Auto).unwrap();
        assert_eq!(attachment.mode, AttachedMode::Generic);
        let note = attachment.note.expect("says so");
        assert!(note.contains("generic") && note.contains("does not support XDP in native mode"), "{note}");
        let auto = loaded.attach("a.1", XdpMode::Auto).unwrap();
        assert_eq!((auto.mode, auto.note), (AttachedMode::Native, None));
    });
}

#[test]
fn the_program_stays_when_the_agent_ends() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| {
        let mut loaded = pins.load();
        let attachment = loaded.attach("a.1", XdpMode::Native).unwrap();
        drop(loaded);
        assert_eq!(on("a.1"), [(AttachedMode::Native, attachment.program_id)]);
    });
}

#[test]
fn a_new_agent_replaces_the_program_on_the_same_link() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| {
        let mut first = pins.load();
        let before = first.attach("a.1", XdpMode::Native).unwrap();
        let link_id = pinned_link_id(&pins);
        drop(first);
        let mut second = pins.load();
        assert_eq!(on("a.1"), [(AttachedMode::Native, before.program_id)], "the old one works until it is replaced");
        assert!(stages(&pins, before.program_id), "and so do its stages, though nobody in userspace holds them");
        let after = second.attach("a.1", XdpMode::Auto).unwrap();
        assert!(after.replaced);
        assert_ne!(after.program_id, before.program_id);
        assert_eq!(on("a.1"), [(AttachedMode::Native, after.program_id)]);
        assert_eq!(pinned_link_id(&pins), link_id);
        assert!(stages(&pins, after.program_id) && !stages(&pins, before.program_id));
    });
}

fn stages(pins: &PinDir, program_id: u32) -> bool {
    Pins::new(&pins.0).stages(program_id).exists()
}

fn pinned_link_id(pins: &PinDir) -> u32 {
    use aya::programs::links::{FdLink, PinnedLink};
    FdLink::from(PinnedLink::from_pin(link(pins, "a.1")).unwrap()).info().unwrap().id()
}

#[test]
fn the_mode_can_be_changed_at_a_restart() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| {
        drop(pins.load().attach("a.1", XdpMode::Generic).unwrap());
        let kept = pins.load().attach("a.1", XdpMode::Auto).unwrap();
        assert_eq!((kept.mode, kept.replaced), (AttachedMode::Generic, true));
        assert!(kept.note.expect("says so").contains("lb detach"));
        assert_eq!(pins.load().attach("a.1", XdpMode::Native).unwrap().mode, AttachedMode::Native);
        assert_eq!(pins.load().attach("a.1", XdpMode::Generic).unwrap().mode, AttachedMode::Generic);
        assert_eq!(on("a.1").len(), 1);
    });
}

#[test]
fn a_mode_that_is_refused_leaves_the_one_before() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.ip(&["link", "add", "bridge1", "type", "bridge"]);
    namespace.enter(|| {
        pins.load().attach("bridge1", XdpMode::Generic).unwrap();
        let mut second = pins.load();
        let error = format!("{:#}", second.attach("bridge1", XdpMode::Native).unwrap_err());
        assert!(error.contains("stays in the mode it was in"), "{error}");
        assert_eq!(on("bridge1"), [(AttachedMode::Generic, second.program_id)]);
    });
}

#[test]
fn another_program_is_named_with_what_to_type() {
    let (namespace, pins, other) = (Namespace::new(), PinDir::new(), PinDir::new());
    namespace.enter(|| {
        let foreign = other.load().attach("a.1", XdpMode::Native).unwrap();
        for mode in [XdpMode::Auto, XdpMode::Native, XdpMode::Generic] {
            let error = format!("{:#}", pins.load().attach("a.1", mode).unwrap_err());
            assert!(error.contains("a.1") && error.contains("another XDP program"), "{error}");
            assert!(error.contains(&format!("id {}, name `lb`", foreign.program_id)), "{error}");
            assert!(error.contains("bpftool link detach id"), "{error}");
        }
        assert_eq!(on("a.1"), [(AttachedMode::Native, foreign.program_id)]);
    });
}

#[test]
fn a_program_attached_without_a_link_is_removed_by_ip() {
    let (namespace, pins, other) = (Namespace::new(), PinDir::new(), PinDir::new());
    drop(other.load());
    let program = Pins::new(&other.0).program();
    namespace.enter(|| {
        // Not by `ip -n`, which hides the BPF file system behind a new mount of sysfs.
        run("ip", &["link", "set", "dev", "a.1", "xdpgeneric", "pinned", program.to_str().unwrap()]);
        let error = format!("{:#}", pins.load().attach("a.1", XdpMode::Auto).unwrap_err());
        let command = "ip link set dev a.1 xdpgeneric off";
        assert!(error.contains(command), "{error}");
    });
    namespace.ip(&["link", "set", "dev", "a.1", "xdpgeneric", "off"]);
    namespace.enter(|| pins.load().attach("a.1", XdpMode::Auto).unwrap());
}

#[test]
fn a_missing_interface_is_named() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| {
        let error = format!("{:#}", pins.load().attach("eth7", XdpMode::Auto).unwrap_err());
        assert!(error.contains("no interface eth7") && error.contains("ip link"), "{error}");
    });
}

#[test]
fn an_interface_made_anew_gets_the_program_again() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| drop(pins.load().attach("a.1", XdpMode::Native).unwrap()));
    namespace.ip(&["link", "del", "a.1"]);
    namespace.ip(&["link", "add", "a.1", "type", "veth", "peer", "name", "side-b"]);
    namespace.enter(|| {
        assert_eq!(attachments(&Pins::new(&pins.0)).unwrap(), []);
        let attachment = pins.load().attach("a.1", XdpMode::Native).unwrap();
        assert!(!attachment.replaced);
        assert_eq!(on("a.1"), [(AttachedMode::Native, attachment.program_id)]);
    });
}

#[test]
fn detach_leaves_nothing_even_while_the_agent_lives() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| {
        let mut loaded = pins.load();
        loaded.attach("a.1", XdpMode::Native).unwrap();
        loaded.attach("side-b", XdpMode::Native).unwrap();
        let done = detach(&pins.0).unwrap();
        assert_eq!(done.interfaces, ["a.1", "side-b"]);
        assert_eq!((on("a.1"), on("side-b")), (vec![], vec![]));
        assert!(!pins.0.exists());
    });
}

#[test]
fn another_program_gives_way_where_that_is_wanted() {
    let (namespace, pins, other) = (Namespace::new(), PinDir::new(), PinDir::new());
    namespace.enter(|| {
        let foreign = other.load().attach("a.1", XdpMode::Generic).unwrap();
        let mut loaded = pins.load();
        loaded.replace_others();
        let attachment = loaded.attach("a.1", XdpMode::Native).unwrap();
        assert_ne!(attachment.program_id, foreign.program_id);
        assert_eq!(on("a.1"), [(AttachedMode::Native, attachment.program_id)]);
        assert_eq!(attachments(&Pins::new(&other.0)).unwrap(), [], "its link leads nowhere now");
        // Its own program is no other: it is replaced on its link.
        let mut again = pins.load();
        again.replace_others();
        assert!(again.attach("a.1", XdpMode::Native).unwrap().replaced);
    });
}

#[test]
fn a_program_put_on_by_netlink_gives_way_too() {
    let (namespace, pins, other) = (Namespace::new(), PinDir::new(), PinDir::new());
    drop(other.load());
    let program = Pins::new(&other.0).program();
    for mode in ["xdpgeneric", "xdpdrv"] {
        namespace.enter(|| {
            run("ip", &["link", "set", "dev", "a.1", mode, "pinned", program.to_str().unwrap()]);
            let mut loaded = pins.load();
            loaded.replace_others();
            let attachment = loaded.attach("a.1", XdpMode::Auto).unwrap();
            assert_eq!(on("a.1"), [(AttachedMode::Native, attachment.program_id)]);
            detach(&pins.0).unwrap();
        });
    }
}

#[test]
fn pins_of_another_version_are_taken_off_too() {
    let (namespace, pins) = (Namespace::new(), PinDir::new());
    namespace.enter(|| {
        drop(pins.load().attach("a.1", XdpMode::Native).unwrap());
        // As a version before would have left it; this one has nothing there.
        std::fs::rename(Pins::new(&pins.0).dir(), pins.0.join("v0")).unwrap();
        let error = format!("{:#}", pins.try_load(&LIMITS).err().expect("another layout is in the way"));
        assert!(error.contains("layout v0 is on a.1") && error.contains("lb detach"), "{error}");
        let done = detach(&pins.0).unwrap();
        assert_eq!(done.interfaces, ["a.1"]);
        assert_eq!(on("a.1"), []);
        assert!(!pins.0.exists());
    });
}
