//! What a driver can do with XDP, as it says itself (generic netlink, family `netdev`: linux/netdev.h, Linux 6.3).

use std::{
    io::{self, Read as _, Write as _},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

const HEADER: usize = 16;
/// `struct genlmsghdr`
const GENERIC: usize = 4;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NLA_TYPE: u16 = 0x3fff;

/// `enum netdev_xdp_act`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpAbility(u64);

impl XdpAbility {
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// Programs run in the driver.
    pub const fn native(self) -> bool {
        self.0 & 1 != 0
    }

    /// Programs may send frames to other interfaces.
    pub const fn redirects(self) -> bool {
        self.0 & 2 != 0
    }

    /// Programs on other interfaces may send frames to this one.
    pub const fn is_target(self) -> bool {
        self.0 & 4 != 0
    }

    /// Frames in several buffers are given to programs.
    pub const fn parts(self) -> bool {
        self.0 & 32 != 0
    }
}

/// `None` where the kernel does not tell (before Linux 6.3).
pub fn xdp_ability(ifindex: u32) -> Option<XdpAbility> {
    let mut socket = socket().ok()?;
    let reply = ask(&mut socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, (CTRL_ATTR_FAMILY_NAME, b"netdev\0")).ok()?;
    let family = value(&reply, CTRL_ATTR_FAMILY_ID)?;
    let family = u16::from_ne_bytes(*family.first_chunk()?);
    let reply = ask(&mut socket, family, NETDEV_CMD_DEV_GET, (NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes())).ok()?;
    Some(XdpAbility(u64::from_ne_bytes(*value(&reply, NETDEV_A_DEV_XDP_FEATURES)?.first_chunk()?)))
}

fn socket() -> io::Result<Socket> {
    let protocol = Some(Protocol::from(libc::NETLINK_GENERIC));
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, protocol)?;
    // The kernel answers at once; this only bounds the unforeseen.
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(socket)
}

/// Asks with one attribute; the attributes of the answer.
fn ask(socket: &mut Socket, family: u16, command: u8, (kind, value): (u16, &[u8])) -> io::Result<Vec<u8>> {
    let attribute = 4 + value.len();
    let length = HEADER + GENERIC + attribute.next_multiple_of(4);
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes.extend([0; 8]);
    // struct genlmsghdr: command, version, reserved
    bytes.extend([command, 1, 0, 0]);
    bytes.extend((attribute as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length, 0);
    socket.write_all(&bytes)?;
    let mut reply = vec![0; 16_384];
    let received = socket.read(&mut reply)?;
    reply.truncate(received);
    if reply.get(4..6) == Some(&(libc::NLMSG_ERROR as u16).to_ne_bytes()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(reply.get(HEADER + GENERIC..).unwrap_or_default().to_vec())
}

fn value(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = u16::from_ne_bytes(*attributes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*attributes.get(2..4)?.first_chunk()?) & NLA_TYPE;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_behind_others() {
        let bytes = [5, 0, 1, 0, 7, 0, 0, 0, 8, 0, 3, 0, 1, 2, 3, 4];
        assert_eq!(value(&bytes, 3), Some(&[1u8, 2, 3, 4][..]));
        assert_eq!(value(&bytes, 2), None);
        assert_eq!(value(&[3, 0], 2), None);
    }

    #[test]
    fn the_loopback_has_no_native_mode() {
        // Where the kernel tells: the loopback of every namespace is the first interface.
        if let Some(ability) = xdp_ability(1) {
            assert!(!ability.native(), "{ability:?}");
        }
    }
}
