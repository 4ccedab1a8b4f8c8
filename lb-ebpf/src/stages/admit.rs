//! Is the packet ours, and for which service?

use lb_common::abi::{Address, AddressRoles, Port, ServiceKey};

use crate::{
    copy::copy,
    maps::{ADDRESSES, SERVICES},
    packet::Packet,
};

/// What an address means to us; no roles for most.
#[inline(always)]
pub fn roles(address: &Address) -> AddressRoles {
    // SAFETY: values of this map are replaced as a whole, and one word is read.
    unsafe { ADDRESSES.get(address) }.copied().unwrap_or(AddressRoles(0))
}

/// Finds the service the packet is for: that of its port, or the one that takes any port.
#[inline(always)]
pub fn service(packet: &mut Packet, roles: AddressRoles) -> bool {
    let transport = &packet.transport;
    let mut key = ServiceKey::new(packet.network.destination, transport.destination_port, transport.protocol as u8);
    // SAFETY: an update puts a new element in the place of the old, which stays whole until no
    // program can see it; so the copy is one published state.
    let mut found = unsafe { SERVICES.get(key) };
    if found.is_none() && roles.has(AddressRoles::ANY_PORT) {
        key.port = Port::ANY;
        // SAFETY: as above.
        found = unsafe { SERVICES.get(key) };
    }
    match found {
        Some(service) => {
            copy(service, &mut packet.service);
            true
        }
        None => false,
    }
}
