//! The programs that take probes to the addresses of services, on real frames: what leaves an interface,
//! byte by byte, and what comes back. Needs root.

use std::{
    fs::File,
    io::ErrorKind,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use lb_common::abi::{DontFragment, Mode};
use lb_userspace::{
    core::{Way, WayTunnel},
    dataplane::kernel::{
        ifindex,
        probe_ways::{Hook, ProbeWays, sweep},
    },
    health::Sockets as _,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];
const BACKEND4: &str = "10.95.0.11:8080";
const BACKEND6: &str = "[fd00:95::11]:8080";
const SERVICE4: &str = "203.0.113.10:80";
const SERVICE6: &str = "[2001:db8::10]:80";

/// A network namespace with a wire between two of its own interfaces: what is sent on `w0` is seen on `w1`.
struct Lab {
    name: String,
}

impl Lab {
    /// Runs `work` in it; `w1` is handed over open.
    fn run(work: impl FnOnce(&Socket) + Send) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        assert!(rustix::process::geteuid().is_root(), "this test needs root: run it as `sudo -E cargo test`");
        let lab = Self { name: format!("lbw-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)) };
        let commands = [
            "link set lo up",
            "link add w0 address 02:00:00:00:00:01 type veth peer name w1",
            "addr add 10.95.0.1/24 dev w0",
            "addr add fd00:95::1/64 dev w0 nodad",
            "link set w1 up",
            "link set w0 up",
            "neigh add 10.95.0.11 lladdr 02:00:00:00:00:0b dev w0",
            "neigh add fd00:95::11 lladdr 02:00:00:00:00:0b dev w0",
        ];
        lab.ip(&["netns", "add", &lab.name]);
        for command in commands {
            let arguments: Vec<&str> = ["-n", &lab.name].into_iter().chain(command.split(' ')).collect();
            lab.ip(&arguments);
        }
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let namespace = File::open(format!("/var/run/netns/{}", lab.name)).unwrap();
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                // What a card would do, the kernel does: frames are seen as they would be on a wire.
                let done = Command::new("ethtool").args(["-K", "w0", "tx", "off"]).output().unwrap();
                assert!(done.status.success(), "{done:?}");
                work(&far_end());
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    fn ip(&self, arguments: &[&str]) {
        assert!(Command::new("ip").args(arguments).status().unwrap().success(), "ip {arguments:?}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.name]).status());
    }
}

/// All frames on `w1`.
fn far_end() -> Socket {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all)))).unwrap();
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: all,
        sll_ifindex: i32::try_from(ifindex("w1").unwrap()).unwrap(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage has room for every kind of address, and these are plain numbers.
    unsafe { *storage.view_as::<libc::sockaddr_ll>() = address };
    // SAFETY: it holds an address of this length.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) };
    socket.bind(&address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket
}

/// The next frame to the backend that has this packet in it.
fn next_frame(far: &Socket, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let began = Instant::now();
    let mut bytes = [MaybeUninit::uninit(); 2048];
    while began.elapsed() < Duration::from_secs(10) {
        let len = match far.recv(&mut bytes) {
            Ok(len) => len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => panic!("{error}"),
        };
        // SAFETY: so many bytes were written.
        let frame: Vec<u8> = bytes[..len].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        if frame[..6] == THEIRS && wanted(&frame) {
            return frame;
        }
    }
    panic!("no such frame was seen");
}

fn way(service: &str, tunnel: Option<WayTunnel>) -> Way {
    Way { service: service.parse().unwrap(), tunnel }
}

const TUNNELS: [Mode; 3] = [Mode::DsrIpip, Mode::DsrGue, Mode::DsrGre];

fn tunnel(mode: Mode, source: Option<&str>, source_bits: u8, dont_fragment: DontFragment) -> WayTunnel {
    let source = source.map(|source| source.parse().unwrap());
    WayTunnel { mode, gue_port: gue_port(mode), source, source_bits, dont_fragment: dont_fragment as u8 }
}

fn gue_port(mode: Mode) -> Option<u16> {
    (mode == Mode::DsrGue).then_some(6080)
}

/// What is put around a packet.
struct Outer {
    source: IpAddr,
    destination: IpAddr,
    /// UDP source and destination port.
    ports: Option<(u16, u16)>,
    gre: bool,
    traffic_class: u8,
    hop_limit: u8,
    dont_fragment: bool,
    inner: Vec<u8>,
}

/// Takes the tunnel off a frame; every length and checksum of it must be right.
fn unpack(frame: &[u8]) -> Outer {
    let packet = &frame[14..];
    let v4 = frame[12..14] == [8, 0];
    assert!(v4 || frame[12..14] == [0x86, 0xdd]);
    let (header, protocol) = if v4 { (20, packet[9]) } else { (40, packet[6]) };
    let length = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (source, destination): (IpAddr, IpAddr);
    if v4 {
        assert_eq!((packet[0], length(2)), (0x45, packet.len()));
        assert_eq!(sum(&packet[..20]), 0xffff, "the header's checksum");
        source = <[u8; 4]>::try_from(&packet[12..16]).unwrap().into();
        destination = <[u8; 4]>::try_from(&packet[16..20]).unwrap().into();
    } else {
        assert_eq!((packet[0] >> 4, length(4) + 40), (6, packet.len()));
        source = <[u8; 16]>::try_from(&packet[8..24]).unwrap().into();
        destination = <[u8; 16]>::try_from(&packet[24..40]).unwrap().into();
    }
    let traffic_class = if v4 { packet[1] } else { packet[0] << 4 | packet[1] >> 4 };
    let (hop_limit, dont_fragment) = if v4 { (packet[8], packet[6] & 0x40 != 0) } else { (packet[7], true) };
    let mut inner = &packet[header..];
    let mut ports = None;
    if protocol == 17 {
        let port = |at: usize| u16::from_be_bytes([inner[at], inner[at + 1]]);
        ports = Some((port(0), port(2)));
        assert_eq!(usize::from(port(4)), inner.len());
        assert_ne!(port(6), 0, "with a checksum");
        let addresses = if v4 { &packet[12..20] } else { &packet[8..40] };
        let pseudo = [addresses, &[0, 17], &inner[4..6], inner].concat();
        assert_eq!(sum(&pseudo), 0xffff, "the datagram's checksum");
        inner = &inner[8..];
    } else if protocol == 47 {
        let ethertype = if inner[4] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
        assert_eq!((&inner[..2], &inner[2..4]), (&[0, 0][..], &ethertype[..]));
        inner = &inner[4..];
    } else {
        let expected = if inner[0] >> 4 == 4 { 4 } else { 41 };
        assert_eq!(protocol, expected);
    }
    Outer {
        source,
        destination,
        ports,
        gre: protocol == 47,
        traffic_class,
        hop_limit,
        dont_fragment,
        inner: inner.to_vec(),
    }
}

/// The Internet checksum's sum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let pairs = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = pairs.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// An IP packet must be from `source` to the service, with right checksums; gives what it carries.
fn to_service(packet: &[u8], source: SocketAddr, service: SocketAddr) -> Vec<u8> {
    let sliced = SlicedPacket::from_ip(packet).unwrap();
    let addresses: (IpAddr, IpAddr) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => panic!("no IP"),
    };
    assert_eq!(addresses, (source.ip(), service.ip()));
    let (ports, header, payload) = match sliced.transport.as_ref().unwrap() {
        TransportSlice::Tcp(tcp) => ((tcp.source_port(), tcp.destination_port()), tcp.slice(), tcp.payload().to_vec()),
        TransportSlice::Udp(udp) => ((udp.source_port(), udp.destination_port()), udp.slice(), udp.payload().to_vec()),
        other => panic!("{other:?}"),
    };
    assert_eq!(ports, (source.port(), service.port()));
    let protocol = if matches!(sliced.transport, Some(TransportSlice::Tcp(_))) { 6 } else { 17 };
    let v4 = packet[0] >> 4 == 4;
    let addresses = if v4 { &packet[12..20] } else { &packet[8..40] };
    let length = u16::try_from(header.len()).unwrap().to_be_bytes();
    assert_eq!(sum(&[addresses, &[0, protocol], &length, header].concat()), 0xffff, "the segment's checksum");
    payload
}

/// A datagram's frame as this way has it.
fn datagram(far: &Socket, ways: &ProbeWays, backend: &str, way: &Way) -> (UdpSocket, Vec<u8>) {
    let backend: SocketAddr = backend.parse().unwrap();
    let any: SocketAddr = if backend.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any).unwrap();
    ways.sockets().hang_on(socket.as_fd(), &way.entry(backend)).unwrap();
    socket.connect(backend).unwrap();
    assert_eq!(ways.sockets().sent(socket.as_fd()).unwrap(), 0);
    socket.send(b"a question").unwrap();
    let frame = next_frame(far, |frame| frame.windows(10).any(|bytes| bytes == b"a question"));
    assert_eq!(ways.sockets().sent(socket.as_fd()).unwrap(), 1);
    assert_eq!(frame[6..12], OURS);
    (socket, frame)
}

fn loaded(hook: Hook) -> ProbeWays {
    let mut ways = ProbeWays::load(hook).unwrap();
    ways.attach(ifindex("w0").unwrap(), "w0").unwrap();
    ways
}

/// Every hook that this kernel has.
fn hooks() -> Vec<Hook> {
    let own = Hook::of_kernel();
    if own == Hook::Tcx { vec![Hook::Tcx, Hook::Netlink] } else { vec![own] }
}

#[test]
fn by_mac_only_address_and_port_change() {
    for hook in hooks() {
        for (backend, service) in [(BACKEND4, SERVICE4), (BACKEND6, SERVICE6)] {
            Lab::run(move |far| {
                let ways = loaded(hook);
                let (socket, frame) = datagram(far, &ways, backend, &way(service, None));
                let payload = to_service(&frame[14..], socket.local_addr().unwrap(), service.parse().unwrap());
                assert_eq!(payload, b"a question");
                assert_eq!(ways.sockets().counts().unwrap().sent, 1);
            });
        }
    }
}

#[test]
fn tunnels_are_as_the_data_path_makes_them() {
    let families = [(BACKEND4, SERVICE4, "192.0.2.0"), (BACKEND6, SERVICE6, "2001:db8:ff::")];
    for (backend, service, prefix) in families {
        for mode in TUNNELS {
            Lab::run(move |far| {
                let ways = loaded(Hook::of_kernel());
                let own = way(service, Some(tunnel(mode, None, 0, DontFragment::Copy)));
                let (socket, frame) = datagram(far, &ways, backend, &own);
                let local = socket.local_addr().unwrap();
                let outer = unpack(&frame);
                let peer: SocketAddr = backend.parse().unwrap();
                assert_eq!((outer.source, outer.destination), (local.ip(), peer.ip()));
                assert_eq!(outer.ports.map(|(_, to)| to), gue_port(mode));
                assert_eq!(outer.gre, mode == Mode::DsrGre);
                assert!(outer.ports.is_none_or(|(from, _)| from >= 0xc000));
                assert_eq!((outer.traffic_class, outer.hop_limit, outer.dont_fragment), (0, 64, true));
                assert_eq!(to_service(&outer.inner, local, service.parse().unwrap()), b"a question");

                // A source from a prefix, and fragments on the way.
                let chosen = way(service, Some(tunnel(mode, Some(prefix), 8, DontFragment::Clear)));
                let (socket, frame) = datagram(far, &ways, backend, &chosen);
                let outer = unpack(&frame);
                let octets = |ip: IpAddr| match ip {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                let (from, prefix) = (octets(outer.source), octets(prefix.parse().unwrap()));
                assert_eq!(from[..from.len() - 1], prefix[..prefix.len() - 1]);
                assert_eq!(outer.dont_fragment, peer.is_ipv6());
                to_service(&outer.inner, socket.local_addr().unwrap(), service.parse().unwrap());
            });
        }
    }
}

#[test]
fn a_connection_goes_the_same_way_with_its_checksums_whole() {
    for (backend, service) in [(BACKEND4, SERVICE4), (BACKEND6, SERVICE6)] {
        Lab::run(move |far| {
            let ways = loaded(Hook::of_kernel());
            let backend: SocketAddr = backend.parse().unwrap();
            for mode in TUNNELS {
                let socket = Socket::new(Domain::for_address(backend), Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let way = way(service, Some(tunnel(mode, None, 0, DontFragment::Copy)));
                ways.sockets().hang_on(socket.as_fd(), &way.entry(backend)).unwrap();
                let begun = socket.connect(&backend.into()).unwrap_err();
                assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
                let local = socket.local_addr().unwrap().as_socket().unwrap();
                let port = local.port().to_be_bytes();
                let frame = next_frame(far, |frame| frame.windows(2).skip(34).any(|bytes| bytes == port));
                let outer = unpack(&frame);
                assert!(to_service(&outer.inner, local, service.parse().unwrap()).is_empty());
            }
        });
    }
}

#[test]
fn answers_of_the_services_address_come_to_the_probes_socket_alone() {
    for hook in hooks() {
        for (backend, service) in [(BACKEND4, SERVICE4), (BACKEND6, SERVICE6)] {
            Lab::run(move |far| {
                let ways = loaded(hook);
                let (socket, _) = datagram(far, &ways, backend, &way(service, None));
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let (local, service) = (socket.local_addr().unwrap(), service.parse().unwrap());
                // One to another port of ours, one from another port of theirs, and the right one.
                let other = |address: SocketAddr| SocketAddr::new(address.ip(), address.port() ^ 1);
                far.send(&reply(service, other(local), b"wrong")).unwrap();
                far.send(&reply(other(service), local, b"wrong")).unwrap();
                far.send(&reply(service, local, b"an answer")).unwrap();
                let mut bytes = [0; 64];
                let len = socket.recv(&mut bytes).unwrap();
                assert_eq!(&bytes[..len], b"an answer");
                assert_eq!(ways.sockets().counts().unwrap().answered, 1);
            });
        }
    }
}

/// A datagram from the service's address.
fn reply(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let ethernet = PacketBuilder::ethernet2(THEIRS, OURS);
    let network = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
        _ => panic!("two families"),
    };
    network.udp(from.port(), to.port()).write(&mut frame, payload).unwrap();
    frame
}

#[test]
fn sockets_without_a_way_are_left_alone() {
    Lab::run(|far| {
        let ways = loaded(Hook::of_kernel());
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect(BACKEND4).unwrap();
        socket.send(b"somebody else's").unwrap();
        let frame = next_frame(far, |frame| frame.windows(15).any(|bytes| bytes == b"somebody else's"));
        to_service(&frame[14..], socket.local_addr().unwrap(), BACKEND4.parse().unwrap());
        assert_eq!(ways.sockets().counts().unwrap(), Default::default());
    });
}

#[test]
fn filters_put_on_by_netlink_are_there_once_and_what_is_left_is_swept() {
    Lab::run(|_| {
        let filters = || {
            let show = |side| Command::new("tc").args(["filter", "show", "dev", "w0", side]).output().unwrap().stdout;
            let text = [show("egress"), show("ingress")].concat();
            String::from_utf8(text).unwrap().lines().filter(|line| line.contains("lb_probe_")).count()
        };
        let killed = loaded(Hook::Netlink);
        assert_eq!(filters(), 2);
        // As if its agent had been killed: nothing is taken off.
        std::mem::forget(killed);
        let next = loaded(Hook::Netlink);
        assert_eq!(filters(), 2, "in the place of the old ones");
        drop(next);
        assert_eq!(filters(), 0);
        std::mem::forget(loaded(Hook::Netlink));
        sweep();
        assert_eq!(filters(), 0);
    });
}
