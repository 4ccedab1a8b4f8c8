#![no_std]
#![no_main]

mod maps;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::abi::{Address, EventKind, Port, ServiceKey};
use maps::*;

/// Keys on the stack begin at multiples of eight: the verifier wants whole words there.
#[repr(align(8))]
struct Aligned(ServiceKey);

/// Passes every packet and touches every map, so that none is left out of the object.
#[xdp]
pub fn lb(ctx: XdpContext) -> u32 {
    let index = (ctx.data_end() - ctx.data()) as u32;
    let key = Aligned(ServiceKey::new(Address::v4([0, 0, 0, 0]), Port::ANY, 6));
    let mut n = HASH_SEED.load() as u32 ^ FLOW_MASK.load() ^ REPLY_MASK.load();
    n ^= ADDRESSES.get_ptr(&key.0.address).is_some() as u32;
    n ^= SERVICES.get_ptr(&key.0).is_some() as u32;
    n ^= SERVICE_INFO.get(index).is_some() as u32;
    n ^= BACKENDS.get(index).is_some() as u32;
    n ^= SELECTION.get(index).is_some() as u32;
    n ^= CURSORS.get(index).is_some() as u32;
    n ^= FLOW_WORDS.get(index).is_some() as u32;
    n ^= REPLY_WORDS.get(index).is_some() as u32;
    n ^= FLOWS.get(index).is_some() as u32;
    n ^= PORT_POOLS.get(index).is_some() as u32;
    n ^= SETTINGS.get(0).is_some() as u32;
    n ^= SERVICE_STATS.get(index).is_some() as u32;
    n ^= BACKEND_STATS.get(index).is_some() as u32;
    if let Some(counters) = VERDICT_STATS.get_ptr_mut(n & 1) {
        unsafe {
            (*counters).packets += 1;
            (*counters).bytes += index as u64;
        }
    }
    if let Some(mut entry) = EVENTS.reserve(0) {
        entry.write(lb_common::abi::Event {
            kind: EventKind::NeighbourMissing as u32,
            ifindex: unsafe { (*ctx.ctx).ingress_ifindex },
            address: Address::v4([10, 0, 0, 9]),
            backend_id: 7,
            zero: 0,
        });
        entry.submit(0);
    }
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
