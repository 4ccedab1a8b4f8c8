//! Raw frames on an interface of a namespace.

use std::{
    ffi::CString,
    io::Read,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A raw socket on one interface. It belongs to the namespace it was opened in, and may be used from
/// any other.
pub struct Wire {
    socket: Socket,
}

impl Wire {
    pub fn open(interface: &str) -> Self {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let protocol = Protocol::from(i32::from(every_protocol));
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).expect("a raw socket");
        let ifindex = index_of(interface).unwrap_or_else(|| panic!("no interface {interface}"));
        // SAFETY: the storage is zeroed and larger than a sockaddr_ll; the length is that of what is written.
        let ((), address) = unsafe {
            SockAddr::try_init(|storage, length| {
                let link = storage.cast::<libc::sockaddr_ll>();
                (*link).sll_family = libc::AF_PACKET as libc::sa_family_t;
                (*link).sll_protocol = every_protocol;
                (*link).sll_ifindex = ifindex;
                *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
                Ok(())
            })
        }
        .unwrap();
        socket.bind(&address).unwrap();
        Self { socket }
    }

    pub fn send(&self, frame: &[u8]) {
        self.socket.send(frame).unwrap();
    }

    /// Every frame that is there or arrives within `time`.
    pub fn frames(&self, time: Duration) -> Vec<Vec<u8>> {
        let end = Instant::now() + time;
        let mut frames = Vec::new();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return frames;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = vec![0; 2048];
            if let Ok(length) = (&self.socket).read(&mut buffer) {
                buffer.truncate(length);
                frames.push(buffer);
            }
        }
    }
}

fn index_of(interface: &str) -> Option<i32> {
    let name = CString::new(interface).ok()?;
    // SAFETY: the name is a valid C string for the length of the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    i32::try_from(index).ok().filter(|index| *index != 0)
}
