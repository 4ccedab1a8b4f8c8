//! Databases on the backends of a world, and who manages them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use xtask::{
    shell,
    world::{Family, Namespace, Process, World, plan::backend_name, process},
};

use super::session::Dialect;

/// What a loaded machine may need to start a server, or to let it do something large.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The work of a cluster's manager, which decides who is the primary; the balancer only sees it.
pub trait Cluster {
    fn dialect(&self) -> Dialect;

    /// How many servers there are; the first one begins as the primary.
    fn servers(&self) -> usize;

    /// The check's type, and what it logs in with.
    fn check(&self) -> String;

    /// How far behind replicas may be, as configured; and in time.
    fn max_lag(&self) -> (&'static str, Duration);

    /// Nobody writes any more: the one takes the other's place, without a loss, and the other follows.
    fn hand_over(&mut self, from: usize, to: usize);

    /// The server dies with its whole state in memory.
    fn kill(&mut self, server: usize);

    /// Makes one of those that are left the primary.
    fn fail_over(&mut self) -> usize;

    /// The server comes back, and knows nothing of what happened since it died.
    fn come_back(&mut self, server: usize);

    /// Whose history is ahead of all others'; `None`: nobody's.
    fn is_ahead(&self, current: usize, other: usize) -> Option<usize>;

    /// From now on the replica takes nothing of the primary in; and again.
    fn fall_behind(&mut self, replica: usize);
    fn catch_up(&mut self, replica: usize);

    /// The primary takes no writes any more.
    fn demote(&mut self, primary: usize);
}

/// Servers of one kind with a folder each, without rights of root.
pub struct Hosts<'w> {
    pub world: &'w World,
    pub folder: TempDir,
    program: &'static str,
    running: Vec<Option<Process>>,
}

impl<'w> Hosts<'w> {
    /// # Panics
    /// The program is not there.
    pub fn new(world: &'w World, program: &'static str, servers: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("lb-e2e-db-").tempdir().unwrap();
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        Self { world, folder, program, running: (0..servers).map(|_| None).collect() }
    }

    /// A server's folder, which it makes itself.
    pub fn path(&self, server: usize, name: &str) -> PathBuf {
        self.folder.path().join(format!("{}-{name}", self.name(server)))
    }

    /// `web1` is the first.
    pub fn name(&self, server: usize) -> String {
        backend_name(server as u8)
    }

    pub fn host(&self, server: usize) -> &'w Namespace {
        &self.world.backends[server]
    }

    pub fn address(&self, server: usize) -> String {
        Family::V4.backend(server as u8).to_string()
    }

    /// A program of the server's host.
    ///
    /// # Panics
    /// It is not installed.
    pub fn command(&self, server: usize, program: &Path, arguments: &[String]) -> Command {
        let found =
            if program.is_absolute() { Some(program.to_owned()) } else { shell::find(program.to_str().unwrap()) };
        let found = found.filter(|path| path.exists());
        let found = found.unwrap_or_else(|| panic!("there is no {program:?}: `cargo xtask setup --test` installs it"));
        let mut command = self.host(server).command("setpriv");
        let nobody = NOBODY.to_string();
        command.args(["--reuid", &nobody, "--regid", &nobody, "--clear-groups"]).arg(found).args(arguments);
        command.env("LC_ALL", "C").current_dir("/");
        command
    }

    /// Starts a server; whether it is ready is for the caller to find out.
    pub fn start(&mut self, server: usize, program: &Path, arguments: &[String]) {
        let mut command = self.command(server, program, arguments);
        let log = self.path(server, "log");
        self.running[server] = Some(Process::start(self.program, &mut command, &log).unwrap());
    }

    /// Runs an administrator's program until it succeeds.
    pub fn until(&self, what: &str, server: usize, mut ask: impl FnMut() -> Result<()>) {
        let log = self.path(server, "log");
        process::until(what, PATIENCE, &mut ask)
            .unwrap_or_else(|error| panic!("{error:#}\n{}", process::tail(&log, 30)));
    }

    /// SIGTERM or another signal to the server, and its end.
    pub fn end(&mut self, server: usize, signal: Signal) {
        let mut process = self.running[server].take().expect("it runs");
        process.signal(signal).unwrap();
        process.wait(PATIENCE).unwrap();
    }

    /// SIGKILL to all processes of the server, whatever groups they made.
    pub fn kill(&mut self, server: usize) {
        let begun = Instant::now();
        drop(self.running[server].take());
        loop {
            let listed = shell::output(shell::tool("ip").args(["netns", "pids", self.host(server).name()])).unwrap();
            let its = |pid: &&str| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == self.program)
            };
            let left: Vec<_> = listed.lines().map(str::trim).filter(its).collect();
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{left:?} do not die");
            for pid in left {
                // Gone meanwhile: fine.
                let _ = kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

const NOBODY: u32 = 65534;
