//! Maps of the decapsulating program (`lb decap`). They are made anew with each program and pinned
//! for whoever wants to read them.

use bytemuck::{Pod, Zeroable};

use super::Port;

/// The XDP program.
pub const PROGRAM: &str = "lb_decap";

/// [`Settings`], one element.
pub const SETTINGS: &str = "decap_settings";
/// Prefixes of [`super::Address`] (IPv4 mapped: 96 bits longer) that tunnels may come from.
pub const SOURCES: &str = "decap_sources";
/// Addresses that tunnels may end at; looked at with [`Settings::OWN_ADDRESSES`] only.
pub const OWN: &str = "decap_own";
/// Addresses whose packets are taken off; the value is an index into `decap_vip_stats`.
pub const VIPS: &str = "decap_vips";
/// [`super::VerdictCounters`] by [`crate::decap::Outcome`].
pub const STATS: &str = "decap_stats";
/// [`super::DirectionCounters`] of what was stripped for each address, as it came in.
pub const VIP_STATS: &str = "decap_vip_stats";

/// Every map.
pub const MAPS: [&str; 6] = [SETTINGS, SOURCES, OWN, VIPS, STATS, VIP_STATS];
const _: () = {
    let mut n = 0;
    while n < MAPS.len() {
        assert!(MAPS[n].len() <= 15);
        n += 1;
    }
};

/// Most addresses of services.
pub const VIPS_MAX: u32 = 4096;
/// Most prefixes of balancers.
pub const SOURCES_MAX: u32 = 4096;
/// Most addresses that tunnels may end at.
pub const OWN_MAX: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Settings {
    /// UDP port of GUE; [`Port::ANY`]: none.
    pub gue_port: Port,
    /// [`Settings::OWN_ADDRESSES`]
    pub flags: u16,
    pub reserved: u32,
}

impl Settings {
    /// Tunnels may end at addresses of `decap_own` only.
    pub const OWN_ADDRESSES: u16 = 1;
}
