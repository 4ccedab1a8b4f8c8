//! Is the packet ours, and for which service?

use lb_common::{
    abi::{Address, AddressRoles, Port, ServiceKey},
    hash::address_bit,
};

use crate::{
    copy::copy,
    maps::{ADDRESS_BITS, ADDRESSES, SERVICES},
    packet::Packet,
};

/// Whether the address may be one of ours; most others are told apart here, by one read.
#[inline(always)]
pub fn maybe_ours(address: &Address) -> bool {
    let bit = address_bit(address);
    ADDRESS_BITS.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 != 0)
}

/// What an address means to us; no roles for most.
#[inline(always)]
pub fn roles(address: &Address) -> AddressRoles {
    // SAFETY: values of this map are replaced as a whole, and one word is read.
    unsafe { ADDRESSES.get(address) }.copied().unwrap_or(AddressRoles(0))
}

/// Finds the service of the packet's own port.
#[inline(always)]
pub fn service(packet: &mut Packet) -> bool {
    found(packet, packet.transport.destination_port)
}

/// Finds the service that takes any port, where the address has one.
#[inline(always)]
pub fn service_of_any_port(packet: &mut Packet, roles: AddressRoles) -> bool {
    roles.has(AddressRoles::ANY_PORT) && found(packet, Port::ANY)
}

/// Finds either; for programs of rare packets.
#[inline(always)]
pub fn any_service(packet: &mut Packet, roles: AddressRoles) -> bool {
    service(packet) || service_of_any_port(packet, roles)
}

#[inline(always)]
fn found(packet: &mut Packet, port: Port) -> bool {
    let key = ServiceKey::new(packet.network.destination, port, packet.transport.protocol as u8);
    // SAFETY: an update puts a new element in the place of the old, which stays whole until no
    // program can see it; so the copy is one published state.
    match unsafe { SERVICES.get(key) } {
        Some(service) => {
            copy(service, &mut packet.service);
            true
        }
        None => false,
    }
}
