//! What a network card does to frames before XDP sees them (linux/ethtool.h).

use std::io;

use super::HostError;

const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Whether the card takes VLAN tags off received frames: XDP then sees frames without tags, of
/// whichever VLAN they are. `false` where the driver knows of no such thing.
///
/// # Errors
/// There is no such interface, or the kernel's.
pub fn strips_vlan_tags(interface: &str) -> Result<bool, HostError> {
    let failed = |error| HostError::Kernel { what: format!("cannot ask {interface} for its features"), error };
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).map_err(failed)?;
    let mut value = EthtoolValue { cmd: ETHTOOL_GFLAGS, data: 0 };
    // SAFETY: all-zero bytes are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(failed(io::Error::from_raw_os_error(libc::ENODEV)));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    use std::os::fd::AsRawFd as _;
    // SAFETY: the request names an interface and points to a value that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    if result == 0 {
        return Ok(value.data & ETH_FLAG_RXVLAN != 0);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP)) => Ok(false),
        error => Err(failed(error)),
    }
}
