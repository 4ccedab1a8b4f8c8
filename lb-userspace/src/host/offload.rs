//! What a network card does to frames before XDP sees them (linux/ethtool.h).

use std::io;

use super::HostError;

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;
const ETH_FLAG_LRO: u32 = 1 << 15;

#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// `struct ethtool_channels`: the greatest numbers, then those in use, each of receiving, sending, other
/// and combined ones.
#[repr(C)]
struct EthtoolChannels {
    cmd: u32,
    greatest: [u32; 4],
    used: [u32; 4],
}

/// Queues that frames are received by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queues {
    pub used: u32,
    pub greatest: u32,
}

/// Whether the card takes VLAN tags off received frames: XDP then sees frames without tags, of
/// whichever VLAN they are. `false` where the driver knows of no such thing.
///
/// # Errors
/// There is no such interface, or the kernel's.
pub fn strips_vlan_tags(interface: &str) -> Result<bool, HostError> {
    Ok(flags(interface)? & ETH_FLAG_RXVLAN != 0)
}

/// Whether the card joins received segments (LRO), which XDP must not see.
///
/// # Errors
/// There is no such interface, or the kernel's.
pub fn joins_segments(interface: &str) -> Result<bool, HostError> {
    Ok(flags(interface)? & ETH_FLAG_LRO != 0)
}

/// `None` where the driver tells of none.
///
/// # Errors
/// There is no such interface, or the kernel's.
pub fn queues(interface: &str) -> Result<Option<Queues>, HostError> {
    let mut value = EthtoolChannels { cmd: ETHTOOL_GCHANNELS, greatest: [0; 4], used: [0; 4] };
    let told = ask(interface, (&raw mut value).cast())?;
    let [receive, _, _, combined] = value.used;
    let [most_receive, _, _, most_combined] = value.greatest;
    let queues = Queues { used: receive + combined, greatest: most_receive.max(most_combined) };
    Ok((told && queues.used > 0).then_some(queues))
}

fn flags(interface: &str) -> Result<u32, HostError> {
    let mut value = EthtoolValue { cmd: ETHTOOL_GFLAGS, data: 0 };
    Ok(if ask(interface, (&raw mut value).cast())? { value.data } else { 0 })
}

/// Has the kernel fill in a value of ethtool's; `false`: the driver does not know it.
fn ask(interface: &str, value: *mut libc::c_char) -> Result<bool, HostError> {
    use std::os::fd::AsRawFd as _;
    let failed = |error| HostError::Kernel { what: format!("cannot ask {interface} for its features"), error };
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).map_err(failed)?;
    // SAFETY: all-zero bytes are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(failed(io::Error::from_raw_os_error(libc::ENODEV)));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value;
    // SAFETY: the request names an interface and points to a value, of the size that its first word
    // says, that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP)) => Ok(false),
        error => Err(failed(error)),
    }
}
