//! What addresses mean to the data path, counted: a role stays while anybody needs it.

use std::collections::BTreeMap;

use lb_common::abi::{Address, AddressRoles};

const ROLES: [u32; 4] =
    [AddressRoles::SERVICE, AddressRoles::SOURCE, AddressRoles::NAT_BACKEND, AddressRoles::ANY_PORT];

/// Holders of each role of each address. Removed addresses count against the limit until the ledger
/// says that they have left the map.
#[derive(Clone, Debug)]
pub(super) struct Roles {
    limit: u32,
    holders: BTreeMap<Address, [u32; ROLES.len()]>,
    /// How often each was removed since the map was last known not to hold it.
    removed: BTreeMap<Address, u32>,
}

impl Roles {
    pub(super) fn new(limit: u32) -> Self {
        Self { limit, holders: BTreeMap::new(), removed: BTreeMap::new() }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Whether the address is in the map already or still fits in.
    pub(super) fn fits(&self, address: Address) -> bool {
        let held = |address: &&Address| self.holders.contains_key(address);
        held(&&address)
            || self.removed.contains_key(&address)
            || self.holders.len() + self.removed.keys().filter(|removed| !held(removed)).count() < self.limit as usize
    }

    /// One more holder of each of these roles (a bit mask).
    pub(super) fn hold(&mut self, address: Address, roles: u32) {
        let holders = self.holders.entry(address).or_default();
        for (count, role) in holders.iter_mut().zip(ROLES) {
            *count += u32::from(roles & role != 0);
        }
    }

    /// One holder less. Returns true when the address has left the tables.
    pub(super) fn release(&mut self, address: Address, roles: u32) -> bool {
        let Some(holders) = self.holders.get_mut(&address) else {
            debug_assert!(false, "roles of {address:?} were released twice");
            return false;
        };
        for (count, role) in holders.iter_mut().zip(ROLES) {
            *count -= u32::from(roles & role != 0);
        }
        if holders.iter().any(|&count| count > 0) {
            return false;
        }
        self.holders.remove(&address);
        self.remember_removed(address);
        true
    }

    /// An address without a holder was found in the map: it takes room until it is forgotten.
    pub(super) fn remember_removed(&mut self, address: Address) {
        *self.removed.entry(address).or_default() += 1;
    }

    /// The map has seen one removal of the address.
    pub(super) fn forget(&mut self, address: Address) {
        if let Some(times) = self.removed.get_mut(&address) {
            *times -= 1;
            if *times == 0 {
                self.removed.remove(&address);
            }
        }
    }

    /// How many hold this role of an address.
    pub(super) fn holders(&self, address: Address, role: u32) -> u32 {
        let counts = self.holders.get(&address).copied().unwrap_or_default();
        counts.into_iter().zip(ROLES).find(|(_, known)| *known == role).map_or(0, |(count, _)| count)
    }

    /// Every address that has a role.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Address> {
        self.holders.keys().copied()
    }

    /// What the map should say; `None`: nothing.
    pub(super) fn of(&self, address: Address) -> Option<AddressRoles> {
        let holders = self.holders.get(&address)?;
        let held = holders.iter().zip(ROLES).filter(|(count, _)| **count > 0);
        Some(AddressRoles(held.fold(0, |roles, (_, role)| roles | role)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Address = Address::v4([10, 0, 0, 1]);
    const B: Address = Address::v4([10, 0, 0, 2]);

    #[test]
    fn roles_are_combined_and_stay_while_held() {
        let mut roles = Roles::new(8);
        roles.hold(A, AddressRoles::SERVICE | AddressRoles::ANY_PORT);
        roles.hold(A, AddressRoles::SERVICE);
        roles.hold(A, AddressRoles::SOURCE);
        assert!(!roles.release(A, AddressRoles::SERVICE | AddressRoles::ANY_PORT));
        assert_eq!(roles.of(A), Some(AddressRoles(AddressRoles::SERVICE | AddressRoles::SOURCE)));
        assert!(!roles.release(A, AddressRoles::SOURCE));
        assert!(roles.release(A, AddressRoles::SERVICE));
        assert_eq!(roles.of(A), None);
    }

    #[test]
    fn a_removed_address_takes_room_until_it_is_forgotten() {
        let mut roles = Roles::new(1);
        roles.hold(A, AddressRoles::SERVICE);
        assert!(!roles.fits(B));
        roles.release(A, AddressRoles::SERVICE);
        assert!(!roles.fits(B));
        assert!(roles.fits(A), "the same address may come back");
        roles.forget(A);
        assert!(roles.fits(B));
    }
}
