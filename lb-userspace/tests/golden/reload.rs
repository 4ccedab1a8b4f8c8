//! Programs that take the place of those of a lab, over its maps.

use std::path::Path;

use lb_common::{
    abi::{Mode, Protocol},
    flow::TCP_SYN,
};
use lb_userspace::{
    config::{Limits, XdpMode},
    dataplane::kernel::{LoadOptions, Loaded},
};

use crate::lab::{FRONT_MAC, Lab, ROUTER_MAC, Side, Spec, ifindex, packet, vip};

/// Of a flow table for a hundred thousand flows.
pub const ROOM: u32 = 1 << 18;

/// Of the client with this number, as it comes in at the front.
pub fn frame(number: u32, flags: u8) -> Vec<u8> {
    let client = format!("198.51.100.{}:{}", 1 + number / 50_000, 1_024 + number % 50_000).parse().unwrap();
    let mut frame = packet(client, (vip(true), 80).into(), 64, Protocol::Tcp, flags).frame();
    frame[..6].copy_from_slice(&FRONT_MAC);
    frame[6..12].copy_from_slice(&ROUTER_MAC);
    frame
}

pub fn front() -> u32 {
    ifindex(Side::Front)
}

pub fn options<'a>(pin_dir: &'a Path, limits: &'a Limits) -> LoadOptions<'a> {
    LoadOptions { pin_dir, limits, debug_log: false }
}

/// Puts a loaded program on both interfaces.
pub fn attach(loaded: &mut Loaded) {
    for interface in ["front", "back"] {
        assert!(loaded.attach(interface, XdpMode::Native).unwrap().replaced);
    }
}

/// Services of both families and protocols, and twenty flows.
pub fn serve_twenty(lab: &mut Lab) {
    for v4 in [true, false] {
        lab.serve(Spec { backends: 2, ..Spec::new(v4, Protocol::Tcp, Mode::FullNat) });
        lab.serve(Spec { port: 53, ..Spec::new(v4, Protocol::Udp, Mode::Nat) });
    }
    for number in 0..20 {
        assert_eq!(lab.run(Side::Front, &frame(number, TCP_SYN)).0, "redirect");
    }
}
