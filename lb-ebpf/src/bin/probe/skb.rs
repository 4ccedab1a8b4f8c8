//! The only file of these programs with packet pointers: a packet of the kernel's stack.

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
        BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::generated::{
        bpf_csum_diff, bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_adjust_room,
        bpf_skb_change_proto, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use lb_common::{
    abi::{Address, Port, Protocol},
    checksum::Sum,
    encap::Tunnel,
    icmp::quote::Quoted,
    packet::{Field, HEADERS_MAX, PacketAccess},
    parse::{NETWORK_OFFSET, Transport},
};

use crate::opaque::opaque;

/// Bytes that must be at hand before a packet is read: Ethernet, and an ICMPv6 error with what it quotes of IPv6 and
/// UDP. More than IPv6 and TCP without options have, or IPv4 with all of them and UDP.
const HEADERS: usize = NETWORK_OFFSET + 40 + 8 + 40 + 8;

/// What of the network header: where its address and the transport's port are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// The checksum of what is behind the IP header.
#[derive(Clone, Copy)]
pub struct Check {
    /// Bytes from the start of the packet.
    at: u32,
    /// For the kernel: what stands for no checksum.
    flags: u64,
    /// Whether it covers IPv4 addresses; IPv6's are always covered.
    covers_v4: bool,
}

impl Check {
    #[inline(always)]
    pub fn of(transport: &Transport) -> Self {
        let segment = transport.offset as u32;
        match transport.protocol {
            Protocol::Tcp => Self { at: segment + 16, flags: 0, covers_v4: true },
            _ => Self { at: segment + 6, flags: BPF_F_MARK_MANGLED_0 as u64, covers_v4: true },
        }
    }

    /// Of ICMP whose header is there.
    #[inline(always)]
    pub fn of_icmp(offset: u16) -> Self {
        Self { at: offset as u32 + 2, flags: 0, covers_v4: false }
    }
}

/// A packet with its Ethernet header. What lies between `start` and `end` can be reached.
pub struct Skb {
    md: *mut __sk_buff,
    start: usize,
    end: usize,
}

impl Skb {
    /// With its headers at hand.
    #[inline(always)]
    pub fn new(ctx: &TcContext) -> Self {
        let mut skb = Self { md: ctx.skb.skb, start: 0, end: 0 };
        skb.refresh();
        let headers = skb.len().min(HEADERS);
        if skb.end - skb.start < headers {
            // SAFETY: the context is valid; pointers are derived anew. Where it fails, reading does.
            unsafe { bpf_skb_pull_data(skb.md, headers as u32) };
            skb.refresh();
        }
        skb
    }

    /// The socket that sends it; null: none.
    #[inline(always)]
    pub fn socket(ctx: &TcContext) -> *mut core::ffi::c_void {
        // SAFETY: the context is valid.
        unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk }.cast()
    }

    /// Whether it is several segments, which a card or the kernel cuts later.
    #[inline(always)]
    pub fn is_several(&self) -> bool {
        // SAFETY: the context is valid.
        unsafe { (*self.md).gso_size != 0 }
    }

    /// Gives one end of the packet another address and port, of the same family, whatever of its
    /// checksums is done already and whatever is left to the card. `None`: the kernel refused.
    #[inline(always)]
    pub fn move_end(
        &mut self,
        transport: &Transport,
        end: End,
        (address, port): (Address, Port),
        (new_address, new_port): (Address, Port),
    ) -> Option<()> {
        self.move_address(Check::of(transport), end, address, new_address)?;
        self.move_port(transport, end, port, new_port)
    }

    /// The same with the address alone.
    #[inline(always)]
    pub fn move_address(&mut self, check: Check, end: End, address: Address, new_address: Address) -> Option<()> {
        let destination = end == End::Destination;
        let pseudo = check.flags | BPF_F_PSEUDO_HDR as u64;
        if address.is_v4() {
            let (old, new) = (address.words()[3], new_address.words()[3]);
            let at = NETWORK_OFFSET as u32 + if destination { 16 } else { 12 };
            if check.covers_v4 {
                // SAFETY: the context is valid.
                done(unsafe { bpf_l4_csum_replace(self.md, check.at, old.into(), new.into(), pseudo | 4) })?;
            }
            // SAFETY: the context is valid.
            done(unsafe { bpf_l3_csum_replace(self.md, NETWORK_OFFSET as u32 + 10, old.into(), new.into(), 4) })?;
            self.store(at, &new)
        } else {
            let new = new_address.words();
            let difference = difference(&address, &new_address);
            // SAFETY: the context is valid.
            done(unsafe { bpf_l4_csum_replace(self.md, check.at, 0, difference.into(), pseudo) })?;
            // That took the difference out of the card's sum over the whole packet, in which the new
            // address, of a header without checksum, makes up for it.
            // SAFETY: as above.
            unsafe { bpf_csum_update(self.md, difference) };
            self.store(NETWORK_OFFSET as u32 + if destination { 24 } else { 8 }, &new)
        }
    }

    /// The same with the port alone.
    #[inline(always)]
    pub fn move_port(&mut self, transport: &Transport, end: End, port: Port, new_port: Port) -> Option<()> {
        let at = transport.offset as u32 + if end == End::Destination { 2 } else { 0 };
        self.write_port(Check::of(transport), at, port, new_port)
    }

    /// Gives the receiver of what an ICMP error quotes another address and port, of the same family.
    #[inline(always)]
    pub fn requote(&mut self, check: Check, quoted: &Quoted, (address, port): (Address, Port)) -> Option<()> {
        let start = quoted.start as u32;
        if address.is_v4() {
            let (old, new) = (quoted.network.destination.words()[3], address.words()[3]);
            // What it changes of the quoted header's sum and of the address makes up for each other.
            // SAFETY: the context is valid.
            done(unsafe { bpf_l3_csum_replace(self.md, start + 10, old.into(), new.into(), 4) })?;
            self.store(start + 16, &new)?;
        } else {
            let difference = difference(&quoted.network.destination, &address);
            // SAFETY: the context is valid.
            done(unsafe { bpf_l4_csum_replace(self.md, check.at, 0, difference.into(), 0) })?;
            self.store(start + 24, &address.words())?;
        }
        self.write_port(check, quoted.transport as u32 + 2, quoted.destination_port, port)
    }

    #[inline(always)]
    fn write_port(&mut self, check: Check, at: u32, port: Port, new_port: Port) -> Option<()> {
        let (old, new) = (port.to_wire(), new_port.to_wire());
        let (from, to) = (u16::from_ne_bytes(old), u16::from_ne_bytes(new));
        // SAFETY: the context is valid.
        done(unsafe { bpf_l4_csum_replace(self.md, check.at, from.into(), to.into(), check.flags | 2) })?;
        self.store(at, &new)
    }

    /// Has the segment's checksum cover these addresses (source and destination) in the place of the old ones; each
    /// pair of one family.
    #[inline(always)]
    pub fn cover(&mut self, transport: &Transport, old: &[Address; 2], new: &[Address; 2]) -> Option<()> {
        let check = Check::of(transport);
        // What marks a mapped IPv4 address sums up to nothing.
        let difference = difference(old, new);
        let flags = check.flags | BPF_F_PSEUDO_HDR as u64;
        // SAFETY: the context is valid.
        done(unsafe { bpf_l4_csum_replace(self.md, check.at, 0, difference.into(), flags) })
    }

    /// Makes room for a header of the other family in the place of the packet's, without options or extension
    /// headers; it is to be written then.
    #[inline(always)]
    pub fn change_family(&mut self, v4: bool) -> Option<()> {
        let kind: u16 = if v4 { 0x0800 } else { 0x86dd };
        // SAFETY: the context is valid; pointers are derived anew.
        let refused = unsafe { bpf_skb_change_proto(self.md, kind.to_be(), 0) };
        self.refresh();
        done(refused)
    }

    /// Writes what no checksum in the packet covers.
    #[inline(always)]
    pub fn store_summed<T>(&mut self, offset: u32, value: &T) -> Option<()> {
        self.store_as(offset, value, BPF_F_RECOMPUTE_CSUM.into())
    }

    /// Makes room for a tunnel's headers behind the Ethernet header.
    #[inline(always)]
    pub fn grow(&mut self, tunnel: &Tunnel) -> Option<()> {
        let (bytes, v4) = (tunnel.growth(), tunnel.destination.is_v4());
        let network = if v4 { BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 } else { BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 };
        let carrier = match (tunnel.gre, tunnel.gue_port) {
            (1.., _) => BPF_F_ADJ_ROOM_ENCAP_L4_GRE,
            (0, Port::ANY) => 0,
            (0, _) => BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        };
        let flags = network | carrier;
        // SAFETY: the context is valid; pointers are derived anew.
        let refused = unsafe { bpf_skb_adjust_room(self.md, bytes as i32, BPF_ADJ_ROOM_MAC, flags.into()) };
        // SAFETY: as above. With their room, both network headers are at hand.
        unsafe { bpf_skb_pull_data(self.md, (self.len().min(HEADERS + bytes)) as u32) };
        self.refresh();
        done(refused)
    }

    #[inline(always)]
    fn store<T>(&mut self, offset: u32, value: &T) -> Option<()> {
        self.store_as(offset, value, 0)
    }

    #[inline(always)]
    fn store_as<T>(&mut self, offset: u32, value: &T, flags: u64) -> Option<()> {
        let from = (value as *const T).cast();
        // SAFETY: the value is as long as it says; pointers are derived anew.
        let refused = unsafe { bpf_skb_store_bytes(self.md, offset, from, size_of::<T>() as u32, flags) };
        self.refresh();
        done(refused)
    }

    #[inline(always)]
    fn refresh(&mut self) {
        // SAFETY: the context is valid.
        unsafe {
            self.start = (*self.md).data as usize;
            self.end = (*self.md).data_end as usize;
        }
    }

    #[inline(always)]
    fn place<T>(&self, offset: usize) -> Option<*mut T> {
        if offset >= HEADERS_MAX {
            return None;
        }
        // As in the XDP programs: the pointer that is compared is the one that is used.
        let place = opaque(self.start + offset);
        if place + size_of::<T>() > self.end {
            return None;
        }
        Some(place as *mut T)
    }
}

/// What the change of addresses makes to a sum that covers them.
#[inline(always)]
fn difference<T: Copy>(old: &T, new: &T) -> u32 {
    let len = size_of::<T>() as u32;
    let (old, new) = ((old as *const T).cast_mut().cast(), (new as *const T).cast_mut().cast());
    // SAFETY: both are words of the same number, and are only read.
    unsafe { bpf_csum_diff(old, len, new, len, 0) as u32 }
}

#[inline(always)]
fn done(result: i64) -> Option<()> {
    (result == 0).then_some(())
}

impl PacketAccess for Skb {
    #[inline(always)]
    fn len(&self) -> usize {
        // SAFETY: the context is valid.
        unsafe { (*self.md).len as usize }
    }

    #[inline(always)]
    fn read<T: Field>(&self, offset: usize) -> Option<T> {
        // SAFETY: `place` has checked that the packet holds a whole T there.
        self.place::<T>(offset).map(|place| unsafe { place.read_unaligned() })
    }

    #[inline(always)]
    fn write<T: Field>(&mut self, offset: usize, value: T) -> Option<()> {
        // SAFETY: as in `read`; the kernel has made the packet ours alone.
        self.place::<T>(offset).map(|place| unsafe { place.write_unaligned(value) })
    }

    /// Nothing here sums more than headers.
    #[inline(always)]
    fn sum(&self, _: usize, _: usize) -> Option<Sum> {
        None
    }
}
