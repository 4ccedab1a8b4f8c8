//! The maps that say which VLAN interface a frame's tags stand for.

use std::{collections::BTreeMap, path::Path};

use lb_common::abi::{Interface, VlanKey, VlanLink, names, vlan_bit};

use super::{
    maps::{List, Table, kernel},
    pins::Pins,
};
use crate::{dataplane::DataplaneError, host::VlanDevice};

/// The host's VLAN interfaces as the data path knows them.
pub struct Vlans {
    ins: Table<VlanKey, u32>,
    outs: Table<u32, VlanLink>,
    bits: List<u64>,
    interfaces: Table<u32, Interface>,
}

impl Vlans {
    /// From the pins of a data path that was loaded before.
    ///
    /// # Errors
    /// A map is not pinned or may not be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        let pins = &Pins::new(pin_dir);
        Ok(Self {
            ins: Table::open(pins, names::VLANS_IN)?,
            outs: Table::open(pins, names::VLANS_OUT)?,
            bits: List::open(pins, names::VLAN_BITS)?,
            interfaces: Table::open(pins, names::INTERFACES)?,
        })
    }

    /// Makes the maps hold these interfaces and no others. Gives how many elements changed. A frame
    /// can always leave by an interface that frames come in by: that element comes first and goes
    /// last.
    ///
    /// # Errors
    /// A map could not be read or written; the next call does the rest.
    pub fn reconcile(&mut self, devices: &[VlanDevice]) -> Result<usize, DataplaneError> {
        let wanted_in: BTreeMap<_, _> = devices.iter().map(|device| (device.key(), device.ifindex)).collect();
        let wanted_out: BTreeMap<_, _> = devices.iter().map(|device| (device.ifindex, device.link)).collect();
        let macs: BTreeMap<_, _> =
            devices.iter().map(|device| (device.ifindex, Interface { mac: device.mac, zero: [0; 2] })).collect();
        let (ins, outs) = (read(&self.ins, names::VLANS_IN)?, read(&self.outs, names::VLANS_OUT)?);
        let mut known = read(&self.interfaces, names::INTERFACES)?;
        let gone: Vec<u32> = outs.keys().copied().filter(|ifindex| !wanted_out.contains_key(ifindex)).collect();
        // Interfaces that the program is attached to are nobody's business here.
        known.retain(|ifindex, _| macs.contains_key(ifindex) || gone.contains(ifindex));

        // A bit too many costs a look-up, a bit too few loses frames.
        let bits = |map: &BTreeMap<u32, VlanLink>| map.keys().fold(0, |bits, ifindex| bits | vlan_bit(*ifindex));
        self.set_bits(bits(&outs) | bits(&wanted_out))?;
        let mut changed = write(&mut self.interfaces, names::INTERFACES, &known, &macs)?;
        changed += write(&mut self.outs, names::VLANS_OUT, &outs, &wanted_out)?;
        changed += write(&mut self.ins, names::VLANS_IN, &ins, &wanted_in)?;
        changed += remove(&mut self.ins, names::VLANS_IN, &ins, &wanted_in)?;
        changed += remove(&mut self.outs, names::VLANS_OUT, &outs, &wanted_out)?;
        changed += remove(&mut self.interfaces, names::INTERFACES, &known, &macs)?;
        self.set_bits(bits(&wanted_out))?;
        Ok(changed)
    }

    fn set_bits(&mut self, bits: u64) -> Result<(), DataplaneError> {
        self.bits.map.set(0, bits, 0).map_err(|error| kernel(names::VLAN_BITS, error))
    }
}

fn read<K, V>(table: &Table<K, V>, name: &str) -> Result<BTreeMap<K, V>, DataplaneError>
where
    K: aya::Pod + bytemuck::Pod + Ord,
    V: aya::Pod + bytemuck::Pod,
{
    let failed = |source| DataplaneError::Kernel { what: format!("reading {name}"), source };
    Ok(table.read_all().map_err(failed)?.into_iter().collect())
}

/// Writes what is missing or differs.
fn write<K, V>(
    table: &mut Table<K, V>,
    name: &str,
    actual: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<usize, DataplaneError>
where
    K: aya::Pod + bytemuck::Pod + Ord,
    V: aya::Pod + bytemuck::Pod + PartialEq,
{
    let mut changed = 0;
    for (key, value) in wanted.iter().filter(|(key, value)| actual.get(key) != Some(value)) {
        table.map.insert(key, value, 0).map_err(|error| kernel(format!("writing {name}"), error))?;
        changed += 1;
    }
    Ok(changed)
}

/// Removes what is not wanted.
fn remove<K, V>(
    table: &mut Table<K, V>,
    name: &str,
    actual: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<usize, DataplaneError>
where
    K: aya::Pod + bytemuck::Pod + Ord,
    V: aya::Pod + bytemuck::Pod,
{
    let mut changed = 0;
    for key in actual.keys().filter(|key| !wanted.contains_key(key)) {
        table.map.remove(key).map_err(|error| kernel(format!("removing from {name}"), error))?;
        changed += 1;
    }
    Ok(changed)
}
