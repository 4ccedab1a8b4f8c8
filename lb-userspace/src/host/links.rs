//! Interfaces by name.

use std::io;

use futures_util::TryStreamExt;
use lb_common::abi::VlanTag;
use netlink_packet_route::link::{
    InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, VlanProtocol,
};

use super::{HostError, Netlink, error::to_io};

/// How alike two names must be (Jaro-Winkler, 0 to 1) for one to be offered for the other.
const ALIKE: f64 = 0.75;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    /// `None` where the interface has no Ethernet address (a tunnel, for instance).
    pub mac: Option<[u8; 6]>,
    /// Bytes of the largest packet, without the Ethernet header.
    pub mtu: u32,
    /// Whether it is switched on and has a carrier.
    pub up: bool,
    /// `veth`, `bond`, ...; `ethernet` for a plain NIC.
    pub kind: String,
    /// Of a VLAN interface.
    pub vlan: Option<VlanOf>,
}

/// What makes an interface a VLAN's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanOf {
    /// The interface it is on, in this network namespace.
    pub parent: u32,
    pub tag: VlanTag,
}

impl Netlink {
    /// The interface with this name.
    ///
    /// # Errors
    /// [`HostError::NoInterface`] with names that may have been meant, or the kernel refused.
    pub async fn link(&self, name: &str) -> Result<Link, HostError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await.map_err(to_io) {
            Ok(Some(message)) => Ok(link(&message)),
            Ok(None) => Err(self.no_interface(name).await?),
            // ERANGE and EINVAL: longer than any interface's name can be.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ERANGE | libc::EINVAL)) => {
                Err(self.no_interface(name).await?)
            }
            Err(error) => Err(HostError::Kernel { what: format!("cannot ask for interface `{name}`"), error }),
        }
    }

    /// Every interface.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn links(&self) -> Result<Vec<Link>, HostError> {
        let messages = self.handle.link().get().execute();
        messages
            .map_ok(|message| link(&message))
            .try_collect()
            .await
            .map_err(HostError::netlink("cannot list interfaces"))
    }

    async fn no_interface(&self, name: &str) -> Result<HostError, HostError> {
        let names: Vec<String> = self.links().await?.into_iter().map(|link| link.name).collect();
        Ok(HostError::NoInterface { name: name.to_owned(), advice: advice(name, &names) })
    }
}

pub(super) fn link(message: &LinkMessage) -> Link {
    let header = &message.header;
    let mut link = Link {
        ifindex: header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        kind: header.link_layer_type.to_string().to_lowercase(),
        vlan: vlan(message),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(octets) if header.link_layer_type == LinkLayerType::Ether => {
                link.mac = octets.as_slice().try_into().ok();
            }
            LinkAttribute::LinkInfo(infos) => {
                if let Some(kind) = infos.iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                }) {
                    link.kind = kind;
                }
            }
            _ => {}
        }
    }
    if link.kind == "ether" {
        "ethernet".clone_into(&mut link.kind);
    }
    link
}

/// `None` also where the interface below is in another namespace: its number means nothing here.
fn vlan(message: &LinkMessage) -> Option<VlanOf> {
    let (mut parent, mut data) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Link(ifindex) => parent = Some(*ifindex),
            LinkAttribute::LinkNetNsId(_) => return None,
            LinkAttribute::LinkInfo(infos) => {
                data = infos.iter().find_map(|info| match info {
                    LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let (mut id, mut protocol) = (None, VlanProtocol::Ieee8021Q);
    for attribute in data? {
        match attribute {
            InfoVlan::Id(number) => id = Some(*number),
            InfoVlan::Protocol(number) => protocol = *number,
            _ => {}
        }
    }
    Some(VlanOf { parent: parent?, tag: VlanTag::new(protocol.into(), id?) })
}

fn advice(name: &str, names: &[String]) -> String {
    let alike = |other: &String| strsim::jaro_winkler(name, other);
    let best = names.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    let here = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    match best {
        Some(best) if alike(best) >= ALIKE => format!("did you mean `{best}`? This host has: {here}"),
        _ => format!("this host has: {here}"),
    }
}

/// Whether the interface is gone: to be treated like a change that is already undone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
}

#[cfg(test)]
mod tests {
    use super::advice;

    #[test]
    fn a_mistyped_name_is_answered_with_the_closest_one_and_the_whole_list() {
        let names = ["lo", "enp3s0f0", "wg0"].map(str::to_owned);
        assert_eq!(advice("enp3s0", &names), "did you mean `enp3s0f0`? This host has: lo, enp3s0f0, wg0");
        assert_eq!(advice("uplink", &names), "this host has: lo, enp3s0f0, wg0");
        assert_eq!(advice("eth0", &[]), "this host has: none");
    }
}
