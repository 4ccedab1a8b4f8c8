//! UDP: servers that answer with their backend's name, and clients with a port of their own.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Socket, Type};
use xtask::world::{Namespace, World};

pub const ECHO_PORT: u16 = 7000;
/// Room for a burst while the server's thread does not run.
const BUFFER: usize = 16 << 20;
/// No datagram is longer.
const LONGEST: usize = 65_536;

/// Answers each packet with `NAME:` and the packet, and remembers who asked how often.
pub struct Echo {
    stop: Arc<AtomicBool>,
    peers: Arc<Mutex<BTreeMap<SocketAddr, u32>>>,
    worker: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(world: &World, index: u8) -> Self {
        let name = world.backend_names()[usize::from(index)].clone();
        let socket = world.backends[usize::from(index)].enter(|| server_socket().unwrap());
        let (stop, peers) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(BTreeMap::new())));
        let worker = thread::spawn({
            let (stop, peers) = (Arc::clone(&stop), Arc::clone(&peers));
            move || serve(&socket, &name, &stop, &peers)
        });
        Self { stop, peers, worker: Some(worker) }
    }

    pub fn on_all(world: &World) -> Vec<Self> {
        (0..world.backends.len() as u8).map(|index| Self::start(world, index)).collect()
    }

    /// Who asked, as the backend saw it, and how often.
    pub fn peers(&self) -> BTreeMap<SocketAddr, u32> {
        self.peers.lock().unwrap().clone()
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
    }
}

/// A connected socket of the host.
pub fn udp_client(host: &Namespace, local_port: u16, server: SocketAddr) -> io::Result<UdpSocket> {
    host.enter(|| {
        let any: SocketAddr = if server.is_ipv4() { ([0; 4], local_port).into() } else { ([0; 16], local_port).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(socket)
    })
}

/// Sends and returns the name of the backend that answered this very packet.
pub fn ask(socket: &UdpSocket, word: &str) -> io::Result<String> {
    socket.send(word.as_bytes())?;
    let mut answer = [0; LONGEST];
    loop {
        let length = socket.recv(&mut answer)?;
        let text = String::from_utf8_lossy(&answer[..length]).into_owned();
        if let Some((name, echoed)) = text.split_once(':')
            && echoed == word
        {
            return Ok(name.to_owned());
        }
    }
}

/// One socket for both families would answer IPv4 packets as mapped addresses: that is fine here.
fn server_socket() -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_recv_buffer_size(BUFFER)?;
    force_receive_buffer(&socket)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, ECHO_PORT)).into())?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// Root may have more than `net.core.rmem_max`.
fn force_receive_buffer(socket: &Socket) -> io::Result<()> {
    rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, BUFFER).map_err(Into::into)
}

fn serve(socket: &UdpSocket, name: &str, stop: &AtomicBool, peers: &Mutex<BTreeMap<SocketAddr, u32>>) {
    let mut packet = [0; LONGEST];
    while !stop.load(Ordering::Relaxed) {
        let Ok((length, peer)) = socket.recv_from(&mut packet) else { continue };
        *peers.lock().unwrap().entry(plain(peer)).or_default() += 1;
        let answer = [name.as_bytes(), b":", &packet[..length]].concat();
        // A client that is gone is its own affair.
        let _ = socket.send_to(&answer, peer);
    }
}

/// `[::ffff:10.0.0.1]:80` -> `10.0.0.1:80`.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
