//! Connections that wait for their first answer: the client's SYN is kept until it comes. Functions with
//! a C interface as in [`table`](super::table).
//!
//! Nothing here is reached by packets of a connection that was answered.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_ktime_get_ns, bpf_xdp_load_bytes},
};
use lb_common::{
    abi::{Address, Handshakes, Knock, Mode, Protocol, ServiceValue, Silence, limits::KNOCK_TRIES},
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Part},
    rescue::{HEADERS, kept_len},
};

use super::table::Tuple;
use crate::{
    atomic::compare_exchange,
    ctx::Frame,
    maps::{HANDSHAKES, KNOCKS, SERVICE_INFO, SILENCES},
    opaque::opaque,
    packet::Packet,
    pipeline::opens,
};

/// A connection on its way to another backend.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Rescue {
    /// [`Knock::tried`] and [`Knock::tries`].
    pub tried: [u32; KNOCK_TRIES],
    pub tries: u32,
    /// The backend that it is taken from.
    pub from: u32,
    /// Not 0: its flow was counted already when it began.
    pub counted: u32,
}

/// Nanoseconds of the monotonic clock.
#[inline(always)]
pub fn time() -> u64 {
    // SAFETY: has no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// The place where a connection with this hash is kept.
#[inline(always)]
pub fn place(hash: u64) -> Option<*mut Knock> {
    KNOCKS.get_ptr_mut(Knock::place_of(hash))
}

/// Takes the element from whom it belongs to; `false`: somebody is at work on it.
#[inline(always)]
pub fn claim(knock: *mut Knock, stamp: u64) -> bool {
    // SAFETY: an aligned word of a map value.
    stamp != Knock::BUSY && unsafe { compare_exchange(&raw mut (*knock).stamp, stamp, Knock::BUSY) } == stamp
}

/// Ends what [`claim`] began.
#[inline(always)]
pub fn release(knock: *mut Knock, stamp: u64) {
    // SAFETY: as in `claim`. An exchange, so that what was written before it is seen before it.
    unsafe { compare_exchange(&raw mut (*knock).stamp, Knock::BUSY, stamp) };
}

#[inline(always)]
pub fn stamp(knock: *mut Knock) -> u64 {
    // SAFETY: as in `claim`.
    unsafe { (&raw const (*knock).stamp).read_volatile() }
}

/// Keeps the packet, whose flow has just begun, if that is a connection whose answer will be seen and
/// whose service is watched. 0: it was not kept.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let transport = &packet.transport;
    let seen = !Mode::is_one_sided(packet.service.mode) && transport.protocol == Protocol::Tcp;
    if !seen || !packet.service.has(ServiceValue::WATCHED) || !opens(transport) || transport.part != Part::Whole {
        return 0;
    }
    let now = time();
    asked(packet.flow.backend_id, &packet.network.source, now);
    let frame = Frame::of(md);
    let Some(data_offset) = frame.read::<u8>(transport.offset as usize + 12) else { return 0 };
    let len = opaque(kept_len(packet.network.v4, transport.offset, transport.packet_len, data_offset));
    if len == 0 || len > HEADERS {
        return 0;
    }
    let Some(knock) = place(packet.tuple.hash) else { return 0 };
    if !claim(knock, stamp(knock)) {
        return 0;
    }
    // SAFETY: the element is this program's until it is released, and has room for so many bytes.
    let refused = unsafe {
        (*knock).sent_at = now;
        (*knock).service_id = packet.service.id;
        (*knock).ifindex = if packet.ingress == frame.ifindex() { packet.ingress } else { 0 };
        (*knock).tried[0] = packet.flow.backend_id;
        (*knock).tries = 1;
        (*knock).contested = 0;
        (*knock).len = len as u8;
        (*knock).v4 = packet.network.v4 as u8;
        (*knock).client_mac = packet.flow.client_mac;
        let headers = (&raw mut (*knock).headers).cast();
        bpf_xdp_load_bytes(md, NETWORK_OFFSET as u32, headers, len as u32)
    };
    release(knock, if refused == 0 { Knock::stamp_of(packet.tuple.hash) } else { Knock::FREE });
    (refused == 0) as u32
}

/// Takes in that the packet's flow was answered, by the packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answered() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    if let Some(silence) = SILENCES.get_ptr_mut(packet.flow.backend_id) {
        lives(silence);
    }
    let hash = client_hash(packet);
    let Some(knock) = place(hash) else { return 0 };
    if stamp(knock) != Knock::stamp_of(hash) || !claim(knock, Knock::stamp_of(hash)) {
        return 0;
    }
    // SAFETY: as in `keep`.
    let (sent_at, service_id) = unsafe { ((*knock).sent_at, (*knock).service_id) };
    release(knock, Knock::FREE);
    if let Some(handshakes) = HANDSHAKES.get_ptr_mut(service_id) {
        let bucket = opaque(Handshakes::bucket(time().wrapping_sub(sent_at))) & (Handshakes::BUCKETS - 1);
        // SAFETY: this CPU's element, and the bucket is one of its.
        unsafe { *(&raw mut (*handshakes).counts).cast::<u64>().add(bucket) += 1 };
    }
    1
}

/// The backend owes no answer.
#[inline(always)]
fn lives(silence: *mut Silence) {
    // SAFETY: aligned words of a map value, each written as a whole. Most of the time they are 0, and
    // then nothing is written that other CPUs read.
    unsafe {
        for word in [&raw mut (*silence).since, &raw mut (*silence).waiting, &raw mut (*silence).refused] {
            if word.read_volatile() != 0 {
                word.write_volatile(0);
            }
        }
    }
}

/// Takes in that the backend of a connection that waits for its answer has sent something else: it lives, and
/// holds an earlier connection of the same tuple, which the client is about to reset (RFC 9293, 3.10.7.3).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn contested() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    if let Some(silence) = SILENCES.get_ptr_mut(packet.flow.backend_id) {
        lives(silence);
    }
    let hash = client_hash(packet);
    let Some(knock) = place(hash) else { return 0 };
    if stamp(knock) != Knock::stamp_of(hash) || !claim(knock, Knock::stamp_of(hash)) {
        return 0;
    }
    // SAFETY: as in `keep`.
    unsafe { (*knock).contested = 1 };
    release(knock, Knock::stamp_of(hash));
    1
}

/// The hash of what the client of the packet's flow sends.
#[inline(always)]
pub fn client_hash(packet: &mut Packet) -> u64 {
    let Some(info) = SERVICE_INFO.get(packet.flow.service_id) else { return 0 };
    let flow = &packet.flow;
    packet.tuple = Tuple::new(flow.client, info.address, flow.client_port, flow.service_port, flow.protocol, 0);
    packet.tuple.hash
}

/// Notes that a backend was sent the SYN of a client.
#[inline(always)]
pub fn asked(backend_id: u32, client: &Address, now: u64) {
    let Some(silence) = SILENCES.get_ptr_mut(backend_id) else { return };
    let bit = Silence::client_bit(client);
    // SAFETY: aligned words of a map value, each written as a whole.
    unsafe {
        let (since, waiting) = (&raw mut (*silence).since, &raw mut (*silence).waiting);
        if since.read_volatile() == 0 {
            since.write_volatile(now);
            waiting.write_volatile(bit);
        } else if waiting.read_volatile() & bit == 0 {
            waiting.write_volatile(waiting.read_volatile() | bit);
        }
        (&raw mut (*silence).asked_at).write_volatile(now);
    }
}

/// Notes that a backend has refused a client's SYN: it is there, and says no.
#[inline(always)]
pub fn refused(backend_id: u32, client: &Address) {
    let Some(silence) = SILENCES.get_ptr_mut(backend_id) else { return };
    // SAFETY: as in `asked`.
    unsafe {
        (&raw mut (*silence).since).write_volatile(0);
        let refused = &raw mut (*silence).refused;
        refused.write_volatile(refused.read_volatile() | Silence::client_bit(client));
        (&raw mut (*silence).refused_at).write_volatile(time());
    }
}

/// Notes that a client has sent its SYN to a backend again.
#[inline(always)]
pub fn repeated(backend_id: u32, client: &Address) {
    let Some(silence) = SILENCES.get_ptr_mut(backend_id) else { return };
    // SAFETY: as in `asked`.
    unsafe {
        let repeated = &raw mut (*silence).repeated;
        repeated.write_volatile(repeated.read_volatile() | Silence::client_bit(client));
        (&raw mut (*silence).repeated_at).write_volatile(time());
    }
}
