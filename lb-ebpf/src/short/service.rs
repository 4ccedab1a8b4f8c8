//! The service of a packet: from its line, which is read without a call of the kernel, or from the map.

use lb_common::{
    abi::{Address, Port, ServiceKey, ServiceLine, ServiceValue},
    hash::service_lines,
    parse::{Network, Transport},
};

use crate::{
    maps::{SERVICE_LINES, SERVICES},
    ordered::after,
    packet::Packet,
};

/// A [`ServiceKey`] on the stack, written in the words in which the kernel reads it at once: what was written
/// in smaller ones would have to reach the cache first.
#[repr(C, align(8))]
struct Key {
    address: [u64; 2],
    rest: u32,
}

/// Words of a [`ServiceLine`], in which it is read.
const VERSION: usize = 5;
const VALUE: usize = 3;
const _: () = assert!(size_of::<ServiceKey>() == 20 && core::mem::offset_of!(ServiceLine, version) == VERSION * 4);
const _: () = assert!(core::mem::offset_of!(ServiceLine, value) == VALUE * 8 && size_of::<ServiceValue>() == 32);

/// The service of a packet from a client, as one published state: a copy in working memory.
#[inline(always)]
pub fn find(network: &Network, transport: &Transport) -> Option<&'static ServiceValue> {
    let [a, b, c, d] = network.destination.words();
    let [high, low] = transport.destination_port.to_wire();
    let rest = u32::from_ne_bytes([high, low, transport.protocol as u8, 0]);
    if find_service(join(a, b), join(c, d), rest) == 0 {
        return None;
    }
    Packet::current().map(|packet| &packet.service)
}

/// Finds the service with a key of these words, and keeps it with the packet; 0: there is none. Verified by
/// itself: it may have been found in several places, and what follows is to be walked once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_service(first: u64, second: u64, rest: u32) -> u32 {
    let key = Key { address: [first, second], rest };
    let Some(value) = key.find() else { return 0 };
    let Some(packet) = Packet::current() else { return 0 };
    let copy: *mut u64 = (&raw mut packet.service).cast();
    for (at, word) in value.into_iter().enumerate() {
        // SAFETY: as long as the value; this CPU's alone.
        unsafe { copy.add(at).write_unaligned(word) };
    }
    1
}

type Words = [u64; 4];

impl Key {
    #[inline(always)]
    fn find(&self) -> Option<Words> {
        let [one, other] = service_lines(&self.in_fields());
        let mut line: *const u64 = SERVICE_LINES.get_ptr_mut(one)?.cast();
        if self.differs(line) != 0 {
            line = SERVICE_LINES.get_ptr_mut(other)?.cast();
        }
        if let Some(value) = self.read(line) {
            return Some(value);
        }
        // The line is being written, or there is none.
        // SAFETY: at least as large and aligned as a key, and any bytes are one.
        let key: &ServiceKey = unsafe { &*(&raw const *self).cast() };
        // SAFETY: an update puts a new element in the place of the old, which stays whole until no program can
        // see it.
        let value: *const u64 = (&raw const *unsafe { SERVICES.get(key) }?).cast();
        // SAFETY: within the element.
        let word = |at: usize| unsafe { value.add(at).read_unaligned() };
        Some([word(0), word(1), word(2), word(3)])
    }

    /// The value of a line; `None`: it is another service's, or is being written.
    #[inline(always)]
    fn read(&self, line: *const u64) -> Option<Words> {
        let version = version(line);
        let line = after(version as u64, line);
        // Also the key is read between the versions: a whole line may have been written since it was looked at.
        let differs = self.differs(line);
        // SAFETY: within the line; words that may change are read once.
        let word = |at: usize| unsafe { line.add(VALUE + at).read_volatile() };
        let value = [word(0), word(1), word(2), word(3)];
        let line = after(differs | value[0] | value[1] | value[2] | value[3], line);
        (differs == 0 && version & 1 == 0 && self::version(line) == version).then_some(value)
    }

    /// 0: the line is this service's; told without a branch for each word.
    #[inline(always)]
    fn differs(&self, line: *const u64) -> u64 {
        // SAFETY: within the line.
        let (a, b, rest) =
            unsafe { (line.read_volatile(), line.add(1).read_volatile(), line.add(2).cast::<u32>().read_volatile()) };
        a ^ self.address[0] | b ^ self.address[1] | (rest ^ self.rest) as u64
    }

    #[inline(always)]
    fn in_fields(&self) -> ServiceKey {
        let [[a, b], [c, d]]: [[u32; 2]; 2] = bytemuck::cast(self.address);
        let [high, low, protocol, _] = self.rest.to_ne_bytes();
        ServiceKey::new(Address::from_words([a, b, c, d]), Port::from_wire([high, low]), protocol)
    }
}

#[inline(always)]
fn version(line: *const u64) -> u32 {
    // SAFETY: within the line.
    unsafe { line.cast::<u32>().add(VERSION).read_volatile() }
}

#[inline(always)]
fn join(low: u32, high: u32) -> u64 {
    u64::from_ne_bytes(bytemuck::cast([low, high]))
}
