//! The textbook balancer's twin that translates addresses: an entry of the kernel's LRU hash for each
//! direction of a flow, Maglev for new ones, and in `full-nat` a source port by hash, tried until no
//! other flow has it. Everything else as in [`crate::textbook`].

use aya_ebpf::{
    bindings::{BPF_NOEXIST, xdp_action},
    macros::xdp,
    programs::XdpContext,
};
use lb_common::{
    abi::Port,
    bench::{FULL_NAT, TextbookNat, TextbookVip, TupleKey},
    parse::{Network, Transport},
    rewrite::{Translation, translate},
};

use crate::{
    ctx::Frame,
    maps::{BACKENDS, NAT_FLOWS, NEW_FLOW, NewFlow},
    textbook::{count_sent, hash, is_syn, key, now, run, select, transmit, vip},
};

#[xdp(frags)]
pub fn textbook_nat(ctx: XdpContext) -> u32 {
    run(&ctx, balance)
}

#[inline(always)]
fn balance(frame: &mut Frame, network: &Network, transport: &Transport, bytes: u64) -> Option<u32> {
    let key = key(network, transport);
    let flow = match vip(network, transport) {
        Some(_)
            if !is_syn(transport)
                && let Some(flow) = NAT_FLOWS.get_ptr_mut(key) =>
        {
            flow
        }
        Some(vip) => begin(vip, network, transport, &key)?,
        None => match NAT_FLOWS.get_ptr_mut(key) {
            Some(flow) => flow,
            None => return Some(xdp_action::XDP_PASS),
        },
    };
    // SAFETY: an entry that gives way meanwhile is still memory of the map; a new flow is this CPU's.
    let flow = unsafe { &mut *flow };
    let now = now();
    if flow.seen != now {
        flow.seen = now;
    }
    let to = Translation {
        source: flow.source,
        destination: flow.destination,
        source_port: flow.source_port,
        destination_port: flow.destination_port,
    };
    count_sent(flow.vip, flow.backend, bytes);
    translate(frame, network, transport, &to)?;
    transmit(frame, bytes)
}

/// Source ports tried for a flow.
const ATTEMPTS: u32 = 16;
/// From one to the next: a prime number.
const STRIDE: u32 = 4099;
/// Source ports are these and those above.
const FIRST_PORT: u32 = 1024;

/// Enters both directions of a new flow, and gives that of this packet. The entries are put together
/// outside the stack, which is short.
#[inline(always)]
fn begin(vip: &TextbookVip, network: &Network, transport: &Transport, key: &TupleKey) -> Option<*mut TextbookNat> {
    let hash = hash(network, transport);
    let id = select(vip, hash)?;
    let backend = BACKENDS.get(id)?;
    // SAFETY: this CPU's element, and no other reference to it lives.
    let new = unsafe { &mut *NEW_FLOW.get_ptr_mut(0)? };
    let seen = now();
    let full_nat = vip.mode == FULL_NAT;
    let source = if full_nat { backend.source } else { network.source };
    new.reply = TupleKey {
        source: backend.address,
        destination: source,
        source_port: backend.port,
        destination_port: transport.source_port,
        protocol: transport.protocol as u8,
        zero: [0; 3],
    };
    new.back = TextbookNat {
        source: network.destination,
        destination: network.source,
        source_port: transport.destination_port,
        destination_port: transport.source_port,
        vip: vip.id,
        backend: id,
        seen,
    };
    if full_nat {
        link_free_port(new, hash)?;
    } else {
        NAT_FLOWS.insert(&new.reply, &new.back, 0).ok()?;
    }
    new.forward = TextbookNat {
        source,
        destination: backend.address,
        source_port: new.reply.destination_port,
        destination_port: backend.port,
        vip: vip.id,
        backend: id,
        seen,
    };
    NAT_FLOWS.insert(key, &new.forward, 0).ok()?;
    Some(&raw mut new.forward)
}

/// Enters the reply at the first source port where no other flow waits for one.
#[inline(always)]
fn link_free_port(new: &mut NewFlow, hash: u64) -> Option<()> {
    for attempt in 0..ATTEMPTS {
        let bits = (hash as u32).wrapping_add(attempt * STRIDE) & 0xffff;
        new.reply.destination_port = Port::new((FIRST_PORT + ((bits * (65_536 - FIRST_PORT)) >> 16)) as u16);
        if NAT_FLOWS.insert(&new.reply, &new.back, BPF_NOEXIST as u64).is_ok() {
            return Some(());
        }
    }
    None
}
