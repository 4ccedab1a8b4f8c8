//! The backend's end of an IP-in-IP tunnel, for kernels without tunnel devices: packets are taken out of
//! raw sockets and handed to the host's stack through a TUN device.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use xtask::world::Namespace;

const DEVICE: &str = "unpacked";
/// Protocol numbers of IPv4 and IPv6 in IP.
const INNER: [i32; 2] = [4, 41];

/// Unpacks until it is dropped.
pub struct TunnelEnd {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

impl TunnelEnd {
    /// On a host that has the address of what is in the tunnels.
    pub fn start(host: &Namespace) -> Self {
        let tun = host.enter(|| tun().unwrap());
        for key in ["net.ipv4.conf.all.rp_filter".to_owned(), format!("net.ipv4.conf.{DEVICE}.rp_filter")] {
            host.set_sysctl(&key, "0").unwrap();
        }
        host.ip(&[format!("link set {DEVICE} up")]).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let sockets = [Domain::IPV4, Domain::IPV6].map(|domain| INNER.map(|protocol| (domain, protocol)));
        let workers = sockets.into_iter().flatten().map(|(domain, protocol)| {
            let socket = host.enter(|| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).unwrap());
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let (stop, mut tun) = (Arc::clone(&stop), tun.try_clone().unwrap());
            thread::spawn(move || unpack(socket, domain == Domain::IPV4, &mut tun, &stop))
        });
        Self { workers: workers.collect(), stop }
    }
}

impl Drop for TunnelEnd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            worker.join().unwrap();
        }
    }
}

/// Raw sockets of IPv4 give the outer header too, those of IPv6 do not.
fn unpack(mut socket: Socket, with_header: bool, tun: &mut File, stop: &AtomicBool) {
    let mut packet = vec![0; 65_536];
    while !stop.load(Ordering::Relaxed) {
        let Ok(length) = socket.read(&mut packet) else { continue };
        let header = if with_header { usize::from(packet[0] & 0xf) * 4 } else { 0 };
        tun.write_all(&packet[header..length]).unwrap();
    }
}

/// A TUN device without packet information (Linux: Documentation/networking/tuntap.rst).
fn tun() -> io::Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: the descriptor is open and the request is as the call wants it.
    if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}
