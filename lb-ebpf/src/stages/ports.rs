//! Source ports of `full-nat`: one bit per port and backend endpoint. A port is taken by an atomic
//! or, so no two flows get one, and ports are used in turn, so that a port rests as long as it can
//! before the backend, which may hold it in TIME_WAIT, sees it again.

use aya_ebpf::{
    bindings::{
        bpf_sock, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2, xdp_md,
    },
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use lb_common::{
    abi::{Flow, Mode, Port, Protocol, limits::PORT_POOL_WORDS},
    ports::{in_turn, lowest_free},
};

use crate::{
    atomic::{fetch_and, fetch_or},
    maps::PORT_POOLS,
    opaque::opaque,
    packet::Packet,
};

/// Any network namespace number below zero: the program's own (BPF_F_CURRENT_NETNS).
const CURRENT_NETNS: u64 = -1i64 as u64;

/// Ports that are looked at before one is taken out of its turn. Another port of the same word has
/// its turn soon, and would then have rested for one round of words instead of all ports.
const OWN_TURN_ONLY: u32 = 64;

/// Takes a free port of the pool; 0 when there is none. `now` in ticks.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn take_port(pool: u32, now: u32) -> u32 {
    let Some(pool) = PORT_POOLS.get_ptr_mut(pool) else { return 0 };
    // SAFETY: the pointer is to a map value that lives as long as the program, and words are below
    // the array's length. Cursor and mark are only hints: CPUs that read the same start meet at the
    // atomic operation.
    unsafe {
        let exhausted_in = &raw mut (*pool).exhausted_in;
        if exhausted_in.read_volatile() == now | 1 {
            return 0;
        }
        let cursor = &raw mut (*pool).cursor;
        let turn = cursor.read_volatile();
        cursor.write_volatile(turn.wrapping_add(1));
        for step in 0..OWN_TURN_ONLY + PORT_POOL_WORDS as u32 {
            let at = turn.wrapping_add(step);
            let (word, first_bit) = in_turn(at);
            let word = opaque(word as usize) & (PORT_POOL_WORDS - 1);
            let place = &raw mut (*pool).words[word];
            let used = place.read_volatile();
            if used == u64::MAX || (step < OWN_TURN_ONLY && used & 1 << first_bit != 0) {
                continue;
            }
            let bit = lowest_free(used, first_bit);
            if fetch_or(place, 1 << bit) & (1 << bit) == 0 {
                // Else what was passed over is passed over again, and this port's turn comes twice.
                if step > 0 {
                    cursor.write_volatile(at.wrapping_add(1));
                }
                return word as u32 * 64 + bit;
            }
        }
        exhausted_in.write_volatile(now | 1);
    }
    0
}

/// Gives back a port that [`take_port`] gave.
#[inline(always)]
pub fn free(pool: u32, port: Port) {
    if let Some(pool) = PORT_POOLS.get_ptr_mut(pool) {
        let word = opaque((port.get() / 64) as usize) & (PORT_POOL_WORDS - 1);
        // SAFETY: `word` is below the array's length, and the place is aligned.
        unsafe {
            fetch_and(&raw mut (*pool).words[word], !(1 << (port.get() % 64)));
            (&raw mut (*pool).exhausted_in).write_volatile(0);
        }
    }
}

/// Gives back the port of a flow that ends.
#[inline(always)]
pub fn give_back(flow: &Flow, pool: u32) {
    if flow.mode == Mode::FullNat as u8 {
        free(pool, flow.source_port);
    }
}

/// Whether the host itself has a socket that the packet's reply would reach.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn host_socket(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let size = write_socket_tuple(packet);
    let md = md.cast();
    // SAFETY: the tuple is as long as its family's; a socket that is returned is released before
    // anything else happens.
    unsafe {
        let socket: *mut bpf_sock = if packet.reply_tuple.protocol == Protocol::Tcp as u8 {
            bpf_skc_lookup_tcp(md, &mut packet.socket, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(md, &mut packet.socket, size, CURRENT_NETNS, 0)
        };
        if socket.is_null() {
            return 0;
        }
        bpf_sk_release(socket.cast());
    }
    1
}

/// Writes the reply tuple as the helper wants it; returns its size.
#[inline(always)]
fn write_socket_tuple(packet: &mut Packet) -> u32 {
    let tuple = &packet.reply_tuple;
    let sport = u16::from_ne_bytes(tuple.source_port.to_wire());
    let dport = u16::from_ne_bytes(tuple.destination_port.to_wire());
    let (saddr, daddr) = (tuple.source.words(), tuple.destination.words());
    if tuple.source.is_v4() {
        let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 { saddr: saddr[3], daddr: daddr[3], sport, dport };
        packet.socket.__bindgen_anon_1.ipv4 = ipv4;
        size_of_val(&ipv4) as u32
    } else {
        let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 { saddr, daddr, sport, dport };
        packet.socket.__bindgen_anon_1.ipv6 = ipv6;
        size_of_val(&ipv6) as u32
    }
}
