//! XDP by rtnetlink: what is on an interface, and the driver's own words when it refuses. The BPF
//! link that attaches the program only ever returns a number (linux/if_link.h, `IFLA_XDP`;
//! linux/netlink.h, extended acknowledgements, Linux 4.12).

use std::{
    io::{self, Read as _, Write as _},
    mem::size_of_val,
    os::fd::{AsRawFd as _, BorrowedFd},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

const HEADER: usize = 16;
const IFINFO: usize = 16;
const NLMSGERR_ATTR_MSG: u16 = 1;
const NLA_TYPE: u16 = 0x3fff;
const IFLA_ADDRESS: u16 = 1;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
const IFLA_XDP_SKB_PROG_ID: u16 = 6;
const IFLA_XDP_HW_PROG_ID: u16 = 7;
const IFLA_XDP_EXPECTED_FD: u16 = 8;
const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const XDP_FLAGS_HW_MODE: u32 = 8;
const XDP_FLAGS_REPLACE: u32 = 16;

/// How a program runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver, before the kernel makes a packet buffer.
    Native,
    /// In the kernel's stack, for any driver; slower.
    Generic,
    /// On the card.
    Offloaded,
}

impl AttachedMode {
    /// The word for logs and `lb status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offloaded => "offloaded",
        }
    }
}

/// The program ids on an interface, by mode; empty: none.
///
/// # Errors
/// The kernel's: the interface does not exist, or the socket failed.
pub fn attached(ifindex: u32) -> io::Result<Vec<(AttachedMode, u32)>> {
    let reply = Message::new(libc::RTM_GETLINK, 0, ifindex).exchange()?;
    let mut found = Vec::new();
    for (_, xdp) in attributes(link(&reply)).filter(|(kind, _)| *kind == IFLA_XDP) {
        for (kind, value) in attributes(xdp) {
            let mode = match kind {
                IFLA_XDP_HW_PROG_ID => AttachedMode::Offloaded,
                IFLA_XDP_DRV_PROG_ID => AttachedMode::Native,
                IFLA_XDP_SKB_PROG_ID => AttachedMode::Generic,
                _ => continue,
            };
            if let Some(id) = value.first_chunk::<4>() {
                found.push((mode, u32::from_ne_bytes(*id)));
            }
        }
    }
    Ok(found)
}

/// The Ethernet address of an interface; `None` where it has none.
///
/// # Errors
/// The kernel's: the interface does not exist, or the socket failed.
pub fn ethernet_address(ifindex: u32) -> io::Result<Option<[u8; 6]>> {
    let reply = Message::new(libc::RTM_GETLINK, 0, ifindex).exchange()?;
    let mut addresses = attributes(link(&reply)).filter(|(kind, _)| *kind == IFLA_ADDRESS);
    Ok(addresses.next().and_then(|(_, address)| address.try_into().ok()))
}

/// Why the kernel or the driver refuses the program in this mode, in its own words: the attachment
/// is asked for once more by netlink, which carries a sentence. `None` where there is none. Should
/// it succeed this time, it is taken back.
pub fn refusal(ifindex: u32, program: BorrowedFd<'_>, generic: bool) -> Option<String> {
    let mode = if generic { XDP_FLAGS_SKB_MODE } else { XDP_FLAGS_DRV_MODE };
    let fd = program.as_raw_fd();
    let mut ask = Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK as u16, ifindex);
    ask.xdp(&[(IFLA_XDP_FD, fd as u32), (IFLA_XDP_FLAGS, mode | XDP_FLAGS_UPDATE_IF_NOEXIST)]);
    let reply = match ask.exchange_raw() {
        Ok(reply) => reply,
        Err(error) => return Some(error.to_string()),
    };
    match acknowledgement(&reply) {
        Some((0, _)) => {
            let mut undo = Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK as u16, ifindex);
            undo.xdp(&[
                (IFLA_XDP_FD, u32::MAX),
                (IFLA_XDP_FLAGS, mode | XDP_FLAGS_REPLACE),
                (IFLA_XDP_EXPECTED_FD, fd as u32),
            ]);
            undo.exchange().err().map(|error| format!("it was accepted by netlink and cannot be taken back: {error}"))
        }
        Some((_, sentence)) => sentence,
        None => None,
    }
}

/// Takes off the program that was put on by netlink in this mode.
///
/// # Errors
/// The kernel's, in its words.
pub fn take_off(ifindex: u32, mode: AttachedMode) -> io::Result<()> {
    let flags = match mode {
        AttachedMode::Native => XDP_FLAGS_DRV_MODE,
        AttachedMode::Generic => XDP_FLAGS_SKB_MODE,
        AttachedMode::Offloaded => XDP_FLAGS_HW_MODE,
    };
    let mut ask = Message::new(libc::RTM_SETLINK, libc::NLM_F_ACK as u16, ifindex);
    ask.xdp(&[(IFLA_XDP_FD, u32::MAX), (IFLA_XDP_FLAGS, flags)]);
    ask.exchange().map(drop)
}

/// A request about one interface.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, ifindex: u32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        // struct nlmsghdr: length (set when sent), type, flags, sequence, port
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        // struct ifinfomsg: family, pad, device type, index, flags, change mask
        bytes.extend([libc::AF_UNSPEC as u8, 0, 0, 0]);
        bytes.extend(ifindex.to_ne_bytes());
        bytes.extend([0; 8]);
        Self(bytes)
    }

    /// Appends a nested `IFLA_XDP` with 32-bit values.
    fn xdp(&mut self, values: &[(u16, u32)]) {
        let length = 4 + 8 * values.len() as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend((IFLA_XDP | libc::NLA_F_NESTED as u16).to_ne_bytes());
        for (kind, value) in values {
            self.0.extend(8u16.to_ne_bytes());
            self.0.extend(kind.to_ne_bytes());
            self.0.extend(value.to_ne_bytes());
        }
    }

    /// Sends it and gives the answer; a refusal is an error, with its sentence where there is one.
    fn exchange(&mut self) -> io::Result<Vec<u8>> {
        let reply = self.exchange_raw()?;
        match acknowledgement(&reply) {
            None | Some((0, _)) => Ok(reply),
            Some((_, Some(sentence))) => Err(io::Error::other(sentence)),
            Some((errno, None)) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn exchange_raw(&mut self) -> io::Result<Vec<u8>> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        let mut socket = socket()?;
        socket.write_all(&self.0)?;
        // An answer about one interface, virtual functions left out, is a few kilobytes.
        let mut reply = vec![0; 65_536];
        let received = socket.read(&mut reply)?;
        reply.truncate(received);
        if reply.len() < HEADER {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(reply)
    }
}

fn socket() -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(libc::AF_NETLINK), Type::RAW, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    // The kernel answers at once; this only bounds the unforeseen.
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        // SAFETY: the descriptor is open and the value outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as libc::socklen_t,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(socket)
}

/// Error number and sentence of an `NLMSG_ERROR`; `None` for other messages.
fn acknowledgement(reply: &[u8]) -> Option<(i32, Option<String>)> {
    let kind = u16::from_ne_bytes(*reply.get(4..6)?.first_chunk()?);
    if kind != libc::NLMSG_ERROR as u16 {
        return None;
    }
    let errno = -i32::from_ne_bytes(*reply.get(HEADER..)?.first_chunk()?);
    // The header of the request follows the number; its payload was asked to be left out.
    let rest = reply.get(HEADER + 4 + HEADER..).unwrap_or_default();
    let sentence = attributes(rest)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Some((errno, sentence))
}

/// The attributes of an answer about an interface.
fn link(reply: &[u8]) -> &[u8] {
    reply.get(HEADER + IFINFO..).unwrap_or_default()
}

/// Type and value of each attribute; stops at the first that does not fit.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(2..4)?.first_chunk()?) & NLA_TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_do_not_fit_end_the_walk() {
        assert_eq!(attributes(&[5, 0, 1, 0, 7, 0, 0, 0, 9, 0, 2, 0, 1]).collect::<Vec<_>>(), [(1, &[7u8][..])]);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[]).count(), 0);
    }

    #[test]
    fn a_refusal_carries_its_sentence() {
        let mut reply = vec![0; HEADER + 4 + HEADER];
        reply[4..6].copy_from_slice(&(libc::NLMSG_ERROR as u16).to_ne_bytes());
        reply[HEADER..HEADER + 4].copy_from_slice(&(-34i32).to_ne_bytes());
        reply.extend([8, 0, 1, 0, b'n', b'o', b'.', 0]);
        assert_eq!(acknowledgement(&reply), Some((34, Some("no.".into()))));
    }
}
