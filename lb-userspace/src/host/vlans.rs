//! VLAN interfaces of the host, as the data path needs them: XDP sees the frames of the interface
//! below, tags included.

use std::collections::{BTreeMap, BTreeSet};

use lb_common::abi::{VlanKey, VlanLink, VlanTags};

use super::{HostError, Link, Netlink};

/// One VLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanDevice {
    pub ifindex: u32,
    /// Source of frames that leave by it.
    pub mac: [u8; 6],
    pub link: VlanLink,
}

impl VlanDevice {
    /// Frames with these tags, from the interface below, are for it.
    pub const fn key(&self) -> VlanKey {
        VlanKey { ifindex: self.link.parent, tags: self.link.tags }
    }
}

impl Netlink {
    /// The VLAN interfaces that are up.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn vlans(&self) -> Result<Vec<VlanDevice>, HostError> {
        Ok(vlan_devices(&self.links().await?))
    }

    /// The interfaces below all VLANs of these, each once: where frames come in for them. An interface
    /// that is no VLAN's is its own.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn below_vlans(&self, links: &[Link]) -> Result<Vec<Link>, HostError> {
        if links.iter().all(|link| link.vlan.is_none()) {
            return Ok(links.to_vec());
        }
        let all = self.links().await?;
        let by_index: BTreeMap<u32, &Link> = all.iter().map(|link| (link.ifindex, link)).collect();
        let mut seen = BTreeSet::new();
        let below = links.iter().map(|link| lowest(link, &by_index));
        Ok(below.filter(|link| seen.insert(link.ifindex)).cloned().collect())
    }
}

/// VLAN interfaces that are up and have one tag or two, by index.
fn vlan_devices(links: &[Link]) -> Vec<VlanDevice> {
    let by_index = links.iter().map(|link| (link.ifindex, link)).collect();
    let mut devices: Vec<_> = links.iter().filter(|link| link.up).filter_map(|link| device(link, &by_index)).collect();
    devices.sort_by_key(|device| device.ifindex);
    devices
}

fn device(link: &Link, links: &BTreeMap<u32, &Link>) -> Option<VlanDevice> {
    let vlan = link.vlan?;
    let parent = links.get(&vlan.parent)?;
    let (parent, tags) = match parent.vlan {
        None => (vlan.parent, VlanTags { outer: vlan.tag, ..VlanTags::NONE }),
        Some(outer) if links.get(&outer.parent).is_some_and(|lowest| lowest.vlan.is_none()) => {
            (outer.parent, VlanTags { outer: outer.tag, inner: vlan.tag })
        }
        Some(_) => return None,
    };
    Some(VlanDevice { ifindex: link.ifindex, mac: link.mac?, link: VlanLink { parent, tags } })
}

/// The interface below all VLANs of a link; the link itself where that is not known here.
fn lowest<'a>(link: &'a Link, links: &BTreeMap<u32, &'a Link>) -> &'a Link {
    let mut link = link;
    // The kernel stacks at most eight.
    for _ in 0..8 {
        match link.vlan.and_then(|vlan| links.get(&vlan.parent)) {
            Some(parent) => link = parent,
            None => break,
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use lb_common::abi::VlanTag;

    use super::*;
    use crate::host::links::VlanOf;

    fn link(ifindex: u32, vlan: Option<(u32, u16, u16)>) -> Link {
        Link {
            ifindex,
            name: format!("l{ifindex}"),
            mac: Some([2, 0, 0, 0, 0, ifindex as u8]),
            mtu: 1500,
            up: true,
            kind: "ethernet".to_owned(),
            vlan: vlan.map(|(parent, tpid, id)| VlanOf { parent, tag: VlanTag::new(tpid, id) }),
        }
    }

    #[test]
    fn a_vlan_on_a_vlan_has_both_tags_and_the_lowest_interface() {
        let (q, s) = (VlanTag::CUSTOMER, VlanTag::SERVICE);
        let links = [
            link(7, Some((6, q, 30))),
            link(2, None),
            link(3, Some((2, q, 100))),
            link(4, Some((2, s, 200))),
            link(5, Some((4, q, 20))),
            // Three tags; one whose interface below is in another namespace; one that is down.
            link(6, Some((5, q, 9))),
            link(8, Some((99, q, 1))),
            Link { up: false, ..link(9, Some((2, q, 101))) },
        ];
        let found: Vec<_> = vlan_devices(&links).into_iter().map(|device| (device.ifindex, device.link)).collect();
        let one = |tpid, id| VlanTags { outer: VlanTag::new(tpid, id), inner: VlanTag::NONE };
        let two = VlanTags { outer: VlanTag::new(s, 200), inner: VlanTag::new(q, 20) };
        let wanted = [(3, one(q, 100)), (4, one(s, 200)), (5, two)];
        assert_eq!(found, wanted.map(|(ifindex, tags)| (ifindex, VlanLink { parent: 2, tags })));
        let by_index = links.iter().map(|link| (link.ifindex, link)).collect();
        assert_eq!(lowest(&links[0], &by_index).ifindex, 2);
        assert_eq!(lowest(&links[6], &by_index).ifindex, 8);
    }
}
