//! Connections that their backend refuses or does not answer go to another backend, and their client
//! does not notice. A program of its own, see `lb_rescue`.
//!
//! | what comes | what becomes of it |
//! | --- | --- |
//! | a reset that answers a SYN, or an ICMP error about it | the SYN that was kept, to another backend |
//! | a client's SYN again, not answered | goes to another backend; to the same one where that held an earlier connection of the tuple |
//! | a SYN-ACK of a backend that the connection was taken from | answered with a reset |
//!
//! Where there is no other backend, or no SYN was kept, the packet goes where it would have gone.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_xdp_store_bytes};
use lb_common::{
    abi::{
        Granularity, Knock, Mode, MovedKey, Port, Protocol, ServiceKey,
        limits::{KNOCK_AGAIN_NS, KNOCK_TRIES},
    },
    flow::TCP_ACK,
    packet::PacketAccess,
    parse::{NETWORK_OFFSET, Network, Part, Transport},
    rescue::{HEADERS, Syn},
    verdict::{Action, Reason, Stage, Verdict},
};

use super::{
    begin::begin,
    fragment,
    knock::{self, client_hash, keep, place, stamp},
    refuse::cut,
    select, table,
};
use crate::{
    copy::copy,
    ctx::Frame,
    maps::{BACKENDS, MOVED, SERVICES},
    opaque::opaque,
    packet::{NO_BACKEND, Packet},
    pipeline::{DENIED, LATE, REFUSED, REPEATED, UNDENIED, carry_out},
    stats,
};

/// Goes on with a packet that the main program has found the flow of, or has not: as its `begins` says.
#[inline(always)]
pub fn run(md: *mut xdp_md) -> Verdict {
    let Some(packet) = Packet::current() else { return Verdict::of(Reason::Internal) };
    let why = packet.begins;
    let (mut reason, taken) = match why {
        LATE => (if of_moved() != 0 { Reason::LateAnswer } else { Reason::NoFlow }, false),
        // One after the other, so that they do not lie on top of each other's stack.
        REFUSED => (Reason::ToClient, refused(md) != 0 && replace(md) != 0),
        DENIED => (Reason::ToClient, replace(md) != 0),
        _ => (Reason::ToBackend, repeated() != 0),
    };
    if taken {
        reason = begin_elsewhere(md, packet);
    } else if why == DENIED {
        // The error goes to the client after all.
        packet.begins = UNDENIED;
        return Verdict::go_on(Stage::Icmp);
    }
    let verdict = carry_out(md, packet, reason);
    if taken && matches!(why, REFUSED | DENIED) && verdict.reason() == Reason::ToBackend as u32 {
        return verdict.because(Reason::Rescued);
    }
    fragment::settled(md, packet, verdict)
}

/// Ends the flow at the backend that it was begun at, and begins it at the one that was chosen.
#[inline(always)]
fn begin_elsewhere(md: *mut xdp_md, packet: &mut Packet) -> Reason {
    table::end();
    packet.adopted = 0;
    packet.sought = Granularity::Flow as u32;
    packet.rescue.counted = 1;
    let reason = begin(md, packet);
    packet.rescue.counted = 0;
    // A reset would go to whom the frame came from, which need not be the client.
    if reason.action() == Action::Refuse {
        return Reason::Internal;
    }
    if reason == Reason::ToBackend {
        stats::rescued(packet.service.id, packet.rescue.from, packet.begins == REPEATED);
        note(md);
    }
    reason
}

/// Whether the packet, a SYN-ACK, is of a connection that was taken from its sender.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn of_moved() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    if packet.transport.protocol != Protocol::Tcp || packet.transport.part != Part::Whole {
        return 0;
    }
    let key = MovedKey {
        backend: packet.network.source,
        source: packet.network.destination,
        backend_port: packet.transport.source_port,
        source_port: packet.transport.destination_port,
    };
    // SAFETY: one word is read.
    match unsafe { MOVED.get(key) } {
        Some(service_id) => {
            packet.service.id = *service_id;
            1
        }
        None => 0,
    }
}

/// Whether the packet, a reset, refuses the SYN of its flow that was kept; notes it then.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn refused(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let frame = Frame::of(md);
    let Some(acknowledgement) = frame.read::<[u8; 4]>(packet.transport.offset as usize + 8) else { return 0 };
    let hash = client_hash(packet);
    let Some(knock) = place(hash) else { return 0 };
    let whole = packet.transport.part == Part::Whole;
    if !whole || packet.transport.tcp_flags & TCP_ACK == 0 || stamp(knock) != Knock::stamp_of(hash) {
        return 0;
    }
    // SAFETY: a map value; whether it was whole is asked below.
    let known = unsafe { &*knock };
    let syn = Syn { v4: known.v4 != 0, len: known.len, headers: &known.headers };
    if !syn.is_refused_by(acknowledgement) {
        return 0;
    }
    knock::refused(packet.flow.backend_id, &packet.flow.client);
    stats::refusal(packet.flow.backend_id);
    1
}

/// Puts the SYN that was refused into the place of the packet, which refuses it, and chooses another
/// backend for it; [`client_hash`] has found its hash. 0: the packet is as it was, and is to go on.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn replace(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let hash = packet.tuple.hash;
    let Some(knock) = place(hash) else { return 0 };
    if stamp(knock) != Knock::stamp_of(hash) {
        return 0;
    }
    // SAFETY: a map value; whether it was whole is asked below.
    let known = unsafe { &*knock };
    let syn = Syn { v4: known.v4 != 0, len: known.len, headers: &known.headers };
    if !find_service(packet) || syn.is_signed(&mut packet.cursor) {
        return 0;
    }
    recall(packet, known);
    if choose() == 0 || stamp(knock) != Knock::stamp_of(hash) {
        return 0;
    }
    restore(md)
}

/// The service of the packet's flow, as it is now.
#[inline(always)]
fn find_service(packet: &mut Packet) -> bool {
    let flow = &packet.flow;
    let mut key = ServiceKey::new(packet.to.source, flow.service_port, flow.protocol);
    // SAFETY: as in `admit::found`.
    let mut found = unsafe { SERVICES.get(key) };
    if found.is_none() {
        key.port = Port::ANY;
        // SAFETY: as above.
        found = unsafe { SERVICES.get(key) };
    }
    let Some(service) = found else { return false };
    if service.id != flow.service_id {
        return false;
    }
    copy(service, &mut packet.service);
    true
}

/// Which backends the connection was sent to.
#[inline(always)]
fn recall(packet: &mut Packet, known: &Knock) {
    copy(&known.tried, &mut packet.rescue.tried);
    packet.rescue.tries = known.tries as u32;
    for number in 0..KNOCK_TRIES as u32 {
        if number >= packet.rescue.tries {
            packet.rescue.tried[number as usize] = NO_BACKEND;
        }
    }
}

/// Schedules the packet to another backend; 0: there is none, or it was sent to as many as it may be.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn choose() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let tries = packet.rescue.tries;
    if tries as usize >= KNOCK_TRIES || tries > packet.service.retries as u32 {
        return 0;
    }
    packet.rescue.from = packet.flow.backend_id;
    packet.backend_id = select::another();
    (packet.backend_id != NO_BACKEND) as u32
}

/// Writes the SYN of the packet's flow over the frame, as the client sent it. 0: the frame has no room, and is as
/// it was.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn restore(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let Some(knock) = place(packet.tuple.hash) else { return 0 };
    // SAFETY: as in `refused`.
    let known = unsafe { &mut *knock };
    let syn = Syn { v4: known.v4 != 0, len: known.len, headers: &known.headers };
    let (v4, offset) = (syn.v4, syn.offset());
    let (ttl, tcp_flags) = (syn.ttl(), syn.tcp_flags());
    // As one bound: the verifier of Linux 6.1 learns nothing from a number that is not zero.
    let last = opaque((known.len as usize).wrapping_sub(1));
    if last >= HEADERS {
        return 0;
    }
    let len = last + 1;
    let mut frame = Frame::of(md);
    if resize(&mut frame, NETWORK_OFFSET + len).is_none() {
        return 0;
    }
    let kind: [u8; 2] = if v4 { [8, 0] } else { [0x86, 0xdd] };
    let written = frame.write(6, packet.flow.client_mac).and_then(|()| frame.write(12, kind));
    let headers = (&raw mut known.headers).cast();
    // SAFETY: context and bytes are valid, and so many are there.
    let refused = unsafe { bpf_xdp_store_bytes(md, NETWORK_OFFSET as u32, headers, len as u32) };
    if written.is_none() || refused != 0 {
        return 0;
    }
    packet.network = Network { v4, source: packet.tuple.source, destination: packet.tuple.destination };
    packet.transport = Transport {
        protocol: Protocol::Tcp,
        source_port: packet.tuple.source_port,
        destination_port: packet.tuple.destination_port,
        tcp_flags,
        ttl,
        part: Part::Whole,
        offset,
        packet_len: len as u16,
    };
    1
}

/// Makes the frame, of which nothing is kept, so many bytes long. Room is in front of it: behind a small frame
/// drivers may have none.
#[inline(always)]
fn resize(frame: &mut Frame, len: usize) -> Option<()> {
    let missing = len as i32 - frame.bytes() as i32;
    if missing > 0 { frame.adjust_head(-missing) } else { cut(frame, len) }
}

/// Whether the packet, a SYN of an unanswered flow, was scheduled to another backend.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn repeated() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let hash = packet.tuple.hash;
    let known = place(hash).filter(|knock| stamp(*knock) == Knock::stamp_of(hash));
    packet.rescue.tried = [NO_BACKEND; KNOCK_TRIES];
    packet.rescue.tried[0] = packet.flow.backend_id;
    packet.rescue.tries = 1;
    if let Some(knock) = known {
        // SAFETY: a map value; if it changes meanwhile, another backend is chosen or none.
        let known = unsafe { &*knock };
        // The network may have made two of one packet.
        if knock::time().wrapping_sub(known.sent_at) < KNOCK_AGAIN_NS {
            return 0;
        }
        if known.contested != 0 {
            return again(hash);
        }
        recall(packet, known);
    }
    knock::repeated(packet.flow.backend_id, &packet.flow.client);
    if choose() == 0 {
        return 0;
    }
    remember();
    1
}

/// Notes that a SYN goes to its backend once more: what was in its way there is gone.
#[inline(always)]
fn again(hash: u64) -> u32 {
    let Some(knock) = place(hash) else { return 0 };
    if knock::claim(knock, Knock::stamp_of(hash)) {
        // SAFETY: the element is this program's until it is released.
        unsafe {
            (*knock).contested = 0;
            (*knock).sent_at = knock::time();
        }
        knock::release(knock, Knock::stamp_of(hash));
    }
    0
}

/// Remembers what the flow's backend may still answer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn remember() -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let Some(backend) = BACKENDS.get(packet.flow.backend_id) else { return 0 };
    if Mode::is_one_sided(packet.flow.mode) {
        return 0;
    }
    let key = MovedKey {
        backend: backend.address,
        source: packet.flow.source,
        backend_port: backend.port_for(packet.flow.service_port),
        source_port: packet.flow.source_port,
    };
    // Without room for it a late answer goes to the host's stack.
    let _ = MOVED.insert(key, packet.flow.service_id, 0);
    1
}

/// Notes that the packet's connection was sent to one more backend.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn note(md: *mut xdp_md) -> u32 {
    let Some(packet) = Packet::current() else { return 0 };
    let hash = packet.tuple.hash;
    let Some(knock) = place(hash) else { return 0 };
    let tries = opaque(packet.rescue.tries as usize);
    if stamp(knock) != Knock::stamp_of(hash) || tries >= KNOCK_TRIES {
        return keep(md);
    }
    if !knock::claim(knock, Knock::stamp_of(hash)) {
        return 0;
    }
    let now = knock::time();
    knock::asked(packet.flow.backend_id, &packet.network.source, now);
    // SAFETY: the element is this program's until it is released.
    unsafe {
        (*knock).sent_at = now;
        (*knock).tried[tries] = packet.flow.backend_id;
        (*knock).tries = tries as u8 + 1;
        (*knock).contested = 0;
    }
    knock::release(knock, Knock::stamp_of(hash));
    1
}
