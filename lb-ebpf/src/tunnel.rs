//! Which tunnel a packet takes to its backend.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use lb_common::{
    abi::{Backend, DontFragment, Mode},
    encap::Tunnel,
};

/// The tunnel of a [`Mode`] to a backend for a packet of the flow that this hash tells from others.
#[inline(always)]
pub fn to(mode: u8, backend: &Backend, hash: u64) -> Tunnel {
    Tunnel { gre: (mode == Mode::DsrGre as u8) as u8, ..without_gre(backend, hash) }
}

/// The same of another mode than `dsr-gre`, for which the short way has no room: on Linux 6.1 its stack is
/// full to the last word.
#[inline(always)]
pub fn without_gre(backend: &Backend, hash: u64) -> Tunnel {
    let entropy = entropy(hash);
    let mut id = 0;
    if backend.dont_fragment == DontFragment::Clear as u8 {
        // SAFETY: has no arguments.
        id = unsafe { bpf_get_prandom_u32() } as u16;
    }
    Tunnel {
        source: Tunnel::chosen_source(&backend.source, backend.source_bits, entropy),
        destination: backend.address,
        gue_port: backend.tunnel_port,
        gre: 0,
        entropy,
        dont_fragment: backend.dont_fragment,
        id,
    }
}

/// Mixed anew, so that what is seen outside tells nothing of the flow's place in the table.
#[inline(always)]
const fn entropy(hash: u64) -> u32 {
    ((hash ^ hash >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}
