//! What end-to-end tests share: a world with the real `lb` in it, whose packets and logs stay in
//! `target/e2e/<test>/` when the test fails.
#![allow(dead_code, reason = "each test file compiles this on its own and uses its part")]

pub mod arrivals;
pub mod clients;
pub mod dsr;
pub mod echo;
pub mod narrow;
pub mod tunnel_end;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use xtask::{
    build::{self, Profile},
    shell,
    world::{
        Balancer, Launch, Process, Topology, World, capture,
        config::{Config, Service},
        servers::Web,
    },
};

/// The program that stands in where there is no nginx.
pub const XTASK: &str = env!("CARGO_BIN_EXE_xtask");
pub const MODES: [&str; 2] = ["nat", "full-nat"];
/// Enough for anything that should be a matter of moments, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(15);

pub struct Stage {
    /// Ends before the world does.
    captures: Vec<Process>,
    pub world: World,
    folder: PathBuf,
}

impl Stage {
    /// A world of its own for the test of this name.
    pub fn new(test: &str, topology: Topology, backends: u8) -> Self {
        allow_many_files();
        let world = World::new(topology, backends).unwrap();
        let folder = shell::root().join("target/e2e").join(test);
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        fs::create_dir_all(&folder).unwrap();
        let captures = capture::start(&world, &folder).unwrap();
        Self { captures, world, folder }
    }

    /// A folder on disk for large files; kept when the test fails.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn webs(&self) -> Vec<Web> {
        Web::on_all(&self.world, Path::new(XTASK)).unwrap()
    }

    /// A web server whose files lie on disk instead of in memory.
    pub fn web_on_disk(&self, index: u8) -> Web {
        let files = self.folder.join(format!("files{index}"));
        fs::create_dir_all(&files).unwrap();
        let name = &self.world.backend_names()[usize::from(index)];
        std::os::unix::fs::symlink(&files, self.world.subfolder(name).unwrap().join("files")).unwrap();
        self.web(index)
    }

    pub fn web(&self, index: u8) -> Web {
        Web::start(&self.world, index, Path::new(XTASK)).unwrap()
    }

    /// The agent with these services, once each of them uses all of its backends.
    pub fn lb(&self, services: &[Service]) -> Balancer<'_> {
        let mut balancer = self.lb_at_once(&Config::new(self.world.topology, services.to_vec()));
        for service in services {
            balancer.wait_for_backends(&service.name, &service.backend_addresses(), PATIENCE).unwrap();
        }
        balancer
    }

    /// The agent, not necessarily ready yet.
    pub fn lb_at_once(&self, config: &Config) -> Balancer<'_> {
        self.lb_running(&config.render())
    }

    /// The same with this file.
    pub fn lb_running(&self, config: &str) -> Balancer<'_> {
        let launch = Launch { program: lb_program(), config, arguments: &[], log: &self.folder.join("lb.log") };
        Balancer::start(&self.world, &launch).unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.captures.clear();
        if thread::panicking() {
            give_back(&self.folder);
            eprintln!("packets and logs of this test are in {}", self.folder.display());
        } else if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("{} is left behind: {error}", self.folder.display());
        }
    }
}

/// Ordinary users, and sudo after them, begin with room for 1024 sockets.
fn allow_many_files() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

/// Files go to whoever called sudo, who will want to read and to remove them.
fn give_back(folder: &Path) {
    let (Ok(user), Ok(group)) = (std::env::var("SUDO_UID"), std::env::var("SUDO_GID")) else { return };
    if let Err(error) = shell::output(shell::tool("chown").args(["-R", &format!("{user}:{group}")]).arg(folder)) {
        eprintln!("{error:#}");
    }
}

/// The `lb` under test: built once, or given in the environment.
pub fn lb_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build::lb(Profile::Dev).unwrap())
}

/// Names of the entries of a folder; none if there is no such folder.
pub fn read_names(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Writes a file of random bytes and returns its SHA-256.
pub fn random_file(path: &Path, bytes: u64) -> String {
    let mut random = io::Read::take(fs::File::open("/dev/urandom").unwrap(), bytes);
    io::copy(&mut random, &mut fs::File::create(path).unwrap()).unwrap();
    sha256(path)
}

pub fn sha256(path: &Path) -> String {
    let line = shell::output(shell::tool("sha256sum").arg(path)).unwrap();
    line.split(' ').next().unwrap().to_owned()
}
