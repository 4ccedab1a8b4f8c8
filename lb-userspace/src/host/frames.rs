//! Frames that tell a network where an address lives now. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use lb_common::{abi::Address, checksum::Sum};

/// Ethernet and IP protocol numbers.
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ICMPV6: u8 = 58;

const BROADCAST: [u8; 6] = [0xff; 6];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Which of the two gratuitous forms of RFC 5944, 4.6: some implementations heed only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpForm {
    /// The announcement of RFC 5227, 3.
    Request,
    Reply,
}

/// A gratuitous ARP: sender and target are the announced address.
pub fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr, form: ArpForm) -> [u8; 42] {
    let (operation, target_mac) = match form {
        ArpForm::Request => (1_u16, [0; 6]),
        ArpForm::Reply => (2_u16, mac),
    };
    let mut frame = [0; 42];
    ethernet(&mut frame, BROADCAST, mac, ETHERTYPE_ARP);
    frame[14..16].copy_from_slice(&1_u16.to_be_bytes()); // hardware: Ethernet
    frame[16..18].copy_from_slice(&0x0800_u16.to_be_bytes()); // protocol: IPv4
    frame[18] = 6;
    frame[19] = 4;
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    frame[32..38].copy_from_slice(&target_mac);
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// An unsolicited Neighbor Advertisement to all nodes (RFC 4861, 4.4 and 7.2.6): override set, and
/// the target's link-layer address. `router` must say whether the interface forwards IPv6:
/// neighbours drop their routes over a router that says it is none (7.2.5).
pub fn unsolicited_advertisement(mac: [u8; 6], address: Ipv6Addr, router: bool) -> [u8; 86] {
    const OVERRIDE: u8 = 0x20;
    const ROUTER: u8 = 0x80;
    let mut message = [0; 32];
    message[0] = 136; // type: Neighbor Advertisement
    message[4] = OVERRIDE | if router { ROUTER } else { 0 };
    message[8..24].copy_from_slice(&address.octets());
    message[24] = 2; // option: target link-layer address
    message[25] = 1; // its length in units of 8 octets
    message[26..32].copy_from_slice(&mac);
    let (source, destination) = (Address::v6(address.octets()), Address::v6(ALL_NODES.octets()));
    let checksum = Sum::ZERO.pseudo_header(&source, &destination, ICMPV6, 32).bytes(&message).finish();
    message[2..4].copy_from_slice(&checksum);

    let mut frame = [0; 86];
    ethernet(&mut frame, ALL_NODES_MAC, mac, ETHERTYPE_IPV6);
    frame[14] = 0x60; // version 6
    frame[18..20].copy_from_slice(&32_u16.to_be_bytes()); // payload length
    frame[20] = ICMPV6;
    frame[21] = 255; // hop limit: proof that no router passed it on
    frame[22..38].copy_from_slice(&address.octets());
    frame[38..54].copy_from_slice(&ALL_NODES.octets());
    frame[54..86].copy_from_slice(&message);
    frame
}

fn ethernet(frame: &mut [u8], destination: [u8; 6], source: [u8; 6], ethertype: u16) {
    frame[..6].copy_from_slice(&destination);
    frame[6..12].copy_from_slice(&source);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Header, Icmpv6Type, SlicedPacket, TransportSlice};

    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0xaa, 0xbb, 0xcc];

    #[test]
    fn the_request_form_is_byte_for_byte_an_arp_announcement() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(203, 0, 113, 10), ArpForm::Request);
        #[rustfmt::skip]
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0xaa, 0xbb, 0xcc, 0x08, 0x06,
            0, 1, 8, 0, 6, 4, 0, 1,
            2, 0, 0, 0xaa, 0xbb, 0xcc, 203, 0, 113, 10,
            0, 0, 0, 0, 0, 0, 203, 0, 113, 10,
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn the_reply_form_differs_in_operation_and_target_alone() {
        let request = gratuitous_arp(MAC, Ipv4Addr::new(203, 0, 113, 10), ArpForm::Request);
        let mut reply = gratuitous_arp(MAC, Ipv4Addr::new(203, 0, 113, 10), ArpForm::Reply);
        assert_eq!(reply[20..22], [0, 2]);
        assert_eq!(reply[32..38], MAC);
        reply[21] = 1;
        reply[32..38].fill(0);
        assert_eq!(reply, request);
    }

    #[test]
    fn the_advertisement_parses_as_one_with_a_valid_checksum() {
        let address: Ipv6Addr = "2001:db8::10".parse().unwrap();
        for router in [false, true] {
            let frame = unsolicited_advertisement(MAC, address, router);
            let packet = SlicedPacket::from_ethernet(&frame).unwrap();
            let Some(TransportSlice::Icmpv6(icmp)) = packet.transport else { panic!("no ICMPv6 in {packet:?}") };
            assert!(icmp.is_checksum_valid(address.octets(), ALL_NODES.octets()));
            let (Icmpv6Header { icmp_type, .. }, _) = Icmpv6Header::from_slice(icmp.slice()).unwrap();
            let Icmpv6Type::NeighborAdvertisement(flags) = icmp_type else { panic!("{icmp_type:?}") };
            assert_eq!((flags.router, flags.solicited, flags.r#override), (router, false, true));
        }
    }

    #[test]
    fn the_advertisement_goes_to_all_nodes_from_the_announced_address() {
        let address: Ipv6Addr = "2001:db8::10".parse().unwrap();
        let frame = unsolicited_advertisement(MAC, address, true);
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0xaa, 0xbb, 0xcc, 0x86, 0xdd]);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], address.octets());
        assert_eq!(frame[38..54], ALL_NODES.octets());
        assert_eq!(frame[62..78], address.octets(), "the target");
        assert_eq!(frame[78..86], [2, 1, 2, 0, 0, 0xaa, 0xbb, 0xcc], "the target's link-layer address");
    }
}
