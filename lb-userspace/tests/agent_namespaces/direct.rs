//! Checks in the modes of direct server return go to the service's address, by the backend's MAC or through
//! its tunnel: what clients cannot use is found down, though the backend's own address answers.
//!
//! ```text
//! :balancer: 10.96.1.1, fd00:96:1::1 lbs1 ---- s0 10.96.1.11, fd00:96:1::11 :one:
//!            10.96.2.1, fd00:96:2::1 lbs2 ---- s0 10.96.2.11, fd00:96:2::11 :two:
//! ```

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::programs::{SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use lb_userspace::dataplane::kernel::probe_ways::Hook;
use rustix::process::Signal;
use serde_json::Value;

use crate::world::{Agent, Namespace, World, text};

const VIP4: &str = "10.98.0.100";
const VIP6: &str = "fd00:98::100";
const PORT: u16 = 80;

/// A balancer with two backends that have the service's addresses too.
struct Direct {
    backends: [Backend; 2],
    world: World,
    vip: IpAddr,
    /// Of the family of the backends' own addresses.
    like: IpAddr,
    mode: &'static str,
}

impl Direct {
    fn new(mode: &'static str, vip: &str) -> Self {
        Self::across(mode, vip, vip)
    }

    /// With backends that have addresses of the family of `like`.
    fn across(mode: &'static str, vip: &str, like: &str) -> Self {
        let world = World::new();
        let backends = [1, 2].map(|n| Backend::new(&world, n));
        let direct = Self { backends, world, vip: vip.parse().unwrap(), like: like.parse().unwrap(), mode };
        for backend in &direct.backends {
            backend.take_service_address(direct.vip);
            direct.unpack(backend);
        }
        direct
    }

    /// Runs the agent with one service that is checked so, and waits until both backends serve.
    fn run(&self, protocol: &str, health: &str) -> Agent {
        self.configure(protocol, health);
        self.world.run(1)
    }

    fn configure(&self, protocol: &str, health: &str) {
        let listen = SocketAddr::new(self.vip, PORT);
        let mut text = format!(
            "interfaces = [\"lbc\", \"lbs1\", \"lbs2\"]\n[[service]]\nname = \"web\"\nlisten = \"{listen}\"\n\
             protocol = \"{protocol}\"\nmode = \"{}\"\n[service.health]\ninterval = \"100ms\"\ntimeout = \"90ms\"\n{health}\n",
            self.mode
        );
        for backend in &self.backends {
            text.push_str(&format!("[[service.backend]]\naddress = \"{}\"\n", backend.own(self.like)));
        }
        self.world.write("lb.toml", &text);
    }

    /// Has a backend unpack the tunnels of the mode.
    fn unpack(&self, backend: &Backend) {
        if self.mode != "dsr-l2" {
            let from = backend.balancer(self.like).to_string();
            let vip = self.vip.to_string();
            backend.lb(&["decap", "--iface", "s0", "--vip", &vip, "--from", &from, "--background"]);
        }
    }

    /// What is known of each backend.
    fn health(&self) -> [Value; 2] {
        let list = self.world.document(&["backend", "list", "web"]);
        [0, 1].map(|n| list["backends"][n]["health"].clone())
    }

    fn until_states(&self, states: [&str; 2]) {
        self.world.until(&format!("the states {states:?}"), || {
            let health = self.health();
            [0, 1].iter().all(|&n| health[n]["state"] == states[n])
        });
    }

    /// The own address of a backend answers, as it always did.
    fn own_address_answers(&self, backend: &Backend) {
        let own = backend.own(self.like);
        let answer = self.world.balancer.inside(move || TcpStream::connect_timeout(&own, Duration::from_secs(3)));
        answer.unwrap_or_else(|error| panic!("{own}: {error}"));
    }

    /// How many programs with this name are on an interface of the balancer.
    fn programs(&self, interface: &str, name: &str) -> usize {
        let (egress, interface, name) = (name == "lb_probe_out", interface.to_owned(), name.to_owned());
        self.world.balancer.inside(move || match Hook::of_kernel() {
            Hook::Tcx => {
                let side = if egress { TcAttachType::Egress } else { TcAttachType::Ingress };
                let (_, programs) = SchedClassifier::query_tcx(&interface, side).unwrap();
                programs.iter().filter(|program| program.name_as_str() == Some(&name)).count()
            }
            Hook::Netlink => {
                let side = if egress { "egress" } else { "ingress" };
                let shown = Command::new("tc").args(["filter", "show", "dev", &interface, side]).output().unwrap();
                text(&shown.stdout).lines().filter(|line| line.contains(&name)).count()
            }
        })
    }
}

struct Backend {
    namespace: Namespace,
    number: u8,
    pin_dir: PathBuf,
}

impl Backend {
    fn new(world: &World, number: u8) -> Self {
        let namespace = Namespace::new(&format!("d{number}"));
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/{}", namespace.name));
        // As `lb doctor --backend` wants it: a host that has the service's address too does not answer who asks from it.
        namespace.inside(|| {
            for (setting, value) in [("arp_announce", "2"), ("arp_ignore", "1")] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/all/{setting}"), value).unwrap();
            }
        });
        let backend = Self { namespace, number, pin_dir };
        backend.wire(world);
        backend
    }

    /// Makes the wire to the balancer.
    fn wire(&self, world: &World) {
        let near = format!("lbs{}", self.number);
        let n = self.number;
        self.namespace.ip(&["link", "add", "s0", "type", "veth", "peer", "name", &near, "netns", &world.balancer.name]);
        for (namespace, end, host) in [(&self.namespace, "s0", "11"), (&world.balancer, near.as_str(), "1")] {
            namespace.ip(&["addr", "add", &format!("10.96.{n}.{host}/24"), "dev", end]);
            namespace.ip(&["addr", "add", &format!("fd00:96:{n}::{host}/64"), "dev", end, "nodad"]);
            namespace.ip(&["link", "set", end, "up"]);
            namespace.run("ethtool", &["-K", end, "tx", "off", "gro", "on"]);
        }
    }

    fn own(&self, like: IpAddr) -> SocketAddr {
        SocketAddr::new(self.address(like, "11"), PORT)
    }

    /// The balancer's address towards it.
    fn balancer(&self, like: IpAddr) -> IpAddr {
        self.address(like, "1")
    }

    fn address(&self, like: IpAddr, host: &str) -> IpAddr {
        let n = self.number;
        let address = if like.is_ipv4() { format!("10.96.{n}.{host}") } else { format!("fd00:96:{n}::{host}") };
        address.parse().unwrap()
    }

    fn take_service_address(&self, vip: IpAddr) {
        self.namespace.ip(&["addr", "add", &vip.to_string(), "dev", "lo"]);
    }

    fn lose_service_address(&self, vip: IpAddr) {
        let host = format!("{vip}/{}", if vip.is_ipv4() { 32 } else { 128 });
        self.namespace.ip(&["addr", "del", &host, "dev", "lo"]);
    }

    fn lb(&self, arguments: &[&str]) {
        let mut command = self.namespace.command(env!("CARGO_BIN_EXE_lb"));
        command.args(arguments).env("LB_PIN_DIR", &self.pin_dir).stdin(Stdio::null());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // Pins outlive namespaces.
        if self.pin_dir.exists() {
            self.lb(&["decap", "off"]);
        }
    }
}

/// Accepts connections on every address of a backend, and notes which address each was made to.
struct Web {
    asked: Arc<Mutex<BTreeSet<IpAddr>>>,
    stop: Arc<AtomicBool>,
}

impl Web {
    fn start(backend: &Backend) -> Self {
        // Of both families.
        let any = SocketAddr::from(([0; 16], PORT));
        let listener = backend.namespace.inside(move || TcpListener::bind(any).unwrap());
        listener.set_nonblocking(true).unwrap();
        let web = Self { asked: Arc::default(), stop: Arc::default() };
        let (asked, stop) = (Arc::clone(&web.asked), Arc::clone(&web.stop));
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        asked.lock().unwrap().insert(stream.local_addr().unwrap().ip().to_canonical());
                        // A check says nothing and hangs up.
                        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
                        drop(stream.read(&mut [0; 16]));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        });
        web
    }

    fn asked(&self) -> BTreeSet<IpAddr> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// Answers datagrams to one address until it is dropped; then its port is closed.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(backend: &Backend, address: IpAddr) -> Self {
        let socket = backend.namespace.inside(move || UdpSocket::bind((address, PORT)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut bytes = [0; 64];
            while !stops.load(Ordering::SeqCst) {
                if let Ok((len, from)) = socket.recv_from(&mut bytes) {
                    drop(socket.send_to(&bytes[..len], from));
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

fn what_clients_cannot_use_is_down(mode: &'static str, vip: &str) {
    down_without_the_service(Direct::new(mode, vip));
}

fn down_without_the_service(direct: Direct) {
    let mode = direct.mode;
    let [one, two] = &direct.backends;
    let webs = [one, two].map(Web::start);
    let agent = direct.run("tcp", "");
    // The service's address is on the balancer too.
    assert!(direct.world.balancer.ip(&["addr", "show"]).contains(&direct.vip.to_string()));
    for (health, web) in direct.health().iter().zip(&webs) {
        assert_eq!(health["askedAt"], "service");
        // "L4OK, 2 of 2" where the first check came before the backend had its IPv6 address.
        assert!(health["reason"].as_str().unwrap().starts_with("L4OK"), "{health}");
        assert_eq!(web.asked(), BTreeSet::from([direct.vip]), "what clients use is what is asked");
    }

    one.lose_service_address(direct.vip);
    direct.until_states(["down", "up"]);
    direct.own_address_answers(one);
    one.take_service_address(direct.vip);
    direct.until_states(["up", "up"]);

    if mode != "dsr-l2" {
        two.lb(&["decap", "off"]);
        direct.until_states(["up", "down"]);
        direct.own_address_answers(two);
        direct.unpack(two);
        direct.until_states(["up", "up"]);
    }

    let ways = direct.world.document(&["status"])["dataPath"]["ways"].clone();
    assert_eq!((&ways["backends"], &ways["interfaces"]), (&2.into(), &serde_json::json!(["lbs1", "lbs2"])));
    assert_eq!((&ways["dropped"], &ways["problem"]), (&0.into(), &Value::Null));
    assert!(ways["sent"].as_u64() > Some(5) && ways["answered"].as_u64() > Some(5), "{ways}");
    drop(agent);
}

#[test]
fn a_check_goes_to_the_services_ipv4_address_by_the_backends_mac() {
    what_clients_cannot_use_is_down("dsr-l2", VIP4);
}

#[test]
fn a_check_goes_to_the_services_ipv6_address_by_the_backends_mac() {
    what_clients_cannot_use_is_down("dsr-l2", VIP6);
}

#[test]
fn a_check_goes_to_the_services_ipv4_address_through_an_ip_tunnel() {
    what_clients_cannot_use_is_down("dsr-ipip", VIP4);
}

#[test]
fn a_check_goes_to_the_services_ipv6_address_through_an_ip_tunnel() {
    what_clients_cannot_use_is_down("dsr-ipip", VIP6);
}

#[test]
fn a_check_goes_to_the_services_ipv4_address_through_a_udp_tunnel() {
    what_clients_cannot_use_is_down("dsr-gue", VIP4);
}

#[test]
fn a_check_goes_to_the_services_ipv6_address_through_a_udp_tunnel() {
    what_clients_cannot_use_is_down("dsr-gue", VIP6);
}

#[test]
fn a_check_goes_to_a_services_ipv6_address_through_a_tunnel_to_an_ipv4_backend() {
    for mode in ["dsr-ipip", "dsr-gue"] {
        down_without_the_service(Direct::across(mode, VIP6, VIP4));
    }
}

#[test]
fn a_check_goes_to_a_services_ipv4_address_through_a_tunnel_to_an_ipv6_backend() {
    for mode in ["dsr-ipip", "dsr-gue"] {
        down_without_the_service(Direct::across(mode, VIP4, VIP6));
    }
}

#[test]
fn a_datagram_to_a_closed_port_of_the_services_address_is_refused() {
    for (mode, vip) in [("dsr-l2", VIP4), ("dsr-ipip", VIP6)] {
        let direct = Direct::new(mode, vip);
        let [one, two] = &direct.backends;
        let (_stays, ends) = (Echo::start(one, direct.vip), Echo::start(two, direct.vip));
        let agent = direct.run("udp", "type = \"udp\"\nsend = \"ping\"\nreceive = \"ping\"");
        drop(ends);
        direct.until_states(["up", "down"]);
        let reason = direct.health()[1]["reason"].to_string();
        assert!(reason.contains("refused"), "{reason}");
        drop(agent);
    }
}

#[test]
fn datagrams_of_checks_go_to_the_services_address_too() {
    for mode in ["dsr-l2", "dsr-ipip", "dsr-gue"] {
        let direct = Direct::new(mode, VIP4);
        // On every address a server of its own, which answers from where it was asked.
        let _echoes: Vec<Echo> = direct
            .backends
            .iter()
            .flat_map(|backend| [direct.vip, backend.own(direct.vip).ip()].map(|address| Echo::start(backend, address)))
            .collect();
        let agent = direct.run("udp", "type = \"udp\"\nsend = \"ping\"\nreceive = \"ping\"");
        assert!(direct.health().iter().all(|health| health["askedAt"] == "service"));
        direct.backends[1].lose_service_address(direct.vip);
        direct.until_states(["up", "down"]);
        direct.backends[1].take_service_address(direct.vip);
        direct.until_states(["up", "up"]);
        drop(agent);
    }
}

#[test]
fn the_programs_of_checks_come_once_follow_interfaces_and_go() {
    let direct = Direct::new("dsr-l2", VIP4);
    let [one, two] = &direct.backends;
    let _webs = [one, two].map(Web::start);
    let agent = direct.run("tcp", "");
    let counts =
        || ["lbs1", "lbs2", "lbc"].map(|on| ["lb_probe_out", "lb_probe_in"].map(|name| direct.programs(on, name)));
    assert_eq!(counts(), [[1, 1], [1, 1], [0, 0]]);

    // An agent that is killed, and another. Filters, which kernels without links have, do not end with it.
    agent.end(Signal::KILL);
    let linked = KernelVersion::current().unwrap() >= KernelVersion::new(6, 6, 0);
    assert_eq!(counts(), if linked { [[0, 0]; 3] } else { [[1, 1], [1, 1], [0, 0]] });
    let agent = direct.world.run(1);
    // Backends keep their state until its first checks.
    direct.world.until("the programs to come back", || counts() == [[1, 1], [1, 1], [0, 0]]);

    // An interface that goes and comes.
    one.namespace.ip(&["link", "del", "s0"]);
    direct.until_states(["down", "up"]);
    one.wire(&direct.world);
    direct.until_states(["up", "up"]);
    direct.world.until("the way of the first backend's checks", || direct.health()[0]["askedAt"] == "service");
    assert_eq!(counts(), [[1, 1], [1, 1], [0, 0]]);

    // Nobody needs them any more.
    direct.configure("tcp", "via = \"backend\"");
    agent.signal(Signal::HUP);
    direct.world.until("the programs to go", || counts() == [[0, 0]; 3]);
    assert!(direct.health().iter().all(|health| health["askedAt"] == "backend"));
    assert!(direct.world.document(&["status"])["dataPath"]["ways"].is_null());
    direct.configure("tcp", "");
    agent.signal(Signal::HUP);
    direct.world.until("the programs to come", || counts() == [[1, 1], [1, 1], [0, 0]]);

    assert_eq!(direct.world.asks(&["detach", "--force"]).status.code(), Some(0));
    assert_eq!(counts(), [[0, 0]; 3]);
    drop(agent);
}

#[test]
fn where_checks_cannot_go_to_the_services_address_that_is_told() {
    let direct = Direct::new("dsr-ipip", VIP4);
    let [one, two] = &direct.backends;
    let _webs = [one, two].map(Web::start);
    let agent = direct.run("tcp", "");
    // The way to the second backend is over an interface without Ethernet addresses from now on.
    let balancer = &direct.world.balancer;
    balancer.ip(&["tuntap", "add", "dev", "tun0", "mode", "tun"]);
    balancer.ip(&["link", "set", "tun0", "up"]);
    balancer.ip(&["route", "add", "10.96.2.11/32", "dev", "tun0"]);
    direct.until_states(["up", "down"]);
    direct.world.until("the reason", || direct.health()[1]["askedAt"] == "backend");
    let [first, second] = direct.health();
    assert_eq!(first["askedAt"], "service");
    assert_eq!(second["askedAtReason"], "tun0 has no Ethernet addresses");
    let status = direct.world.asks(&["status"]);
    let shown = text(&status.stdout);
    assert!(shown.contains("its checks go to its own address, not to the service's: tun0"), "{shown}");
    assert!(shown.contains("asked at their own addresses instead: tun0 has no Ethernet addresses"), "{shown}");
    balancer.ip(&["link", "del", "tun0"]);
    direct.until_states(["up", "up"]);
    direct.world.until("the way", || direct.health()[1]["askedAt"] == "service");
    let log = agent.end(Signal::TERM).1;
    assert!(log.contains("checks cannot go to the addresses of services: tun0 has no Ethernet addresses"), "{log}");
}
