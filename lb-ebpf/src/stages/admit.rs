//! Is the packet ours, and for which service?

use lb_common::{
    abi::{Address, AddressRoles, Port, ServiceKey},
    hash::address_bit,
    parse::Network,
    verdict::Reason,
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

/// Which way a packet between two addresses may go through us, whatever it carries.
#[derive(Clone, Copy)]
pub struct Directions {
    /// Roles of its destination.
    pub to: AddressRoles,
    /// From a backend to a client. Not asked of a packet to a service.
    pub is_reply: bool,
}

impl Directions {
    #[inline(always)]
    pub fn of(network: &Network) -> Self {
        let to = roles(&network.destination);
        let is_reply = to.has(AddressRoles::SOURCE)
            || !to.has(AddressRoles::SERVICE) && roles(&network.source).has(AddressRoles::NAT_BACKEND);
        Self { to, is_reply }
    }

    /// From a client to a service.
    #[inline(always)]
    pub fn is_forward(&self) -> bool {
        self.to.has(AddressRoles::SERVICE)
    }

    /// Neither.
    #[inline(always)]
    pub fn is_foreign(&self) -> bool {
        !self.is_forward() && !self.is_reply
    }
}

/// Why the way of a malformed packet to such an address ends.
#[inline(always)]
pub const fn malformed(to: AddressRoles) -> Reason {
    if to.has(AddressRoles::SERVICE) { Reason::Malformed } else { Reason::MalformedPassed }
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
