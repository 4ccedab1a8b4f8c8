//! Making a host ready for a configuration, and undoing that.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use lb_common::abi::Mode;
use tokio_util::task::AbortOnDropHandle;

use super::{
    Added, AddedAddress, HostAddress, HostError, HostRecord, Link, Netlink, PortSet, Sysctl, Undone, announce,
    ports::to_reserve,
    sysctl::{accept_ra, disable_ipv6, ephemeral_ports, ipv4_forwarding, ipv6_forwarding, reserved_ports},
};
use crate::config::Config;

/// Pauses before the repetitions of an announcement (RFC 4861, 7.2.6: at least a second apart, three
/// in all).
const ANNOUNCE_AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(1)];

/// The host as the agent changes it, with the record of the changes.
#[derive(Debug)]
pub struct Host {
    netlink: Netlink,
    sysctl: Sysctl,
    record: HostRecord,
    /// Service addresses by interface, as the last [`Host::place`] placed them.
    placed: BTreeMap<String, BTreeSet<IpAddr>>,
    announced: BTreeSet<(u32, IpAddr)>,
    /// Repeats the last announcements of each interface.
    announcing: BTreeMap<u32, AbortOnDropHandle<()>>,
}

/// What [`Host::ready`] or [`Host::place`] found and did.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The configured interfaces, in the order of the file.
    pub links: Vec<Link>,
    pub addresses: Vec<PlacedAddress>,
    /// What was changed, one sentence each.
    pub changes: Vec<String>,
    /// What will not work as things are, one sentence each.
    pub warnings: Vec<String>,
}

/// Where a service address lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlacedAddress {
    pub interface: String,
    pub address: IpAddr,
    pub added: Added,
}

impl Prepared {
    fn tell(&self) {
        for change in &self.changes {
            tracing::info!("{change}");
        }
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }
}

impl Host {
    /// Opens the record of the state directory and a netlink socket. Changes nothing. Must be called
    /// within a tokio runtime.
    ///
    /// # Errors
    /// The record is damaged, or there is no netlink.
    pub fn open(state_dir: &Path) -> Result<Self, HostError> {
        Ok(Self {
            netlink: Netlink::open()?,
            sysctl: Sysctl::default(),
            record: HostRecord::load(state_dir)?,
            placed: BTreeMap::new(),
            announced: BTreeSet::new(),
            announcing: BTreeMap::new(),
        })
    }

    pub fn netlink(&self) -> Netlink {
        self.netlink.clone()
    }

    /// The record, for the interfaces that the data plane attaches to.
    pub fn record(&mut self) -> &mut HostRecord {
        &mut self.record
    }

    /// Service addresses that the agent added: never to be used as source address, because they may
    /// move to another balancer. A service address that the host had before is its own and may be.
    pub fn managed_addresses(&self) -> BTreeSet<IpAddr> {
        self.record.changes().addresses.iter().map(|added| added.address).collect()
    }

    /// [`Host::ready`] and [`Host::place`] in one.
    ///
    /// # Errors
    /// As theirs.
    pub async fn prepare(&mut self, config: &Config) -> Result<Prepared, HostError> {
        let mut prepared = self.ready(config).await?;
        let placed = self.place(config).await?;
        prepared.addresses = placed.addresses;
        prepared.changes.extend(placed.changes);
        Ok(prepared)
    }

    /// Makes the host ready to forward for `config`: turns on forwarding where `bpf_fib_lookup` needs
    /// it and reserves the source ports of `full-nat`. Idempotent: call it before services are
    /// published, and again for every new configuration. Reserved ports and settings stay until
    /// [`Host::release`]: flows may still need them.
    ///
    /// # Errors
    /// An interface is missing, the kernel refused, or too few ephemeral ports would be left. What
    /// was done until then is recorded.
    pub async fn ready(&mut self, config: &Config) -> Result<Prepared, HostError> {
        let mut prepared = Prepared { links: self.links_of(config).await?, ..Prepared::default() };
        for link in prepared.links.iter().filter(|link| !link.up) {
            prepared.warnings.push(format!("interface {} is down or has no carrier", link.name));
        }
        self.enable_forwarding(config, &mut prepared).await?;
        self.reserve_ports(config, &mut prepared)?;
        prepared.tell();
        Ok(prepared)
    }

    /// Puts the service addresses of `config` on interfaces and announces the new ones (repeatedly,
    /// in the background), unless they are not ours to manage. They attract traffic: call it when
    /// the program is attached and its maps know the services. Idempotent. Addresses that are no
    /// longer wanted stay until [`Host::prune`].
    ///
    /// # Errors
    /// An interface is missing, or the kernel refused. What was done until then is recorded.
    pub async fn place(&mut self, config: &Config) -> Result<Prepared, HostError> {
        let mut prepared = Prepared::default();
        if config.manage_addresses {
            prepared.links = self.links_of(config).await?;
            self.placed.clear();
            self.place_addresses(config, &mut prepared).await?;
            self.announce_new(&mut prepared);
        } else {
            self.placed.clear();
        }
        prepared.tell();
        Ok(prepared)
    }

    /// Takes off the addresses that the agent added and the last [`Host::place`] did not place any
    /// more. Call it after the maps no longer have their services.
    pub async fn prune(&mut self) -> Undone {
        let mut undone = Undone::default();
        let wanted = |added: &&AddedAddress| {
            self.placed.get(&added.interface).is_some_and(|addresses| addresses.contains(&added.address))
        };
        let unwanted: Vec<AddedAddress> =
            self.record.changes().addresses.iter().filter(|added| !wanted(added)).cloned().collect();
        self.announced.retain(|(_, address)| !unwanted.iter().any(|added| added.address == *address));
        self.record.undo_addresses(&self.netlink, &unwanted, &mut undone).await;
        undone
    }

    /// Announces the addresses of an interface once more, for instance after its link came up.
    pub fn announce_again(&mut self, link: &Link) {
        let addresses = self.placed.get(&link.name).map(|all| all.iter().copied().collect::<Vec<_>>());
        if let Some(addresses) = addresses {
            self.announce(link, addresses);
        }
    }

    /// Undoes every recorded change, for `lb detach`; see [`HostRecord::undo`]. It needs no earlier
    /// [`Host::prepare`] in this process.
    pub async fn release(&mut self) -> Undone {
        self.announcing.clear();
        self.announced.clear();
        self.placed.clear();
        self.record.undo(&self.netlink, &self.sysctl).await
    }

    async fn links_of(&self, config: &Config) -> Result<Vec<Link>, HostError> {
        let mut links = Vec::with_capacity(config.interfaces.len());
        for name in &config.interfaces {
            links.push(self.netlink.link(name).await?);
        }
        Ok(links)
    }

    async fn enable_forwarding(&mut self, config: &Config, prepared: &mut Prepared) -> Result<(), HostError> {
        let interfaces: Vec<String> = prepared.links.iter().map(|link| link.name.clone()).collect();
        if config.has_family(true) {
            for interface in &interfaces {
                self.set(&ipv4_forwarding(interface), "1", prepared)?;
            }
        }
        if config.has_family(false) {
            for interface in &interfaces {
                self.require_ipv6(interface)?;
            }
            self.keep_router_advertisements(&interfaces, prepared).await?;
            for interface in &interfaces {
                self.set(&ipv6_forwarding(interface), "1", prepared)?;
            }
        }
        Ok(())
    }

    fn require_ipv6(&self, interface: &str) -> Result<(), HostError> {
        match self.sysctl.read(&disable_ipv6(interface))?.as_deref() {
            Some("0") => Ok(()),
            Some(_) => Err(HostError::NoIpv6(format!(
                "a service or a backend has an IPv6 address, but IPv6 is switched off on {interface}. \
                 Type: sysctl -w net/ipv6/conf/{interface}/disable_ipv6=0"
            ))),
            None => Err(HostError::NoIpv6(format!(
                "a service or a backend has an IPv6 address, but {interface} has no IPv6: \
                 its kernel was booted without it, or the MTU is below 1280"
            ))),
        }
    }

    /// Turning on IPv6 forwarding anywhere makes the kernel drop the default routes it learnt from
    /// router advertisements on every interface where `accept_ra` is not 2, and ignore further
    /// advertisements on the forwarding one. So that the host keeps its way out, `accept_ra` goes from
    /// 1 to 2 first: on our interfaces, and on those that hold such a route. An interface that
    /// forwards already does not listen to advertisements, and shall not begin to.
    async fn keep_router_advertisements(
        &mut self,
        interfaces: &[String],
        prepared: &mut Prepared,
    ) -> Result<(), HostError> {
        let advertised = self.netlink.advertised_defaults().await?;
        let links = self.netlink.links().await?;
        let concerned = links
            .into_iter()
            .filter(|link| advertised.contains(&link.ifindex) || interfaces.contains(&link.name))
            .map(|link| link.name);
        for interface in concerned {
            let accepts = self.sysctl.read(&accept_ra(&interface))?.as_deref() == Some("1");
            let forwards = self.sysctl.read(&ipv6_forwarding(&interface))?.as_deref() != Some("0");
            if accepts && !forwards {
                self.set(&accept_ra(&interface), "2", prepared)?;
            }
        }
        Ok(())
    }

    fn reserve_ports(&mut self, config: &Config, prepared: &mut Prepared) -> Result<(), HostError> {
        if config.services.iter().all(|service| service.mode != Mode::FullNat) {
            return Ok(());
        }
        let wanted = PortSet::new(config.source_ports.iter().copied());
        let text = self.sysctl.read(&reserved_ports())?.unwrap_or_default();
        let reserved = PortSet::parse(&text)
            .ok_or_else(|| HostError::Ports(format!("net.ipv4.ip_local_reserved_ports is no list: `{text}`")))?;
        let ephemeral = self.sysctl.read(&ephemeral_ports())?.unwrap_or_default();
        let added = to_reserve(&wanted, &reserved, &ephemeral)?;
        if added.is_empty() {
            return Ok(());
        }
        self.record.note_reserved_ports(&added)?;
        self.sysctl.write(&reserved_ports(), &reserved.union(&added).to_string())?;
        prepared.changes.push(format!("reserved the ports {added} for full-nat flows"));
        Ok(())
    }

    async fn place_addresses(&mut self, config: &Config, prepared: &mut Prepared) -> Result<(), HostError> {
        let present = self.netlink.addresses().await?;
        let mut missing = Vec::new();
        for address in service_addresses(config) {
            let Some(link) = interface_for(address, &prepared.links, &present) else { continue };
            self.placed.entry(link.name.clone()).or_default().insert(address);
            if present.iter().any(|own| own.ifindex == link.ifindex && own.address == address) {
                let interface = link.name.clone();
                prepared.addresses.push(PlacedAddress { interface, address, added: Added::Before });
            } else {
                missing.push((link.clone(), address));
            }
        }
        let noted = |(link, address): &(Link, IpAddr)| AddedAddress { interface: link.name.clone(), address: *address };
        self.record.note_addresses(missing.iter().map(noted))?;
        for (link, address) in missing {
            let interface = link.name.clone();
            let added = self.netlink.add_service_address(&link, address).await?;
            match added {
                Added::Now => prepared.changes.push(format!("added {address} to {interface}")),
                // Somebody else was quicker; it is theirs.
                Added::Before => {
                    self.record.forget_addresses(&[AddedAddress { interface: interface.clone(), address }])?;
                }
            }
            prepared.addresses.push(PlacedAddress { interface, address, added });
        }
        Ok(())
    }

    /// Announces what this process has not announced yet, addresses that were there included: the
    /// network may think that another balancer has them.
    fn announce_new(&mut self, prepared: &mut Prepared) {
        for link in prepared.links.iter().filter(|link| link.up) {
            let placed = self.placed.get(&link.name).into_iter().flatten();
            let new: Vec<IpAddr> =
                placed.filter(|address| !self.announced.contains(&(link.ifindex, **address))).copied().collect();
            if !new.is_empty() {
                self.announce(link, new);
            }
        }
    }

    /// Now, and twice more in the background.
    fn announce(&mut self, link: &Link, addresses: Vec<IpAddr>) {
        self.announced.extend(addresses.iter().map(|address| (link.ifindex, *address)));
        let link = link.clone();
        let ifindex = link.ifindex;
        let router = self.sysctl.read(&ipv6_forwarding(&link.name)).ok().flatten().as_deref() == Some("1");
        let mut due: BTreeSet<IpAddr> = addresses.into_iter().collect();
        send_announcement(&link, &due, router);
        // A repetition that still runs is replaced: the new one takes over its addresses.
        if let Some(placed) = self.placed.get(&link.name)
            && self.announcing.get(&ifindex).is_some_and(|running| !running.is_finished())
        {
            due.extend(placed);
        }
        let again = async move {
            for pause in ANNOUNCE_AGAIN_AFTER {
                tokio::time::sleep(pause).await;
                send_announcement(&link, &due, router);
            }
        };
        self.announcing.insert(ifindex, AbortOnDropHandle::new(tokio::spawn(again)));
    }

    /// Changes a setting, with the change on record first.
    fn set(&mut self, setting: &Path, value: &str, prepared: &mut Prepared) -> Result<(), HostError> {
        let previous = self.sysctl.read(setting)?;
        if previous.as_deref() == Some(value) {
            return Ok(());
        }
        if let Some(previous) = &previous {
            self.record.note_sysctl(setting, previous, value)?;
        }
        // A missing setting fails here, with its path.
        self.sysctl.write(setting, value)?;
        let previous = previous.unwrap_or_default();
        prepared.changes.push(format!("set {} from {previous} to {value}", setting.display()));
        Ok(())
    }
}

/// Failing to announce delays clients, but stops nothing: neighbours that ask are answered.
fn send_announcement(link: &Link, addresses: &BTreeSet<IpAddr>, router: bool) {
    let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
    if let Err(error) = announce(link, &addresses, router) {
        tracing::warn!("{error}");
    }
}

/// The addresses clients connect to.
fn service_addresses(config: &Config) -> BTreeSet<IpAddr> {
    config.services.iter().map(|service| service.listen.ip()).filter(|address| !address.is_unspecified()).collect()
}

/// The interface for a service address: the one that has it, else the one whose network it belongs
/// to (the narrowest), else the first.
fn interface_for<'a>(address: IpAddr, links: &'a [Link], present: &[HostAddress]) -> Option<&'a Link> {
    let fits = |link: &Link| {
        let own = present.iter().filter(|own| own.ifindex == link.ifindex);
        own.filter_map(|own| match own {
            own if own.address == address => Some(u8::MAX),
            own if own.contains(address) => Some(own.prefix_len),
            _ => None,
        })
        .max()
    };
    // Of equals, max_by_key takes the last.
    links.iter().rev().max_by_key(|link| fits(link))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::address::AddressScope;

    use super::*;

    fn link(ifindex: u32) -> Link {
        Link {
            ifindex,
            name: format!("eth{ifindex}"),
            mac: Some([2; 6]),
            mtu: 1500,
            up: true,
            kind: "ethernet".to_owned(),
            vlan: None,
        }
    }

    fn own(ifindex: u32, address: &str, prefix_len: u8) -> HostAddress {
        HostAddress {
            ifindex,
            address: address.parse().unwrap(),
            prefix_len,
            scope: AddressScope::Universe,
            usable: true,
            deprecated: false,
        }
    }

    #[test]
    fn a_service_address_goes_where_it_is_else_where_its_network_is_else_to_the_first_interface() {
        let links = [link(1), link(2), link(3)];
        let present = [own(1, "10.0.0.1", 8), own(2, "10.1.0.1", 16), own(3, "10.1.0.77", 32)];
        let chosen = |address: &str| interface_for(address.parse().unwrap(), &links, &present).unwrap().ifindex;
        assert_eq!(chosen("10.1.0.77"), 3, "it is there");
        assert_eq!(chosen("10.1.0.9"), 2, "the narrowest network");
        assert_eq!(chosen("10.9.0.9"), 1);
        assert_eq!(chosen("203.0.113.10"), 1, "nobody's network: the first interface");
        assert_eq!(chosen("2001:db8::1"), 1);
        assert!(interface_for("10.0.0.1".parse().unwrap(), &[], &present).is_none());
    }
}
