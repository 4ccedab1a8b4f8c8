//! The host's VLAN interfaces, told to the data path as they come and go.

use std::{collections::BTreeSet, path::Path};

use crate::{
    dataplane::{DataplaneError, kernel::Vlans},
    host::{HostError, Netlink, VlanDevice, strips_vlan_tags},
};

/// Keeps the maps of VLAN interfaces in step with the host.
pub struct VlanSync {
    maps: Vlans,
    /// Interfaces below VLANs that an operator was warned of.
    warned: BTreeSet<u32>,
}

impl VlanSync {
    /// # Errors
    /// The pinned maps cannot be opened.
    pub fn open(pin_dir: &Path) -> Result<Self, DataplaneError> {
        Ok(Self { maps: Vlans::open(pin_dir)?, warned: BTreeSet::new() })
    }

    /// Reads the host's VLAN interfaces and writes what has changed; what goes wrong is in the log, and
    /// comes again with the next call. Gives warnings that an operator has not had yet.
    pub async fn run(&mut self, netlink: &Netlink) -> Vec<String> {
        match self.sync(netlink).await {
            Ok(warnings) => warnings,
            Err(error) => {
                tracing::warn!("VLAN interfaces are not in step with the host: {error:#}; trying again");
                Vec::new()
            }
        }
    }

    async fn sync(&mut self, netlink: &Netlink) -> anyhow::Result<Vec<String>> {
        let devices = netlink.vlans().await?;
        let changed = self.maps.reconcile(&devices)?;
        if changed > 0 {
            tracing::info!(interfaces = devices.len(), "the data path knows the host's VLAN interfaces");
        }
        Ok(self.look_below(netlink, &devices).await?)
    }

    /// Cards that take tags off: their frames of every VLAN look alike.
    async fn look_below(&mut self, netlink: &Netlink, devices: &[VlanDevice]) -> Result<Vec<String>, HostError> {
        let parents: BTreeSet<u32> = devices.iter().map(|device| device.link.parent).collect();
        self.warned.retain(|ifindex| parents.contains(ifindex));
        if parents.iter().all(|ifindex| self.warned.contains(ifindex)) {
            return Ok(Vec::new());
        }
        let mut warnings = Vec::new();
        for link in netlink.links().await? {
            // A veth says so whatever it does: the tag is taken off, or not, by its other end.
            let concerned = parents.contains(&link.ifindex) && link.kind != "veth";
            if concerned && !self.warned.contains(&link.ifindex) && strips_vlan_tags(&link.name)? {
                let name = &link.name;
                warnings.push(format!(
                    "{name} takes VLAN tags off before XDP sees them, so packets of its VLANs are taken for untagged \
                     ones. Type: ethtool -K {name} rxvlan off"
                ));
                self.warned.insert(link.ifindex);
            }
        }
        Ok(warnings)
    }
}
