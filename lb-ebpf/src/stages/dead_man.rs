//! What becomes of new flows while the agent is silent. Flows that are known, and packets that may be
//! of one, go on whatever is written here. Asked where a flow begins only: packets of known flows do not
//! pay for it.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use lb_common::{abi::Settings, verdict::Reason};

use crate::{
    maps::SETTINGS,
    packet::{NO_BACKEND, Packet},
};

/// Nothing is to be said: the flow may begin.
const SPEAKS: u32 = 0;

/// The reason why the packet's flow, which is not known, does not begin.
#[inline(always)]
pub fn refuses(packet: &Packet) -> Option<Reason> {
    // Somebody else's flow that only gets an entry here, and connections that moved to another address.
    let known = packet.adopted != 0 || (packet.service.quic_server_id != 0 && packet.named != NO_BACKEND);
    if known { None } else { says() }
}

/// The reason why no flow begins at this moment.
#[inline(always)]
pub fn says() -> Option<Reason> {
    match silence() {
        SPEAKS => None,
        Settings::SILENT_DROP => Some(Reason::AgentSilentDropped),
        _ => Some(Reason::AgentSilentPassed),
    }
}

/// [`SPEAKS`], or the policy that is in force because the agent is silent.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn silence() -> u32 {
    let Some(settings) = SETTINGS.get(0) else { return SPEAKS };
    let policy = settings.flags & (Settings::SILENT_PASS | Settings::SILENT_DROP);
    if policy == 0 {
        return SPEAKS;
    }
    // SAFETY: has no arguments.
    if unsafe { bpf_ktime_get_coarse_ns() } < settings.silent_at { SPEAKS } else { policy }
}
