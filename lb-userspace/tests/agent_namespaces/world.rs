//! Three hosts as network namespaces, a real agent between them, and the command line to ask it.
//! Needs root.
//!
//! ```text
//! client: c0 10.98.0.2 ---- lbc 10.98.0.1 :balancer: 10.97.0.1 lbs ---- s0 10.97.0.11, .12 :servers
//! ```

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde_json::Value;

pub const VIP: &str = "10.98.0.100";
pub const ONE: &str = "10.97.0.11:8080";
pub const TWO: &str = "10.97.0.12:8080";

/// Waiting for anything takes at most this long: under emulation the verifier alone takes half a minute.
const PATIENCE: Duration = Duration::from_secs(90);

pub struct World {
    pub balancer: Namespace,
    pub client: Namespace,
    pub servers: Namespace,
    dir: tempfile::TempDir,
    pin_dir: PathBuf,
}

impl World {
    pub fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test makes network namespaces and needs root: run it as `sudo -E cargo test`"
        );
        let [balancer, client, servers] = ["b", "c", "s"].map(Namespace::new);
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/{}", balancer.name));
        let world = Self { balancer, client, servers, dir: tempfile::tempdir().unwrap(), pin_dir };
        world.wire(&world.client, "c0", "lbc", "10.98.0.1/24");
        world.wire(&world.servers, "s0", "lbs", "10.97.0.1/24");
        world.client.ip(&["addr", "add", "10.98.0.2/24", "dev", "c0"]);
        for address in ["10.97.0.11/24", "10.97.0.12/24"] {
            world.servers.ip(&["addr", "add", address, "dev", "s0"]);
        }
        world
    }

    /// Lets another user run the agent: gives it a directory with the program and the configuration,
    /// the state and the pins.
    pub fn for_user(&self, user: u32) -> PathBuf {
        use std::os::unix::fs::{PermissionsExt as _, chown};
        let base = self.dir.path();
        fs::set_permissions(base, fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_lb"), base.join("lb")).unwrap();
        fs::create_dir_all(self.pin_dir.join("lb")).unwrap();
        for path in [base, &base.join("lb.toml"), &self.pin_dir, &self.pin_dir.join("lb")] {
            chown(path, Some(user), Some(user)).unwrap();
        }
        base.to_owned()
    }

    /// Makes the wire to the client, which was there before, anew.
    pub fn plug_in_again(&self) {
        self.wire(&self.client, "c0", "lbc", "10.98.0.1/24");
        self.client.ip(&["addr", "add", "10.98.0.2/24", "dev", "c0"]);
    }

    fn wire(&self, far: &Namespace, far_end: &str, near_end: &str, address: &str) {
        far.ip(&["link", "add", far_end, "type", "veth", "peer", "name", near_end, "netns", &self.balancer.name]);
        self.balancer.ip(&["addr", "add", address, "dev", near_end]);
        for (namespace, end) in [(far, far_end), (&self.balancer, near_end)] {
            namespace.ip(&["link", "set", end, "up"]);
            // Checksums that a local stack leaves to the card are lost by XDP on veth; and the end
            // that XDP sends to must poll (GRO).
            namespace.run("ethtool", &["-K", end, "tx", "off", "gro", "on"]);
        }
    }

    /// Writes the configuration file: both servers behind one service, checked every 100 ms.
    pub fn configure(&self, interfaces: &[&str], ports: &[u16]) -> PathBuf {
        PathBuf::from(self.write("lb.toml", &self.text(interfaces, ports)))
    }

    /// What [`World::configure`] writes.
    pub fn text(&self, interfaces: &[&str], ports: &[u16]) -> String {
        let mut text = format!("interfaces = {interfaces:?}\n");
        for port in ports {
            text.push_str(&format!(
                "[[service]]\nname = \"web{port}\"\nlisten = \"{VIP}:{port}\"\nmode = \"full-nat\"\n\
                 [service.health]\ntype = \"tcp\"\ninterval = \"100ms\"\ntimeout = \"90ms\"\n\
                 [[service.backend]]\naddress = \"{ONE}\"\n[[service.backend]]\naddress = \"{TWO}\"\n"
            ));
        }
        text
    }

    /// Writes a file beside the configuration; its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// A command line of this world: `place` keeps several balancers apart.
    pub fn lb(&self, place: &str, arguments: &[&str]) -> Command {
        let mut command = self.balancer.command(env!("CARGO_BIN_EXE_lb"));
        let base = self.dir.path();
        command
            .args(arguments)
            .env("LB_SOCKET", base.join(format!("{place}.sock")))
            .env("LB_STATE_DIR", base.join(format!("{place}.state")))
            .env("LB_PIN_DIR", self.pin_dir.join(place))
            .stdin(Stdio::null());
        command
    }

    pub fn asks(&self, arguments: &[&str]) -> Output {
        self.lb("lb", arguments).output().unwrap()
    }

    /// The JSON document of a command that must succeed.
    pub fn document(&self, arguments: &[&str]) -> Value {
        let output = self.asks(&[arguments, &["-o", "json"]].concat());
        let said = || format!("{}{}", text(&output.stderr), text(&output.stdout));
        assert!(output.status.success(), "{arguments:?}: {}", said());
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Runs the agent and waits until `services` of two backends each serve.
    pub fn run(&self, services: usize) -> Agent {
        let agent = self.run_any(services);
        assert_eq!(self.asks(&["status"]).status.code(), Some(0));
        agent
    }

    /// The same, whichever configuration it found.
    pub fn run_any(&self, services: usize) -> Agent {
        self.run_used(services, 2)
    }

    /// The same, until so many backends of each service are used.
    pub fn run_used(&self, services: usize, used: usize) -> Agent {
        let config = self.dir.path().join("lb.toml");
        let mut command = self.lb("lb", &["run", "--config", config.to_str().unwrap()]);
        let agent = Agent { child: command.stderr(Stdio::piped()).spawn().unwrap(), log: None }.reading();
        self.until("all backends to be used", || {
            let output = self.asks(&["status", "-o", "json"]);
            let Ok(status) = serde_json::from_slice::<Value>(&output.stdout) else { return false };
            let all = status["services"].as_array().unwrap();
            all.len() == services && all.iter().all(|service| service["used"] == used)
        });
        agent
    }

    pub fn until(&self, what: &str, mut seen: impl FnMut() -> bool) {
        let began = Instant::now();
        while !seen() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What a client gets from `port` of the service address, in one connection.
    pub fn get(&self, port: u16) -> std::io::Result<String> {
        self.try_connect(port)?.ask()
    }

    /// A connection that has not asked for anything yet.
    pub fn connect(&self, port: u16) -> Connection {
        self.try_connect(port).unwrap()
    }

    fn try_connect(&self, port: u16) -> std::io::Result<Connection> {
        let to = SocketAddr::new(VIP.parse().unwrap(), port);
        self.client.inside(move || {
            let stream = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            Ok(Connection(stream))
        })
    }

    /// As many requests, each of which must be answered; the answers, sorted.
    pub fn get_each(&self, count: usize) -> Vec<String> {
        let mut answers: Vec<String> = (0..count).map(|_| self.get(80).unwrap()).collect();
        answers.sort();
        answers
    }

    pub fn pins(&self, place: &str) -> PathBuf {
        self.pin_dir.join(place)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Pins outlive namespaces.
        for place in ["lb", "other"] {
            drop(self.lb(place, &["detach", "--force"]).output());
        }
        drop(fs::remove_dir(&self.pin_dir));
    }
}

/// A client's connection through the balancer; it stays in the client's namespace.
pub struct Connection(TcpStream);

impl Connection {
    /// The server's answer, which is its name.
    pub fn finish(self) -> String {
        self.ask().unwrap()
    }

    /// How the connection has ended while nothing was sent on it; `WouldBlock` while it is open.
    pub fn state(&self) -> std::io::ErrorKind {
        self.0.set_nonblocking(true).unwrap();
        // An error is told once.
        let state = self.0.peek(&mut [0]).map_or_else(|error| error.kind(), |_| std::io::ErrorKind::UnexpectedEof);
        self.0.set_nonblocking(false).unwrap();
        state
    }

    fn ask(mut self) -> std::io::Result<String> {
        self.0.write_all(b"?")?;
        let mut answer = String::new();
        self.0.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// A running `lb run`; killed when dropped.
pub struct Agent {
    child: Child,
    log: Option<thread::JoinHandle<String>>,
}

impl Agent {
    fn reading(mut self) -> Self {
        let mut stderr = self.child.stderr.take().unwrap();
        self.log = Some(thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).unwrap();
            log
        }));
        self
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends the signal; the exit code (none: killed) and the log.
    pub fn end(mut self, signal: Signal) -> (Option<i32>, String) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        (status.code(), self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Answers each connection with its name; its port is closed when it is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    address: SocketAddr,
    task: Option<thread::JoinHandle<()>>,
    namespace: String,
}

impl Server {
    pub fn start(world: &World, address: &str, name: &'static str) -> Self {
        let address: SocketAddr = address.parse().unwrap();
        let listener = world.servers.inside(move || TcpListener::bind(address).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(mut stream) = stream else { continue };
                thread::spawn(move || {
                    // A probe asks nothing.
                    if matches!(stream.read(&mut [0; 16]), Ok(1..)) {
                        drop(stream.write_all(name.as_bytes()));
                    }
                });
            }
        });
        Self { stop, address, task: Some(task), namespace: world.servers.name.clone() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let (address, namespace) = (self.address, self.namespace.clone());
        // Wakes the listener, in its own namespace.
        let woken = thread::spawn(move || {
            enter(&namespace).unwrap();
            TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        });
        if woken.join().unwrap_or(false) {
            self.task.take().unwrap().join().unwrap();
        }
    }
}

pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("lba-{}-{}-{role}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        assert!(Command::new("ip").args(["netns", "add", &name]).status().unwrap().success());
        let namespace = Self { name };
        namespace.ip(&["link", "set", "lo", "up"]);
        namespace
    }

    /// Not `ip netns exec`: that would give the command a mount namespace of its own, and with it
    /// pins of its own.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let namespace = File::open(format!("/var/run/netns/{}", self.name)).unwrap();
        let enter = move || Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?);
        // SAFETY: between fork and exec only one system call is made.
        unsafe { command.pre_exec(enter) };
        command
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.command(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn ip(&self, arguments: &[&str]) -> String {
        self.run("ip", arguments)
    }

    pub fn sysctl(&self, setting: &str) -> String {
        let path = format!("/proc/sys/{setting}");
        self.inside(move || fs::read_to_string(path).unwrap().trim_end().to_owned())
    }

    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.name).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["netns", "del", &self.name]).status());
    }
}

fn enter(namespace: &str) -> std::io::Result<()> {
    let namespace = File::open(format!("/var/run/netns/{namespace}"))?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
