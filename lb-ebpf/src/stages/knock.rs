//! Connections that wait for their first answer: the client's SYN is kept until it comes. Functions with
//! a C interface as in [`table`](super::table).
//!
//! Nothing here is reached by packets of a connection that was answered.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_ktime_get_ns, bpf_xdp_load_bytes},
};
use lb_common::{
    abi::{
        Address, Handshakes, Knock, Mode, Protocol, ServiceValue, Silence,
        limits::{KNOCK_KEPT_NS, KNOCK_PATIENCE_NS, KNOCK_TELL_NS, KNOCK_TRIES},
    },
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Part},
    rescue::{HEADERS, kept_len},
};

use super::table::Tuple;
use crate::{
    atomic::compare_exchange,
    ctx::Frame,
    events,
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
/// whose service is watched. Of one that cannot be sent to another backend by us, but by its client, only
/// when it came and where it went. 0: nothing was kept.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let transport = &packet.transport;
    let one_sided = Mode::is_one_sided(packet.service.mode);
    if !packet.service.has(ServiceValue::WATCHED) {
        return 0;
    }
    if transport.protocol == Protocol::Udp && !one_sided && packet.service.has(ServiceValue::ANSWERED) {
        asked(packet.flow.backend_id, &packet.network.source, time());
        return 0;
    }
    if transport.protocol != Protocol::Tcp || !opens(transport) || transport.part != Part::Whole {
        return 0;
    }
    let now = time();
    let frame = Frame::of(md);
    let mut len = 0;
    if !one_sided {
        asked(packet.flow.backend_id, &packet.network.source, now);
        let Some(data_offset) = frame.read::<u8>(transport.offset as usize + 12) else { return 0 };
        len = kept_len(packet.network.v4, transport.offset, transport.packet_len, data_offset);
    }
    let Some(knock) = place(packet.tuple.hash) else { return 0 };
    if len == 0 && is_needed(knock, now) {
        return 0;
    }
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
        let len = opaque(len);
        if len == 0 {
            0
        } else if len > HEADERS {
            -1
        } else {
            bpf_xdp_load_bytes(md, NETWORK_OFFSET as u32, headers, len as u32)
        }
    };
    release(knock, if refused == 0 { Knock::stamp_of(packet.tuple.hash) } else { Knock::FREE });
    (refused == 0) as u32
}

/// Whether a SYN is kept here that may still have to go to another backend.
#[inline(always)]
fn is_needed(knock: *mut Knock, now: u64) -> bool {
    let kept = stamp(knock) != Knock::FREE;
    // SAFETY: aligned words of a map value; what is read while somebody writes is right a moment later.
    let (len, sent_at) =
        unsafe { ((&raw const (*knock).len).read_volatile(), (&raw const (*knock).sent_at).read_volatile()) };
    kept && len != 0 && now.wrapping_sub(sent_at) < KNOCK_KEPT_NS
}

/// Takes in that the packet's flow was answered, by the packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn answered() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let now = time();
    if let Some(silence) = SILENCES.get_ptr_mut(packet.flow.backend_id) {
        clear(silence, now);
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
        let bucket = opaque(Handshakes::bucket(now.wrapping_sub(sent_at))) & (Handshakes::BUCKETS - 1);
        // SAFETY: this CPU's element, and the bucket is one of its.
        unsafe { *(&raw mut (*handshakes).counts).cast::<u64>().add(bucket) += 1 };
    }
    1
}

/// The backend has answered: nothing speaks against it any more.
#[inline(always)]
fn clear(silence: *mut Silence, now: u64) {
    // SAFETY: aligned words of a map value, each written as a whole. Most of the time most are 0 already.
    unsafe {
        for word in [
            &raw mut (*silence).since,
            &raw mut (*silence).waiting,
            &raw mut (*silence).refused,
            &raw mut (*silence).unreachable,
            &raw mut (*silence).denied_since,
        ] {
            if word.read_volatile() != 0 {
                word.write_volatile(0);
            }
        }
        (&raw mut (*silence).answered_at).write_volatile(now);
    }
}

/// Takes in that the backend of a connection that waits for its answer has sent something else: it lives, and
/// holds an earlier connection of the same tuple, which the client is about to reset (RFC 9293, 3.10.7.3).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn contested() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    if let Some(silence) = SILENCES.get_ptr_mut(packet.flow.backend_id) {
        clear(silence, time());
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

/// Notes that a backend was sent the first packet of a client's flow.
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
            if now.wrapping_sub(since.read_volatile()) >= KNOCK_PATIENCE_NS {
                tell(backend_id);
            }
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
        denied(silence, &raw mut (*silence).refused, &raw mut (*silence).refused_at, backend_id, client);
    }
}

/// Notes that somebody says that a backend cannot be reached by a client's packet.
#[inline(always)]
pub fn unreachable(backend_id: u32, client: &Address) {
    let Some(silence) = SILENCES.get_ptr_mut(backend_id) else { return };
    // SAFETY: as in `asked`.
    unsafe {
        denied(silence, &raw mut (*silence).unreachable, &raw mut (*silence).unreachable_at, backend_id, client);
    }
}

/// Notes one more client in `clients`, and when.
///
/// # Safety
/// All three point into one element of `silences`.
#[inline(always)]
unsafe fn denied(silence: *mut Silence, clients: *mut u64, at: *mut u64, backend_id: u32, client: &Address) {
    let (now, bit) = (time(), Silence::client_bit(client));
    // SAFETY: the caller vouches for the pointers; otherwise as in `asked`.
    unsafe {
        at.write_volatile(now);
        let since = &raw mut (*silence).denied_since;
        if since.read_volatile() == 0 {
            since.write_volatile(now);
        }
        let before = clients.read_volatile();
        if before & bit == 0 {
            clients.write_volatile(before | bit);
            tell(backend_id);
        }
    }
}

/// Wakes the agent, unless it was woken for this backend just now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tell(backend_id: u32) -> u32 {
    let Some(silence) = SILENCES.get_ptr_mut(backend_id) else { return 0 };
    let now = time();
    // SAFETY: as in `asked`.
    unsafe {
        let told_at = &raw mut (*silence).told_at;
        if now.wrapping_sub(told_at.read_volatile()) < KNOCK_TELL_NS {
            return 0;
        }
        told_at.write_volatile(now);
    }
    events::suspect(backend_id);
    1
}

/// Notes that a client has sent its SYN to a backend again.
#[inline(always)]
pub fn repeated(backend_id: u32, client: &Address) {
    let Some(silence) = SILENCES.get_ptr_mut(backend_id) else { return };
    // SAFETY: as in `asked`.
    unsafe {
        let repeated = &raw mut (*silence).repeated;
        let (before, bit) = (repeated.read_volatile(), Silence::client_bit(client));
        (&raw mut (*silence).repeated_at).write_volatile(time());
        if before & bit == 0 {
            repeated.write_volatile(before | bit);
            tell(backend_id);
        }
    }
}
