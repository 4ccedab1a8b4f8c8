//! Taking back what the record names, and nothing else.

use std::collections::BTreeMap;

use super::{
    HostError, HostRecord, Netlink, Sysctl,
    ports::PortSet,
    record::{AddedAddress, ChangedSysctl},
    sysctl::reserved_ports,
};

/// What came of undoing, one sentence each.
#[derive(Debug, Default)]
pub struct Undone {
    /// What was changed back.
    pub done: Vec<String>,
    /// What was left as it is, because somebody else changed it since.
    pub left: Vec<String>,
    /// What failed; it stays in the record, so that undoing can be repeated.
    pub failed: Vec<HostError>,
}

impl HostRecord {
    /// Undoes the recorded changes: addresses first, then reserved ports, then settings in reverse
    /// order. Interfaces with the program stay in the record: they are the data plane's to detach.
    /// Works without the agent, after a crash at any point, and may be repeated.
    pub async fn undo(&mut self, netlink: &Netlink, sysctl: &Sysctl) -> Undone {
        let mut undone = Undone::default();
        let addresses: Vec<AddedAddress> = self.changes().addresses.iter().cloned().collect();
        self.undo_addresses(netlink, &addresses, &mut undone).await;
        if let Err(error) = self.undo_reserved_ports(sysctl, &mut undone) {
            undone.failed.push(error);
        }
        for changed in self.changes().sysctls.clone().iter().rev() {
            if let Err(error) = self.undo_sysctl(sysctl, changed, &mut undone) {
                undone.failed.push(error);
            }
        }
        undone
    }

    /// Takes these recorded addresses off their interfaces.
    pub(super) async fn undo_addresses(&mut self, netlink: &Netlink, addresses: &[AddedAddress], undone: &mut Undone) {
        if addresses.is_empty() {
            return;
        }
        let links = match netlink.links().await {
            Ok(links) => links,
            Err(error) => return undone.failed.push(error),
        };
        let indices: BTreeMap<_, _> = links.into_iter().map(|link| (link.name, link.ifindex)).collect();
        let mut gone = Vec::with_capacity(addresses.len());
        for added in addresses {
            let AddedAddress { interface, address } = added;
            let removed = match indices.get(interface) {
                Some(ifindex) => netlink.remove_service_address(*ifindex, *address).await,
                None => Ok(false),
            };
            match removed {
                Ok(true) => undone.done.push(format!("took {address} off {interface}")),
                Ok(false) => undone.left.push(format!("{address} is not on {interface} as the agent put it there")),
                Err(error) => {
                    undone.failed.push(error);
                    continue;
                }
            }
            gone.push(added.clone());
        }
        if let Err(error) = self.forget_addresses(&gone) {
            undone.failed.push(error);
        }
    }

    fn undo_reserved_ports(&mut self, sysctl: &Sysctl, undone: &mut Undone) -> Result<(), HostError> {
        let added = self.changes().reserved_ports();
        if added.is_empty() {
            return Ok(());
        }
        let setting = reserved_ports();
        let text = sysctl.read(&setting)?.unwrap_or_default();
        let now = PortSet::parse(&text).ok_or_else(|| HostError::Ports(format!("not a list of ports: `{text}`")))?;
        let rest = now.without(&added);
        if rest != now {
            sysctl.write(&setting, &rest.to_string())?;
            undone.done.push(format!("gave back the reserved ports {added}"));
        }
        self.forget_reserved_ports()
    }

    fn undo_sysctl(&mut self, sysctl: &Sysctl, changed: &ChangedSysctl, undone: &mut Undone) -> Result<(), HostError> {
        let ChangedSysctl { setting, previous, set } = changed;
        let shown = setting.display();
        match sysctl.read(setting)? {
            Some(now) if now == *set && now != *previous => {
                sysctl.write(setting, previous)?;
                undone.done.push(format!("set {shown} back from {set} to {previous}"));
            }
            Some(now) if now != *previous => {
                undone.left.push(format!("{shown} is {now}: somebody changed it after the agent set {set}"));
            }
            // Never changed, set back by somebody, or gone with its interface.
            _ => {}
        }
        self.forget_sysctl(setting)
    }
}
